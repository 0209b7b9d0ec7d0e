"""The status page in a real browser; `make page` runs it, and writes the pictures in docs/ where DOCS=1 is given."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from tests.browser.chromium import Chromium, require
from tests.patience import patience_s, wait_for
from tests.whole.node import SECRET, TOKEN, Node
from tests.whole.peer import Tunnel, hold
from tests.whole.test_online import OnlineCase

DOCS = Path(__file__).parents[2] / "docs"
LARGEST_BYTES = 100 << 10
NARROW_PX = 320


class BrowserCase(OnlineCase):
    def setUp(self) -> None:
        require()
        super().setUp()
        self._folder = tempfile.TemporaryDirectory(prefix="mtunnel-browser-", ignore_cleanup_errors=True)
        self.addCleanup(self._folder.cleanup)

    def browse(self, **options: object) -> Chromium:
        folder = Path(tempfile.mkdtemp(dir=self._folder.name))
        browser = Chromium(folder, **options)  # type: ignore[arg-type]
        self.addCleanup(browser.close)
        return browser

    def enter(self, browser: Chromium, node: Node) -> Chromium:
        """Log in by a one-time link."""
        browser.driver.get(json.loads(node.run("mtunnel_tx.cli", "page", "--json").stdout)["link"])
        browser.wait_for_text("the operator of this host")
        return browser

    def assert_quiet(self, browser: Chromium) -> None:
        """Nothing was refused by the policy, and no script failed."""
        said = [entry["message"] for entry in browser.driver.get_log("browser")]
        self.assertEqual([line for line in said if "401" not in line], [])

    def picture(self, browser: Chromium, name: str) -> None:
        folder = DOCS if os.environ.get("DOCS") else Path(self._folder.name)
        browser.run("scrollTo(0, 0)")
        browser.save(folder / name)
        self.assertLess((folder / name).stat().st_size, LARGEST_BYTES)


class MoveTests(BrowserCase):
    def test_a_running_vm_arrives(self) -> None:
        """Nobody loads the page again: it shows the move from its begin to its end."""
        browser = self.enter(self.browse(width=760, height=860), self.there)
        browser.wait_for_text("live", "#connection")
        self.assertIn("Nothing moves", browser.text("#moves"))
        hold(self.there, 300)
        browser.wait_for_text("VM 300", "#held")
        self.boot(burst=0)
        self.fill_disk()
        argv = [sys.executable, "-m", "mtunnel_tx.cli", "migrate", "100", self.there.endpoint, "--online"]
        migration = self.start([*argv, "--target-vmid", "200", "--target-storage", "local", "--bwlimit", "768"])
        browser.wait_for_text("VM 200", "#moves")
        browser.wait_for_text("from here", "#moves h3")
        wait_for("a bar, and a line", lambda: self.has_line(browser) and 10 < self.percent(browser) < 100)
        self.picture(browser, "page.png")
        browser.prefer("dark")
        self.assertLess(self.brightness(browser), 60)
        browser.prefer("light")
        self.assertGreater(self.brightness(browser), 200)
        self.assertEqual(migration.wait(patience_s(120)), 0)
        browser.wait_for_text("done", "#moves .phase")
        browser.wait_for_text("100 %", "#moves .bar")
        browser.wait_for_text("kept", "#history")
        self.assert_quiet(browser)

    def fill_disk(self) -> None:
        """Beyond what the guest writes: so its disk takes a while."""
        with (self.here.storage / "images" / "100" / "vm-100-disk-0.raw").open("r+b") as disk:
            disk.seek(2 << 20)
            disk.write(os.urandom(14 << 20))

    def percent(self, browser: Chromium) -> int:
        return int(browser.run("return document.querySelector('#moves .bar .percent')?.value || 0"))

    def has_line(self, browser: Chromium) -> bool:
        found = browser.run("return document.querySelector('#moves polyline')?.getAttribute('points') ?? ''")
        self.assertNotIn(browser.text("#moves .phase"), ("done", "rolled back"), "it has ended before it was seen")
        return len(str(found).split()) > 5

    def brightness(self, browser: Chromium) -> float:
        colour = browser.run("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
        return sum(colour) / 3


class DecisionTests(BrowserCase):
    def test_settled_by_a_click(self) -> None:
        hold(self.there, 300)
        browser = self.enter(self.browse(), self.there)
        browser.wait_for_text("live", "#connection")
        self.assertFalse(browser.one("#held button.discard").is_displayed())
        browser.one("#held summary").click()
        browser.one("#held button.discard").click()
        browser.wait_for_text("VM 300 is settled")
        browser.wait_for_text("Nothing waits", "#held")
        self.assertEqual(self.there.ask(cmd="status")["held"], {})
        self.assertEqual(self.there.images(300), [])
        self.assert_quiet(browser)

    def test_logging_in(self) -> None:
        browser = self.browse()
        address = f"https://127.0.0.1:{self.there.port}/mtunnel/"
        browser.driver.get(address)
        browser.one("#token").send_keys(f"{TOKEN}=wrong\n")
        browser.wait_for_text("Authentication failed!")
        self.assertIn("failed login from 127.0.0.1", self.there.log.read_text())
        browser.one("#token").send_keys(f"{TOKEN}={SECRET}\n")
        browser.wait_for_text("This daemon")
        self.assertEqual(browser.driver.current_url, address)
        (cookie,) = browser.driver.get_cookies()
        self.assertTrue(cookie["httpOnly"] and cookie["secure"])
        self.assertEqual((cookie["sameSite"], cookie["path"]), ("Strict", "/mtunnel/"))
        self.assertEqual(browser.run("return document.cookie"), "")
        browser.wait_for_text("live", "#connection")
        (self.there.pve / "priv" / "token.cfg").write_text("")
        browser.wait_for_text("API token")

    def test_narrow(self) -> None:
        """Nothing stands out on a small telephone, with a held VM, a move and a history."""
        hold(self.there, 300)
        tunnel = Tunnel(self.there, 301, storages="local", bridges="")
        tunnel.ask(cmd="disk", storage="local", drive={"size": 3 << 20})
        browser = self.enter(self.browse(width=NARROW_PX, height=700), self.there)
        browser.wait_for_text("VM 301", "#moves")
        browser.wait_for_text("from 127.0.0.1", "#history")
        browser.one("#held summary").click()
        self.assertEqual(browser.run("return innerWidth"), NARROW_PX)
        self.assertLessEqual(browser.run("return document.documentElement.scrollWidth"), NARROW_PX)
        wider = (
            "return [...document.querySelectorAll('main *')]"
            ".filter(one => one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML.slice(0, 120))"
        )
        self.assertEqual(browser.run(wider), [])
        broken = (
            "return [...document.querySelectorAll('dt')].filter(one => one.offsetHeight > 30).map(one => one.innerText)"
        )
        self.assertEqual(browser.run(broken), [], "words are broken into letters")
        self.picture(browser, "page-narrow.png")
        tunnel.ask(cmd="quit", cleanup=1)
        tunnel.leave()

    def test_by_keyboard(self) -> None:
        """What the keyboard is at stays where it is when the section changes."""
        hold(self.there, 300)
        browser = self.enter(self.browse(), self.there)
        browser.wait_for_text("1 VM waits for a decision", "header")
        browser.one("header a").click()
        browser.run("document.querySelector('#held summary').focus()")
        browser.driver.switch_to.active_element.send_keys("\ue007")
        hold(self.there, 299)
        browser.wait_for_text("VM 299", "#held")
        browser.wait_for_text("2 VMs wait for a decision", "header")
        where = "const one = document.activeElement; return [one.tagName, one.closest('[data-vmid]')?.dataset.vmid]"
        self.assertEqual(browser.run(where), ["SUMMARY", "300"])
        self.assertTrue(browser.one("#held [data-vmid='300'] button.discard").is_displayed())
        self.assert_quiet(browser)

    def test_without_javascript(self) -> None:
        """It is how things were; forms do what they do with it."""
        hold(self.there, 300)
        browser = self.browse(script=False)
        browser.driver.get(json.loads(self.there.run("mtunnel_tx.cli", "page", "--json").stdout)["link"])
        source = browser.driver.page_source
        self.assertIn("Without JavaScript", source)
        self.assertIn("VM 300", source)
        browser.one("#held summary").click()
        browser.one("#held button.discard").click()
        wait_for("what was done", lambda: "VM 300 is settled" in browser.driver.page_source)
