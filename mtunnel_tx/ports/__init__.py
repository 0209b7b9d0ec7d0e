"""The seams between the rooms and the world, as typing protocols.

`tunnel/` and `source/` know these; `backends/`, `stream/` and `net/` fill them in; `daemon` and `cli` join both.
"""
