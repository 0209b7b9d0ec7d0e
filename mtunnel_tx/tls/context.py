"""TLS settings: what is spoken, and the files with the server's certificate and key."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

from OpenSSL import SSL, crypto

from mtunnel_tx.errors import TunnelError
from mtunnel_tx.tls.certificate import Certificate

CIPHERS_TLS12 = b"ECDHE+AESGCM:ECDHE+CHACHA20"
KEEPALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))


class TlsContext:
    """The server's certificate and key; `reload` reads both again, for new connections. `files`: what is in use.

    Args: group_reads: the key may be readable for a group, as Proxmox's cluster file system has it (mode 0640).
    Raises (here and in reload): TunnelError: a file is missing, unusable, or the key can be read by others.
    """

    def __init__(self, certificate: Path, key: Path, *, group_reads: bool = False) -> None:
        self._certificate = certificate
        self._key = key
        self._most_mode = 0o640 if group_reads else 0o600
        self.context, self.files = self._load(certificate, key)

    def reload(self, certificate: Path | None = None, key: Path | None = None) -> None:
        """Take new files over, those of other paths where they are given; after an error the old ones stay in use."""
        certificate, key = certificate or self._certificate, key or self._key
        self.context, self.files = self._load(certificate, key)
        self._certificate, self._key = certificate, key

    def _load(self, certificate: Path, key: Path) -> tuple[SSL.Context, Certificate]:
        _check_private(key, self._most_mode)
        context, private = new_context(), _read_key(key)
        try:
            context.use_certificate_chain_file(str(certificate))
        except SSL.Error as error:
            raise TunnelError(f"cannot use certificate '{certificate}'") from error
        try:
            context.use_privatekey(private)
            context.check_privatekey()
        except SSL.Error as error:
            raise TunnelError(f"cannot use key '{key}': it does not belong to the certificate") from error
        return context, Certificate(certificate.read_bytes(), key.read_bytes())


def _check_private(key: Path, most: int) -> None:
    try:
        mode = stat.S_IMODE(key.stat().st_mode)
    except OSError as error:
        raise TunnelError(f"cannot read key '{key}': {error.strerror}") from error
    if mode & 0o077 & ~most:
        raise TunnelError(f"key '{key}' can be read by others: mode {mode:04o}, must be {most:04o}")


def _read_key(key: Path) -> crypto.PKey:
    try:
        # With a pass phrase OpenSSL does not ask for one at the terminal.
        return crypto.load_privatekey(crypto.FILETYPE_PEM, key.read_bytes(), b"")
    except OSError as error:
        raise TunnelError(f"cannot read key '{key}': {error.strerror}") from error
    except (crypto.Error, ValueError) as error:
        raise TunnelError(f"cannot use key '{key}': it is no private key in PEM without a pass phrase") from error


def new_context() -> SSL.Context:
    """TLS 1.2 or newer, forward secrecy and AEAD only, no renegotiation, no compression."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE)
    context.set_cipher_list(CIPHERS_TLS12)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    return context


def tune(sock: socket.socket) -> None:
    """Keepalive that finds a dead peer within a minute, and no waiting for full packets; nothing where it is no TCP."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
