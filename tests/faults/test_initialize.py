"""What a place can carry, and init: a whole database or none, and never a byte changed of what is there already."""

import asyncio
import json
import os
import pwd
import re
import shlex
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from damage import (
    drop_check,
    drop_index,
    fingerprint,
    flip_bits,
    grant_by_acl,
    held,
    run_as_other,
    run_sql,
    spoil_json,
    untouched,
)
from mounting import remount, tmpfs
from patience import HANGING_S
from sampling import sampled

from abathur_nb.config.settings import Settings, resolve
from abathur_nb.errors import ConfigurationError
from abathur_nb.files import scratch_directory
from abathur_nb.health.path_on_disk import forbids, install_command, location_checks, writable_by_others
from abathur_nb.report import Check, Report
from abathur_nb.runbook.init import initialize_database
from abathur_nb.runbook.preflight import _software, _wal_reset_race, preflight
from abathur_nb.runbook.validate import validate_database
from abathur_nb.store.schema import expected_objects
from abathur_nb.store.sql import statements
from abathur_nb.store.target import file_system, kind_of
from abathur_nb.text import user_name

STEPS = (
    "2.1 database file",
    "2.2 PRAGMA settings",
    "2.3 memory tables",
    "2.4 core tables",
    "2.5 indexes",
    "2.6 seed memories",
)


def outcome(report: Report) -> str:
    if report.refused:
        return "refused"
    told = {check.name: check.observed for check in report.checks}
    return "already" if told.get("create", "").startswith("already initialized") else "created"


