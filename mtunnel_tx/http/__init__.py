"""The HTTP API: endpoints, permissions, the websocket upgrade, and what is passed on to other nodes."""
