"""How far a VM has come on its way out, as the records of its journal add up; each is written before its deed.

The program that sends a VM and the one that looks after it once the first was killed read the same fold, so they cannot
disagree about who owns it (owner.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from mtunnel_tx.errors import WrongState
from mtunnel_tx.ports.programs import Program

Record = Mapping[str, Any]


class Power(Enum):
    """What the VM did when it was to leave."""

    RUNNING = "running"
    PAUSED = "paused"
    OFF = "off"


STANDING = frozenset({"paused", "postmigrate", "finish-migrate", "prelaunch"})
"""QEMU's words for a guest that stands still, and may run again here."""


class Stage(Enum):
    """How far it has come: each value is the record that leads there (the table at the end of this module)."""

    CLAIMED = "claim"
    OPENED = "opened"
    STARTING = "starting"
    COMPLETING = "completing"
    RUNS_ON = "runs_on"
    RESUMING = "resuming"
    RESUMED = "resumed"
    HANDING_OVER = "handing_over"
    HANDED_OVER = "handed_over"
    REMOVING = "removing"
    KEPT = "kept"


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """What a journal says.

    `program`: who is at work, or was. `host`, `target_vmid`, `upid`: where the VM goes, as which one, and the task
    there. `token`: the id of the API token, without its secret. `at_s`: when it began, in seconds since the epoch.
    `split`: by post-copy it may run there while a part of its memory is here; `whole`: no part is any more. `asked`:
    the target was told to run it, or that it is its own, and said no.
    `delete`: the VM is to be removed here at the end. While that is done, `config` is the SHA-256 of the config to be
    removed, and `volumes` are those that are left to be freed.
    """

    vmid: int
    stage: Stage
    program: Program
    host: str
    target_vmid: int
    token: str
    power: Power
    at_s: int
    delete: bool
    upid: str = ""
    config: str = ""
    volumes: tuple[str, ...] = ()
    split: bool = False
    whole: bool = False
    asked: bool = False

    @property
    def is_in_parts(self) -> bool:
        """It may run at the target while a part of its memory is here; QEMU knows whether it is so."""
        return self.split and not self.whole

    @property
    def is_started(self) -> bool:
        """There may be a QEMU at the target."""
        return self.stage not in (Stage.CLAIMED, Stage.OPENED) and self.power is not Power.OFF


def claim(
    *, program: Program, host: str, target_vmid: int, token: str, power: Power, at_s: int, delete: bool
) -> Record:
    """The first record; its arguments are those of Departure."""
    return {
        "do": Stage.CLAIMED.value,
        "at": at_s,
        **program_fields(program),
        "host": host,
        "target_vmid": target_vmid,
        "token": token,
        "power": power.value,
        "delete": delete,
    }


def program_fields(program: Program) -> Record:
    """A process, in a record."""
    return {"boot": program.boot, "pid": program.pid, "started": program.started}


def fold(vmid: int, records: Iterable[Record]) -> Departure:
    """Where a VM is after all these records. Raises: WrongState: they are not what this program writes."""
    first, *rest = [*records] or [{}]
    departure = _begin(vmid, first)
    for record in rest:
        departure = apply(departure, record)
    return departure


def apply(departure: Departure, record: Record) -> Departure:
    """One step of the fold. Raises: WrongState: an unknown record, a damaged one, or one that cannot stand here."""
    word = str(record.get("do"))
    change = _CHANGES.get(word)
    if change is None or departure.stage not in change.after:
        raise WrongState(f"{name(departure.vmid)}: record {word!r} cannot stand after {departure.stage.value!r}")
    try:
        return change.do(departure, record)
    except (LookupError, TypeError, ValueError) as error:
        raise _damaged(departure.vmid, word) from error


def name(vmid: int) -> str:
    """How a journal is called in messages."""
    return f"the journal of VM {vmid}'s way out (journal/source-{vmid}.jsonl)"


def _begin(vmid: int, record: Record) -> Departure:
    if record.get("do") != Stage.CLAIMED.value:
        raise WrongState(f"{name(vmid)} is empty or torn: nobody knows how far it came")
    try:
        return Departure(
            vmid=vmid,
            stage=Stage.CLAIMED,
            program=_program(record),
            host=_text(record["host"]),
            target_vmid=int(record["target_vmid"]),
            token=_text(record["token"]),
            power=Power(record["power"]),
            at_s=int(record["at"]),
            delete=bool(record["delete"]),
        )
    except (LookupError, TypeError, ValueError) as error:
        raise _damaged(vmid, Stage.CLAIMED.value) from error