def whole(path: Path) -> bool:
    """Return whether a finished database stands at ``path``, asking nobody but sqlite3."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as conn:
        objects = {row[0]: row[1] for row in conn.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")}
        objects.pop("sqlite_sequence", None)
        return (
            conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            and conn.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            and conn.execute("PRAGMA application_id").fetchone() == (0x41424154,)
            and conn.execute("PRAGMA user_version").fetchone() == (1,)
            and conn.execute("SELECT count(*) FROM memory_entries").fetchone() == (3,)
            and objects == {name: found.sql for name, found in expected_objects().items()}
        )


def left_in(folder: Path) -> set[str]:
    """Name what is in a directory; SQLite may leave an empty log and a -shm after a read."""
    return {path.name for path in folder.glob("*") if not path.name.endswith(("-wal", "-shm"))}


# --- a fresh one


async def test_a_fresh_database_is_whole_private_and_told_step_by_step(settings: Settings) -> None:
    report = await initialize_database(settings)
    report.raise_for_failures()
    assert outcome(report) == "created"
    names = [check.name for check in report.checks]
    assert [name for name in names if name in STEPS] == list(STEPS)
    assert names.index("2.6 seed memories") < names.index("2.7 integrity") < names.index("published") == len(names) - 1
    assert whole(settings.db_path)
    assert left_in(settings.db_path.parent) == {"abathur.db"}
    assert (await validate_database(settings)).ok
    assert "journal_mode = wal" in {check.name: check.observed for check in report.checks}["2.2 PRAGMA settings"]


async def test_a_second_run_says_already_initialized_and_changes_no_byte(database: Settings) -> None:
    with untouched(database.db_path):
        for dry_run in (False, True, False):
            report = await initialize_database(database, dry_run=dry_run)
            report.raise_for_failures()
            assert outcome(report) == "already"
        (published,) = [check.observed for check in report.checks if check.name == "published"]
        assert published == f"{database.db_path} was there already; its name was forced again"
    # Nor beside a writer with something in its log.
    insert = "INSERT INTO metrics (metric_name, metric_value) VALUES ('m', 1)"
    with held(database.db_path, insert), untouched(database.db_path):
        assert outcome(await initialize_database(database)) == "already"


async def test_a_dry_run_shows_the_exact_statements_and_changes_nothing(settings: Settings, tmp_path: Path) -> None:
    report = await initialize_database(settings, dry_run=True)
    assert report.ok
    assert list(tmp_path.iterdir()) == []
    shown = {check.name: check.evidence for check in report.checks if check.status == "skip"}
    assert {f"{statement};" for statement in statements("ddl-indexes.sql")} < {*shown["2.3 to 2.6, one transaction"]}
    assert any(str(settings.db_path) in line for line in shown["2.1 database file"])
    with closing(sqlite3.connect(tmp_path / "by-hand.db", isolation_level=None)) as conn:
        for name, lines in shown.items():
            for line in lines if name != "2.1 database file" else ():
                conn.execute(line)
    assert whole(tmp_path / "by-hand.db")


async def test_modes_are_private_under_any_umask_and_an_existing_directory_keeps_its_own(settings: Settings) -> None:
    folder = settings.db_path.parent
    folder.mkdir()
    folder.chmod(0o750)
    for umask in (0o000, 0o022, 0o777):
        deep = replace(settings, db_path=folder / f"{umask}" / "abathur.db")
        before = os.umask(umask)
        try:
            (await initialize_database(deep)).raise_for_failures()
        finally:
            os.umask(before)
        with held(deep.db_path, "BEGIN IMMEDIATE", "DELETE FROM audit"):
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in deep.db_path.parent.iterdir()}
        assert modes == {"abathur.db": 0o600, "abathur.db-wal": 0o600, "abathur.db-shm": 0o600}
        assert stat.S_IMODE(deep.db_path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750


async def test_what_root_makes_belongs_to_the_owner_of_the_directory(public: Path) -> None:
    os.chown(public, 65534, 65534)
    settings = resolve("development", db_path=public / "abathur.db")
    report = await initialize_database(settings)
    assert outcome(report) == "created"
    assert [check.name for check in report.checks if check.failed] == ["directory"]  # and yet it is said
    found = settings.db_path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (65534, 65534, 0o600)
    # The owner can use it.
    program = "print(asyncio.run(nb.validate_database(nb.resolve('production', db_path=sys.argv[1]))).ok)"
    public.chmod(0o700)
    assert run_as_other(program, settings.db_path) == "True\n"


async def test_any_file_name_will_do(settings: Settings) -> None:
    for name in ("a?b#c%20.db", "é漢.db", "'quoted\".db", "-rf", ".hidden", "x" * 255):
        odd = replace(settings, db_path=settings.db_path.with_name(name))
        report = await initialize_database(odd)
        assert report.refused == (len(name) == 255), "no room for -journal"
        assert report.refused or whole(odd.db_path)
    assert len(left_in(settings.db_path.parent)) == 5


# --- what is there already

WRONG: list[tuple[str, Callable[[Path], None], str]] = [
    ("index missing", drop_index, "missing: idx_audit_task"),
    ("CHECK missing", drop_check, "altered: tasks"),
    ("JSON spoiled", spoil_json, "broken: tasks.input_data"),
    ("schema page", lambda path: flip_bits(path, 100, 8), "CORRUPT"),
    ("another page", lambda path: flip_bits(path, 4096 * 20, 8), "CORRUPT"),
    ("truncated", lambda path: os.truncate(path, 9000), "CORRUPT"),
    ("emptied", lambda path: os.truncate(path, 0), "empty shell"),
    ("no WAL", lambda path: run_sql(path, "PRAGMA journal_mode = DELETE"), "delete"),
]


@pytest.mark.parametrize(("name", "spoil", "told"), WRONG, ids=[name for name, _, _ in WRONG])
async def test_what_is_not_valid_is_refused_with_what_was_found_and_not_a_byte_changed(
    database: Settings, name: str, spoil: Callable[[Path], None], told: str
) -> None:
    spoil(database.db_path)
    with untouched(database.db_path):
        report = await initialize_database(database)
    assert report.refused, name
    assert not report.ok
    failed = [check for check in report.checks if check.failed]
    assert any(told in check.observed for check in failed)
    assert any(check.remedy for check in failed)
    assert left_in(database.db_path.parent) == {"abathur.db"}


async def test_a_link_or_a_file_as_parent_is_refused_and_nothing_lands_behind_it(
    settings: Settings, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    settings.db_path.parent.symlink_to(elsewhere)
    assert (await initialize_database(settings)).refused
    assert list(elsewhere.iterdir()) == []
    settings.db_path.parent.unlink()
    settings.db_path.parent.touch()
    with untouched(settings.db_path.parent):
        assert (await initialize_database(settings)).refused
        assert (await initialize_database(replace(settings, db_path=settings.db_path / "deeper" / "x.db"))).refused


@pytest.mark.parametrize(("env", "refused", "owner"), [("development", False, 65534), ("production", True, 0)])
async def test_a_database_in_a_shared_directory_is_refused_too_where_a_new_one_is(
    database: Settings, env: str, refused: bool, owner: int
) -> None:
    folder = database.db_path.parent
    folder.chmod(0o777 if owner == os.geteuid() else 0o700)
    for path in (folder, database.db_path):
        os.chown(path, owner, -1)
    before = left_in(folder) - {"abathur.db-wal", "abathur.db-shm"}
    with untouched(database.db_path):
        report = await initialize_database(resolve(env, db_path=database.db_path))
    assert (report.ok, report.refused) == (False, refused)
    (check,) = [check for check in report.checks if check.name == "directory"]
    as_owner = (
        f"run it as the owner: sudo -u {user_name(owner)} "
        f"{sys.executable} -m abathur_nb run init --env {env} -p db_path {database.db_path}"
    )
    chmod = f"if nobody else uses it: chmod 700 {folder}; else "
    assert check.status == "fail"
    assert check.remedy.startswith(chmod if owner == os.geteuid() else as_owner)
    assert left_in(folder) - {"abathur.db-wal", "abathur.db-shm"} == before
    assert any("already initialized" in check.observed for check in report.checks) is not refused
    if owner == os.geteuid():  # where others may only read it, that is a finding and no refusal
        folder.chmod(0o700)
        database.db_path.chmod(0o644)
        report = await initialize_database(resolve(env, db_path=database.db_path))
        assert (report.ok, report.refused) == (False, False)
        assert [check.name for check in report.checks if check.failed] == ["file modes"]


# --- races


# Forks children from a process that has imported everything, and prints what became of each.
SWAPS = """
import asyncio, json, os, sys
from pathlib import Path
import abathur_nb as nb

