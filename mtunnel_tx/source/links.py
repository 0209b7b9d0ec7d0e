"""The seams of a source: websockets that others open for it, and those who want to see how it goes on."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol

from mtunnel_tx.ports.clock import Clock
from mtunnel_tx.ports.moves import MoveEvent

Json = Any
"""A JSON value of a peer: whoever reads it checks it."""


class Reactor(Clock, Protocol):
    """What a source needs of the reactor (IReactorTime, IReactorFDSet, IReactorSocket)."""

    def addReader(self, reader: object) -> object: ...

    def removeReader(self, reader: object) -> object: ...

    def addWriter(self, writer: object) -> object: ...

    def removeWriter(self, writer: object) -> object: ...

    def adoptStreamConnection(self, descriptor: int, family: int, factory: object) -> object: ...


class JoinedSocket(Protocol):
    """A local socket joined with a websocket, in both directions. `reason`: why it failed; None: it has not."""

    reason: str | None

    @property
    def bytes_in(self) -> int: ...

    @property
    def bytes_out(self) -> int: ...

    def abort(self) -> None:
        """End both sides now, without a Close frame: nobody may take what has arrived for the whole."""

    async def ended(self) -> bool:
        """Wait for the end. Returns: whether both directions ended in an orderly way."""


class Dial(Protocol):
    """Open a websocket at the target and join it with a local socket."""

    async def __call__(self, path_query: str, sock: socket.socket, *, ends_with_peer: bool = False) -> JoinedSocket:
        """Takes `sock` over, whatever happens. `path_query` starts with `/api2/json`.

        End of file on `sock` is sent on as Close once every byte is out; Close there is end of file here.
        Frames are masked, unfragmented, of at most 131072 bytes. Raises: TunnelError.
        With `ends_with_peer` a Close there ends both ways: nobody would take what `sock` still has to say.
        """


class LineListener(Protocol):
    """Those who are told what is done."""

    def say(self, text: str) -> None:
        """One line, clean."""

    def warn(self, text: str) -> None:
        """One line that somebody has to act on: it is shown also where only such ones are wanted."""


class ProgressListener(LineListener, Protocol):
    """Those who watch a move; several streams may be under way, each has a label."""

    def begin(self, label: str, total_bytes: int) -> None:
        """A stream begins."""

    def advance(self, label: str, size_bytes: int) -> None:
        """More of it has gone out."""

    def resize(self, label: str, total_bytes: int) -> None:
        """There is more to send, or less, than was thought: the guest writes meanwhile."""

    def finish(self, label: str) -> None:
        """The stream has ended, well or not."""

    def tell(self, event: MoveEvent) -> None:
        """Something is known about the move."""

    def connect(self, report: Callable[[Mapping[str, Json]], Awaitable[object]]) -> None:
        """The target wants to know too: `report` sends it a `progress` command."""

    def disconnect(self) -> None:
        """The target wants to know nothing more."""


class MirrorState(Protocol):
    """How far the copy of one disk is."""

    @property
    def drive(self) -> str: ...

    @property
    def done_bytes(self) -> int: ...

    @property
    def total_bytes(self) -> int: ...

    @property
    def ready(self) -> bool:
        """Whether the copy is level with the disk."""


class MemoryState(Protocol):
    """How far the copy of the memory is.

    `passes`: over the whole memory, then over what was changed; the rates are those of the last pass.
    """

    @property
    def status(self) -> str: ...

    @property
    def passes(self) -> int: ...

    @property
    def dirty_bytes_s(self) -> float: ...

    @property
    def sent_bytes_s(self) -> float: ...

    @property
    def throttle_percent(self) -> int: ...

    @property
    def transferred_bytes(self) -> int: ...

    @property
    def remaining_bytes(self) -> int: ...


class Running(Protocol):
    """A VM that runs here, to be sent away; every method raises BackendFailed with QEMU's reason."""

    async def status(self) -> str: ...

    async def machine_type(self) -> str: ...

    async def blockers(self) -> Sequence[str]:
        """Why QEMU would refuse to send it, whatever the target is."""

    async def disks(self) -> Mapping[str, tuple[str, int]]:
        """Its guest's disks by their keys, but for the EFI disk: QEMU's word for the file, and the size in bytes."""

    async def memory_bytes(self) -> int: ...

    def cpu(self) -> str | None: ...

    async def host_mtus(self) -> dict[str, int]: ...

    async def start_mirror(
        self, drive: str, socket: Path, export: str, *, limit_bytes_s: int = 0, connected: Callable[[], object] = ...
    ) -> None:
        """Args: connected: called when the export has answered: QEMU stands still until then."""

    async def until_ready(self, told: Callable[[Sequence[Any]], Awaitable[None]]) -> None: ...

    async def mirrors(self) -> Sequence[Any]:
        """How far the copy of each disk is. Raises: BackendFailed: one has failed."""

    async def slow_down(self, drive: str, limit_bytes_s: int) -> None:
        """Let the guest write no faster to a disk that is mirrored."""

    async def speed_up(self) -> None:
        """Take off what `slow_down` did."""

    async def complete_mirrors(self) -> None:
        """End the mirrors of a VM that stands still; each leaves a complete copy. Raises: TimedOut: too late."""

    async def end_mirrors(self) -> None:
        """End the mirrors at once, whatever their copies are."""

    async def start_migration(
        self,
        socket: Path,
        *,
        limit_bytes_s: int = 0,
        downtime_ms: int = 100,
        auto_converge: bool = False,
        postcopy: bool = False,
    ) -> None: ...

    async def start_postcopy(self) -> None:
        """Have the VM stand still, and then run there before all of its memory is: the end of `until_switchover`."""

    async def until_sent(self, told: Callable[[Any], Awaitable[None]]) -> None:
        """Wait until all memory is there, after `switch_over` by post-copy. Raises: BackendFailed: it never is."""

    async def limit(self, *, limit_bytes_s: int = 0, downtime_ms: int = 100) -> None: ...

    async def until_switchover(self, told: Callable[[Any], Awaitable[None]], *, limit_s: float) -> MemoryState:
        """Wait until the VM stands still and only the rest of its memory is to be sent.

        Raises: TimedOut: its disks were not level in time; they have `limit_s` until the end of `complete_mirrors`.
        """

    async def switch_over(self, *, limit_s: float) -> None:
        """Send the rest; from now on the target may have the whole state, or by post-copy enough of it to run.

        Raises: TimedOut: not within `limit_s`.
        """

    async def migration(self) -> str:
        """What `query-migrate` says, `none` before it was ever told to migrate."""

    async def cancel_migration(self) -> None: ...

    async def adopt_mirrors(self) -> None:
        """Take over the mirrors of a program that has ended, so that `end_mirrors` ends them too."""

    async def run(self) -> None: ...

    async def pause(self) -> None: ...


class Machines(Protocol):
    """The VMs that run here."""

    def attached(self, vmid: int) -> AbstractAsyncContextManager[Running]:
        """A running VM. Raises: WrongState: it is not running."""

    async def stop(self, vmid: int) -> None:
        """End it, and remove its sockets."""
