"""A headless Chromium, driven by chromedriver through the W3C WebDriver protocol; without a network but this machine.

Debian and Ubuntu have both in the packages chromium and chromium-driver.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
DRIVER = shutil.which("chromedriver")
REASON = "needs chromium and chromedriver (Debian: chromium, chromium-driver)"
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
SWITCHES = (
    "--headless", "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-gl=angle", "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader", "--force-device-scale-factor=1",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
KEYS = {"Tab": "\ue004", "Left": "\ue012", "Right": "\ue014", "Up": "\ue013", "Down": "\ue015", "Space": " "}


class Browser:
    """A page in a window. downloads: the folder that saved files go to."""

    def __init__(self, downloads: Path, size: tuple[int, int] = (1280, 720)) -> None:
        self.downloads = downloads
        self._driver = subprocess.Popen(
            [DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        line = next(text for text in self._driver.stdout if "started successfully on port" in text)
        self._root = f"http://127.0.0.1:{line.strip().rstrip('.').split()[-1]}"
        options = {
            "binary": CHROMIUM,
            "args": [*SWITCHES, f"--window-size={size[0]},{size[1]}", f"--user-data-dir={downloads / 'profile'}"],
        }
        wanted = {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}
        session = self._call("POST", "/session", {"capabilities": wanted})["sessionId"]
        self._root += f"/session/{session}"
        self._call("POST", "/timeouts", {"script": 60_000})
        self.devtools("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)})

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._root + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(json.load(error)["value"]["message"]) from None

    def close(self) -> None:
        try:
            self._call("DELETE", "")
        finally:
            self._driver.terminate()
            self._driver.wait(30)

    def open(self, address: str) -> None:
        self._call("POST", "/url", {"url": address})

    def resize(self, width: int, height: int) -> None:
        """Sets the size of the page, also below the 500 pixels that a window has at least."""
        values = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.devtools("Emulation.setDeviceMetricsOverride", values)

    def devtools(self, command: str, values: dict[str, Any]) -> Any:
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": values})

    def run(self, script: str, *arguments: Any) -> Any:
        """Runs the body of a function and returns what it returns."""
        return self._call("POST", "/execute/sync", {"script": script, "args": arguments})

    def wait(self, condition: str, seconds: float = 60) -> Any:
        """Waits until a JavaScript expression is true, and returns its value."""
        end = time.monotonic() + seconds
        while not (found := self.run(f"return {condition}")):
            if time.monotonic() > end:
                said = self.run("return document.getElementById('status')?.textContent ?? ''")
                raise AssertionError(f"not after {seconds:g} s: {condition}; the page says {said!r}; {self.console()}")
            time.sleep(0.05)
        return found

    def _element(self, selector: str) -> str:
        return self._call("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT]

    def click(self, selector: str) -> None:
        self._call("POST", f"/element/{self._element(selector)}/click", {})

    def press(self, *keys: str) -> None:
        """Presses and releases keys, those of KEYS by name; they go to the element that has the focus."""
        strokes = [{"type": kind, "value": KEYS.get(key, key)} for key in keys for kind in ("keyDown", "keyUp")]
        self._call("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": strokes}]})

    def click_at(self, x: int, y: int) -> None:
        """Clicks a point of the page."""
        moves = [{"type": "pointerMove", "x": x, "y": y, "duration": 0}]
        moves += [{"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0}]
        self._call("POST", "/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": moves}]})

    def set(self, selector: str, value: Any) -> None:
        """Sets an input or select as a user does: the value, and the events."""
        script = """const [selector, value] = arguments, element = document.querySelector(selector);
            if (element.type === "checkbox") { if (element.checked !== value) element.click(); return; }
            element.value = value;
            for (const kind of ["input", "change"]) element.dispatchEvent(new Event(kind, {bubbles: true}));"""
        self.run(script, selector, value)

    def screenshot(self) -> Image.Image:
        return Image.open(io.BytesIO(base64.b64decode(self._call("GET", "/screenshot"))))

    def pixels(self, selector: str) -> np.ndarray:
        """The picture of an element (height, width, 3), as it is on the screen after the next frame."""
        box = self.run(
            "return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => {"
            "const b = document.querySelector(arguments[0]).getBoundingClientRect();"
            "done([b.left, b.top, b.right, b.bottom]); })))", selector,
        )  # fmt: skip
        return np.asarray(self.screenshot().convert("RGB").crop([round(v) for v in box])).astype(int)

    def console(self) -> list[str]:
        """What the page has written to the console since the last call, and what Chromium has said of it."""
        return [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})]
