"""Kill a part of a batch at a random moment, ask for the same batch again, and see what was lost, repeated or left."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from random import Random

from dasking import Cluster
from patience import HANGING_S

from abathur_nb.config.settings import Settings, resolve
from abathur_nb.evidence.record import read_archive
from abathur_nb.evidence.run import new_run_id
from abathur_nb.evidence.verify import verify_archive

_DATABASES = 12  # of a batch; through Dask five times as many
_LEFT_S = 10  # until nothing that was started may be left
_PARTS = ("the command", "the fork server", "a process of runs", "a kernel")
_FLEET = (
    "import asyncio, sys, abathur_nb as nb; print(asyncio.run(nb.run_fleet("
    "nb.resolve(db_path=sys.argv[1] + '/control.db'), sys.argv[1] + '/fleet.toml', scheduler=sys.argv[2])).counts)"
)


def kill_in_batch(name: str, settings: Settings, random: Random) -> tuple[bool, str]:
    """Kill the command of a batch, its fork server, a process of runs or a kernel; then run the batch again.

    The naive way runs it again without telling which batch it was.
    """
    paths = _databases(settings, _DATABASES)
    batch = new_run_id()
    words = [sys.executable, "-m", "abathur_nb", "run", "validate", "--env", "development", "--each", *map(str, paths)]
    command = [*words, *(("--since", batch) if name == "sound" else ())]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(random.uniform(0.7, 2.5))
    servers = _children([first.pid])
    parts = dict(zip(_PARTS, ([first.pid], servers, *_generations(servers)), strict=True))
    part = random.choice([name for name, pids in parts.items() if pids])
    everything = [pid for pids in parts.values() for pid in pids]
    with suppress(ProcessLookupError):
        os.kill(random.choice(parts[part]), signal.SIGKILL)
    first.wait(HANGING_S)
    left = _left(everything)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    harm = _harm(paths, left, died=part == _PARTS[3])
    return True, f"{part}: {harm}: {done.stdout[-300:]}" if harm else ""


def kill_a_worker(name: str, settings: Settings, random: Random) -> tuple[bool, str]:
    """Kill the worker of a host during a fleet run, and start another; the naive way asks for all of it once more."""
    place = settings.db_path.parent
    paths = _databases(settings, 5 * _DATABASES)
    (place / "fleet.toml").write_text(f'[hosts.eu-1]\nenv = "development"\ndatabases = ["{place}/*/abathur.db"]')
    (place / "dask").mkdir()
    cluster = Cluster(place / "dask", {})
    try:
        worker = cluster.worker("eu-1")
        command = [sys.executable, "-c", _FLEET, str(place), cluster.address]
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        time.sleep(random.uniform(3, 12))
        servers = _children([worker.pid])
        everything = [*servers, *(pid for pids in _generations(servers) for pid in pids)]
        worker.kill()
        worker.wait()
        left = _left(everything)
        cluster.worker("eu-1")
        said, _ = run.communicate(timeout=HANGING_S)
        if name == "naive":
            subprocess.run(command, capture_output=True, check=False)
        harm = _harm(paths, left)
        return True, harm or ("" if f"'pass': {len(paths)}" in said else f"its page says {said}")
    finally:
        cluster.end()


def _databases(settings: Settings, number: int) -> list[Path]:
    paths = [settings.db_path.parent / f"n{one:02}" / "abathur.db" for one in range(number)]
    for path in paths:
        path.parent.mkdir(mode=0o700)
        shutil.copy(settings.db_path, path)
        path.chmod(0o600)
    return paths


def _children(pids: list[int]) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) in pids:
                found.append(int(path.parts[2]))
    return found


def _generations(servers: list[int]) -> tuple[list[int], list[int]]:
    """Return the processes of runs and the kernels that the servers have forked: a kernel has no pipe to read."""
    runs, kernels = list[int](), list[int]()
    for pid in _children(servers):
        with suppress(OSError):
            (runs if os.readlink(f"/proc/{pid}/fd/0").startswith("pipe:") else kernels).append(pid)  # noqa: PTH115
    return runs, kernels


def _left(pids: list[int]) -> list[int]:
    """Return those of some processes that still live after 10 s."""
    deadline = time.monotonic() + _LEFT_S
    left = pids
    while left and time.monotonic() < deadline:
        left = [pid for pid in left if Path(f"/proc/{pid}").exists() and _state(pid) != "Z"]
        time.sleep(0.05)
    return left


def _state(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return "Z"


def _harm(paths: list[Path], left: list[int], *, died: bool = False) -> str:
    for path in paths:
        archive = resolve(db_path=path).archive_dir
        runs = [run for run in read_archive(archive) if run.line] if archive.exists() else []
        if len(runs) != 1:
            return f"{path.parent.name} has {len(runs)} sealed runs"
        if runs[0].verdict != "pass" and not (died and runs[0].verdict == "error"):
            return f"{path.parent.name}: {runs[0].verdict}"
        if not verify_archive(archive).ok:
            return f"{path.parent.name} fails verification"
    return f"left after 10 s: {left}" if left else ""
