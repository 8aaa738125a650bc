"""A headless Chromium for tests, driven over the DevTools protocol as a person drives it: by mouse and keyboard.

https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome")
_KEYS = {"Enter": 13, "Escape": 27, "Tab": 9, "ArrowRight": 39, "ArrowLeft": 37, " ": 32}
_CONTROL, _SHIFT = 2, 8  # modifiers, as the protocol counts them
_BETWEEN_PAGES = ("context was destroyed", "navigated or closed", "Cannot find default execution context")


def find_browser() -> str | None:
    """The Chromium of this machine: ``$CHROMIUM``, or one of ``NAMES`` on the path; None where there is none."""
    return next((found for name in (os.environ.get("CHROMIUM", ""), *NAMES) if (found := shutil.which(name))), None)


class BrowserError(AssertionError):
    """The page did not do what the test expects of it, or its script failed."""


class Page:
    """One tab. ``problems``: errors in its console, those of the policy too; ``addresses``: what was fetched."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self.problems: list[str] = []
        self.addresses: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol and its answer; what happens meanwhile is read too.

        Raises:
            BrowserError: the browser refuses the command, or does not answer within 30 s.
        """
        wanted = next(self._ids)
        self._socket.send(json.dumps({"id": wanted, "method": method, "params": params}))
        deadline = time.monotonic() + 180
        while True:
            try:
                message = json.loads(self._socket.recv(timeout=max(0.0, deadline - time.monotonic())))
            except TimeoutError:
                raise BrowserError(f"{method}: no answer") from None
            if message.get("id") == wanted:
                if "error" in message:
                    raise BrowserError(f"{method}: {message['error']['message']}")
                result: dict[str, Any] = message["result"]
                return result
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        said = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            details = said["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description", details["text"]))
        elif message.get("method") == "Log.entryAdded" and said["entry"]["level"] == "error":
            # that a request was answered with an error is what some tests are about: the page says it
            if said["entry"]["source"] != "network":
                self.problems.append(said["entry"]["text"])
        elif message.get("method") == "Network.requestWillBeSent":
            self.addresses.append(said["request"]["url"])
        elif message.get("method") == "Runtime.consoleAPICalled" and said["type"] == "error":
            self.problems.append(str([one.get("description") or one.get("value") for one in said["args"]]))

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for.

        Raises:
            BrowserError: it throws.
        """
        answer = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise BrowserError(f"{expression}: {details.get('exception', {}).get('description', details['text'])}")
        return answer["result"].get("value")

    def until(self, expression: str, seconds: float = 120.0) -> Any:
        """The value of ``expression`` as soon as it is true.

        Raises:
            BrowserError: it is not, after ``seconds``; the message holds what the page shows.
        """
        deadline = time.monotonic() + seconds
        while not (value := self._now(expression)):
            if time.monotonic() > deadline:
                shown = self.evaluate("document.body.innerText")
                raise BrowserError(f"not within {seconds:.0f} s: {expression}\n{shown}\n{self.problems}")
            time.sleep(0.03)
        return value

    def _now(self, expression: str) -> Any:
        try:
            return self.evaluate(expression)
        except BrowserError as error:
            if any(said in str(error) for said in _BETWEEN_PAGES):
                return None
            raise

    def reload(self) -> None:
        """Load the page anew and wait until its scripts have run."""
        self.evaluate("window.before = true")
        self.send("Page.reload")
        self.until("!window.before && document.readyState === 'complete'")

    def open(self, url: str) -> None:
        """Go to ``url`` and wait until its scripts have run."""
        self.send("Page.navigate", url=url)
        self.until(f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'")

    def text(self, selector: str) -> str:
        """What the first element of that selector shows, as soon as there is one."""
        self.until(f"document.querySelector({json.dumps(selector)}) !== null")
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))

    def click(self, selector: str) -> None:
        """Press the left button in the middle of the first element of that selector, which must be in sight."""
        x, y = self.until(f"""(() => {{
            const node = document.querySelector({json.dumps(selector)});
            if (!node) return null;
            node.scrollIntoView({{ block: "center", behavior: "instant" }});
            const box = node.getBoundingClientRect();
            const at = [box.x + box.width / 2, box.y + box.height / 2];
            return box.width && node.contains(document.elementFromPoint(...at)) ? at : null;
        }})()""")
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Type into the control that has the focus, in place of what is selected."""
        self.send("Input.insertText", text=text)

    def press(self, key: str, *, control: bool = False, shift: bool = False) -> None:
        """Press and release one key: a name of ``_KEYS``, with the keys held that are asked for."""
        held = _CONTROL * control + _SHIFT * shift
        text = {"Enter": "\r", " ": " "}.get(key, "") if not control else ""
        event = {
            "key": key,
            "code": "Space" if key == " " else key,
            "windowsVirtualKeyCode": _KEYS[key],
            "modifiers": held,
        }
        self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **event)
        self.send("Input.dispatchKeyEvent", type="keyUp", **event)

    def resize(self, width: int, height: int, *, scale: float = 1.0, mobile: bool = False) -> None:
        """Show the page in a window of that many CSS pixels."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile
        )

    def prefer(self, **features: str) -> None:
        """What the system is said to prefer, e.g. ``color_scheme="dark"``."""
        named = [{"name": f"prefers-{name.replace('_', '-')}", "value": value} for name, value in features.items()]
        self.send("Emulation.setEmulatedMedia", features=named)

    def screenshot(self, path: Path, *, whole: bool = False) -> Path:
        """What is in sight, or the whole page, as PNG."""
        made = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(made["data"]))
        return path

    def accessibility(self) -> list[dict[str, Any]]:
        """What a screen reader is told: the nodes of the accessibility tree that are not ignored."""
        nodes = self.send("Accessibility.getFullAXTree")["nodes"]
        return [node for node in nodes if not node["ignored"]]


