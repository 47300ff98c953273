"""The page of a run on paper: a PDF of it, printed by a Chromium that is there already."""

import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from shlex import quote
from tempfile import TemporaryDirectory, gettempdir

from abathur_nb.causes import in_words, os_cause
from abathur_nb.errors import AbathurError, ConfigurationError, RefusedError
from abathur_nb.files import read_regular
from abathur_nb.wording import printable

__all__ = ["FLAGS", "Printer", "find_browser", "print_page", "printer"]

Printer = Callable[[bytes], bytes | None]  # returns the PDF of a page, None where it could not be printed

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_PRINT_S = 60  # a page of 100 sheets takes some seconds
_LARGEST = 256 * 1024 * 1024  # bytes of any file that the browser writes
_LAST_WORDS = 4096  # bytes of its messages that are read
_LONGEST_REASON = 300  # characters
# The page asks nothing of any host; these keep the browser itself from doing so, and from whatever it was set to.
FLAGS = tuple(
    f"--{flag}"
    for flag in (
        *("headless", "disable-gpu", "disable-quic", "disable-extensions", "disable-default-apps", "disable-sync"),
        *("no-first-run", "disable-background-networking", "disable-component-update", "disable-dev-shm-usage"),
        "proxy-server=127.0.0.1:9",  # the discard port, where nobody listens
    )
)


def find_browser() -> str:
    """Return the path of the browser that prints; raise ConfigurationError if there is none. Read-only."""
    for name in _BROWSERS:
        if found := shutil.which(name):
            return found
    wanted = f"expected a browser that prints in PATH, one of {', '.join(_BROWSERS)}, found none"
    raise ConfigurationError(f"--pdf: {wanted}: sudo apt-get install chromium, or leave --pdf out")


def printer(failures: list[str]) -> Printer:
    """Return what prints a page and, where that fails, only adds to ``failures`` why: a run is not lost by it.

    Raises ConfigurationError at once where there is no browser.
    """
    find_browser()

    def print_or_tell(page: bytes) -> bytes | None:
        try:
            return print_page(page)
        except (AbathurError, OSError) as error:
            failures.append(in_words(error, Path(gettempdir())))
            return None

    return print_or_tell


def print_page(page: bytes) -> bytes:
    """Return the PDF, A4, of a page that asks nothing of any host.

    Runs the browser in a private directory that is removed at the end, for at most a minute. Raises
    ConfigurationError where there is none, RefusedError where it does not print.
    """
    browser = find_browser()
    with TemporaryDirectory(prefix="abathur-pdf-") as folder:
        source, printed = Path(folder, "page.html"), Path(folder, "page.pdf")
        source.write_bytes(page)
        # Chromium does not start in its sandbox as root.
        root = ["--no-sandbox"] if os.geteuid() == 0 else []
        where = [f"--user-data-dir={folder}/profile", "--no-pdf-header-footer", f"--print-to-pdf={printed}"]
        _run([browser, *FLAGS, *root, *where, source.as_uri()], folder)
        try:
            content = read_regular(printed)
        except (OSError, ValueError) as error:
            raise _failed(browser, f"it wrote no PDF: {getattr(error, 'strerror', error)}") from None
    if not content.startswith(b"%PDF-") or b"%%EOF" not in content[-64:]:
        raise _failed(browser, "what it wrote is no whole PDF")
    return content


def _run(command: list[str], folder: str) -> None:
    environment = {**os.environ, "HOME": folder, "XDG_CONFIG_HOME": folder, "XDG_CACHE_HOME": folder}
    log, nothing = Path(folder, "log"), subprocess.DEVNULL
    try:
        with log.open("wb") as messages:
            process = subprocess.Popen(  # noqa: S603 - no shell
                command,
                env=environment,
                stdin=nothing,
                stdout=nothing,
                stderr=messages,
                start_new_session=True,  # so that its own processes can be ended with it
            )
    except OSError as error:
        raise _failed(command[0], f"it does not start: {os_cause(error, Path(folder)).observed}") from None
    try:
        with suppress(ProcessLookupError):
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (_LARGEST, _LARGEST))  # of its messages, too
        process.wait(timeout=_PRINT_S)
    except subprocess.TimeoutExpired:
        raise _failed(command[0], f"it was not done after {_PRINT_S} s, and was ended") from None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode:
        with log.open("rb") as messages:
            messages.seek(max(0, log.stat().st_size - _LAST_WORDS))
            told = messages.read()
        lines = printable(told.decode(errors="replace")).strip().splitlines() or ["it says nothing"]
        raise _failed(command[0], f"it ended with {process.returncode}: {lines[-1][:_LONGEST_REASON]}")


def _failed(browser: str, reason: str) -> RefusedError:
    return RefusedError(
        f"no PDF, from {browser}: {reason}", f"open the page and print it; try: {quote(browser)} --version"
    )
