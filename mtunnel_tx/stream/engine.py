"""TLS on bytes: ciphertext and plaintext move between an OpenSSL connection and our buffers.

Two ways to the same end: `NativeEngine` calls OpenSSL through the bindings that pyOpenSSL itself uses, without a copy
or an allocation per record; `PublicEngine` uses pyOpenSSL's documented methods. Both want a connection made on memory
BIOs whose handshake is over. One thread at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

from OpenSSL import SSL

RECORD_BYTES = 16 * 1024
TAKE_BYTES = 64 * 1024


class StreamEnded(Exception):
    """The peer said that nothing more comes: close_notify or the end of file."""


class StreamFailed(Exception):
    """The connection is broken; its text says how."""


class Engine(Protocol):
    """The TLS of one carrier. over: behind what was read there is an end, which the next `read` raises."""

    over: bool

    def put(self, data: memoryview) -> None:
        """Take ciphertext from the network, when `read` has found nothing more.

        `data` must stay as it is until `read` has returned less than it was asked for. Raises: StreamFailed.
        """

    def read(self, view: memoryview, start: int) -> int:
        """Fill `view[start:]` with plaintext as far as there is any.

        Returns: the end of what is filled. Raises: StreamEnded, StreamFailed: only where nothing was filled.
        """

    def write(self, data: memoryview | bytes) -> None:
        """Encrypt plaintext. Raises: StreamFailed."""

    def take(self, view: memoryview) -> int:
        """Fill `view` with ciphertext for the network. Returns: how many bytes, 0 where there are none."""

    def waiting_bytes(self) -> int:
        """Returns: how much ciphertext `take` has yet to give out."""

    def say_end(self) -> None:
        """Encrypt a close_notify."""


class PublicEngine:
    """pyOpenSSL as documented; copies once more in each direction."""

    def __init__(self, connection: SSL.Connection) -> None:
        self.over = False
        self._connection = connection
        self._made = b""

    def put(self, data: memoryview) -> None:
        self._connection.bio_write(data)

    def read(self, view: memoryview, start: int) -> int:
        begin = start
        while start < len(view):
            try:
                start += self._connection.recv_into(view[start : start + RECORD_BYTES])
            except SSL.WantReadError:
                break
            except SSL.Error as error:
                self.over = True
                if start > begin:
                    break
                raise _translate(error) from error
        return start

    def write(self, data: memoryview | bytes) -> None:
        try:
            self._connection.sendall(data)
        except SSL.Error as error:
            raise _translate(error) from error

    def take(self, view: memoryview) -> int:
        if not self._made and not self.waiting_bytes():
            return 0
        data, self._made = self._made[: len(view)], self._made[len(view) :]
        view[: len(data)] = data
        return len(data)

    def waiting_bytes(self) -> int:
        # Nothing that is documented counts what is in there.
        with contextlib.suppress(SSL.WantReadError):
            self._made += self._connection.bio_read(1 << 20)
        return len(self._made)

    def say_end(self) -> None:
        # A connection that failed cannot even say so.
        with contextlib.suppress(SSL.Error):
            self._connection.shutdown()


def _translate(error: SSL.Error) -> Exception:
    if isinstance(error, SSL.ZeroReturnError):
        return StreamEnded("TLS close_notify")
    return StreamFailed("TLS error")


class NativeEngine:
    """The same by cffi on the OpenSSL objects inside the connection. Raises: AttributeError: they are not there.

    OpenSSL reads ciphertext where we received it: `put` gives it a BIO on that memory in the place of pyOpenSSL's own,
    which clears and copies everything first. Before the memory is used for something else, `read` has come to the BIO's
    end: OpenSSL keeps bytes only, of its own, and an empty BIO touches no memory. It lives as long as the engine does.

    Each pointer into a view is released where it was made. Left to the garbage collector, together with its view in one
    cycle (that of a traceback, say), it crashes Python before 3.11.8 (CPython issue 77894).
    """

    def __init__(self, connection: SSL.Connection) -> None:
        self.over = False
        self._connection: Any = connection
        self._ssl, self._from, bindings = _find_parts(connection)
        self._lib: Any = bindings[0]
        self._ffi: Any = bindings[1]
        self._data: memoryview | None = None

    def put(self, data: memoryview) -> None:
        lib = self._lib
        self._data = data
        with self._ffi.from_buffer(data) as base:
            bio = lib.BIO_new_mem_buf(base, len(data))
        if bio == self._ffi.NULL:
            raise StreamFailed("TLS has no memory")
        # At its end it says "later", not "never".
        lib.BIO_set_mem_eof_return(bio, -1)
        # SSL owns its BIOs: this frees the one before, and pyOpenSSL must not write to that any more.
        self._connection._into_ssl = self._ffi.NULL
        lib.SSL_set_bio(self._ssl, bio, self._from)

    def read(self, view: memoryview, start: int) -> int:
        end, result = self._fill(view, start)
        error = self._error(result) if result <= 0 else None
        if error is not None:
            self.over = True
            if end == start:
                raise error
        return end

    def _fill(self, view: memoryview, start: int) -> tuple[int, int]:
        """Returns: the end of what is filled, and OpenSSL's last result."""
        end, result, read, ssl = len(view), 1, self._lib.SSL_read, self._ssl
        with self._ffi.from_buffer("char[]", view) as base:
            while start < end:
                result = read(ssl, base + start, end - start)
                if result <= 0:
                    break
                start += result
        return start, result

    def write(self, data: memoryview | bytes) -> None:
        result = self._push(data)
        if result <= 0:
            raise self._error(result) or StreamFailed("TLS takes no more bytes")

    def _push(self, data: memoryview | bytes) -> int:
        """Returns: OpenSSL's last result. pyOpenSSL lets SSL_write return after each record."""
        start, end, result = 0, len(data), 1
        with self._ffi.from_buffer("char[]", data) as base:
            while start < end and result > 0:
                result = self._lib.SSL_write(self._ssl, base + start, end - start)
                start += result
        return int(result)

    def take(self, view: memoryview) -> int:
        with self._ffi.from_buffer(view) as base:
            return max(0, int(self._lib.BIO_read(self._from, base, len(view))))

    def waiting_bytes(self) -> int:
        return waiting_bytes(self._connection)

    def say_end(self) -> None:
        self._lib.SSL_shutdown(self._ssl)
        self._lib.ERR_clear_error()

    def _error(self, result: int) -> Exception | None:
        lib = self._lib
        kind = lib.SSL_get_error(self._ssl, result)
        lib.ERR_clear_error()
        if kind == lib.SSL_ERROR_WANT_READ:
            return None
        return StreamEnded("TLS close_notify") if kind == lib.SSL_ERROR_ZERO_RETURN else StreamFailed("TLS error")


