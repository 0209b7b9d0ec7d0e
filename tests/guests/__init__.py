"""Tests of what `mtunnel vm` does with guests."""
