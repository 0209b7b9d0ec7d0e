"""The native module (`_batch.c`): one call a batch without the interpreter's lock; Python makes one a TLS record.

It is optional. Without it (no compiler at the installation, another OpenSSL binding) the same streams run in pure
Python; `find_native` says which, and why.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

from OpenSSL import SSL

from mtunnel_tx.stream.engine import StreamEnded, StreamFailed, waiting_bytes
from mtunnel_tx.stream.payload import GATHER_BYTES
from mtunnel_tx.stream.sides import MOST_UNSENT_BYTES, RECORD_ROOM_BYTES, UNREAD, Blocks, put_leftover
from mtunnel_tx.wire.frames import SENT_PAYLOAD_BYTES, Decoder

SWITCH = "MTUNNEL_NATIVE"
"""An environment variable: `0` keeps the native module out, for comparisons and to rule it out as a cause."""

INTERFACE = 3
"""Of `_batch.c`: one that was built from another version has other arguments."""

FUNCTIONS = (
    "SSL_read",
    "SSL_write",
    "SSL_get_error",
    "SSL_set_bio",
    "BIO_new_mem_buf",
    "BIO_set_mem_eof_return",
    "BIO_read",
    "ERR_clear_error",
)
"""OpenSSL's, in the order in which `_batch.c` wants their addresses."""

DRAINED, FULL, ENDED, FAILED, TLS_ENDED, TLS_FAILED = range(6)
"""What `pull`, `send` and `forward` say besides byte counts (enum outcome in `_batch.c`)."""

Failure = tuple[type[Exception], str]


class Forwarded(NamedTuple):
    """What `NativeSide.forward` has moved, in frames of so many payload bytes.

    more: the UNIX socket may have more. local_failure: of the UNIX socket, behind these frames. failure: of the
    carrier.
    """

    sizes_bytes: Sequence[int]
    more: bool
    local_failure: Failure | None
    failure: Failure | None


class PassedOn(NamedTuple):
    """What `NativeSide.pass_on` has moved: `sent_bytes` of `found_bytes` of payload.

    What is left is in the last block: `block[position:end]` is to be decoded, in front of which `left_bytes` of the
    present frame are to come, with this mask; `spans[first:span_count]` wait for the UNIX socket. local_number: the
    errno with which that failed, 0: it did not.
    """

    end: int
    position: int
    left_bytes: int
    key: bytes
    found_bytes: int
    sent_bytes: int
    first: int
    span_count: int
    local_number: int


@dataclass(frozen=True, slots=True)
class Native:
    """Args: module: `_batch` with OpenSSL's addresses, None where it cannot be used; reason: why it cannot."""

    module: ModuleType | None
    reason: str = ""

    def summary(self) -> str:
        """Which way streams run, for people."""
        return "native module" if self.module else f"pure Python ({self.reason})"


def find_native(environ: dict[str, str] | os._Environ[str] = os.environ) -> Native:
    """Load the native module and tell it where OpenSSL is; tried on a connection."""
    if environ.get(SWITCH) == "0":
        return Native(None, f"switched off by {SWITCH}=0")
    try:
        module = import_module("mtunnel_tx.stream._batch")
    except ImportError as error:
        return Native(None, f"not built: {error}")
    if getattr(module, "INTERFACE", None) != INTERFACE:
        return Native(None, "built from another version: install mtunnel-tx again")
    try:
        module.bind(*_addresses())
        _pointers(SSL.Connection(SSL.Context(SSL.TLS_METHOD), None))
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        return Native(None, f"this OpenSSL binding is not known: {error}")
    return Native(module)


def _addresses() -> list[int]:
    """The functions of the OpenSSL that pyOpenSSL uses. Raises: ImportError, AttributeError, TypeError."""
    lib = import_module("cryptography.hazmat.bindings._rust")._openssl.lib
    ffi = _ffi()
    return [int(ffi.cast("uintptr_t", ffi.addressof(lib, name))) for name in FUNCTIONS]


def _ffi() -> Any:
    module: Any = SSL
    return module._ffi


def _pointers(connection: Any) -> tuple[int, int]:
    """The SSL object of a connection, and the BIO that its ciphertext goes out by."""
    ffi = _ffi()
    _ = connection._into_ssl
    ssl, out = (int(ffi.cast("uintptr_t", pointer)) for pointer in (connection._ssl, connection._from_ssl))
    return ssl, out


