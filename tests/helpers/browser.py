"""A headless Chromium under control: real keys, screenshots, paper, and every line of its console."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_KEYS = {"Enter": (13, "\r"), "Escape": (27, ""), "Tab": (9, ""), "ArrowLeft": (37, ""), "ArrowUp": (38, ""), "ArrowRight": (39, ""), "ArrowDown": (40, "")}  # fmt: skip


class Browser:
    """One page. ``console``: what it complained about, exceptions included."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: Any) -> None:
        self.loop, self.socket, self.last = loop, socket, 0
        self.console: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **options: Any) -> Mapping[str, Any]:
        """One command of the DevTools protocol and its result."""
        return self.loop.run_until_complete(self._call(method, options))

    async def _call(self, method: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        self.last += 1
        await self.socket.send_json({"id": self.last, "method": method, "params": options})
        while True:
            said = json.loads((await self.socket.receive(timeout=180)).data)
            if said.get("id") == self.last:
                assert "error" not in said, said
                return dict(said["result"])
            if said.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
                self.console.append(json.dumps(said["params"])[:500])

    def open(self, page: Path, width: int = 1180, dark: bool = False) -> None:
        """Show a page in a window of a width."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=page.as_uri())
        for _ in range(600):
            if self.run("document.readyState") == "complete" and self.run("location.href") == page.as_uri():
                return
            time.sleep(0.1)
        raise AssertionError(f"{page} did not load")

    def run(self, script: str) -> Any:
        """The value of an expression, a promise's when it has come."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, *keys: str) -> None:
        """Real key strokes, one after the other."""
        for key in keys:
            code, text = _KEYS[key]
            stroke = {"key": key, "code": key, "windowsVirtualKeyCode": code} | ({"text": text} if text else {})
            self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **stroke)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)

    def picture(self, path: Path, whole: bool = False) -> Path:
        """A screenshot, of the window or of the whole page."""
        path.write_bytes(
            base64.b64decode(
                self.call("Page.captureScreenshot", captureBeyondViewport=whole, **self._clip(whole))["data"]
            )
        )
        return path

    def _clip(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 16000), "scale": 1}}

    def paper(self, path: Path) -> Path:
        """The page as PDF."""
        path.write_bytes(base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"]))
        return path


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A Chromium of its own, gone at the end; its profile is in ``profile``."""
    import aiohttp  # Hugging Face datasets brings it

    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    loop = asyncio.new_event_loop()
    session = None
    try:
        port = _port(profile / "DevToolsActivePort", process)

        async def connect() -> tuple[Any, Any]:
            session = aiohttp.ClientSession()
            for _ in range(100):
                async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                    pages = [one for one in await answer.json(content_type=None) if one["type"] == "page"]
                if pages:
                    break
                await asyncio.sleep(0.1)
            return session, await session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)

        session, socket = loop.run_until_complete(connect())
        yield Browser(loop, socket)
    finally:
        if session is not None:
            loop.run_until_complete(session.close())
        loop.close()
        process.terminate()
        process.wait(30)


def _port(path: Path, process: subprocess.Popen[bytes]) -> int:
    for _ in range(600):
        if path.exists() and (text := path.read_text().split()):
            return int(text[0])
        assert process.poll() is None, "Chromium ended"
        time.sleep(0.1)
    raise AssertionError("Chromium did not open its port")
