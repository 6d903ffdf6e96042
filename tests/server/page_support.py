"""A local static server that keeps a log, a real headless Chromium, and a Node that answers."""

import base64
import contextlib
import json
import os
import queue
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

import pytest
from websockets.sync.client import ClientConnection, connect

PAGE = Path(__file__).resolve().parents[2] / "server" / "page"
START_S = 240.0
ANSWER_S = 120.0

#: Chromium finds no host but this machine's.
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"


class _Handler(SimpleHTTPRequestHandler):
    """Files of a folder; POST keeps a report."""

    server: "PageServer"

    def do_GET(self) -> None:
        """Serve a file and remember its path."""
        self.server.asked.append(self.path.split("?")[0])
        super().do_GET()

    def do_POST(self) -> None:
        """Keep the body, which is JSON."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()
        self.server.reports.put(json.loads(body))

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class PageServer(ThreadingHTTPServer):
    """Serves one folder on a free port of 127.0.0.1, as any static server would.

    Attributes:
        asked: paths that were asked for.
        reports: what the page posted.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        """Start serving."""
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
        self.asked: list[str] = []
        self.reports: queue.Queue[dict[str, Any]] = queue.Queue()
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)
        self._thread.start()

    def address(self, **query: str) -> str:
        """Address of the page."""
        return f"http://127.0.0.1:{self.server_port}/index.html?{urlencode(query)}"

    def __exit__(self, *args: object) -> None:
        """Stop."""
        self.shutdown()
        self._thread.join()
        self.server_close()


class Browser:
    """One headless Chromium, driven over its debugging socket."""

    def __init__(self, socket: ClientConnection) -> None:
        """Drive the browser behind ``socket``."""
        self._socket = socket
        self._count = 0

    def call(self, method: str, session: str = "", **params: object) -> dict[str, Any]:
        """One command of the debugging protocol and its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        self._socket.send(json.dumps(message | ({"sessionId": session} if session else {})))
        while True:
            answer = json.loads(self._socket.recv(timeout=ANSWER_S))
            if answer.get("id") != self._count:
                continue
            if "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']['message']}")
            result: dict[str, Any] = answer["result"]
            return result

    def open(self, address: str, size: tuple[int, int] = (1280, 800)) -> "Tab":
        """A new tab at ``address``."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, target, session)
        tab.resize(*size)
        tab.call("Page.enable")
        tab.call("Page.navigate", url=address)
        return tab


