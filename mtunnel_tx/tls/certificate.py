"""The daemon's own certificate, and how people compare certificates."""

from __future__ import annotations

import datetime
import ipaddress
import socket
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALID_DAYS = 3653


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its private key, PEM; the key is to be written with mode 0600."""

    certificate: bytes
    key: bytes


def make_certificate(node: str, now: datetime.datetime | None = None, names: tuple[str, ...] = ()) -> Certificate:
    """Make a self-signed certificate, EC P-256, valid for ten years.

    Args: node: the node's name. now: aware; the present where None. names: more host names and addresses.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node)])
    everything = dict.fromkeys((node, socket.getfqdn(), "localhost", "127.0.0.1", "::1", *names))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in everything]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Certificate(certificate.public_bytes(serialization.Encoding.PEM), _private_pem(key))


def fingerprint(certificate: x509.Certificate | bytes) -> str:
    """SHA-256 of a certificate (PEM bytes: of its first one), as Proxmox shows it: `AA:BB:…`. Raises: ValueError."""
    if isinstance(certificate, bytes):
        certificate = x509.load_pem_x509_certificate(certificate)
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name.encode("idna").decode() if not name.isascii() else name)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
