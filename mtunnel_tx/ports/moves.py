"""What is said about a move, as values, at both of its ends; `watch/move.py` adds them up."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class MovePhase(Enum):
    """What is being done for a move; the value is the word for people and in JSON. The last three are ends."""

    CHECKING = "checking"
    DISKS = "disks"
    MIRROR = "mirror"
    MEMORY = "memory"
    HAND_OVER = "hand-over"
    POSTCOPY = "post-copy"
    DONE = "done"
    ROLLED_BACK = "rolled back"
    HELD = "held"

    @property
    def is_end(self) -> bool:
        """Nothing comes after it."""
        return self in _ENDS


LONGEST_LABEL = 64
"""Characters of a transfer's label."""
MOST_TRANSFERS = 256
"""What a peer may name beyond it is not shown."""
_ENDS = (MovePhase.DONE, MovePhase.ROLLED_BACK, MovePhase.HELD)


class TransferKind(Enum):
    """How something travels: a disk as a stream, a disk that is mirrored while its VM runs, or the VM's memory."""

    DISK = "disk"
    MIRROR = "mirror"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Something will be transferred, or has another size than was thought. total_bytes: logical; None: not known."""

    label: str
    kind: TransferKind
    total_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """So many logical bytes of a transfer are there. total_bytes: None: as before."""

    label: str
    done_bytes: int
    total_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A transfer has ended, well or not."""

    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """The move has come to a phase. reason: why it ended so; empty where that needs none."""

    phase: MovePhase
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wired:
    """Payload of all websockets up to now: what the network carries, without TLS and frames."""

    bytes_in: int
    bytes_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedSource:
    """What the source calls itself."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedTask:
    """The id of the task at the target."""

    upid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoodStill:
    """How long the VM ran at neither end."""

    downtime_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WasParked:
    """How long flows had no carrier, all times together."""

    parked_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OutageBegan:
    """A flow has lost its carrier."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutageEnded:
    """Every flow has a carrier again, or has ended."""


MoveEvent = (
    Expected
    | Carried
    | Finished
    | Reached
    | Wired
    | NamedSource
    | NamedTask
    | StoodStill
    | WasParked
    | OutageBegan
    | OutageEnded
)
