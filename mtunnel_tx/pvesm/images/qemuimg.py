"""Run qemu-img with limits of memory and time, and always with an explicit image format."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtunnel_tx.errors import BackendFailed, TimedOut
from mtunnel_tx.pve.imagefile import ImageFacts, ImageRefused, Read, read_image_info
from mtunnel_tx.pvesm.images.imagemap import refuse_missing_data
from mtunnel_tx.pvesm.images.qcow2tables import refuse_missing_clusters

_GIB = 1 << 30
# `info` reads a header only; `check` needs memory for a reference count of each cluster, in holes of the file too.
_MOST_COUNTS_BYTES = _GIB
_INFO_LIMITS = (f"--as={2 * _GIB}", "--cpu=60")
_CHECK_LIMITS = (f"--as={2 * _GIB + _MOST_COUNTS_BYTES}", "--cpu=14400")
_INFO_S = 120
_CHECK_S = 24 * 3600
_CHECK_LEAKS = 3
_CHECK_UNSUPPORTED = 63
_UNCLOSED = "; QEMU did not close it: a start of its VM puts that right"
_FORMATTING = re.compile(r"^Formatting '.*', (?=fmt=)", re.DOTALL)


def create_image(path: Path, format: str, size_bytes: int, preallocation: str | None) -> str:
    """Make an empty image in a file that is there already.

    Returns: what qemu-img says: `fmt=raw size=…`, without the name.
    Raises: BackendFailed: its own words.
    """
    options = ["-o", f"preallocation={preallocation}"] if preallocation else []
    output = _run(["create", "-f", format, *options, "--", str(path), str(size_bytes)], timeout_s=_CHECK_S)
    return _FORMATTING.sub("", output).strip()


def verify_image(path: Path, facts: ImageFacts, read: Read) -> None:
    """Check that the image is whole, by qemu-img and by its tables, and agrees with its header.

    Args: read: reads the same file. Raises: ImageRefused, BackendFailed, TimedOut.
    """
    told = _info(path, facts.format)
    _compare(told, facts)
    _check(path, facts, is_unclosed=told.unclosed)
    refuse_missing_data(path, facts.format)
    if facts.format == "vmdk" and "compressed" in facts.options:
        _read_all(path)
    if facts.format == "qcow2":
        refuse_missing_clusters(read, path.stat().st_size)


def _read_all(path: Path) -> None:
    """Read a compressed vmdk completely: the map does not show where its data is, so only reading finds gaps."""
    both = ["-f", "vmdk", "-F", "vmdk", "--", str(path), str(path)]
    try:
        _run(["compare", *both], limits=_CHECK_LIMITS, timeout_s=_CHECK_S)
    except BackendFailed as error:
        raise ImageRefused(f"compressed data cannot be read, image may be cut short: {error.text}") from error


def _info(path: Path, format: str) -> ImageFacts:
    output = _run(["info", "-f", format, "--output=json", "--", str(path)], limits=_INFO_LIMITS, timeout_s=_INFO_S)
    return read_image_info(json.loads(output))


def _compare(told: ImageFacts, facts: ImageFacts) -> None:
    if told.why_not_alone:
        raise ImageRefused(told.why_not_alone)
    if told.corrupt:
        raise ImageRefused("image is marked as corrupt")
    if told.size_bytes != facts.size_bytes:
        raise ImageRefused(f"image has {told.size_bytes} bytes, its header says {facts.size_bytes}")


def _check(path: Path, facts: ImageFacts, *, is_unclosed: bool) -> None:
    _refuse_many_clusters(path, facts)
    argv = ["check", "-f", facts.format, "--output=json", "--", str(path)]
    output = _run(argv, limits=_CHECK_LIMITS, timeout_s=_CHECK_S, allowed=(0, 2, _CHECK_LEAKS, _CHECK_UNSUPPORTED))
    if not output.startswith("{"):
        return
    found = json.loads(output)
    faults = found.get("corruptions", 0) + found.get("check-errors", 0)
    if faults:
        raise ImageRefused(f"qemu-img check found {faults} errors in the image{_UNCLOSED if is_unclosed else ''}")
    _refuse_missing_end(found, path, int(facts.options.get("cluster_size", 0)))


def _refuse_many_clusters(path: Path, facts: ImageFacts) -> None:
    """A stream of some hundred bytes can be a file of any length, of which nearly everything is a hole."""
    if facts.format != "qcow2":
        return
    length, cluster_bytes = path.stat().st_size, int(facts.options["cluster_size"])
    if length // cluster_bytes * int(facts.options["refcount_bits"]) // 8 > _MOST_COUNTS_BYTES:
        raise ImageRefused(f"image has too many clusters to be checked: {length} bytes in pieces of {cluster_bytes}")


def _refuse_missing_end(found: Mapping[str, Any], path: Path, cluster_bytes: int) -> None:
    """Refuse a qcow2 image that was cut short; qemu-img reads what is missing as zeros.

    A good image may have leaked clusters behind its end, and its last cluster may be incomplete; `imagemap` checks
    whether data is missing there.
    """
    end = found.get("image-end-offset")
    if end is None or not cluster_bytes or found.get("leaks"):
        return
    length = path.stat().st_size
    if length + cluster_bytes <= end:
        raise ImageRefused(f"image is cut short: it ends at {length} of {end} bytes")


def delete_snapshot(path: Path, name: str) -> None:
    """Remove an internal snapshot of a qcow2 image. Raises: BackendFailed."""
    image = f"driver=qcow2,file.driver=file,file.filename={str(path).replace(',', ',,')}"
    _run(["snapshot", "--image-opts", "-d", name, image], timeout_s=_CHECK_S)


def _run(argv: Sequence[str], *, timeout_s: float, limits: Sequence[str] = (), allowed: Sequence[int] = (0,)) -> str:
    """Returns: the standard output. Raises: BackendFailed: the command and its last words; TimedOut."""
    prefix = ["prlimit", *limits, "--"] if limits else []
    try:
        done = subprocess.run(
            [*prefix, "qemu-img", *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=timeout_s,
            env={**os.environ, "LC_ALL": "C"},
        )
    except OSError as error:
        raise BackendFailed(f"unable to run qemu-img: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise TimedOut(f"qemu-img {argv[0]} did not end within {timeout_s:.0f} s") from error
    if done.returncode not in allowed:
        raise BackendFailed(_last_words(argv[0], done))
    return done.stdout


def _last_words(command: str, done: subprocess.CompletedProcess[str]) -> str:
    words = (done.stderr or done.stdout).strip()[-4096:]
    return f"{words}\ncommand 'qemu-img {command}' failed: exit code {done.returncode}".lstrip()