def init(path):
    report = asyncio.run(nb.initialize_database(nb.resolve("development", db_path=path)))
    return 0 if report.ok else 2

base = Path(sys.argv[1])
init(base / "warm" / "x.db")
moments = [".abathur-init*", ".abathur-init*/*", "abathur.db", "never"]
for n in range(24):
    folder, moved, elsewhere = (base / f"{n}{name}" for name in ("", "-moved", "-elsewhere"))
    folder.mkdir(mode=0o700); elsewhere.mkdir(mode=0o700)
    child, ended, moment = os.fork(), (0, 0), moments[n % 4]
    if child == 0:
        code = 3
        try:
            sys.stderr = open(os.devnull, "w")
            code = init(folder / "abathur.db")
        finally:
            os._exit(code)
    while ended == (0, 0) and not any(folder.glob(moment)):
        ended = os.waitpid(child, os.WNOHANG)
    os.rename(folder, moved); os.symlink(elsewhere, folder)
    code = os.waitstatus_to_exitcode((ended if ended != (0, 0) else os.waitpid(child, 0))[1])
    print(json.dumps([code, os.listdir(elsewhere), (moved / "abathur.db").exists(), ended != (0, 0)]))
"""


async def test_only_one_of_several_racing_tasks_creates_the_database(settings: Settings) -> None:
    reports = await asyncio.gather(*(initialize_database(settings) for _ in range(8)))
    assert sorted(map(outcome, reports)) == ["already"] * 7 + ["created"]
    assert all(report.ok for report in reports)
    assert left_in(settings.db_path.parent) == {"abathur.db"}


def test_a_directory_swapped_for_a_link_in_the_middle_brings_nothing_elsewhere(tmp_path: Path) -> None:
    """It is swapped as soon as init has made its scratch directory, a file in it, or the database; or has ended."""
    command = [sys.executable, "-c", SWAPS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGING_S, check=True)
    assert not done.stderr
    rounds = [json.loads(line) for line in done.stdout.splitlines()]
    assert sum(not there for *_, there, _ in rounds) >= 6  # else few were caught in the middle, and little is proved
    assert sum(ended for *_, ended in rounds) >= 6
    for code, elsewhere, there, ended in rounds:
        assert elsewhere == []
        # No false success, no bare traceback; one that is moved before it is looked at is not where it was asked for.
        assert code in ({0} if ended else {0, 2} if there else {2})


# --- what killed runs leave, and what living ones hold


async def test_orphans_are_swept_and_named_and_living_ones_are_left(settings: Settings) -> None:
    folder = settings.db_path.parent
    folder.mkdir(mode=0o700)
    orphan = folder / ".abathur-init-0123456789ab"
    orphan.mkdir()
    (orphan / "abathur.db").write_bytes(b"half")
    with scratch_directory(folder, "init") as living:
        (living / "abathur.db").write_bytes(b"half")
        report = await initialize_database(settings)
        assert (living / "abathur.db").read_bytes() == b"half"
    report.raise_for_failures()
    assert {check.name: check.evidence for check in report.checks}["2.1 database file"] == (orphan.name,)
    assert left_in(folder) == {"abathur.db"}


async def test_a_cancelled_run_leaves_all_or_nothing(settings: Settings) -> None:
    made, turns = 0, 0
    while made < 2:
        task = asyncio.create_task(initialize_database(settings))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        folder = settings.db_path.parent
        left = left_in(folder) if folder.exists() else set()
        assert left in (set(), {"abathur.db"})
        if left:
            assert whole(settings.db_path)
            made += 1
            for path in folder.iterdir():
                path.unlink()
        turns += 25


# --- a disk that is full


async def test_on_a_full_disk_it_is_refused_and_nothing_half_made_is_left(mounted: Path) -> None:
    refusals = 0
    for kib in (*range(4, 120, 24), *range(120, 1400, 90)):
        remount(mounted, f"size={kib}k")
        settings = resolve("development", db_path=mounted / "abathur.db")
        settings = replace(settings, min_free_mb=0, recommended_free_mb=0)
        report = await initialize_database(settings)
        if report.refused:
            refusals += 1
            assert not report.ok
            told = " ".join(check.observed for check in report.checks if check.failed)
            assert "full" in told or "No space left" in told or "could not be" in told, told
            assert list(mounted.iterdir()) == []
            continue
        report.raise_for_failures()
        assert whole(settings.db_path)
        for path in mounted.iterdir():
            path.unlink()
    assert 5 < refusals < 20  # both were seen


# --- whether a machine and a place can carry a database: told by name and by trying, and nothing left behind


ENVS = ("development", "staging", "production")
ME = user_name(os.geteuid())
NAMELESS = 3_999_999  # no user and no group has it


@pytest.fixture
def in_memory() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="abathur-test-", dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of its own, of 8 MB, that can be made smaller or read-only."""
    with tmpfs(tmp_path / "mounted") as folder:
        yield folder


