"""Good and hostile traffic against one daemon, for long; run by `make soak`."""
