"""The mtunnel-pvesm command: volumes of some storage types."""
