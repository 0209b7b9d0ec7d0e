"""What it costs a daemon to be watched: a status page that is open, and a Prometheus that comes each second."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

from bench.case import Case
from bench.measure import VERSION_EVERY_S, Bench
from bench.ours import AUTHORIZATION, Mtunnel
from bench.processes import PATIENCE_S, CpuClock, Trouble

SCRAPE_EVERY_S = 1.0
STEADY = Case(streams=4, pinned=False, rate_mb_s=100)
"""A network's rate, so that what is left of a core is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """core_percent: of a core, more than without those who watch. p99_ms: of `version` while they do."""

    core_percent: float
    p99_ms: float
    scrapes: int
    updates: int


def measure_watched(bench: Bench, ours: Mtunnel, folder: Path, *, length_s: float, rounds: int) -> Watched:
    """Busy streams, with and without those who watch, in turn. Raises: Trouble."""
    more_percent: list[float] = []
    times_s: list[float] = []
    scrapes = updates = 0
    with bench.busy(ours, STEADY) as (daemon, tunnel):
        for _ in range(rounds):
            alone_percent = _core_percent(daemon.pid, length_s, [], tunnel.time_version)
            with _watching(folder, daemon.port) as seen:
                percent = _core_percent(daemon.pid, length_s, times_s, tunnel.time_version)
            more_percent.append(percent - alone_percent)
            scrapes, updates = scrapes + seen.scrapes, updates + seen.updates
    if not scrapes or not updates:
        raise Trouble(f"nobody watched: {scrapes} scrapes, {updates} updates of the page")
    p99_ms = 1000 * quantiles(times_s, n=100)[98]
    return Watched(core_percent=median(more_percent), p99_ms=p99_ms, scrapes=scrapes, updates=updates)


def _core_percent(pid: int, length_s: float, times_s: list[float], ask: object) -> float:
    assert callable(ask)
    clock, began_s = CpuClock(pid), time.monotonic()
    while time.monotonic() - began_s < length_s:
        times_s.append(ask())
        time.sleep(VERSION_EVERY_S)
    return 100 * clock.read_s() / (time.monotonic() - began_s)


class _Seen:
    """How often they were answered. failure: why they were not."""

    def __init__(self) -> None:
        self.scrapes = self.updates = 0
        self.failure = ""


@contextmanager
def _watching(folder: Path, port: int) -> Iterator[_Seen]:
    """A page and a scraper for the length of the block."""
    seen, over = _Seen(), threading.Event()
    page = _connect(port)
    events = _open_page(page, folder)
    threads = [
        threading.Thread(target=_follow, args=(events, seen, over)),
        threading.Thread(target=_scrape, args=(port, seen, over)),
    ]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        over.set()
        for thread in threads:
            thread.join(PATIENCE_S)
        page.close()
    if seen.failure:
        raise Trouble(seen.failure)


def _connect(port: int) -> http.client.HTTPSConnection:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=PATIENCE_S)


def _open_page(page: http.client.HTTPSConnection, folder: Path) -> http.client.HTTPResponse:
    """Log in, and ask for its updates."""
    environ = {**os.environ, "MTUNNEL_CONFIG": str(folder / "mtunnel.toml")}
    argv = [sys.executable, "-m", "mtunnel_tx.cli", "page", "--json"]
    link = json.loads(subprocess.run(argv, check=True, env=environ, capture_output=True).stdout)["link"]
    page.request("GET", link.partition(f":{page.port}")[2])
    answer = page.getresponse()
    answer.read()
    cookie = (answer.getheader("Set-Cookie") or "").partition(";")[0]
    page.request("GET", "/mtunnel/events", headers={"Cookie": cookie})
    events = page.getresponse()
    if events.status != http.HTTPStatus.OK:
        raise Trouble(f"no page: {events.status} {events.reason}")
    return events


def _follow(events: http.client.HTTPResponse, seen: _Seen, over: threading.Event) -> None:
    while not over.is_set():
        line = events.readline()
        if not line:
            seen.failure = "the page's updates ended"
            return
        seen.updates += line.startswith(b"data: ")


def _scrape(port: int, seen: _Seen, over: threading.Event) -> None:
    while not over.wait(SCRAPE_EVERY_S):
        connection = _connect(port)
        connection.request("GET", "/metrics", headers={"Authorization": AUTHORIZATION})
        answer = connection.getresponse()
        answer.read()
        connection.close()
        if answer.status != http.HTTPStatus.OK:
            seen.failure = f"no metrics: {answer.status} {answer.reason}"
            return
        seen.scrapes += 1
