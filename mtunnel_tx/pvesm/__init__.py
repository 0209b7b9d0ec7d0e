"""The mtunnel-pvesm command: volumes of a directory storage."""