def below(path: Path) -> dict[str, object]:
    return {str(found): fingerprint(found) for found in path.rglob("*")}


async def checked(settings: Settings, *, refused: bool = False) -> dict[str, Check]:
    report = await preflight(settings)
    assert report.refused is refused
    checks = {check.name: check for check in report.checks}
    assert len(checks) == len(report.checks)
    for check in checks.values():
        assert check.status in ("pass", "skip") or check.remedy
    return checks


# --- the machine


async def test_a_good_place_passes_and_nothing_is_left_behind(settings: Settings, tmp_path: Path) -> None:
    deep = replace(settings, db_path=tmp_path / "a" / "b" / "abathur.db")
    checks = await checked(deep)
    assert list(tmp_path.iterdir()) == []
    assert checks["directory"].observed == f"{tmp_path}/a/b will be made 0700"
    assert checks["file system behaviour"].evidence == (f"tried in a scratch directory in {tmp_path}",)
    assert checks["backup directory"].status == "warn"
    assert checks["backup directory"].remedy.startswith("sudo install -d -o ")
    settings.db_path.parent.mkdir(mode=0o700)
    settings.backup_dir.mkdir()
    before = below(tmp_path)
    checks = await checked(settings)
    assert below(tmp_path) == before
    for name in ("Python", "SQLite", "SQLite's JSON functions", "SQLite's thread safety", "aiosqlite", "directory",
                 "file system behaviour", "database file", "backup directory"):  # fmt: skip
        assert checks[name].status == "pass", checks[name]
    assert checks["SQLite"].observed == sqlite3.sqlite_version
    assert "lock SQLITE_BUSY" in checks["file system behaviour"].observed
    assert checks["directory"].observed == f"{settings.db_path.parent} is {ME}'s, mode 0700"
    settings.db_path.write_text("plain")
    with untouched(settings.db_path):
        assert (await checked(settings, refused=True))["database file"].status == "fail"
    for version, status in {"0.21.0": "fail", "0.9": "fail", "0.22.0": "pass", "0.22.1b1": "pass", "1": "pass"}.items():
        (check,) = (check for check in _software(version) if check.name == "aiosqlite")
        assert (check.status, check.observed) == (status, version)


def test_the_wal_reset_race_is_known_by_version(settings: Settings) -> None:
    for struck, versions in {
        True: ("3.7.0", "3.35.0", "3.40.1", "3.44.5", "3.45.0", "3.50.6", "3.51.0", "3.51.2"),
        False: ("3.6.23", "3.44.6", "3.44.7", "3.50.7", "3.51.3", "3.52.0", "4.0.0"),
    }.items():
        for version in versions:
            for strict, status in ((False, "warn"), (True, "fail")):
                given = tuple(map(int, version.split(".")))
                check = _wal_reset_race(replace(settings, require_safe_wal=strict), given)
                assert (check.status, version in check.observed) == (status if struck else "pass", True), version


# --- the file system, by name

MOUNTS = r"""
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
23 22 0:21 / /proc rw - proc proc rw
30 22 0:30 / /nfs rw,relatime shared:1 - nfs4 server:/export rw,vers=4.2
31 22 0:31 / /cifs rw - cifs //server/share rw
32 22 0:32 / /9p rw - 9p share rw,trans=virtio
33 22 0:33 / /overlay rw shared:7 master:2 propagate_from:1 - overlay overlay rw,lowerdir=/x
34 22 0:34 / /ram rw - tmpfs tmpfs rw
35 22 0:35 / /sshfs rw - fuse.sshfs user@host:/ rw
36 22 0:36 / /with\040blank\011tab\134back\012line rw - xfs /dev/sdb1 rw
37 30 8:2 / /nfs/local rw - btrfs /dev/sdc rw
38 37 0:38 / /nfs/local rw - tmpfs hides-what-was-mounted-there-before rw
39 34 0:39 /sub /ram/bound rw - ext4 /dev/sda1 rw
40 22 0:40 / /fuse rw - fuse.gocryptfs x rw
""".strip("\n")


