"""A real browser that is told what to press: Chromium, over a pipe (DevTools protocol)."""

import contextlib
import json
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest


def chromium() -> str:
    """Skips the test where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name)
        if found:
            return found
    pytest.skip("no Chromium here")


class Browser:
    """A page. requested: the addresses of every request that it made. said: its console."""

    def __init__(self, folder: Path):
        commands, to_browser = os.pipe()
        from_browser, answers = os.pipe()
        options = "--headless --no-sandbox --disable-gpu --no-first-run --mute-audio"
        options += " --disable-background-networking --disable-component-update --disable-sync"
        command = f"exec {chromium()} {options} --remote-debugging-pipe --user-data-dir={folder}"
        command += f" --window-size=1300,900 about:blank 3<&{commands} 4>&{answers}"
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(
            ["bash", "-c", command], pass_fds=(commands, answers), **quiet
        )
        os.close(commands)
        os.close(answers)
        self._out = os.fdopen(to_browser, "wb", buffering=0)
        self._in = from_browser
        self._count = 0
        self._answers: dict[int, dict] = {}
        self._changed = threading.Condition()
        self.requested: list[str] = []
        self.said: list[str] = []
        threading.Thread(target=self._listen, daemon=True).start()
        targets = self._ask("Target.getTargets")["targetInfos"]
        page = next(t["targetId"] for t in targets if t["type"] == "page")
        attached = self._ask("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(OSError):
            self._out.close()

    def open(self, url: str) -> None:
        self.ask("Page.navigate", url=url)

    def value(self, script: str):
        """Of an expression in the page."""
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        return found["result"].get("value")

    def until(self, script: str, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.value(script):
                return
            time.sleep(0.05)
        raise AssertionError(f"never: {script}; the console: {self.said}")

    def press(self, *keys: str) -> None:
        """Keys of the keyboard: characters, or names such as Enter."""
        for key in keys:
            text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
            more = {"text": text} if text else {}
            self.ask("Input.dispatchKeyEvent", type="keyDown", key=key, **more)
            self.ask("Input.dispatchKeyEvent", type="keyUp", key=key)

    def ask(self, method: str, **given) -> dict:
        return self._ask(method, session=self._session, **given)

    def _ask(self, method: str, session: str | None = None, **given) -> dict:
        with self._changed:
            self._count += 1
            number = self._count
        message = {"id": number, "method": method, "params": given}
        if session:
            message["sessionId"] = session
        self._out.write(json.dumps(message).encode() + b"\0")
        with self._changed:
            assert self._changed.wait_for(lambda: number in self._answers, 30), method
            answer = self._answers.pop(number)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _listen(self) -> None:
        rest = b""
        with contextlib.suppress(OSError):
            while part := os.read(self._in, 1 << 16):
                *whole, rest = (rest + part).split(b"\0")
                for text in whole:
                    self._note(json.loads(text))

    def _note(self, message: dict) -> None:
        given = message.get("params", {})
        if "id" in message:
            with self._changed:
                self._answers[message["id"]] = message
                self._changed.notify_all()
        elif message["method"] == "Network.requestWillBeSent":
            self.requested.append(given["request"]["url"])
        elif message["method"] == "Runtime.exceptionThrown":
            self.said.append(given["exceptionDetails"].get("text", "exception"))
        elif message["method"] == "Log.entryAdded":
            entry = given["entry"]
            self.said.append(f"{entry['level']}: {entry['text']} {entry.get('url', '')}")