_NAMES = (
    "SSL_read SSL_write SSL_get_error SSL_shutdown SSL_set_bio BIO_read BIO_new_mem_buf BIO_set_mem_eof_return "
    "BIO_get_mem_data ERR_clear_error SSL_ERROR_WANT_READ SSL_ERROR_ZERO_RETURN"
)


def _find_parts(connection: Any) -> tuple[Any, Any, tuple[Any, Any]]:
    """The private parts of pyOpenSSL that NativeEngine needs, each looked for by name."""
    module: Any = SSL
    lib, ffi = module._lib, module._ffi
    for name in _NAMES.split():
        getattr(lib, name)
    for name in ("_ssl", "_into_ssl", "_from_ssl"):
        getattr(connection, name)
    return connection._ssl, connection._from_ssl, (lib, ffi)


def waiting_bytes(connection: Any) -> int:
    """Returns: how much ciphertext lies in the BIO of a connection, by cffi."""
    module: Any = SSL
    return int(module._lib.BIO_get_mem_data(connection._from_ssl, module._ffi.NULL))


MakeEngine = Callable[[SSL.Connection], Engine]


def best_engine() -> MakeEngine:
    """NativeEngine where this pyOpenSSL has what it needs, tried on a connection; else PublicEngine."""
    try:
        _find_parts(SSL.Connection(SSL.Context(SSL.TLS_METHOD), None))
    except AttributeError:
        return PublicEngine
    return NativeEngine