class Tab:
    """One tab of the browser; closes at the end of a `with` block."""

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        """Wrap a target that is attached."""
        self._browser, self._target, self._session = browser, target, session

    def __enter__(self) -> Self:
        """Return the tab."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the tab."""
        self._browser.call("Target.closeTarget", targetId=self._target)

    def call(self, method: str, **params: object) -> dict[str, Any]:
        """One command for this tab."""
        return self._browser.call(method, self._session, **params)

    def value(self, expression: str) -> Any:  # noqa: ANN401 - whatever the page gives
        """Value of a JavaScript expression; a promise is awaited."""
        result = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in result:
            raise RuntimeError(str(result["exceptionDetails"].get("exception", {})))
        return result["result"].get("value")

    def wait(self, expression: str) -> None:
        """Wait until an expression holds."""
        end = time.monotonic() + ANSWER_S
        while not self.value(expression):
            if time.monotonic() > end:
                raise TimeoutError(f"{expression}: {self.value('document.body.innerText')}")
            time.sleep(0.05)

    def verdict(self) -> str:
        """State of the verification, once there is one: "ok" or "bad"."""
        state = "document.getElementById('verification')?.dataset.state"
        self.wait(f"['ok', 'bad'].includes({state})")
        return str(self.value(state))

    def text(self, selector: str) -> str:
        """Text of one element."""
        return str(self.value(f"document.querySelector({json.dumps(selector)}).textContent"))

    def click(self, selector: str) -> None:
        """Press the middle of an element."""
        box = self.value(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        self.drag([tuple(box)])

    def drag(self, points: Sequence[tuple[float, float]]) -> None:
        """Press at the first point, move along the others, release at the last."""
        kinds = ["mousePressed", *["mouseMoved"] * (len(points) - 1), "mouseReleased"]
        for kind, (x, y) in zip(kinds, [*points, points[-1]], strict=True):
            self.call(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1,
                clickCount=1,
            )  # fmt: skip

    def give_files(self, *paths: Path) -> None:
        """Choose files in the page's file dialogue."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector="#files-input")["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def resize(self, width: int, height: int) -> None:
        """Set the size of the window in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip

    def screenshot(self, path: Path) -> None:
        """Write what is seen as PNG."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile and no way to another host, which ends with the block."""
    binary = shutil.which("chromium") or "/usr/bin/chromium"
    if not Path(binary).exists():
        pytest.skip("no chromium on this machine")
    switches = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    quiet = ["--disable-background-networking", "--no-first-run", "--disable-dev-shm-usage"]
    process = subprocess.Popen(
        [binary, *switches, *quiet, OFFLINE, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        port, path = _lines_of(profile / "DevToolsActivePort", process)
        address = f"ws://127.0.0.1:{port}{path}"
        with connect(address, max_size=None, proxy=None) as socket:
            browser = Browser(socket)
            yield browser
            browser.call("Browser.close")
        process.wait(20)
    finally:
        process.kill()
        process.wait()


def _lines_of(path: Path, process: subprocess.Popen[bytes]) -> list[str]:
    """Lines of a file that Chromium writes when it is ready."""
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        lines = path.read_text().splitlines() if path.exists() else []
        if len(lines) >= 2:
            return lines
        time.sleep(0.05)
    pytest.skip("chromium does not start on this machine")


#: Answers one line of JSON with one: {"call": name, ...} -> {"value": ...} or {"error": sentence}.
_NODE = """
import { createInterface } from "node:readline";
import { preprocess } from "./schema.js";
import { readNpz } from "./npy.js";
import { packZip, readZip } from "./zip.js";
import { parseCsv } from "./records.js";
import { openBundle } from "./bundle.js";
import { readKey } from "./keys.js";
const bytes = (text) => new Uint8Array(Buffer.from(text, "base64"));
const text = (data) => Buffer.from(data).toString("base64");
const special = { nan: NaN, inf: Infinity, "-inf": -Infinity };
const number = (value) => (value in special ? special[value] : value);
const calls = {
  preprocess: ({ schema, rows }) =>
    rows.map((row) => Array.from(preprocess(schema, row.map(number)))),
  npz: ({ data }) => Array.from(readNpz(bytes(data), "test"), ([name, array]) =>
    [name, array.shape, text(new Uint8Array(array.data.buffer))]),
  pack: ({ entries }) => text(packZip(entries.map(([name, data]) => [name, bytes(data)]))),
  unpack: ({ data }) => Array.from(readZip(bytes(data), "a zip", 99), ([n, d]) => [n, text(d)]),
  csv: ({ source, schema }) => parseCsv(source, schema, "test").map((row) => Array.from(row)),
  open: async ({ data, keys }) => {
    const steps = [];
    const read = await Promise.all(keys.map((pem) => readKey(pem, "test")));
    const bundle = await openBundle(bytes(data), read, (name) => steps.push(name), "test");
    return { steps, name: bundle.manifest.name, digest: bundle.digest, key: bundle.keyId };
  },
};
for await (const line of createInterface({ input: process.stdin })) {
  const asked = JSON.parse(line);
  let answer;
  try { answer = { value: await calls[asked.call](asked) }; }
  catch (error) {
    const { message, reason } = error;
    answer = { error: `${error.constructor.name}: ${message}`, reason };
  }
  console.log(JSON.stringify(answer));
}
"""


class CallFailed(ValueError):
    """A call to the page's modules failed, for a reason if they say one."""

    def __init__(self, sentence: str, reason: str | None) -> None:
        """Say ``sentence``."""
        super().__init__(sentence)
        self.reason = reason


class Node:
    """The page's modules under Node, without a browser."""

    def __init__(self, folder: Path) -> None:
        """Copy the modules to ``folder`` and start."""
        binary = shutil.which("node")
        if binary is None:
            pytest.skip("no node on this machine")
        for source in PAGE.glob("*.js"):
            shutil.copy(source, folder)
        (folder / "package.json").write_text('{"type": "module"}')
        (folder / "answer.mjs").write_text(_NODE)
        self._process = subprocess.Popen(
            [binary, "answer.mjs"],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "NODE_OPTIONS": "", "NO_COLOR": "1"},
        )

    def call(self, name: str, **asked: object) -> Any:  # noqa: ANN401 - as the call gives
        """Value of a call.

        Raises:
            ValueError: the call failed; the sentence says how.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"call": name, **asked}).encode() + b"\n")
        self._process.stdin.flush()
        answer: Mapping[str, Any] = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise CallFailed(answer["error"], answer.get("reason"))
        return answer["value"]

    def close(self) -> None:
        """End it."""
        self._process.communicate()
