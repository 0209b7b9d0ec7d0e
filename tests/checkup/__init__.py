"""Tests of what mtunnel check looks at."""
