"""A real browser for one test: Chromium without a window, driven by selenium."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SkipTest

from tests.patience import wait_for

PROGRAMS = ("chromium", "chromedriver")
_OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")


class Chromium:
    """Args: width, height: of the window, in pixels. dark: what the user prefers. script: whether there is any."""

    def __init__(self, folder: Path, *, width: int = 900, height: int = 1000, dark: bool = False, script: bool = True):
        require()
        from selenium.webdriver import Chrome, ChromeOptions, ChromeService

        options = ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        options.accept_insecure_certs = True
        for word in (*_OPTIONS, f"--user-data-dir={folder}"):
            options.add_argument(word)
        if not script:
            options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
        self.driver: Any = Chrome(options=options, service=ChromeService(str(shutil.which("chromedriver"))))
        self.resize(width, height)
        self.prefer("dark" if dark else "light")

    def resize(self, width: int, height: int) -> None:
        """A window's own least width does not count."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def prefer(self, scheme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def close(self) -> None:
        self.driver.quit()

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", selector))

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def text(self, selector: str = "body") -> str:
        """What somebody reads there, at one moment, however often it changes."""
        return str(self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector))

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait_for_text(self, text: str, selector: str = "body", quiet_s: float = 30) -> None:
        wait_for(f"{text!r} in {selector}", lambda: text in self.text(selector), quiet_s)

    def save(self, path: Path) -> None:
        """A picture of what is in the window."""
        self.driver.save_screenshot(str(path))


def require() -> None:
    """Raises: SkipTest: there is no browser."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    missing += ["selenium"] if find_spec("selenium") is None else []
    if missing:
        raise SkipTest(f"{', '.join(missing)} missing (make page): THE STATUS PAGE IS SEEN BY NO BROWSER")
