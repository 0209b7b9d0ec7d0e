"""`python -m mtunnel_tx.cli`."""

import sys

from mtunnel_tx.cli.main import main

sys.exit(main())
