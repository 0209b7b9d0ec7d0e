"""The status page of a real daemon, over TLS: its figures beside those of other ways to ask, and live updates."""

from __future__ import annotations

import http.client
import json
import re
import ssl
import time
from html.parser import HTMLParser
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.patience import patience_s, wait_for
from tests.whole.node import SECRET, TOKEN, Node
from tests.whole.peer import Tunnel, call


class Figures(HTMLParser):
    """The exact values on the page: `data` elements and times by their class, below the article that they stand in."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.found: dict[str, list[dict[str, str]]] = {"": [{}]}
        self._place = self.found[""][0]
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "article":
            self._place = {"vmid": given["data-vmid"]}
            self.found.setdefault(given["class"], []).append(self._place)
        elif tag == "data":
            self._place[given["class"].removeprefix("figure ")] = given["value"]

    def handle_endtag(self, tag: str) -> None:
        if tag == "article":
            self._place = self.found[""][0]


class Browser:
    """Asks a daemon for its page, and keeps the cookie."""

    def __init__(self, node: Node) -> None:
        self._port = node.port
        self.cookie = ""

    def connect(self) -> http.client.HTTPSConnection:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return http.client.HTTPSConnection("127.0.0.1", self._port, context=context, timeout=patience_s())

    def ask(self, method: str, path: str, body: str = "") -> tuple[int, str]:
        connection = self.connect()
        connection.request(method, path, body, {"Cookie": self.cookie} if self.cookie else {})
        with connection.getresponse() as answer:
            text = answer.read().decode()
            self.cookie = (answer.getheader("Set-Cookie") or self.cookie).partition(";")[0]
        connection.close()
        return answer.status, text

    def enter(self, link: str) -> Browser:
        self.ask("GET", link.partition(str(self._port))[2])
        return self

    def page(self) -> str:
        status, text = self.ask("GET", "/mtunnel/")
        assert status == 200, text
        return text

    def post(self, path: str, **fields: str) -> int:
        csrf = re.search(r'name="csrf" value="([\w-]+)"', self.page())
        assert csrf is not None
        return self.ask("POST", f"/mtunnel/{path}", "&".join([f"csrf={csrf[1]}", *map("=".join, fields.items())]))[0]

    def follow(self) -> Any:
        """The events as a file."""
        connection = self.connect()
        connection.request("GET", "/mtunnel/events", headers={"Cookie": self.cookie})
        return connection.getresponse()


def next_sections(events: Any) -> dict[str, str]:
    """The next update."""
    while not (line := events.readline()).startswith(b"data: "):
        assert line, "the events ended"
    return dict(json.loads(line[6:]))


class Case(SynchronousTestCase):
    extra = ""

    def setUp(self) -> None:
        self.node = Node(extra=self.extra).start()
        self.addCleanup(self.node.close)

    def browser(self) -> Browser:
        link = json.loads(self.node.run("mtunnel_tx.cli", "page", "--json").stdout)["link"]
        return Browser(self.node).enter(link)

    def held(self, vmid: int) -> None:
        """A tunnel with a disk, whose config somebody else takes over, so that it waits for a decision."""
        tunnel = Tunnel(self.node, vmid, storages="local", bridges="")
        tunnel.ask(cmd="disk", storage="local", drive={"size": 1 << 20})
        self.node.guest_file(vmid).write_text("lock: backup\n")
        tunnel.leave()
        wait_for("what is held", lambda: str(vmid) in self.node.ask(cmd="status")["held"])


class PageTests(Case):
    def test_figures_agree(self) -> None:
        """With `status --json`, with the history, and with what Prometheus gets; nothing moves meanwhile."""
        self.held(100)
        tunnel = Tunnel(self.node, 101, storages="local", bridges="")
        tunnel.ask(cmd="disk", storage="local", drive={"size": 3 << 20})
        browser = self.browser()
        wait_for("the row in the history", lambda: "192.0.2" in browser.page() or ">100<" in browser.page())
        shown, said = Figures(browser.page()).found, self.node.ask(cmd="status")
        self.assertEqual(len(shown["move"]), len(said["moves"]))
        for figures, move in zip(shown["move"], said["moves"], strict=True):
            for name in set(figures) & set(move):
                self.assertEqual(figures[name], "" if move[name] is None else str(move[name]), name)
            self.assertLessEqual({"done_bytes", "total_bytes", "wire_in_bytes", "wire_out_bytes"}, set(figures))
            self.assertEqual(figures["transfer_total_bytes"], str(move["transfers"][0]["total_bytes"]))
        self.assertEqual([one["vmid"] for one in shown["held"]], list(said["held"]))
        top = shown[""][0]
        self.assertEqual((top["pid"], top["tunnels"], top["held"]), (str(said["pid"]), "1", "1"))
        (row,) = json.loads(self.node.run("mtunnel_tx.cli", "history", "--json").stdout)
        self.assertEqual((top["bytes_in"], top["bytes_out"]), (str(row["bytes_in"]), str(row["bytes_out"])))
        metrics = call(self.node, "GET", "/mtunnel/metrics").body.decode()
        for name in ("tunnels", "held"):
            self.assertRegex(metrics, rf"(?m)^mtunnel_{name} {float(top[name])}$")
        self.assertRegex(metrics, rf"(?m)^mtunnel_workers {float(len(said['workers']))}$")
        tunnel.ask(cmd="quit", cleanup=1)
        tunnel.leave()

    def test_live_until_it_is_settled(self) -> None:
        browser = self.browser()
        with browser.follow() as events:
            self.assertIn("Nothing waits", next_sections(events)["held"])
            self.held(100)
            for _ in iter(lambda: "VM 100" in next_sections(events).get("held", ""), True):
                pass
            self.assertEqual(browser.post("settle", settle="100+discard"), 303)
            self.assertIn("VM 100 is settled", browser.page())
            for _ in iter(lambda: "Nothing waits" in next_sections(events).get("held", ""), True):
                pass
        self.assertEqual(self.node.images(100), [])
        self.assertIn("VM 100 is settled on the page by the operator of this host", self.node.log.read_text())


class WorkerTests(Case):
    """The page comes through a worker."""

    extra = "workers = 1\nuser = 'nobody'\n"

    def test_live(self) -> None:
        browser = self.browser()
        self.assertIn('class="figure worker_pid"', browser.page())
        with browser.follow() as events:
            for _ in range(3):
                self.assertIn("now", next_sections(events))
        self.log_in_and_drain()

    def log_in_and_drain(self) -> None:
        browser = Browser(self.node)
        began_s = time.monotonic()
        self.assertEqual(browser.ask("POST", "/mtunnel/login", f"token={TOKEN}=wrong")[0], 401)
        self.assertGreater(time.monotonic() - began_s, 2.5)
        self.assertEqual(browser.ask("POST", "/mtunnel/login", f"token={TOKEN}={SECRET}")[0], 303)
        self.assertIn(TOKEN, browser.page())
        said = self.node.log.read_text()
        self.assertIn("failed login from 127.0.0.1, number 1", said)
        self.assertNotIn(SECRET, said)
        self.assertEqual(browser.post("drain", drain="yes"), 303)
        assert self.node.process is not None
        self.assertEqual(self.node.process.wait(patience_s()), 0)
        self.node.process = None
