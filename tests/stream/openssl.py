"""A TLS client by ctypes on the system's OpenSSL: no copies, no interpreter's lock, and it can update its keys."""

from __future__ import annotations

import ctypes
import select
import socket

SSL = ctypes.CDLL("libssl.so.3")
CRYPTO = ctypes.CDLL("libcrypto.so.3")
WANT_READ, WANT_WRITE, SYSCALL, ZERO_RETURN = 2, 3, 5, 6
NOT_REQUESTED, REQUESTED = 0, 1
"""Whether the other side is to update its keys too."""
TLS12, TLS13 = 0x0303, 0x0304
_CTRL_MODE, _PARTIAL_AND_MOVING = 33, 1 | 2
_CTRL_READ_AHEAD = 41
_CTRL_MAX_PROTO = 124
_DEMAND_BYTES = 5 + 5 + 1 + 16
"""A record with a KeyUpdate: header, message, type, tag."""

_P, _I, _L = ctypes.c_void_p, ctypes.c_int, ctypes.c_long
for _name, _result, _arguments in (
    ("TLS_client_method", _P, []),
    ("SSL_CTX_new", _P, [_P]),
    ("SSL_CTX_ctrl", _L, [_P, _I, _L, _P]),
    ("SSL_CTX_set_default_read_buffer_len", None, [_P, ctypes.c_size_t]),
    ("SSL_new", _P, [_P]),
    ("SSL_free", None, [_P]),
    ("SSL_set_fd", _I, [_P, _I]),
    ("SSL_connect", _I, [_P]),
    ("SSL_read", _I, [_P, _P, _I]),
    ("SSL_write", _I, [_P, _P, _I]),
    ("SSL_get_error", _I, [_P, _I]),
    ("SSL_shutdown", _I, [_P]),
    ("SSL_key_update", _I, [_P, _I]),
    ("SSL_renegotiate", _I, [_P]),
    ("SSL_do_handshake", _I, [_P]),
):
    _function = getattr(SSL, _name)
    _function.restype, _function.argtypes = _result, _arguments


def make_context(version: int) -> int:
    context = SSL.SSL_CTX_new(SSL.TLS_client_method())
    SSL.SSL_CTX_ctrl(context, _CTRL_MODE, _PARTIAL_AND_MOVING, None)
    SSL.SSL_CTX_ctrl(context, _CTRL_READ_AHEAD, 1, None)
    SSL.SSL_CTX_ctrl(context, _CTRL_MAX_PROTO, version, None)
    SSL.SSL_CTX_set_default_read_buffer_len(context, 1 << 17)
    return int(context)


CONTEXTS = {version: make_context(version) for version in (TLS12, TLS13)}


class Lost(Exception):
    """The connection is broken."""


class Tls:
    """A client on a connected blocking socket; non-blocking after the handshake."""

    def __init__(self, sock: socket.socket, version: int = TLS13) -> None:
        self.sock = sock
        self.version = version
        self._demanding = False
        self.ssl = SSL.SSL_new(CONTEXTS[version])
        SSL.SSL_set_fd(self.ssl, sock.fileno())
        sock.settimeout(None)
        if SSL.SSL_connect(self.ssl) != 1:
            raise Lost("handshake")
        sock.setblocking(False)

    def write(self, address: int, size: int) -> int:
        """Returns: how many bytes were taken, perhaps 0. Raises: Lost."""
        return self._result(SSL.SSL_write(self.ssl, address, size)) or 0

    def read(self, address: int, size: int) -> int | None:
        """Returns: bytes, None: none for now, 0: close_notify. Raises: Lost."""
        return self._result(SSL.SSL_read(self.ssl, address, size))

    def send(self, data: bytes) -> int:
        """The same with bytes."""
        return self.write(ctypes.cast(ctypes.c_char_p(data), _P).value or 0, len(data))

    def receive(self, size: int) -> bytes | None:
        """The same with bytes."""
        room = ctypes.create_string_buffer(size)
        taken = self.read(ctypes.addressof(room), size)
        return None if taken is None else room.raw[:taken]

    def _result(self, result: int) -> int | None:
        if result > 0:
            return result
        kind = SSL.SSL_get_error(self.ssl, result)
        CRYPTO.ERR_clear_error()
        if kind == ZERO_RETURN:
            return 0
        if kind in (WANT_READ, WANT_WRITE):
            return None
        raise Lost(kind)

    def update_keys(self, requested: int) -> None:
        """Goes out with the next write; TLS 1.3 only. Where a write is unfinished, nothing happens."""
        if SSL.SSL_key_update(self.ssl, requested) != 1:
            CRYPTO.ERR_clear_error()

    def demand_keys(self) -> bool:
        """Send a demand for new keys. Returns: False: the network takes nothing; to be called again. Raises: Lost."""
        if not self._demanding and SSL.SSL_key_update(self.ssl, REQUESTED) != 1:
            raise Lost("no new keys")
        self._demanding = self._result(SSL.SSL_do_handshake(self.ssl)) is None
        return not self._demanding

    def flood(self, most_bytes: int, wait_s: float) -> int:
        """Demand new keys again and again, and read nothing, until the other side has taken nothing for so long.

        Returns: how many bytes were sent, about; at most about `most_bytes`. Raises: Lost.
        """
        sent = 0
        while sent < most_bytes:
            if self.demand_keys():
                sent += _DEMAND_BYTES
            elif not select.select([], [self.sock], [], wait_s)[1]:
                break
        return sent

    def say_end(self) -> None:
        """Send a close_notify."""
        SSL.SSL_shutdown(self.ssl)

    def renegotiate(self) -> None:
        """Ask for it; TLS 1.2 only."""
        SSL.SSL_renegotiate(self.ssl)
        SSL.SSL_do_handshake(self.ssl)
        CRYPTO.ERR_clear_error()

    def close(self) -> None:
        if self.ssl:
            SSL.SSL_free(self.ssl)
            self.ssl = None
            self.sock.close()
