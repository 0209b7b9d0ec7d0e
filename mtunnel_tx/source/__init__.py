"""The other end: everything that sends a VM."""
