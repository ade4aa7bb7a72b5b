"""A headless Chromium, driven over its DevTools pipe with nothing but the standard library."""

import contextlib
import json
import os
import queue
import shutil
import subprocess
import threading
import time

PATIENCE = 60  # seconds for one answer, on a machine that does much else


def find() -> str | None:
    """The browser's program, where there is one."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for path in map(shutil.which, names) if path), None)


class BrowserError(Exception):
    """The browser did not start, did not answer, or what it ran threw."""


class Page:
    """One page of a browser that is closed with it; errors: what the page threw or warned of.

    DevTools speaks JSON with a zero byte after each message, on the file descriptors 3 and 4;
    the shell makes these of the process's own input and output.
    """

    def __init__(self, program: str, url: str, profile):
        shell = 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1'
        flags = [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run", "--remote-debugging-pipe", f"--user-data-dir={profile}",
        ]  # fmt: skip
        self.process = subprocess.Popen(
            ["sh", "-c", shell, "sh", program, *flags, "about:blank"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.messages, self.errors, self.sent, self.session = queue.Queue(), [], 0, None
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            self._open(url)
        except BaseException:
            self.close()
            raise

    def _open(self, url: str):
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        self.go(url)

    def go(self, url: str):
        """Load a page, whole."""
        self.send("Page.navigate", url=url)
        ready = f"location.href === {json.dumps(url)} && document.readyState === 'complete'"
        self.wait_for(ready)

    def wait_for(self, expression: str):
        """Return once this is true in the page."""
        deadline = time.monotonic() + PATIENCE
        while not self.evaluate(expression):
            if time.monotonic() > deadline:
                raise BrowserError(f"this never came true: {expression}")
            time.sleep(0.02)

    def _listen(self):
        rest = b""
        while piece := os.read(self.process.stdout.fileno(), 1 << 20):
            *whole, rest = (rest + piece).split(b"\0")
            for message in whole:
                self.messages.put(json.loads(message))
        self.messages.put(None)

    def send(self, method: str, **parameters) -> dict:
        """One command's result."""
        self.sent += 1
        message = {"id": self.sent, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\0")
            self.process.stdin.flush()
            while True:
                answer = self.messages.get(timeout=PATIENCE)
                if answer is None:
                    raise BrowserError("the browser has ended")
                if answer.get("id") == self.sent:
                    break
                if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                    self.errors.append(answer["params"])
        except (OSError, queue.Empty) as error:
            raise BrowserError(f"the browser does not answer {method}") from error
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def evaluate(self, expression: str):
        """What an expression is in the page, as JSON carries it."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise BrowserError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def call(self, function: str, *arguments):
        """What a JavaScript function answers to these arguments."""
        return self.evaluate(f"({function})({', '.join(map(json.dumps, arguments))})")

    def screen(self, width: int, height: int):
        """Look at the page on a screen of this size."""
        size = dict(width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.send("Emulation.setDeviceMetricsOverride", **size)

    def press(self, key: str, times: int = 1):
        """Press a key, as a hand would."""
        code = {"Tab": 9, "Enter": 13, "End": 35, "Home": 36, "ArrowUp": 38}
        code |= {"ArrowRight": 39, "PageUp": 33}
        what = {"key": key, "code": key, "windowsVirtualKeyCode": code[key]}
        for _ in range(times):
            text = {"text": "\r"} if key == "Enter" else {}
            kind = "keyDown" if text else "rawKeyDown"
            self.send("Input.dispatchKeyEvent", type=kind, **what, **text)
            self.send("Input.dispatchKeyEvent", type="keyUp", **what)

    def close(self):
        """End the browser."""
        with contextlib.suppress(OSError):  # it may have ended by itself
            self.process.stdin.close()  # which it takes for a goodbye
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
