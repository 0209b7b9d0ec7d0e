"""Sockets: TLS, HTTP, websockets, the relay, command lines."""
