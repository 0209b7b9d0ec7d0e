"""`python -m mtunnel_tx.cli`."""

import sys

from mtunnel_tx.cli.main import program

sys.exit(program())
