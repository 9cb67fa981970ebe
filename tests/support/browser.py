"""Pages in a headless Chromium, driven as a reader drives them. Tests skip where there is none."""

import json
import re
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DRIVER = shutil.which("chromedriver")
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"]
needs_driver = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium with chromedriver on PATH"
)


class Browser:
    """As much of WebDriver as the tests need."""

    def __init__(self, profile: Path) -> None:
        self.process = subprocess.Popen(
            [DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        port = next(
            filter(None, (re.search(r"on port (\d+)\.", line) for line in self.process.stdout))
        )[1]
        self.address = f"http://127.0.0.1:{port}/session"
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        self.address += (
            "/"
            + self.send("", {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}})[
                "sessionId"
            ]
        )

    def send(self, path: str, body: dict | None, method: str = "POST"):
        request = urllib.request.Request(
            self.address + path,
            json.dumps(body).encode() if body is not None else None,
            method=method,
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        return json.load(opener.open(request, timeout=60))["value"]

    def open(self, file: Path) -> None:
        self.send("/url", {"url": file.as_uri()})

    def ask(self, expression: str):
        return self.send("/execute/sync", {"script": f"return {expression}", "args": []})

    def until(self, expression: str) -> None:
        deadline = time.monotonic() + 20
        while not self.ask(expression):
            assert time.monotonic() < deadline, (
                f"{expression} did not come true: {self.ask('document.body.innerText')[:500]}"
            )
            time.sleep(0.05)

    def point(self, expression: str, across: float, click: bool = False) -> None:
        """Move the mouse over an element, `across` of its width from its middle."""
        element = self.ask(expression)
        width = self.ask(f"{expression}.getBoundingClientRect().width")
        moves = [{"type": "pointerMove", "origin": element, "x": round(across * width), "y": 0}]
        moves += (
            [{"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0}]
            if click
            else []
        )
        self.send("/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": moves}]})

    def close(self) -> None:
        self.send("", None, "DELETE")
        self.process.terminate()
        self.process.wait()
