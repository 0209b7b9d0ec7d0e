"""What a benchmark has found, as text, as JSON, and as the page of the documents."""

from __future__ import annotations

import json
import os
import platform
import ssl
import sysconfig
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from OpenSSL import SSL

from bench.case import KIB, Case
from bench.measure import Sample
from bench.plot import draw
from bench.processes import Trouble
from bench.targets import Samples, Verdict

BEGIN, END = "<!-- figures: made by make bench -->\n", "<!-- end of figures -->\n"
HEADS = ("relay", "direction", "TLS", "mask", "frame", "streams", "MB/s", "CPU s/GiB", "RSS MiB", "runs")
SUMMARY_HEADS = ("relay", "in, MB/s", "in, CPU s/GiB", "out, MB/s", "out, CPU s/GiB")
CPU_FLAGS = ("aes", "vaes", "vpclmulqdq", "avx2", "avx512f")
MOST_SPREAD_PERCENT = 15
RECORD_BYTES = 16 * KIB
OTHER_HEADS = ("what", "relay", "value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A relay in a case: medians of its runs. Relays without websockets have no mask, and no frames either, but where
    these would make the TLS records smaller than usual.
    """

    relay: str
    direction: str
    tls: bool
    mask: str | None
    frame: int | None
    streams: int
    pinned: bool
    rate_mb_s: int
    resumable: bool
    mb_s: float
    cpu_s_gib: float
    rss_mib: float
    runs: list[dict[str, float]]


def make_row(relay: str, framed: bool, case: Case, samples: Sequence[Sample]) -> Row:
    """Medians."""
    return Row(
        relay=relay,
        direction=case.direction,
        tls=case.tls,
        mask=case.mask if framed and case.direction == "in" else None,
        frame=case.frame_bytes if case.direction == "in" and (framed or case.frame_bytes < RECORD_BYTES) else None,
        streams=case.streams,
        pinned=case.pinned,
        rate_mb_s=case.rate_mb_s,
        resumable=case.resumable,
        mb_s=round(median(sample.mb_s for sample in samples), 1),
        cpu_s_gib=round(median(sample.cpu_s_gib for sample in samples), 3),
        rss_mib=round(median(sample.rss_mib for sample in samples), 1),
        runs=[sample.as_dict() for sample in samples],
    )


def cells(row: Row) -> tuple[str, ...]:
    """A row as text."""
    frame = f"{row.frame // KIB} KiB" if row.frame else "-"
    streams = f"{row.streams}" if row.pinned else f"{row.streams} (2 cores)"
    streams += ", resumable" if row.resumable else ""
    streams += f", paced to {row.rate_mb_s} MB/s" if row.rate_mb_s else ""
    tls = "TLS" if row.tls else "plain"
    figures = (f"{row.mb_s:.0f}", f"{row.cpu_s_gib:.2f}", f"{row.rss_mib:.0f}", str(len(row.runs)))
    return (row.relay, row.direction, tls, row.mask or "-", frame, streams, *figures)


@dataclass(slots=True, kw_only=True)
class Findings:
    """Everything that was measured."""

    rows: list[Row]
    samples: Samples
    others: list[tuple[str, str, str]]
    verdicts: list[Verdict]
    commands: dict[str, str]
    skipped: list[str]

    def text(self) -> str:
        """For the terminal."""
        parts = [
            _columns(HEADS, [cells(row) for row in self.rows]),
            _columns(OTHER_HEADS, self.others),
            _columns(("target", "measured"), [(each.text, each.shown) for each in self.verdicts]),
            "\n".join(f"{name}: {command}" for name, command in self.commands.items()),
            *self.skipped,
        ]
        return "\n\n".join(part for part in parts if part)

    def markdown(self) -> str:
        """The same as tables of the documents."""
        parts = [
            f"{host()}.",
            "![throughput and CPU of the relays](performance.svg)",
            _table(HEADS, [cells(row) for row in self.rows]),
            _table(OTHER_HEADS, self.others),
            _table(("target", "measured"), [(each.text, each.shown) for each in self.verdicts]),
            "Command lines:\n\n" + "\n".join(f"- {name}: `{command}`" for name, command in self.commands.items()),
        ]
        return "\n\n".join(parts) + "\n"

    def summary(self) -> str:
        """One stream through TLS, both directions, as a table for a first look."""
        shown = [row for row in self.rows if _is_plain_case(row)]
        relays = list(dict.fromkeys(row.relay for row in shown))
        found = {(row.relay, row.direction): (f"{row.mb_s:.0f}", f"{row.cpu_s_gib:.2f}") for row in shown}
        lines = [(name, *found.get((name, "in"), "--"), *found.get((name, "out"), "--")) for name in relays]
        return _table(SUMMARY_HEADS, lines) + "\n"

    def json(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "host": host(),
            "rows": [asdict(row) for row in self.rows],
            "others": [dict(zip(OTHER_HEADS, other, strict=True)) for other in self.others],
            "targets": [{**asdict(each), "reached": each.reached} for each in self.verdicts],
            "commands": self.commands,
            "skipped": self.skipped,
        }


def _is_plain_case(row: Row) -> bool:
    return (
        not row.rate_mb_s
        and not row.resumable
        and row.tls
        and row.streams == 1
        and row.pinned
        and row.mask in (None, "zero")
        and row.frame in (None, 128 * KIB)
    )


def host() -> str:
    """What it was measured on."""
    return ", ".join(
        (
            f"{os.cpu_count()} cores ({_cpu()})",
            f"Linux {platform.release().partition('-')[0]}",
            f"Python {platform.python_version()} ({_libpython()})",
            f"Twisted {version('Twisted')}",
            f"{_release(_own_openssl())} (mtunnel, autobahn)",
            f"{_release(ssl.OPENSSL_VERSION)} (others)",
        )
    )


def _cpu() -> str:
    """Its model, what it has for AES and for wide vectors, and who sets its clock."""
    facts = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    model = facts.get("model name") or platform.machine()
    family = f", family {facts['cpu family']} model {facts['model']}" if "cpu family" in facts else ""
    flags = [flag for flag in CPU_FLAGS if flag in facts.get("flags", "").split()]
    return f"{model}{family}, {' '.join(flags) or 'no AES instructions'}, governor {_governor()}"


def _governor() -> str:
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return "unknown"


def _libpython() -> str:
    """A shared libpython makes the interpreter slower."""
    return "shared libpython" if sysconfig.get_config_var("Py_ENABLE_SHARED") else "static libpython"


def _own_openssl() -> str:
    """Of the OpenSSL that pyOpenSSL brings."""
    return SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode()


def _release(text: str) -> str:
    """`OpenSSL 3.5.1 1 Jul 2025` without its date."""
    return " ".join(text.split()[:2])


def _columns(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (heads, *rows)
    ]
    return "\n".join(lines)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(findings: Findings, folder: Path) -> None:
    """Leave JSON and picture in a folder."""
    (folder / "results.json").write_text(json.dumps(findings.json(), indent=1, ensure_ascii=False) + "\n")
    (folder / "performance.svg").write_text(draw(findings.rows))


def find_doubts(findings: Findings) -> list[str]:
    """Why these figures are not to be published: ratios whose rounds disagree, or that have one round."""
    return [
        f"{each.text}: {each.shown}"
        for each in findings.verdicts
        if each.unit == "x" and each.value is not None and (each.spread is None or each.spread > MOST_SPREAD_PERCENT)
    ]


def write_documents(findings: Findings, tree: Path) -> None:
    """Put figures and picture into README and documents; the words around them stay.

    Raises: Trouble: the rounds disagree too much.
    """
    if doubts := find_doubts(findings):
        raise Trouble(f"not written, rounds lie more than {MOST_SPREAD_PERCENT} % apart: {'; '.join(doubts)}")
    _replace_figures(tree / "README.md", findings.summary())
    _replace_figures(tree / "docs/performance.md", findings.markdown())
    (tree / "docs/performance.svg").write_text(draw(findings.rows))


def _replace_figures(page: Path, figures: str) -> None:
    before, _, rest = page.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n{figures}\n{END}{after}")
