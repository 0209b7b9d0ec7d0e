"""What can go wrong, by who must act; every text is safe to show to the peer.

Proxmox knows two kinds of failure: a plain text, and an exception that carries an HTTP status. In a command's reply
the second kind is shown with its status in front; over HTTP a plain text travels as status 500.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


class TunnelError(Exception):
    """A request that cannot be done; the sender or the operator must act.

    Args: text: one reason, without a final line feed.
    """

    status = 500

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    @property
    def line(self) -> str:
        """The text as a command's reply shows it, without the final line feed."""
        return self.text

    @property
    def key(self) -> str:
        """The key of a guest's config that it is about; empty: not known."""
        return ""


def os_reason(error: OSError) -> str:
    """`FILE: REASON`, for whoever runs this host."""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)


class KeyRefused(TunnelError):
    """What a config has and cannot be done here, by its key."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self._key = key

    @property
    def key(self) -> str:
        return self._key


def refuse(key: str, reason: str) -> TunnelError:
    """What a config has and cannot be done here, by its key."""
    return KeyRefused(key, reason)


Refusal = Callable[[str, TunnelError], None]
"""Takes what a check of a config found, with its key (empty: none); raises it, or remembers it for a check to go on."""


def at_once(_key: str, error: TunnelError) -> None:
    """The first refusal ends a check. Raises: TunnelError."""
    raise error


@contextmanager
def refusing(refused: Refusal, key: str = "") -> Iterator[None]:
    """What is raised within is a refusal."""
    try:
        yield
    except TunnelError as error:
        refused(error.key or key, error)


class BadRequest(TunnelError):
    """The peer must send something else."""

    status = 400


class InvalidParameters(BadRequest):
    """Parameters that fail their schema.

    Args: errors: parameter name (dotted when nested) to reason; a reason may end in a line feed of its own.
    """

    def __init__(self, errors: Mapping[str, str]) -> None:
        super().__init__("Parameter verification failed.")
        self.errors = dict(errors)

    @property
    def line(self) -> str:
        lines = [f"{name}: {reason}" for name, reason in self.errors.items()]
        return "\n".join([f"400 {self.text}", *lines])


class Unauthenticated(TunnelError):
    """The peer must show other credentials."""

    status = 401


class Forbidden(TunnelError):
    """The operator must grant something first."""

    status = 403


class PermissionDenied(Forbidden):
    """A missing privilege.

    Args: path: access path, e.g. /vms/100. privilege: the first missing one, or several joined with `|`.
    """

    def __init__(self, path: str, privilege: str) -> None:
        super().__init__(f"Permission check failed ({path}, {privilege})")

    @property
    def line(self) -> str:
        return f"{self.status} {self.text}"


class NotFound(TunnelError):
    """What was asked for is not there."""

    status = 404


class NoSuchGuest(NotFound):
    """A VM's config is not there; the text is Proxmox's. `vmid`: its number."""

    def __init__(self, vmid: int, file: str) -> None:
        super().__init__(f"Configuration file '{file}' does not exist")
        self.vmid = vmid


class WrongState(TunnelError):
    """Not now: something else has to happen first."""

    status = 409


class BackendFailed(TunnelError):
    """A program or the operating system refused; the operator of this host must act."""

    status = 500


class Unreachable(BackendFailed):
    """What a websocket leads to does not answer."""

    status = 502


class NotYet(TunnelError):
    """It is being found out; to be asked again."""

    status = 503


class TimedOut(TunnelError):
    """Something took longer than its limit."""

    status = 504
