"""Fixtures of all tests: a home and settings of the test's own, and an initialized database."""

import asyncio
import os
import shutil
import signal
import stat
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from object_storage import running_s3
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from abathur_nb.config.settings import ENVIRONMENTS, Settings, resolve
from abathur_nb.runbook.init import initialize_database

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell
from abathur_nb.store.database import Database

# Under nohup, the processes of a test would ignore SIGHUP too, and the runner keeps ignored signals ignored.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in background jobs

# Without the cached bytecode, each kernel and each command compiles the package again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Settings of the caller must not reach the tests.
for _name in [name for name in os.environ if name.startswith(("ABATHUR_", "XDG_"))]:
    del os.environ[_name]


def pytest_xdist_auto_num_workers() -> int:
    """Return three workers for two processors: a test waits a third of its time for a kernel, a browser or a server."""
    return max(2, len(os.sched_getaffinity(0)) * 3 // 2)


class _Grouped(LoadScopeScheduling):  # type: ignore[misc] # xdist has no types
    """Send all tests that share a server or an installed wheel to one worker, which makes it once."""

    def _split_scope(self, nodeid: str) -> str:
        groups = {"[s3": "s3", "wheel_": "wheel"}
        return next((group for part, group in groups.items() if part in nodeid), nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _Grouped:
    """Schedule by groups; xdist 3.8's own group marks have no effect with pytest 9.2."""
    return _Grouped(config, log)


# The programs that some tests start, and the packages that install them on Debian.
_TOOLS = {name: name for name in ("chromium", "openssl", "prometheus", "prometheus-node-exporter", "sqlite3", "strace")}
_TOOLS |= {"promtool": "prometheus", "systemd-analyze": "systemd"}
_needed: set[str] = set()  # by the current test


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked with a program that is missing; with CI=true fail it."""
    _needed.clear()
    _needed.update(program for mark in item.iter_markers("needs") for program in mark.args)
    for program in sorted(_needed):
        if shutil.which(program) is None:
            end = pytest.fail if "CI" in os.environ else pytest.skip
            end(f"needs {program}")


def _find_unmarked(event: str, arguments: tuple[Any, ...]) -> None:
    """Fail a test that starts one of these programs without the mark that skips it if the program is missing."""
    if event == "subprocess.Popen":
        program = Path(os.fsdecode(arguments[0])).name
        if program in _TOOLS and program not in _needed:
            pytest.fail(f'{program} is started: mark the test with @pytest.mark.needs("{program}")')


sys.addaudithook(_find_unmarked)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report the missing programs, how many tests each has skipped, and the command that installs them."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = [str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped if report.longrepr]
    needed = Counter(reason.removeprefix("needs ") for reason in reasons if reason.startswith("needs "))
    if needed:
        told = ", ".join(f"{count} ({tool} is missing)" for tool, count in needed.items())
        packages = " ".join(sorted({_TOOLS[tool] for tool in needed}))
        terminalreporter.write_line(f"not run: {told}; to run them: apt-get install {packages}", yellow=True)


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the test, and the processes that it starts, an empty home."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(folder))
    # matplotlib takes seconds to scan all fonts: the tests share its cache.
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path_factory.getbasetemp() / "matplotlib"))
    return folder


@pytest.fixture(autouse=True)
def real_places() -> Iterator[None]:
    """Check that a test, which may run as root, does not change the directories of staging and production."""
    before = _in_real_places()
    yield
    assert _in_real_places() == before


def _in_real_places() -> set[str]:
    roots = [Path(ENVIRONMENTS[env]["db_path"]).parent for env in ("staging", "production")]
    return {str(path) for root in roots if root.exists() for path in (root, *root.rglob("*"))}


@pytest.fixture
def settings(home: Path, tmp_path: Path) -> Settings:  # noqa: ARG001 - a home of its own comes first
    """Return development's settings for a database whose directory does not exist yet."""
    return resolve("development", db_path=tmp_path / "data" / "abathur.db")


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the bytes of a fresh database, made once for all tests of this process."""
    path = tmp_path_factory.mktemp("pristine") / "abathur.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(path.parent))
        asyncio.run(initialize_database(resolve("development", db_path=path))).raise_for_failures()
    return path.read_bytes()


@pytest.fixture
def database(settings: Settings, pristine: bytes) -> Settings:
    settings.db_path.parent.mkdir(mode=0o700, exist_ok=True)
    settings.db_path.touch(mode=0o600)
    settings.db_path.write_bytes(pristine)
    return settings


@pytest.fixture
async def db(database: Settings) -> AsyncIterator[Database]:
    async with Database.open(database) as opened:
        yield opened


@pytest.fixture
def public() -> Iterator[Path]:
    """Return a directory that any user may enter; pytest's own are private."""
    folder = Path(tempfile.mkdtemp(prefix="abathur-test-"))
    folder.chmod(stat.S_IRWXU | stat.S_IXGRP | stat.S_IRGRP | stat.S_IXOTH | stat.S_IROTH)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Return the variables that let a client use a real S3 server, which has the bucket ``evidence``."""
    with running_s3(tmp_path_factory.mktemp("weed")) as variables:
        yield variables


# Few tests need IPython and nbclient, which are imported where they are used.


@pytest.fixture(scope="module")
def long_lived() -> Iterator["InteractiveShell"]:
    """Return one IPython shell for all tests of a module."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    InteractiveShell.clear_instance()
    made = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    yield made
    made.restore_sys_module_state()
    InteractiveShell.clear_instance()


@pytest.fixture
def shell(long_lived: "InteractiveShell") -> "InteractiveShell":
    from cells import fresh

    return fresh(long_lived)


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return an empty directory for the sockets of kernels; the test must leave no kernel and no socket."""
    from running import kernels_in

    folder = Path(tempfile.mkdtemp(prefix="abathur-"))  # socket paths must be short, pytest's are long
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield folder
    assert kernels_in(folder) == []
    left = list(folder.iterdir())
    shutil.rmtree(folder)
    assert left == []


@pytest.fixture
def folder(tmp_path: Path, sockets: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: ARG001 - none may be left
    """Enter and return an empty directory."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here
