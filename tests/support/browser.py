"""Pages opened in headless Chromium, Debian's: what ran in them, what they asked of the network, how they print."""

import json
import os
import re
import socketserver
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import unescape
from pathlib import Path

from patience import HANGING_S

# The page asks nothing of any host; these keep the browser itself from doing so, and from whatever it was set to.
FLAGS = tuple(
    f"--{flag}"
    for flag in (
        *("headless", "disable-gpu", "disable-quic", "disable-extensions", "disable-default-apps", "disable-sync"),
        *("no-first-run", "disable-background-networking", "disable-component-update", "disable-dev-shm-usage"),
        "proxy-server=127.0.0.1:9",  # the discard port, where nobody listens
    )
)

# Called by a hostile value that runs, in whatever frame or window it does, and without a quotation mark.
CANARY = "top.postMessage({number},String.fromCharCode(42))"

# Opens each page in a frame, does what a reader could be led to do, and writes down which canaries sang where.
_HARNESS = """<!DOCTYPE html><meta charset="utf-8"><pre id="ran"></pre><script>
const pages = %s, ran = [];
addEventListener("message", event => ran.push(event.data));
const events = ["mouseover", "mouseenter", "pointerover", "focus", "blur", "input", "change", "wheel", "toggle",
                "animationstart", "animationend", "transitionend", "copy", "drag", "keydown", "resize", "scroll"];
function poke(frame) {
  let found;
  try { found = [...frame.contentDocument.querySelectorAll("*")]; } catch { return; }
  for (const element of found) {
    if (element.tagName === "DETAILS") element.open = true;
    for (const name of events) element.dispatchEvent(new Event(name));
    if (element.tagName === "FORM") element.requestSubmit();
    else if (!element.click) element.dispatchEvent(new MouseEvent("click", {bubbles: true, cancelable: true}));
    else if (!/^(https?|mailto):/.test(element.href ?? "")) element.click();
  }
}
async function open(page) {
  const frame = document.createElement("iframe");
  const loaded = new Promise(done => { frame.onload = done; });
  frame.srcdoc = page;
  document.body.append(frame);
  await Promise.race([loaded, new Promise(done => setTimeout(done, 2000))]);
  await new Promise(done => setTimeout(done, 50));
  poke(frame);
  await new Promise(done => setTimeout(done, 100));
  frame.remove();
}
(async () => {
  for (const page of pages) await open(page);
  document.querySelector("#ran").textContent = JSON.stringify(ran);
})();
</script>"""


# The browser reports to its maker, whatever it is told; nothing in a page of ours names these.
_BROWSERS_OWN = re.compile(r"\.(?:google|googleapis|gvt1)\.com\b")


def chromium(folder: Path, page: Path, *arguments: str) -> str:
    """Open a page in a browser that has never run before and reaches no network, and return what it prints."""
    profile = folder / f"profile-{len(list(folder.glob('profile-*')))}"
    switches = [*FLAGS, "--no-sandbox", f"--user-data-dir={profile}", *arguments]  # the last of two alike holds
    command = ["chromium", *switches, page.as_uri()]
    environment = {**os.environ, "HOME": str(folder)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANGING_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def sung(folder: Path, pages: Sequence[str]) -> set[int]:
    """Open each page in a frame, poke at it, and return the numbers of the canaries that sang."""
    harness = folder / "harness.html"
    harness.write_text(_HARNESS % json.dumps(pages).replace("<", "\\u003c"), encoding="utf-8")
    dom = chromium(folder, harness, f"--virtual-time-budget={1000 * len(pages) + 10_000}", "--dump-dom")
    found = re.search(r'<pre id="ran">(.*?)</pre>', dom)
    assert found, dom
    return set(json.loads(unescape(found[1])))


class _Proxy(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[str] = []


class _Handler(socketserver.StreamRequestHandler):
    server: _Proxy

    def handle(self) -> None:
        self.server.asked.append(self.rfile.readline().decode(errors="replace").strip())
        self.wfile.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


@contextmanager
def proxy() -> Iterator[tuple[str, list[str]]]:
    """Answer every request with 404; give the browser's argument, and the list of what was asked."""
    with _Proxy() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"--proxy-server=127.0.0.1:{server.server_address[1]}", server.asked
        finally:
            server.shutdown()
            thread.join()


def asked_for(folder: Path, pages: Mapping[str, str]) -> dict[str, list[str]]:
    """Open each page by itself and return what the browser asked of any host then."""
    found = {}
    for name, page in pages.items():
        path = folder / f"{name}.html"
        path.write_text(page, encoding="utf-8")
        with proxy() as (argument, asked):
            chromium(folder, path, argument, "--virtual-time-budget=5000", "--dump-dom")
        found[name] = [line for line in asked if not _BROWSERS_OWN.search(line)]
    return found
