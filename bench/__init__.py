"""Measures what the relay costs, beside other relays; `make bench` runs it (docs/performance.md)."""
