"""Fixtures of all tests: a home and settings of the test's own, and an initialized database."""

import os
import shutil
import signal
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from object_storage import running_s3

from abathur_nb.config.settings import ENVIRONMENTS, Settings, resolve
from abathur_nb.runbook.init import initialize_database

# What nohup sets is inherited by every process that a test starts, and the runner rightly ignores what it was told to.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)  # and what a shell sets for a job in the background

# Without the bytecode that one process leaves the next, each kernel and each command compiles the package anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_xdist_auto_num_workers() -> int:
    """Return three workers for two processors: a test waits a third of its time for a kernel, a browser or a server."""
    return max(2, len(os.sched_getaffinity(0)) * 3 // 2)


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the test, and the processes that it starts, an empty home and no setting from outside."""
    folder = tmp_path_factory.mktemp("home")
    for name in [name for name in os.environ if name.startswith(("ABATHUR_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(folder))
    # matplotlib takes seconds to look at all fonts, which is enough to do once.
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path_factory.getbasetemp() / "matplotlib"))
    return folder


@pytest.fixture(autouse=True)
def real_places() -> Iterator[None]:
    """See that a test leaves the real directories of staging and production alone: as root it could make them."""
    before = _in_real_places()
    yield
    assert _in_real_places() == before


def _in_real_places() -> set[str]:
    roots = [Path(ENVIRONMENTS[env]["db_path"]).parent for env in ("staging", "production")]
    return {str(path) for root in roots if root.exists() for path in (root, *root.rglob("*"))}


@pytest.fixture
def settings(home: Path, tmp_path: Path) -> Settings:  # noqa: ARG001 - a home of its own comes first
    """Return development's settings for a database that does not exist yet, in a directory that does not either."""
    return resolve("development", db_path=tmp_path / "data" / "abathur.db")


@pytest.fixture
async def database(settings: Settings) -> Settings:
    """Return the settings of a fresh database."""
    (await initialize_database(settings)).raise_for_failures()
    return settings


@pytest.fixture
def public() -> Iterator[Path]:
    """Return a directory that any user may enter; pytest's own are root's alone."""
    folder = Path(tempfile.mkdtemp(prefix="abathur-test-"))
    folder.chmod(stat.S_IRWXU | stat.S_IXGRP | stat.S_IRGRP | stat.S_IXOTH | stat.S_IROTH)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Return the variables that let a client use a real S3 server, which has the bucket ``evidence``."""
    with running_s3(tmp_path_factory.mktemp("weed")) as variables:
        yield variables