def test_the_file_system_is_that_of_the_innermost_and_latest_mount(tmp_path: Path) -> None:
    kinds = {
        "ext4": ("/", "/var/lib", "/nfsx", "/ram/bound/x"),
        "nfs4": ("/nfs", "/nfs/a/b"),
        "tmpfs": ("/ram/x", "/nfs/local/x"),
        "xfs": ("/with blank\ttab\\back\nline/x",),
        "fuse.sshfs": ("/sshfs/x",),
    }
    for kind, paths in kinds.items():
        assert {file_system(Path(path), MOUNTS) for path in paths} == {kind}
    (tmp_path / "link").symlink_to("/nfs/a")
    assert file_system(tmp_path / "link", MOUNTS) == "nfs4"
    assert file_system(Path("/"), "") == "unknown"
    assert file_system(Path("/proc")) == "proc"


def test_the_root_of_a_chroot_and_the_first_file_system_of_a_boot_do_not_mislead() -> None:
    boot = "1 1 0:1 / / rw - rootfs rootfs rw\n"
    assert file_system(Path("/nfs/a"), boot + MOUNTS) == "nfs4"
    assert file_system(Path("/var"), boot + MOUNTS) == "ext4"
    below = "50 9 0:50 / /data rw - nfs4 x rw\n51 50 0:51 / /data/db rw - xfs y rw"  # mount 9 is out of sight
    assert [file_system(Path(path), below) for path in ("/data/db/x", "/data/x", "/x")] == ["xfs", "nfs4", "unknown"]


# What development, staging and production say of each file system; unknown ones end with what is meant to look alike.
VERDICTS = {
    ("pass", "pass", "pass"): "ext2 ext3 ext4 xfs btrfs zfs f2fs bcachefs jfs nilfs2",
    ("warn", "warn", "refused"): "tmpfs ramfs",
    (
        "warn",
        "warn",
        "warn",
    ): "overlay aufs fuse fuseblk fuseblk.ntfs-3g fuse.gocryptfs fuse.bindfs fuse.ext4 fuse.tmpfs"
    " unheard nfsx xnfs ext5 myxfs virtiofsd 9pfs NFS lustre2",
    ("warn", "refused", "refused"): "virtiofs 9p fakeowner fuse.grpcfuse fuse.osxfs",
    ("refused", "refused", "refused"): "nfs nfs4 cifs smb3 smbfs afs ceph lustre gpfs ocfs2 gfs2 gfs beegfs fhgfs pvfs2"
    " orangefs coda ncpfs panfs acfs vxfs ibrix vboxsf vmhgfs prl_fs drvfs fuse.sshfs fuse.glusterfs fuse.s3fs"
    " fuse.rclone fuse.ceph-fuse fuse.ceph fuse.mfs fuse.juicefs fuse.gcsfuse fuse.davfs fuse.vmhgfs-fuse fuse.cephfs"
    " fuse.gvfsd-fuse fuse.blobfuse2",
}


def test_each_file_system_gets_its_verdict_by_its_exact_name(tmp_path: Path) -> None:
    """The kernel's list of mounts is replaced, in a mount namespace of the process's own; the rest is real."""
    mounts, program = tmp_path / "mounts", tmp_path / "program.py"
    names = " ".join(VERDICTS.values()).split()
    program.write_text(
        "import asyncio, json, sys\nimport abathur_nb as nb\n"
        "for name in sys.argv[2:]:\n"
        "    open(sys.argv[1], 'w').write(f'22 1 8:1 / / rw - {name} x:y rw\\n')\n"
        "    for env in ('development', 'staging', 'production'):\n"
        "        settings = nb.resolve(env, db_path=f'{sys.argv[1]}-data/x.db')\n"
        "        report = asyncio.run(nb.initialize_database(settings, dry_run=True))\n"
        "        (told,) = [check for check in report.checks if check.name == 'file system']\n"
        "        print(json.dumps([name, told.status, report.refused, told.observed]))\n"
    )
    mounts.touch()
    shell = 'mount --bind "$0" /proc/$$/mountinfo && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", shell, str(mounts), sys.executable, str(program), str(mounts), *names]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    found: dict[str, list[str]] = {}
    for name, status, refused, observed in lines:
        assert observed.startswith(f"{name} at ")
        assert (status == "fail") is refused
        found.setdefault(name, []).append("refused" if refused else status)
    assert found == {name: list(verdict) for verdict, known in VERDICTS.items() for name in known.split()}
    assert all("not known to be local" in told for name, _, _, told in lines if kind_of(name) == "unknown")


