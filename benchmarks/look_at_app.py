"""Look at the page of `vjepa app` in a real browser: upload, click, all tabs, bad files, two users.

Drives a headless Chromium over its DevTools pipe; needs nothing beside it. Every step is waited for
on the page itself, and ends with what it says is wrong. One user has a wide light page, another a
narrow dark one; writes screenshots of every tab in both widths and prints JSON: what each step
took, what the page asked of other hosts (must be nothing), errors of its scripts.

    python benchmarks/look_at_app.py --out looks --browser chromium
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from vjepa.reporting.pictures import write_moving

_OPTIONS = "--headless=new --no-sandbox --disable-gpu --hide-scrollbars --no-first-run --mute-audio"
_LONGEST = 600.0


class Browser:
    """A Chromium with pages, over its pipe: JSON messages that end with a zero byte."""

    def __init__(self, command: str, folder: Path) -> None:
        reads, self._out = os.pipe()
        self._in, writes = os.pipe()
        options = f"{_OPTIONS} --remote-debugging-pipe --user-data-dir={shlex.quote(str(folder))}"
        line = f"exec {command} {options} 3<&{reads} 4>&{writes}"
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(["sh", "-c", line], pass_fds=(reads, writes), **quiet)
        os.close(reads), os.close(writes)
        self._number, self._rest = 0, b""
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {"sessionId": session} if session else {}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                part = os.read(self._in, 1 << 20)
                if not part:
                    raise RuntimeError("the browser has ended")
                self._rest += part
            text, _, self._rest = self._rest.partition(b"\0")
            answer = json.loads(text)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            if "method" in answer:
                self.events.append(answer)

    def close(self) -> None:
        self.call("Browser.close")
        self._process.wait(timeout=20)


class Page:
    """One tab of a browser, as a user has it before them."""

    def __init__(self, browser: Browser, url: str, width: int, dark: bool) -> None:
        self._browser = browser
        context = browser.call("Target.createBrowserContext")["browserContextId"]
        target = browser.call("Target.createTarget", url="about:blank", browserContextId=context)
        self._target = target["targetId"]
        found = browser.call("Target.attachToTarget", targetId=self._target, flatten=True)
        self._session = found["sessionId"]
        for domain in ("Page", "Network", "Runtime", "DOM", "Log"):
            self.call(f"{domain}.enable")
        self.width = width
        self.resize(width)
        self.call("Page.navigate", url=f"{url}/?__theme={'dark' if dark else 'light'}")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **params)

    def resize(self, width: int) -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1}
        self.call("Emulation.setDeviceMetricsOverride", mobile=width < 600, **size)

    def js(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, expression: str, seconds: float = _LONGEST) -> float:
        """Seconds until something is true on the page."""
        began = time.monotonic()
        while not self.js(expression):
            if time.monotonic() - began > seconds:
                raise RuntimeError(f"not after {seconds:g} s: {expression}; {self.said()}")
            time.sleep(0.1)
        return time.monotonic() - began

    def said(self) -> list[str]:
        """All lines that stand on the page."""
        return self.js("[...document.querySelectorAll('.said div')].map(e => e.innerText)")

    def wait_said(self, text: str, seconds: float = _LONGEST) -> float:
        """Seconds until a line holds a text; another error than before ends the wait."""
        before, began = set(self.said()), time.monotonic()
        while True:
            lines = self.said()
            if any(text in line for line in lines):
                return time.monotonic() - began
            wrong = [line for line in lines if "error: " in line and line not in before]
            wrong += self.js("[...document.querySelectorAll('.toast-body')].map(e => e.innerText)")
            if wrong or time.monotonic() - began > seconds:
                raise RuntimeError(f"{text!r} was not said; {wrong or lines}")
            time.sleep(0.1)

    def tab(self, name: str) -> None:
        """Open a tab; on a phone the last ones are in a menu."""
        self.js(
            "(() => { const named = what => [...document.querySelectorAll(what)]"
            f".find(e => e.innerText.trim() === {json.dumps(name)} && e.offsetParent);"
            " const tab = named('button[role=tab]'); if (tab) return tab.click();"
            " document.querySelector('.overflow-menu > button').click();"
            " setTimeout(() => named('.overflow-dropdown button').click(), 300) })()"
        )
        time.sleep(0.8)

    def press(self, name: str) -> None:
        self.js(
            "[...document.querySelectorAll('button:not([role=tab])')]"
            f".find(e => e.innerText.trim() === {json.dumps(name)} && e.offsetParent).click()"
        )

    def choose(self, name: str) -> None:
        """One of several that exclude each other."""
        self.js(
            "[...document.querySelectorAll('label')]"
            f".find(e => e.innerText.trim() === {json.dumps(name)} && e.offsetParent).click()"
        )

    def click(self, selector: str, across: float, down: float) -> None:
        """The mouse, at shares of the first element that is seen."""
        found = f"[...document.querySelectorAll({json.dumps(selector)})].find(e => e.offsetParent)"
        self.wait(f"!!{found} && {found}.complete !== false")
        self.js(f"{found}.scrollIntoView({{block: 'center'}})")
        time.sleep(0.3)
        box = self.js(
            f"(() => {{ const r = {found}.getBoundingClientRect();"
            " return [r.x, r.y, r.width, r.height] })()"
        )
        at = {"x": box[0] + across * box[2], "y": box[1] + down * box[3]}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at)

    def type(self, label: str, text: str) -> None:
        """Write into the field of a name, and press Enter."""
        field = (
            "[...document.querySelectorAll('label')]"
            f".find(e => e.innerText.startsWith({json.dumps(label)})"
            " && e.querySelector('input,textarea')).querySelector('input,textarea')"
        )
        self.js(f"{field}.focus(); {field}.select()")
        self.call("Input.insertText", text=text)
        enter = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
        self.call("Input.dispatchKeyEvent", type="keyDown", text="\r", **enter)
        self.call("Input.dispatchKeyEvent", type="keyUp", **enter)

    def upload(self, file: Path) -> None:
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        found = self.call("DOM.querySelector", nodeId=root, selector="input[type=file]")
        self.call("DOM.setFileInputFiles", files=[str(file.resolve())], nodeId=found["nodeId"])

    def picture(self, path: Path) -> None:
        """The whole page, as a PNG."""
        self.js("window.scrollTo(0, 0)")
        time.sleep(1.0)
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        self._browser.call("Target.closeTarget", targetId=self._target)


def walk(page: Page, out: Path, theme: str, args: argparse.Namespace) -> dict[str, float]:
    """Every tab as a user would go through them, with pictures wide and narrow; seconds of each."""
    took: dict[str, float] = {}

    def picture(name: str) -> None:
        for width in (1200, 400):
            page.resize(width)
            page.picture(out / f"{name}_{width}_{theme}.png")
        page.resize(page.width)
        time.sleep(0.5)

    took["first features"] = page.wait("!!document.querySelector('video')?.duration")
    page.upload(args.video)
    took["upload"] = page.wait_said(args.video.name)
    page.wait("!!document.querySelector('video')?.duration")
    for name in args.model:
        page.type("Another model", name)
        page.wait_said(f"{name}: ")
    if args.model:
        page.press("Colour it")
        took["features of all"] = page.wait_said(f"{args.model[-1]}: 0.00 to")
        time.sleep(2.0)
    picture("features")
    page.tab("What is alike")
    page.click(".place img", 0.22, 0.5)  # a digit of the drawn video
    took["alike"] = page.wait_said("asked for at")
    picture("alike")
    page.tab("Hide and predict")
    page.choose("what comes next")
    page.press("Predict it")
    took["predict"] = page.wait_said("1: no better")
    picture("next")
    page.click(".place img", 0.2, 0.2)
    page.wait_said("opposite corner")
    page.click(".place img", 0.7, 0.8)
    page.wait_said("a box is hidden")
    page.press("Predict it")
    took["predict in a box"] = page.wait_said("never trained on such a part")
    page.press("Draw samples")
    took["samples"] = page.wait_said("of 255" if args.decoder else "error: name a decoder")
    picture("hide")
    page.tab("Surprise")
    page.press("Draw the curve")
    took["surprise"] = page.wait_said("unusual here")
    before = page.said()
    page.click(".place img", 0.4, 0.5)
    took["jump"] = page.wait(
        f"{json.dumps(before)}.join() !== [...document.querySelectorAll("
        "'.said div')].map(e => e.innerText).join()"
    )
    picture("surprise")
    page.tab("Classes")
    page.press("Classify")
    took["classes"] = page.wait_said("classes; encoder" if args.probe else "error: name a probe")
    picture("classes")
    page.tab("Find")
    page.press("Find moments")
    took["find"] = page.wait_said(" alike: " if args.database else "error: name a database")
    picture("find")
    page.tab("Features")
    return took


def refuse(page: Page, folder: Path) -> list[str]:
    """Files that cannot be used, and what the page says of them."""
    lines = []
    (folder / "broken.mp4").write_bytes(b"this is no video" * 99)
    with (folder / "huge.mp4").open("wb") as file:
        file.truncate(210 << 20)
    dark = np.zeros((1200, 32, 32, 3), np.uint8)
    write_moving(dark, folder / "long.mp4", 0.25)
    for name, text in (("broken.mp4", "give another file"), ("long.mp4", "cut a part")):
        page.upload(folder / name)
        page.wait(f"document.body.innerText.includes({json.dumps(text)})")
        lines += [line for line in page.said() if text in line]
    page.upload(folder / "huge.mp4")
    page.wait("document.body.innerText.includes('maximum allowed size')")
    lines.append(page.js("document.querySelector('.toast-body')?.innerText").replace("\n", " "))
    page.type("Another model", "nowhere/at/all")
    page.wait("document.body.innerText.includes('no such file')")
    lines += [line for line in page.said() if "no such file" in line]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--browser", default="chromium")
    parser.add_argument("--video", type=Path, help="to upload; else one that is drawn")
    parser.add_argument("--model", action="append", default=[], help="typed into the page's field")
    for name in ("decoder", "probe", "database"):
        parser.add_argument(f"--{name}", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    places = [
        word
        for name in ("decoder", "probe", "database")
        if getattr(args, name)
        for word in (f"--{name}", str(getattr(args, name)))
    ]
    result: dict[str, Any] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if args.video is None:
            from vjepa.demo.synthetic_files import example_videos

            args.video = list(example_videos(folder).values())[1]
        began = time.monotonic()
        command = [sys.executable, "-m", "vjepa", "app", "--port", "0", *places]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        stack.callback(server.wait, 60)
        stack.callback(server.terminate)
        assert server.stdout is not None
        url = server.stdout.readline().split()[1]
        result["seconds to the address"] = round(time.monotonic() - began, 1)
        browser = Browser(args.browser, folder / "profile")
        stack.callback(browser.close)
        page = Page(browser, url, 1200, dark=False)
        page.wait("!!document.querySelector('button[role=tab]')")
        result["seconds to the page"] = round(time.monotonic() - began, 1)
        other = Page(browser, url, 400, dark=True)
        for user, theme in ((page, "light"), (other, "dark")):
            try:
                took = walk(user, args.out, theme, args)
            except Exception:
                user.picture(args.out / "stopped.png")
                raise
            result[f"steps, {theme}"] = {name: round(took[name], 1) for name in took}
            assert not any(args.video.name in line for line in other.said()) or user is other
        result["refused"] = refuse(page, folder)
        result |= judged(browser, url)
    print(json.dumps(result, indent=1))
    return 1 if result["asked of other hosts"] or result["errors of scripts"] else 0


def judged(browser: Browser, url: str) -> dict[str, list[str]]:
    """What pages asked of other hosts, and errors of their scripts, from the browser's own log."""
    asked, errors = set(), set()
    for event in browser.events:
        params = event["params"]
        if event["method"] == "Network.requestWillBeSent":
            address = params["request"]["url"]
            if not address.startswith((url, "data:", "blob:", "about:")):
                asked.add(address)
        if event["method"] == "Runtime.exceptionThrown":
            errors.add(json.dumps(params["exceptionDetails"])[:300])
        if event["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
            errors.add(f"{params['entry']['text']} {params['entry'].get('url', '')}")
    return {"asked of other hosts": sorted(asked), "errors of scripts": sorted(errors)}


if __name__ == "__main__":
    sys.exit(main())
