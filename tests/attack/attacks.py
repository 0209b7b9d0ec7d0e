"""What is done to a cell in the middle of its move."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.matrix.cell import HERE, THERE, Cell, Side
from tests.processes import run_program

FREEZE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """`undo`: what an admin does when everything has come to rest."""

    name: str
    do: Callable[[Cell], None]
    undo: Callable[[Cell], None] = lambda _cell: None


def _freeze(*find: Callable[[Cell], int | None]) -> Callable[[Cell], None]:
    """SIGSTOP for a while, then SIGCONT; whatever waited in the proxy goes on meanwhile."""

    def freeze(cell: Cell) -> None:
        pids = [pid for pid in (one(cell) for one in find) if pid is not None]
        _send(pids, signal.SIGSTOP)
        cell.proxy.release()
        time.sleep(FREEZE_S)  # it is the attack itself that lasts
        _send(pids, signal.SIGCONT)

    return freeze


def _send(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _daemon(cell: Cell) -> int | None:
    return cell.there.process.pid if cell.there.process else None


def _program(cell: Cell) -> int | None:
    return cell.migration.pid if cell.migration else None


def _source_qemu(cell: Cell) -> int | None:
    return _qemu(cell.here)


def _target_qemu(cell: Cell) -> int | None:
    return _qemu(cell.there)


def _qemu(side: Side) -> int | None:
    spy = side.spy()
    return spy.pid if spy else None


def _config(cell: Cell, *, source: bool) -> Path:
    return cell.here.guest_file(HERE) if source else cell.there.guest_file(THERE)


def _unlock(*, source: bool) -> Callable[[Cell], None]:
    def unlock(cell: Cell) -> None:
        path = _config(cell, source=source)
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if not line.startswith("lock:")))

    return unlock


def _write(text: str, *, source: bool) -> Callable[[Cell], None]:
    def write(cell: Cell) -> None:
        _config(cell, source=source).write_text(text)

    return write


def _remove(*, source: bool) -> Callable[[Cell], None]:
    return lambda cell: _config(cell, source=source).unlink()


def _clear_run(side: Callable[[Cell], Side]) -> Callable[[Cell], None]:
    def clear(cell: Cell) -> None:
        run_program(["find", str(side(cell).runtime), "-mindepth", "1", "-delete"])

    return clear


def _empty(side: Callable[[Cell], Side], name: str) -> dict[str, Callable[[Cell], None]]:
    """A file below `pve_dir`, and what was in it."""
    kept: dict[Path, str] = {}

    def empty(cell: Cell) -> None:
        path = side(cell).pve / name
        kept[path] = path.read_text()
        path.write_text("")

    def put_back(cell: Cell) -> None:
        path = side(cell).pve / name
        path.write_text(kept.pop(path))

    return {"do": empty, "undo": put_back}


def _here(cell: Cell) -> Side:
    return cell.here


def _there(cell: Cell) -> Side:
    return cell.there


ATTACKS = (
    Attack(name="daemon stopped", do=_freeze(_daemon)),
    Attack(name="source program stopped", do=_freeze(_program)),
    Attack(name="daemon and program stopped", do=_freeze(_daemon, _program)),
    Attack(name="source QEMU stopped", do=_freeze(_source_qemu)),
    Attack(name="target QEMU stopped", do=_freeze(_target_qemu)),
    Attack(name="source config: lock removed", do=_unlock(source=True)),
    Attack(name="source config: garbage", do=_write("garbage{{{\n", source=True)),
    Attack(name="source config: removed", do=_remove(source=True)),
    Attack(name="source storage.cfg: emptied", **_empty(_here, "storage.cfg")),
    Attack(name="target config: lock removed", do=_unlock(source=False)),
    Attack(name="target config: garbage", do=_write("garbage{{{\n", source=False)),
    Attack(name="target config: removed", do=_remove(source=False)),
    Attack(name="target storage.cfg: emptied", **_empty(_there, "storage.cfg")),
    Attack(name="target token.cfg: emptied", **_empty(_there, "priv/token.cfg")),
    Attack(name="target runtime directory: emptied", do=_clear_run(_there)),
)