async def test_a_real_tmpfs_warns_and_is_refused_in_production_or_where_it_cannot_be_tried(
    in_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for env, status in {"development": "warn", "staging": "warn", "production": "fail"}.items():
        settings = resolve(env, db_path=in_memory / "data" / "abathur.db")
        checks = await checked(settings, refused=status == "fail")
        assert (checks["file system"].status, checks["file system"].observed) == (status, f"tmpfs at {in_memory}")
        assert checks["file system behaviour"].status == "pass"
    monkeypatch.setattr(sys, "executable", "/nowhere/python")  # the second process of the probe does not start
    report = await initialize_database(resolve("development", db_path=in_memory / "data" / "abathur.db"))
    assert report.refused
    assert list(in_memory.iterdir()) == []


async def test_a_read_only_file_system_is_refused(mounted: Path) -> None:
    remount(mounted, "ro")
    settings = resolve("development", db_path=mounted / "abathur.db")
    checks = await checked(settings, refused=True)
    assert checks["file system"].status == "fail"
    assert "tmpfs, mounted read-only" in checks["file system"].observed
    assert f"findmnt -T {mounted}" in checks["file system"].remedy
    assert checks["directory"].status == "fail"
    assert checks["file system behaviour"].status == "error"
    assert "is mounted read-only" in checks["file system behaviour"].observed
    assert list(mounted.iterdir()) == []


async def test_a_full_file_system_could_not_be_tried_and_nothing_is_left(mounted: Path) -> None:
    (mounted / "ballast").write_bytes(bytes(8 * 1024 * 1024))
    checks = await checked(resolve("development", db_path=mounted / "abathur.db"))
    assert checks["free disk"].status == "fail"
    assert checks["free disk"].observed.startswith("0 MB")
    assert checks["file system behaviour"].failed
    assert [path.name for path in mounted.iterdir()] == ["ballast"]


def test_free_disk_has_two_limits(settings: Settings) -> None:
    for low, enough, status in ((0, 0, "pass"), (0, 10**9, "warn"), (10**9, 10**9, "fail")):
        found = location_checks(replace(settings, min_free_mb=low, recommended_free_mb=enough))
        (check,) = (check for check in found if check.name == "free disk")
        assert (check.status, forbids(found)) == (status, False)


# --- the directory


@pytest.mark.parametrize(
    ("mode", "gid", "verdicts"),  # of development, staging, production
    [
        (0o755, 0, "warn warn warn"),
        (0o1777, 0, "fail refused refused"),
        (0o770, 0, "warn warn warn"),  # root's own group: what a umask of 002 makes for any user
        (0o2770, 65534, "fail refused refused"),
    ],
)
async def test_a_directory_that_others_may_write_to_fails_or_is_refused(
    mode: int, gid: int, verdicts: str, tmp_path: Path
) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    os.chown(folder, -1, gid)
    folder.chmod(mode)
    for env, verdict in zip(ENVS, verdicts.split(), strict=True):
        refused = verdict == "refused"
        check = (await checked(resolve(env, db_path=folder / "x.db"), refused=refused))["directory"]
        assert check.status == ("fail" if refused else verdict)
        assert f"mode {mode:04o}" in check.observed
        assert check.remedy.startswith(
            f"if nobody else uses it: chmod 700 '{folder}'; else take a directory of its own: "
        )
        assert stat.S_IMODE(folder.stat().st_mode) == mode


def test_who_may_write_is_told_by_mode_owner_and_group(tmp_path: Path) -> None:
    for mode, uid, gid, shared in (
        (0o700, 0, 0, False),
        (0o755, 0, 65534, False),
        (0o770, 0, 0, False),
        (0o770, 0, 65534, True),
        (0o770, 1, 0, True),  # another's own group
        (0o770, 65534, 65534, True),  # `nobody` shares its group with whoever has none
        (0o770, NAMELESS, NAMELESS, True),
        (0o702, 0, 0, True),
        (0o1777, 0, 0, True),
    ):
        os.chown(tmp_path, uid, gid)
        tmp_path.chmod(mode)
        assert writable_by_others(tmp_path) is shared, (mode, uid, gid)


def test_an_access_list_lets_others_write_behind_a_private_group(tmp_path: Path, apart: Path) -> None:
    own, above = tmp_path / "own", apart / "a"
    for folder in (own, above / "data"):
        folder.mkdir(parents=True)
        folder.chmod(0o700)
    for folder, name, path in ((own, "directory", own / "x.db"), (above, "directories above", above / "data" / "x.db")):
        folder.chmod(0o750)
        for perms, status in ((5, "warn" if folder == own else "pass"), (7, "fail")):
            grant_by_acl(folder, 65534, perms, mask=perms)
            checks = location_checks(resolve("staging", db_path=path))
            found = {check.name: check.status for check in checks}
            assert (found[name], forbids(checks)) == (status, status == "fail")


# --- the directories above


@pytest.fixture
def apart() -> Iterator[Path]:
    """Return a directory below none that others write to: pytest's own lie below a sticky one."""
    folder = Path(tempfile.mkdtemp(prefix="abathur-test-", dir="/var/lib"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def tree(apart: Path, names: str, **given: tuple[int, int]) -> Path:
    """Make directories inside each other, each root's and 0755 unless an owner and a mode are given."""
    path = apart
    for name in names.split("/"):
        path /= name
        path.mkdir(exist_ok=True)
        owner, mode = given.get(name, (0, 0o755))
        os.chown(path, owner, owner)
        path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("given", "verdicts"),  # of development, staging, production
    [
        ({}, "pass pass pass"),
        ({"a": (0, 0o700), "b": (0, 0o711)}, "pass pass pass"),
        ({"b": (65534, 0o755)}, "fail refused refused"),
        ({"a": (65534, 0o755)}, "fail refused refused"),
        ({"a": (NAMELESS, 0o700)}, "fail refused refused"),
        ({"b": (0, 0o777)}, "fail refused refused"),
        ({"a": (0, 0o757)}, "fail refused refused"),
        ({"b": (0, 0o775)}, "pass pass pass"),  # root's own group
        ({"a": (0, 0o1777)}, "warn warn warn"),  # who may write to it can't rename what is root's in it
        ({"a": (65534, 0o1777)}, "fail refused refused"),
    ],
)
async def test_who_may_swap_any_directory_up_to_the_root_fails_or_is_refused(
    given: dict[str, tuple[int, int]], verdicts: str, apart: Path
) -> None:
    made = "b" in given  # else its directory is missing
    folder = tree(apart, "a/b/data" if made else "a/b", data=(0, 0o700), **given)
    path = (folder if made else folder / "data") / "x.db"
    for env, verdict in zip(ENVS, verdicts.split(), strict=True):
        settings = replace(resolve(env, db_path=path), service_account="")
        checks = await checked(settings, refused=verdict == "refused")
        above = checks["directories above"]
        assert above.status == {"refused": "fail"}.get(verdict, verdict), above
        assert (
            all(f"{apart / ('a' if name == 'a' else 'a/b')} is " in above.observed for name in given)
            or not above.failed
        )
        if verdict == "refused":
            assert (await initialize_database(settings)).refused
            assert not path.exists()


async def test_links_are_followed_to_each_directory_that_they_lead_through(apart: Path) -> None:
    tree(apart, "a")
    tree(apart, "sticky", sticky=(0, 0o1777))
    for name in ("safe/data", "others/inner/data"):
        tree(apart, name, data=(0, 0o700), others=(65534, 0o755))
    for number, (folder, target, owner, status) in enumerate(
        (
            ("a", "../safe", 0, "pass"),
            ("a", f"{apart}/safe/./", 0, "pass"),
            ("a", "../others/inner", 0, "fail"),  # what it leads to lies in a directory of somebody else's
            ("sticky", "../safe", 65534, "fail"),  # who owns it can turn it
            ("sticky", "../safe", 0, "warn"),
        )
    ):
        link = apart / folder / f"link-{number}"
        link.symlink_to(target)
        os.lchown(link, owner, owner)
        checks = await checked(resolve(db_path=link / "data" / "x.db"))
        assert checks["directories above"].status == status, target


def test_an_owner_that_the_user_namespace_does_not_map_warns_in_development(apart: Path) -> None:
    tree(apart, "a/data", a=(12345, 0o755), data=(0, 0o700))
    program = (
        "import asyncio, sys\nimport abathur_nb as nb\n"
        "for env in ('development', 'production'):\n"
        "    report = asyncio.run(nb.preflight(nb.resolve(env, db_path=sys.argv[1])))\n"
        "    (above,) = [check for check in report.checks if check.name == 'directories above']\n"
        "    print(above.status, report.refused, above.observed)\n"
    )
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", program, str(apart / "a/data/x.db")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    development, production = done.stdout.splitlines()
    assert development.startswith("warn False ")
    assert production.startswith("fail True ")
    assert f"{apart}/a is nobody's, mode 0755, who is not in this user namespace" in development


# --- the one who is to own it


def test_a_missing_directory_is_made_for_the_one_who_is_to_own_it_or_warns(tmp_path: Path) -> None:
    """And for anybody who tries it at a path of their own, where there is no such account."""
    for account, origin, status in (
        ("", "default", "pass"),
        (ME, "default", "pass"),
        ("no-such-account", "argument", "pass"),
        ("no-such-account", "default", "warn"),
        ("nobody", "default", "warn"),
    ):
        settings = resolve("production", db_path=tmp_path / "none" / "x.db")
        settings = replace(settings, service_account=account, origins={"db_path": origin})
        check, *others = location_checks(settings)
        assert (check.status, forbids([check, *others])) == (status, False), account
        if account == "nobody":
            assert check.observed == f"{tmp_path}/none will be made 0700 for {ME}, not for nobody"
            assert check.remedy.startswith("sudo install -d -o nobody -m 700 ")
        elif status == "warn":
            made = f"sudo install -d -o no-such-account -m 700 {tmp_path}/none"
            assert check.remedy == f"sudo useradd --system --user-group no-such-account && {made}"


def test_the_install_command_makes_a_directory_of_the_account(tmp_path: Path) -> None:
    """It is run, less its sudo."""
    for account in ("", "nobody", "sync", "#12345", "12345"):
        folder = tmp_path / account / "it's # mine" / "a b"
        command = install_command(replace(resolve(db_path=folder / "x.db"), service_account=account), folder)
        assert command.startswith("sudo install ")
        subprocess.run(["sh", "-euc", command.removeprefix("sudo ")], check=True)
        found = folder.stat()
        number = account.removeprefix("#")
        uid = int(number) if number.isdecimal() else pwd.getpwnam(account or ME).pw_uid
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (uid, 0o700)
    for account in ("a b", "$(touch canary)", "x; touch canary", "a\0b", "\ud800"):
        command = install_command(replace(resolve(), service_account=account), tmp_path)
        assert shlex.split(command).count(account) == 2


AS_OTHER = """
from abathur_nb.health.path_on_disk import forbids, location_checks
for name in sys.argv[1:]:
    settings = nb.resolve("production", db_path=name)
    found = location_checks(settings)
    directory, refused = found[0], forbids(found)
    report = asyncio.run(nb.preflight(settings))
    print("|".join((directory.status, str(refused), str(report.refused), directory.observed, directory.remedy)))
"""


def test_somebody_without_privileges_is_refused_where_a_change_of_theirs_would_fail(public: Path) -> None:
    modes = {"roots": 0o755, "shared": 0o777, "drop": 0o733}
    own = {f"own-{mode:03o}": mode for mode in (0o500, 0o300, 0o000)}  # init must open it, to force a name to the disk
    for name, mode in (modes | own).items():
        (public / name).mkdir()
        (public / name).chmod(mode)
        if name in own:
            os.chown(public / name, 65534, 65534)
    before = below(public)
    places = [*modes, *own, "none", "drop/data"]
    lines = run_as_other(AS_OTHER, *(public / name / "x.db" for name in places)).splitlines()
    found = {name: line.split("|") for name, line in zip(places, lines, strict=True)}
    other = user_name(65534)
    assert {tuple(told[:3]) for told in found.values()} == {("fail", "True", "True")}
    assert re.search(
        rf"sudo -u {ME} \S+ -m abathur_nb run init --env production -p db_path {public}/roots/x.db", found["roots"][4]
    )
    assert found["roots"][4].endswith(f"take a directory of its own: -p db_path {public}/roots/abathur/x.db")
    assert found["none"][3] == f"no {public}/none, and {other} may not make it in {public}"
    assert found["none"][4] == install_command(resolve("production"), public / "none")
    assert re.search(rf"sudo -u {ME} \S+ -m abathur_nb run", found["shared"][4])
    assert found["drop/data"][3] == f"no {public}/drop/data, and {other} may not make it in {public}/drop"
    assert [found[name][4] for name in own] == [f"chmod 700 {public / name}" for name in own]
    assert below(public) == before


async def test_beside_many_others_it_leaves_nothing_behind_and_sweeps_what_was_killed(
    settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / ".abathur-probe-0123456789ab").mkdir()
    (tmp_path / ".abathur-probe-0123456789ab" / "probe.db").touch()
    (tmp_path / ".abathur-old-backups").mkdir()
    reports = await asyncio.gather(*(preflight(settings) for _ in range(5)))
    for report in reports:
        assert [check.observed for check in report.checks if check.failed] == []
    assert [path.name for path in tmp_path.iterdir()] == [".abathur-old-backups"]


# --- what only a person can answer


async def test_that_the_team_is_trained_is_recorded_as_said_and_never_as_passed(
    settings: Settings, tmp_path: Path
) -> None:
    for answer, observed in (
        (None, "nobody has said so"),
        ("Ada Lovelace, 2026-11-20", "said by Ada Lovelace on 2026-11-20"),
    ):
        report = await preflight(settings, team_trained=answer)
        (check,) = (check for check in report.checks if check.name == "team trained on procedures")
        assert (check.status, check.observed, report.ok) == ("skip", observed, True)
    with pytest.raises(ConfigurationError, match=r"a person's name and a date, as in .*, found 'yes'"):
        await preflight(settings, team_trained="yes")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "at",
    sampled(
        product(("", ".abathur-probe-*", "*/probe.db", "*/probe.db-wal", "second process"), range(0, 50, 10)),
        *(("", 0), (".abathur-probe-*", 10), ("*/probe.db", 20), ("*/probe.db-wal", 30), ("second process", 0)),
    ),
)
async def test_a_preflight_cancelled_at_any_stage_leaves_nothing_behind(
    at: tuple[str, int], settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled so many turns of the loop after it came to the stage."""
    stage, turns = at
    processes: list[asyncio.subprocess.Process] = []
    start = asyncio.create_subprocess_exec

    async def noted(*command: Any, **options: Any) -> asyncio.subprocess.Process:
        processes.append(await start(*command, **options))
        return processes[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", noted)
    task = asyncio.create_task(preflight(settings))
    for _ in range(1_000_000):
        if task.done() or not stage or (processes if stage == "second process" else any(tmp_path.glob(stage))):
            break
        await asyncio.sleep(0)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled() or turns  # after so many turns it may have ended
    assert list(tmp_path.iterdir()) == []
    assert [process for process in processes if process.returncode is None] == []
