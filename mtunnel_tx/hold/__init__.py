"""The holder: a program that outlives a daemon, and keeps what the next one needs to go on.

It keeps descriptors under names, and is the parent of programs that must not end with the daemon: disk imports and
workers. It knows nothing of what they are for. Standard library only: it is to start fast and to use little memory.

    daemon ── RUNTIME_DIR/hold.sock (SEQPACKET, one JSON object a message, with descriptors) ── holder

It serves one daemon at a time; a new connection takes the place of the one before. Without a connection it waits for
`restart_s`, then kills the programs, closes everything and ends; where it holds nothing, at once.
"""

VERSION = 1
"""Of what a holder and its daemon say to each other."""
