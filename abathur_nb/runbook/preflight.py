"""Preflight: whether a database can be made and used on this machine, at this path (the runbook's section 1)."""

import asyncio
import json
import os
import re
import sqlite3
import sys
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from shlex import quote

import aiosqlite

from abathur_nb.config.parameters import said
from abathur_nb.config.settings import Settings
from abathur_nb.files import make_private_file, nearest_existing, scratch_directory, sweep
from abathur_nb.health.checks import has_reset_race
from abathur_nb.health.path_on_disk import ELSEWHERE, forbids, install_command, location_checks, no_folder
from abathur_nb.report import Check, Report, Status, run_check
from abathur_nb.store.connection import connect, pragma, run_to_end
from abathur_nb.store.target import identify

_PROBE_SECONDS = 5
# A separate process, because two connections in one process share SQLite's locks without asking the file system.
_PROBE = """
import json, sqlite3, sys
found = {}
try:
    conn = sqlite3.connect(f"{sys.argv[1]}?mode=rw", uri=True, isolation_level=None, timeout=0)
    for name in ("journal_mode", "user_version"):
        found[name] = conn.execute(f"PRAGMA {name}").fetchone()[0]
    conn.execute("BEGIN IMMEDIATE")
    found["lock"] = "taken"
except sqlite3.OperationalError as error:
    found["lock" if "user_version" in found else "error"] = error.sqlite_errorname
print(json.dumps(found))
"""


async def preflight(settings: Settings, *, team_trained: str | None = None) -> Report:
    """Report whether a database can be made and used at ``settings.db_path``. Leaves nothing behind.

    Removes what a killed run left behind, unless it returns a refusal. ``team_trained`` names who confirmed that the
    team is trained on the procedures, and when: ``"Ada Lovelace, 2026-11-20"``. Raises ConfigurationError for another
    form.
    """
    trained = said("team trained on procedures", team_trained, check_id="team_trained")
    folder = settings.db_path.parent
    location = location_checks(settings)
    trying = run_check("file_system_behaviour", partial(behaviour, settings), remedy=f"namei -l {quote(str(folder))}")
    tried, target = await asyncio.gather(trying, identify(settings))
    checks = (*_software(), _wal_reset_race(settings), *location, tried, target.check, _backups(settings), trained)
    refused = forbids(location) or target.state == "refused"
    if not refused:
        sweep(nearest_existing(folder))
    return Report("preflight", checks, subject=str(settings.db_path), refused=refused)


def _software(async_driver: str = aiosqlite.__version__) -> list[Check]:
    has_json = False
    with closing(sqlite3.connect(":memory:")) as conn, suppress(sqlite3.Error):
        has_json = conn.execute("SELECT json_insert('[1]', '$[#]', 2)").fetchone()[0] == "[1,2]"
    linux = "Linux: on other systems the holder of a lock and the file system are unknown"
    newer = "install a newer Python: conda env create -f environment.yml"
    driver = tuple(map(int, re.findall(r"\d+", async_driver)[:2]))
    upgrade = f"{quote(sys.executable)} -m pip install --upgrade aiosqlite"
    json_words, threads = "work" if has_json else "missing", sqlite3.threadsafety
    asked = (
        ("operating_system", "", sys.platform == "linux", linux, sys.platform),
        ("python", "Python", sys.version_info >= (3, 11), "3.11 or newer", sys.version.split()[0]),
        ("sqlite", "SQLite", sqlite3.sqlite_version_info >= (3, 35), "3.35 or newer", sqlite3.sqlite_version),
        ("sqlite_json_functions", "SQLite's JSON functions", has_json, "compiled in", json_words),
        ("sqlite_thread_safety", "SQLite's thread safety", threads > 0, "threads may share it", f"level {threads}"),
        ("aiosqlite", "", driver >= (0, 22), "0.22 or newer", async_driver),
    )
    fixes = {"operating_system": "run it on Linux", "aiosqlite": upgrade}
    warns: dict[str, Status] = {"operating_system": "warn"}
    return [
        Check.that(key, holds, wanted, found, fixes.get(key, newer), warns.get(key, "fail"), name=name)
        for key, name, holds, wanted, found in asked
    ]


def _wal_reset_race(settings: Settings, linked: tuple[int, ...] = sqlite3.sqlite_version_info) -> Check:
    struck = has_reset_race(linked)
    effect = ": two connections that commit and checkpoint at once can corrupt the database" if struck else ""
    observed = f"SQLite {'.'.join(map(str, linked))}{effect}"
    remedy = "let only one process write, until SQLite is 3.51.3 or newer: conda env create -f environment.yml"
    otherwise: Status = "fail" if settings.require_safe_wal else "warn"
    expected, title = "a version of SQLite without this bug", "WAL-reset race"
    return Check.that("wal_reset_race", not struck, expected, observed, remedy, otherwise, name=title)


async def behaviour(settings: Settings) -> Check:
    """Test whether the file system supports WAL mode, with a scratch database and a second process."""
    place = nearest_existing(settings.db_path.parent)
    with scratch_directory(place, "probe") as scratch:
        path = scratch / "probe.db"
        make_private_file(path)
        async with connect(path, settings.busy_timeout_ms, mode="rw") as conn:
            await conn.execute_fetchall("PRAGMA journal_mode = WAL")
            await conn.execute_fetchall("PRAGMA user_version = 7")
            mode, written = await pragma(conn, "journal_mode"), await pragma(conn, "user_version")
            await conn.execute_fetchall("BEGIN IMMEDIATE")
            seen = await _second_process(path)
    wanted = {"journal_mode": "wal", "user_version": 7, "lock": "SQLITE_BUSY"}
    holds = (mode, written) == ("wal", 7) and seen == wanted
    expected = "journal mode wal is kept; a second process can read, but gets no write lock"
    observed = f"journal mode {mode}; the second process: {', '.join(f'{k} {v}' for k, v in seen.items())}"
    remedy = f"{ELSEWHERE}; to see all file systems: df -hT {quote(str(place))}"
    evidence = [f"tried in a scratch directory in {place}"]
    return Check.that("file_system_behaviour", holds, expected, observed, remedy, evidence=evidence)


async def _second_process(path: Path) -> dict[str, object]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", "-c", _PROBE, path.as_uri()), stdout=asyncio.subprocess.PIPE
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), _PROBE_SECONDS)
    except TimeoutError:
        return {"error": f"no answer within {_PROBE_SECONDS} s"}
    finally:
        if process.returncode is None:  # else it could still make files in a directory that is being removed
            process.kill()
            await run_to_end(process.wait())
    answer: dict[str, object] = json.loads(output or b'{"error": "ended without an answer"}')
    return answer


def _backups(settings: Settings) -> Check:
    folder, wrong = settings.backup_dir, no_folder(settings)
    there = os.path.isdir(folder)
    usable = there and not wrong and os.access(folder, os.W_OK | os.X_OK)
    # Before init, the command would make the database's directory too, owned by root.
    too_early = not os.path.lexists(settings.db_path.parent) and folder.parent == settings.db_path.parent
    remedy = f"{'after init: ' if too_early else ''}{install_command(settings, folder)}"
    observed = str(folder) if usable else f"{folder} {'may not be written to' if there else 'is missing'}"
    if wrong:
        observed, remedy = wrong.observed, wrong.remedy
    return Check.that("backup_directory", usable, "a directory that may be written to", observed, remedy, "warn")
