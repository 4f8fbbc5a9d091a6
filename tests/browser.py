"""A real Chromium, driven through its DevTools protocol, to test pages as a user sees them."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

SECONDS = 60  # limit of every wait; on an idle machine none takes more than two


class Browser:
    """One page. `errors` collects the errors that it prints to the console."""

    def __init__(self, address: str):
        from websocket import create_connection

        self._socket = create_connection(address, timeout=SECONDS, suppress_origin=True)
        self._numbers, self.errors = itertools.count(), []
        for domain in ("Page", "Runtime", "Log"):
            self.command(f"{domain}.enable")

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command of the protocol, and returns its result."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            found = message.get("params", {})
            if message["method"] == "Runtime.exceptionThrown" or found.get("type") in ("error", "warning"):
                self.errors.append(found)
            if message["method"] == "Log.entryAdded" and found["entry"]["level"] in ("error", "warning"):
                self.errors.append(found["entry"])

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited if it is a promise."""
        answer = self.command("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, script: str) -> Any:
        """Waits until an expression is truthy, and returns its value."""
        end = time.monotonic() + SECONDS
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.05)
        return value

    def show(self, address: str, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Opens a page in a window of the given size in pixels, with a light or dark colour preference."""
        theme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.command("Emulation.setEmulatedMedia", features=theme)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.command("Emulation.setDeviceMetricsOverride", **size)
        self.command("Page.navigate", url=address)
        self.until(f"location.href.startsWith({address!r}) && document.readyState === 'complete'")

    def press(self, key: str) -> None:
        """Presses a key, such as `ArrowRight`, in the focused element."""
        for kind in ("rawKeyDown", "keyUp"):
            codes = {"ArrowLeft": 37, "ArrowRight": 39, "Enter": 13, "Tab": 9, "Home": 36}
            self.command("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key])

    def photograph(self, path: Path) -> None:
        """Saves a PNG of the visible part."""
        path.write_bytes(base64.b64decode(self.command("Page.captureScreenshot")["data"]))


@contextmanager
def browser() -> Iterator[Browser]:
    """A Chromium with one page; the test is skipped if Chromium is missing."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    # Chromium's sandbox refuses to run as root; /dev/shm is small in containers.
    options = ["--headless", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-port=0", "--no-first-run"]
    options += ["--no-sandbox"] if os.getuid() == 0 else []
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, *options, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port, end = Path(profile) / "DevToolsActivePort", time.monotonic() + SECONDS
            while not (port.exists() and port.read_text().count("\n")):
                assert process.poll() is None and time.monotonic() < end, "Chromium does not start"
                time.sleep(0.05)
            pages = f"http://127.0.0.1:{port.read_text().split()[0]}/json/list"
            with urllib.request.urlopen(pages, timeout=SECONDS) as answer:
                page = next(page for page in json.load(answer) if page["type"] == "page")
            yield Browser(page["webSocketDebuggerUrl"])
        finally:
            process.terminate()
            process.wait(SECONDS)
