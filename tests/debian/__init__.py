"""A whole Debian is imported, started and moved while it runs; `make guests` does that. It takes minutes."""
