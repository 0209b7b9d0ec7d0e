"""Whom a client trusts: the owner of one certificate, or, where none was named, whom the system's CAs vouch for."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Callable
from typing import Any

from OpenSSL import SSL, crypto
from service_identity import CertificateError, VerificationError
from service_identity.pyopenssl import verify_hostname, verify_ip_address
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IStreamClientEndpoint
from twisted.web.client import URI, Agent, BrowserLikePolicyForHTTPS
from twisted.web.iweb import IAgent, IAgentEndpointFactory
from zope.interface import implementer

from mtunnel_tx.errors import Unreachable
from mtunnel_tx.net.kinds import Inner, Reactor
from mtunnel_tx.pve.maps import Endpoint
from mtunnel_tx.tls.certificate import fingerprint
from mtunnel_tx.tls.protocol import new_context

CONNECT_S = 15.0
_VERIFY_FAILED = "its certificate has another fingerprint, or without one no known authority vouches for it"
SOMEWHERE = "https://target.invalid"
"""What URLs for `pinned_agent` begin with."""


def client_connection(endpoint: Endpoint) -> SSL.Connection:
    """A TLS connection on memory BIOs, ready to connect; `check_identity` belongs behind its handshake."""
    context = new_context()
    if endpoint.fingerprint is not None:
        context.set_verify(SSL.VERIFY_PEER, _pinned(endpoint.fingerprint))
    else:
        context.set_default_verify_paths()
        context.set_verify(SSL.VERIFY_PEER)
    connection = SSL.Connection(context, None)
    if not _is_address(endpoint.host):
        connection.set_tlsext_host_name(endpoint.host.encode("idna"))
    connection.set_connect_state()
    return connection


def check_identity(connection: SSL.Connection, endpoint: Endpoint) -> None:
    """Look at the certificate once more when the handshake is done. Raises: Unreachable: it is somebody else."""
    certificate = connection.get_peer_certificate(as_cryptography=True)
    if certificate is None:
        raise Unreachable("the target shows no certificate")
    if endpoint.fingerprint is None:
        _check_name(connection, endpoint.host)
    elif not is_same(fingerprint(certificate), endpoint.fingerprint):
        raise Unreachable("the target's certificate has another fingerprint")


def explain_tls(entries: object) -> str:
    """What OpenSSL says, the last part of each entry, in words that help."""
    found = [str(entry[-1]) for entry in entries if isinstance(entry, tuple)] if isinstance(entries, list) else []
    return ", ".join(_VERIFY_FAILED if reason == "certificate verify failed" else reason for reason in found)


def is_same(one: str, other: str) -> bool:
    """Compare fingerprints, in constant time, in any case of letters."""
    return hmac.compare_digest(one.upper().encode(), other.upper().encode())


def _check_name(connection: SSL.Connection, host: str) -> None:
    try:
        (verify_ip_address if _is_address(host) else verify_hostname)(connection, host)
    except (VerificationError, CertificateError) as error:
        raise Unreachable("the target's certificate is for another name") from error


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _pinned(wanted: str) -> Callable[[SSL.Connection, crypto.X509, int, int, int], bool]:
    def verify(_connection: SSL.Connection, certificate: crypto.X509, _error: int, depth: int, _ok: int) -> bool:
        """Called for each certificate of the chain; only the target's own one counts."""
        return depth > 0 or is_same(fingerprint(certificate.to_cryptography()), wanted)

    return verify


@implementer(IOpenSSLClientConnectionCreator)
class _PinnedCreator:
    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def clientConnectionForTLS(self, _protocol: Inner) -> SSL.Connection:
        return client_connection(self._endpoint)


@implementer(IAgentEndpointFactory)
class _OneEndpoint:
    """Connections to one place only, whatever the URL says."""

    def __init__(self, reactor: Reactor, endpoint: Endpoint) -> None:
        self._reactor: Any = reactor
        self._endpoint = endpoint

    def endpointForURI(self, _uri: URI) -> IStreamClientEndpoint:
        place: Any = HostnameEndpoint(self._reactor, self._endpoint.host, self._endpoint.port, timeout=CONNECT_S)
        wrapped: IStreamClientEndpoint = wrapClientTLS(self._creator(), place)
        return wrapped

    def _creator(self) -> Any:
        if self._endpoint.fingerprint is not None:
            return _PinnedCreator(self._endpoint)
        policy: Any = BrowserLikePolicyForHTTPS()
        return policy.creatorForNetloc(self._endpoint.host.encode("idna"), self._endpoint.port)


def pinned_agent(reactor: Reactor, endpoint: Endpoint) -> IAgent:
    """An Agent that dials the endpoint, for URLs that begin with SOMEWHERE, and trusts like `client_connection`.

    Its requests need a `Host` header. An address in the URL itself would not do: treq takes IPv6's for a name.
    """
    agent: Any = Agent
    made: IAgent = agent.usingEndpointFactory(reactor, _OneEndpoint(reactor, endpoint))
    return made


def host_header(endpoint: Endpoint) -> str:
    """Where a request goes, as its `Host` header has it."""
    return f"{f'[{endpoint.host}]' if ':' in endpoint.host else endpoint.host}:{endpoint.port}"