def _damaged(vmid: int, word: str) -> WrongState:
    return WrongState(f"{name(vmid)}: damaged record {word!r}")


def _program(record: Record) -> Program:
    return Program(boot=_text(record["boot"]), pid=int(record["pid"]), started=int(record["started"]))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value


@dataclass(frozen=True, slots=True)
class _Change:
    """A record's effect, and the stages in which it may stand."""

    after: frozenset[Stage]
    do: Callable[[Departure, Record], Departure]


def _to(stage: Stage, *after: Stage) -> _Change:
    return _Change(frozenset(after), lambda departure, _: replace(departure, stage=stage))


def _opened(departure: Departure, record: Record) -> Departure:
    return replace(departure, stage=Stage.OPENED, upid=_text(record["upid"]))


def _refused(departure: Departure, _record: Record) -> Departure:
    """Back to before the question."""
    before = Stage.OPENED if departure.power is Power.OFF else Stage.COMPLETING
    return replace(departure, stage=before, asked=True)


def _kept(departure: Departure, _record: Record) -> Departure:
    """Raises: ValueError: the target has all of it."""
    if departure.stage is Stage.RESUMED and not departure.is_in_parts:
        raise ValueError("it runs there")
    return replace(departure, stage=Stage.KEPT)


def _removing(departure: Departure, record: Record) -> Departure:
    volumes = tuple(map(_text, record["volumes"]))
    return replace(departure, stage=Stage.REMOVING, volumes=volumes, config=_text(record["config"]))


def _freed(departure: Departure, record: Record) -> Departure:
    return replace(departure, volumes=tuple(volid for volid in departure.volumes if volid != record["volid"]))


def _taken(departure: Departure, record: Record) -> Departure:
    return replace(departure, program=_program(record))


_CLAIMED, _OPENED, _STARTING, _COMPLETING, _RUNS_ON, _RESUMING, _RESUMED, *_ENDS = Stage
_HANDING_OVER, _HANDED_OVER, _REMOVING, _KEPT = _ENDS
_UNDECIDED = (_COMPLETING, _RESUMING, _HANDING_OVER)
_CHANGES: Mapping[str, _Change] = {
    "opened": _Change(frozenset({_CLAIMED}), _opened),  # after the target opened a tunnel
    "starting": _to(_STARTING, _OPENED),  # before `start`: there may be a QEMU there
    "postcopy": _Change(  # before post-copy is begun: it may run there while a part of its memory is here
        frozenset({_STARTING}), lambda departure, _: replace(departure, split=True)
    ),
    "completing": _to(_COMPLETING, _STARTING),  # before the rest of the memory is sent: the target may have all of it
    "runs_on": _to(_RUNS_ON, _COMPLETING),  # before it runs on here: the target must not get it any more
    "resuming": _to(_RESUMING, _COMPLETING),  # before `resume`: it may run there
    "resumed": _to(_RESUMED, _RESUMING),  # after it: it runs there
    "whole": _Change(  # after QEMU said so: all of its memory is there
        frozenset({_RESUMED}), lambda departure, _: replace(departure, whole=True)
    ),
    "handing_over": _to(_HANDING_OVER, _OPENED, _COMPLETING),  # before `unlock`, where it does not run there
    "refused": _Change(
        frozenset({_RESUMING, _HANDING_OVER}), _refused
    ),  # after `resume` or `unlock`: the answer was no
    "handed_over": _to(_HANDED_OVER, _RESUMED, *_UNDECIDED),  # after `unlock`, or as somebody decided
    "kept": _Change(  # the target has removed all, or somebody decided
        frozenset({_CLAIMED, _OPENED, _STARTING, _RUNS_ON, _RESUMED, *_UNDECIDED}), _kept
    ),
    "removing": _Change(frozenset({_HANDED_OVER}), _removing),  # before the config is removed: these volumes are next
    "freed": _Change(frozenset({_REMOVING}), _freed),  # after one was freed: the next one of its name is not ours
    "spared": _Change(frozenset({_REMOVING}), _freed),  # another VM uses it
    "taken": _Change(frozenset(Stage), _taken),  # before another program goes on with it
}
