"""`python -m mtunnel_tx.pvesm`."""

import sys

from mtunnel_tx.pvesm.main import main

sys.exit(main())
