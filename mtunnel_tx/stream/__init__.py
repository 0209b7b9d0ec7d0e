"""Websockets joined with UNIX sockets: the relay, from the first byte to the end of both."""