class NativeSide:
    """TCP with TLS, as `sides.TlsSide`: OpenSSL works on memory, the socket is ours.

    Args: native: `_batch`, bound. connection: its handshake is over; no other method of it may be called any more.
    """

    def __init__(
        self, native: Any, sock: socket.socket, leftover: bytes, blocks: Blocks, connection: SSL.Connection
    ) -> None:
        self.sent_bytes = 0
        self.more = True
        self._native = native
        self._number = sock.fileno()
        self._leftover = leftover
        self._blocks = blocks
        self._connection: Any = connection
        self._ssl, self._out = _pointers(connection)
        # The first BIO of ours frees pyOpenSSL's own, which it must not write to any more.
        self._connection._into_ssl = _ffi().NULL
        self._block: memoryview | None = None
        self._begin = self._end = 0
        self._failure: Failure | None = None

    @property
    def waits(self) -> bool:
        return self._begin < self._end

    def read(self, block: memoryview) -> int:
        self._refuse_unread()
        outcome = number = 0
        end, self._leftover = put_leftover(block, self._leftover)
        if self._failure is None:
            end, outcome, number = self._native.pull(
                self._ssl, self._out, self._number, self._blocks.scratch, block, end, RECORD_ROOM_BYTES
            )
        self._note(outcome, number, is_nothing=end == 0)
        return int(end)

    def _refuse_unread(self) -> None:
        if self.waits and waiting_bytes(self._connection) > MOST_UNSENT_BYTES:
            raise StreamFailed(UNREAD)

    def _note(self, outcome: int, number: int, *, is_nothing: bool) -> None:
        """What became of the carrier, which is told behind the bytes that came before."""
        if outcome > FULL:
            self._failure = describe_outcome(outcome, "receive", number)
        self.more = outcome != DRAINED or self._failure is not None
        if is_nothing and self._failure is not None:
            kind, text = self._failure
            raise kind(text)

    @property
    def passes_on(self) -> bool:
        """All that comes is in the socket."""
        return not self._leftover and self._failure is None

    def pass_on(
        self, local: socket.socket, block: memoryview, decoder: Decoder, spans: bytearray, most_bytes: int
    ) -> PassedOn:
        """Receive, decode and send to the UNIX socket, block by block, until so much payload was found.

        It ends before that where anything is out of the ordinary. Raises: StreamEnded, StreamFailed: nothing came.
        """
        self._refuse_unread()
        outcome, number, *passed = self._native.pass_on(
            self._ssl, self._out, self._number, local.fileno(), self._blocks.scratch, block, RECORD_ROOM_BYTES,
            decoder.left_bytes, decoder.key, decoder.is_masked, decoder.texts_are_payload, decoder.limit_bytes,
            GATHER_BYTES, spans, most_bytes,
        )  # fmt: skip
        result = PassedOn(*passed)
        self._note(outcome, number, is_nothing=result.end == 0 and result.found_bytes == 0)
        return result

    def write(self, data: memoryview | bytes) -> None:
        self._send(data)

    def own(self) -> None:
        """What waits is ciphertext, in a block of its own."""

    def flush(self) -> None:
        self._send(b"")

    def forward(
        self, local: socket.socket, room: memoryview, most_frames: int, *, masked: bool, keeps: bool
    ) -> Forwarded:
        """Send what the UNIX socket has, in frames of SENT_PAYLOAD_BYTES, while nothing waits.

        Args: room: where they are made, HEADER_ROOM_BYTES in front of the first payload, and of each other one where it
        keeps them. masked: with the mask of a client.
        """
        block = self._block = self._block or self._blocks.lend()
        sizes, local_outcome, local_number, self._begin, self._end, sent_bytes, outcome, number = self._native.forward(
            self._ssl, self._out, self._number, local.fileno(), room, SENT_PAYLOAD_BYTES, most_frames, masked, keeps,
            block,
        )  # fmt: skip
        self.sent_bytes += sent_bytes
        if outcome > FULL or not self.waits:
            self.drop()
        return Forwarded(
            memoryview(sizes).cast("I"),
            local_outcome == FULL,
            describe_outcome(local_outcome, "receive", local_number) if local_outcome > FULL else None,
            describe_outcome(outcome, "send", number) if outcome > FULL else None,
        )

    def drop(self) -> None:
        """Forget what waits, and give the block back."""
        self._begin = self._end = 0
        if self._block is not None:
            self._blocks.give_back(self._block)
            self._block = None

    def say_end(self) -> None:
        module: Any = SSL
        module._lib.SSL_shutdown(self._connection._ssl)
        module._lib.ERR_clear_error()

    def _send(self, data: memoryview | bytes) -> None:
        block = self._block = self._block or self._blocks.lend()
        self._begin, self._end, sent_bytes, outcome, number = self._native.send(
            self._ssl, self._out, self._number, data, block, self._begin, self._end
        )
        self.sent_bytes += sent_bytes
        if outcome > FULL or not self.waits:
            self.drop()
        if outcome > FULL:
            kind, text = describe_outcome(outcome, "send", number)
            raise kind(text)


def describe_outcome(outcome: int, deed: str, number: int) -> Failure:
    """The exception for what ended a side, in the words of `sides` and `engine`."""
    if outcome == ENDED:
        return StreamEnded, "end of file"
    if outcome == TLS_ENDED:
        return StreamEnded, "TLS close_notify"
    if outcome == TLS_FAILED:
        return StreamFailed, "TLS error"
    return StreamFailed, f"cannot {deed}: {os.strerror(number) if number else errno.errorcode.get(number, '?')}"
