"""The mtunnel command."""
