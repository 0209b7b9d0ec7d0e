"""How much a socket holds that nobody has read yet."""

from __future__ import annotations

import array
import fcntl
import socket
import termios


def count_unread(sock: socket.socket) -> int:
    """Bytes that wait to be read."""
    count = array.array("i", [0])
    fcntl.ioctl(sock, termios.FIONREAD, count)
    return count[0]