class Browser:
    """A Chromium of its own, with a fresh profile: nothing is read from or left in the one of the person."""

    def __init__(self, port: int) -> None:
        self._port = port

    @contextlib.contextmanager
    def page(self, width: int = 1200, height: int = 860, *, private: bool = True) -> Iterator[Page]:
        """A tab, by default with storage of its own, which is forgotten with it."""
        with self._connected(self._address("/json/version")) as browser:
            control = _Commands(browser)
            context = control.send("Target.createBrowserContext")["browserContextId"] if private else None
            target = control.send(
                "Target.createTarget", url="about:blank", **({"browserContextId": context} if context else {})
            )
            with self._connected(f"ws://127.0.0.1:{self._port}/devtools/page/{target['targetId']}") as socket:
                page = Page(socket)
                page.resize(width, height)
                yield page
            if context:
                control.send("Target.disposeBrowserContext", browserContextId=context)

    def _address(self, path: str) -> str:
        import httpx

        found = httpx.get(f"http://127.0.0.1:{self._port}{path}", trust_env=False, timeout=20).json()
        return str(found["webSocketDebuggerUrl"])

    def _connected(self, address: str) -> ClientConnection:
        return connect(address, max_size=None, proxy=None, compression=None)


class _Commands:
    """Commands to the browser as a whole; its events are of no interest."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._ids = socket, itertools.count(1)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        wanted = next(self._ids)
        self._socket.send(json.dumps({"id": wanted, "method": method, "params": params}))
        while (message := json.loads(self._socket.recv(timeout=180))).get("id") != wanted:
            pass
        if "error" in message:
            raise BrowserError(f"{method}: {message['error']['message']}")
        result: dict[str, Any] = message["result"]
        return result


@contextlib.contextmanager
def started(binary: str, folder: Path) -> Iterator[Browser]:
    """``binary`` running headless with its profile in ``folder``; ended with all its processes afterwards.

    Raises:
        BrowserError: it does not come up within 60 s; the message holds what it wrote.
    """
    profile, log = folder / "profile", folder / "chromium.log"
    profile.mkdir(parents=True)
    options = [
        "--headless=new", "--remote-debugging-port=0", f"--user-data-dir={profile}", "--disable-gpu", "--no-first-run",
        "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-extensions", "--no-default-browser-check", "--mute-audio", "--no-proxy-server", "--lang=en-GB",
        "--force-color-profile=srgb", "--hide-scrollbars", "--disable-features=Translate,OptimizationHints",
    ]  # fmt: skip
    if os.geteuid() == 0:
        options.append("--no-sandbox")  # as root it starts in no other way
    with log.open("wb") as written:
        process = subprocess.Popen(
            [binary, *options, "about:blank"], stdout=written, stderr=written, start_new_session=True
        )
    try:
        yield Browser(_port(process, profile / "DevToolsActivePort", log))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


def _port(process: subprocess.Popen[bytes], file: Path, log: Path) -> int:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if file.exists() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        time.sleep(0.05)
    raise BrowserError(f"{process.args!s:.200} did not start: {log.read_text(errors='replace')[-2000:]}")
