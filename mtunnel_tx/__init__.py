"""mtunnel-tx: the receiving side of a virtual machine's move between clusters."""

__version__ = "0.1.0"
