"""What a place can carry, and init: a whole database or none, and never a byte changed of what is there already."""

import asyncio
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from damage import drop_check, drop_index, flip_bits, grant_by_acl, held, run_as_other, run_sql, spoil_json, untouched
from mounting import remount, tmpfs
from situations import tree
from troubleshoot_helpers import check_of

import abathur_nb as nb
from abathur_nb.config.settings import Settings, resolve
from abathur_nb.files import scratch_directory
from abathur_nb.health.path_on_disk import file_system, forbids, install_command, kind_of, location_checks
from abathur_nb.runbook import init
from abathur_nb.runbook.preflight import _wal_reset_race
from abathur_nb.store.sql import statements
from abathur_nb.text import user_name


def outcome(report: nb.Report) -> str:
    if report.refused:
        return "refused"
    told = {check.name: check.observed for check in report.checks}
    return "already" if told.get("create", "").startswith("already initialized") else "created"


async def whole(path: Path) -> bool:
    return (await nb.validate_database(resolve(db_path=path))).ok


def left_in(folder: Path) -> set[str]:
    """Name what is in a directory; SQLite may leave an empty log and a -shm after a read."""
    return {path.name for path in folder.glob("*") if not path.name.endswith(("-wal", "-shm"))}


async def test_a_fresh_database_is_whole_and_reported_step_by_step(settings: Settings) -> None:
    report = await nb.initialize_database(settings)
    report.raise_for_failures()
    assert outcome(report) == "created"
    names = [check.name for check in report.checks]
    assert list(dict.fromkeys(name[:3] for name in names if name[0] == "2")) == [f"2.{n}" for n in range(1, 8)]
    assert names[-1] == "published"
    assert await whole(settings.db_path)
    assert left_in(settings.db_path.parent) == {"abathur.db"}


async def test_a_second_run_says_already_initialized_and_changes_no_byte(database: Settings) -> None:
    insert = "INSERT INTO metrics (metric_name, metric_value) VALUES ('m', 1)"
    with untouched(database.db_path):
        for dry_run in (False, True):
            report = await nb.initialize_database(database, dry_run=dry_run)
            report.raise_for_failures()
            assert outcome(report) == "already"
        with held(database.db_path, insert):  # nor beside a writer with something in its log
            assert outcome(await nb.initialize_database(database)) == "already"


async def test_a_dry_run_shows_the_exact_statements_and_changes_nothing(settings: Settings, tmp_path: Path) -> None:
    report = await nb.initialize_database(settings, dry_run=True)
    assert report.ok
    assert list(tmp_path.iterdir()) == []
    by_hand = settings.db_path
    by_hand.parent.mkdir(mode=0o700)
    by_hand.touch(mode=0o600)
    shown = {check.name: check.evidence for check in report.checks if check.status == "skip"}
    assert {f"{statement};" for statement in statements("ddl-indexes.sql")} < {*shown["2.3 to 2.6, one transaction"]}
    assert any(str(settings.db_path) in line for line in shown["2.1 database file"])
    run_sql(by_hand, *(line for name, lines in shown.items() if name != "2.1 database file" for line in lines))
    assert await whole(by_hand)


async def test_modes_are_private_under_any_umask_and_an_existing_directory_keeps_its_own(settings: Settings) -> None:
    folder = settings.db_path.parent
    folder.mkdir()
    folder.chmod(0o750)
    for umask in (0o000, 0o777):
        deep = replace(settings, db_path=folder / f"{umask}" / "abathur.db")
        before = os.umask(umask)
        try:
            (await nb.initialize_database(deep)).raise_for_failures()
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
    report = await nb.initialize_database(settings)
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
        report = await nb.initialize_database(odd)
        assert report.refused == (len(name) == 255), "no room for -journal"
        assert report.refused or await whole(odd.db_path)
    assert len(left_in(settings.db_path.parent)) == 5


WRONG: dict[str, Callable[[Path], object]] = {  # by what is told of it
    "missing: idx_audit_task": drop_index,
    "altered: tasks": drop_check,
    "broken: tasks.input_data": spoil_json,
    "CORRUPT": lambda path: flip_bits(path, 4096 * 20, 8),
    "delete": lambda path: run_sql(path, "PRAGMA journal_mode = DELETE"),
}


@pytest.mark.parametrize("told", WRONG)
async def test_an_invalid_database_is_refused_unchanged(database: Settings, told: str) -> None:
    WRONG[told](database.db_path)
    with untouched(database.db_path):
        report = await nb.initialize_database(database)
    assert report.refused
    failed = [check for check in report.checks if check.failed]
    assert any(told in check.observed for check in failed)
    assert any(check.remedy for check in failed)
    assert left_in(database.db_path.parent) == {"abathur.db"}


@pytest.mark.parametrize(
    ("env", "owner", "mode", "remedy"),
    [
        ("development", 65534, 0o700, f"run it as the owner: sudo -u {user_name(65534)} {{command}}"),
        ("production", 0, 0o777, "if nobody else uses it: chmod 700 {folder}; else "),
    ],
)
async def test_a_database_in_a_shared_directory_fails_and_production_refuses_it(
    database: Settings, env: str, owner: int, mode: int, remedy: str
) -> None:
    folder, refused = database.db_path.parent, env == "production"
    folder.chmod(mode)
    for path in (folder, database.db_path):
        os.chown(path, owner, -1)
    with untouched(database.db_path):
        report = await nb.initialize_database(settings := resolve(env, db_path=database.db_path))
    assert (report.ok, report.refused, outcome(report)) == (False, refused, "refused" if refused else "already")
    check = check_of(report, "directory")
    assert check.status == "fail"
    assert check.remedy.startswith(remedy.format(folder=folder, command=shlex.join(settings.command("init"))))
    assert left_in(folder) == {"abathur.db"}


@pytest.mark.parametrize("moment", ["make_private_file", "_build", "fsync", "_force_name"])
async def test_a_directory_swapped_for_a_link_in_the_middle_brings_nothing_elsewhere(
    moment: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, elsewhere, real = settings.db_path.parent, tmp_path / "elsewhere", getattr(init, moment)
    elsewhere.mkdir(mode=0o700)

    def swap(*args: Any, **given: Any) -> Any:
        if not folder.is_symlink():
            folder.rename(tmp_path / "moved")
            folder.symlink_to(elsewhere)
        return real(*args, **given)

    monkeypatch.setattr(init, moment, swap)
    report = await nb.initialize_database(settings)
    assert folder.is_symlink()
    assert list(elsewhere.iterdir()) == []
    assert (tmp_path / "moved" / "abathur.db").exists() or not report.ok, "a false success"


# --- what killed runs and living ones leave


async def test_orphans_are_swept_and_named_and_living_ones_are_left(settings: Settings) -> None:
    folder = settings.db_path.parent
    folder.mkdir(mode=0o700)
    orphan = folder / ".abathur-init-0123456789ab"
    orphan.mkdir()
    (orphan / "abathur.db").write_bytes(b"half")
    with scratch_directory(folder, "init") as living:
        (living / "abathur.db").write_bytes(b"half")
        report = await nb.initialize_database(settings)
        assert (living / "abathur.db").read_bytes() == b"half"
    report.raise_for_failures()
    assert check_of(report, "2.1 database file").evidence == (orphan.name,)
    assert left_in(folder) == {"abathur.db"}


async def test_a_cancelled_run_leaves_all_or_nothing(settings: Settings) -> None:
    folder, turns = settings.db_path.parent, 0
    while not settings.db_path.exists():
        task = asyncio.create_task(nb.initialize_database(settings))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not folder.exists() or left_in(folder) in (set(), {"abathur.db"})
        turns += 25 + turns // 3
    assert await whole(settings.db_path)


# --- whether a machine and a place can carry a database: told by name and by trying, and nothing left behind


ENVS = ("development", "staging", "production")
ME = user_name(os.geteuid())
NAMELESS = 3_999_999  # no user and no group has it


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of its own, of 8 MB, that can be made smaller or read-only."""
    with tmpfs(tmp_path / "mounted") as folder:
        yield folder


async def checked(settings: Settings, *, refused: bool = False) -> dict[str, nb.Check]:
    report = await nb.preflight(settings)
    assert report.refused is refused
    checks = {check.name: check for check in report.checks}
    assert len(checks) == len(report.checks)
    for check in checks.values():
        assert check.status in ("pass", "skip") or check.remedy
    return checks


async def test_a_good_place_passes_and_nothing_is_left_behind(settings: Settings, tmp_path: Path) -> None:
    checks = await checked(replace(settings, db_path=tmp_path / "a" / "b" / "abathur.db"))
    assert list(tmp_path.iterdir()) == []
    assert checks["directory"].observed == f"{tmp_path}/a/b will be created with mode 0700"
    assert checks["file system behaviour"].evidence == (f"tried in a scratch directory in {tmp_path}",)
    assert checks["backup directory"].status == "warn"
    assert checks["backup directory"].remedy.startswith("sudo install -d -o ")
    settings.db_path.parent.mkdir(mode=0o700)
    settings.backup_dir.mkdir()
    before = tree(tmp_path)
    (settings.db_path.parent / ".abathur-probe-0123456789ab").mkdir()  # as a killed probe leaves it
    checks = await checked(settings)
    assert tree(tmp_path) == before
    for name in ("Python", "SQLite", "SQLite's JSON functions", "SQLite's thread safety", "aiosqlite", "directory",
                 "file system behaviour", "database file", "backup directory"):  # fmt: skip
        assert checks[name].status == "pass", checks[name]
    assert "lock SQLITE_BUSY" in checks["file system behaviour"].observed
    assert checks["directory"].observed == f"{settings.db_path.parent} is {ME}'s, mode 0700"
    settings.db_path.write_text("plain")
    with untouched(settings.db_path):
        assert (await checked(settings, refused=True))["database file"].status == "fail"


@pytest.mark.parametrize("version", ["3.7.0", "3.40.1", "3.44.5", "3.45.0", "3.50.6", "3.51.2"])
def test_the_wal_reset_race_is_known_by_version(version: str, settings: Settings) -> None:
    *first, last = map(int, version.split("."))
    for strict, status in ((False, "warn"), (True, "fail")):
        check = _wal_reset_race(replace(settings, require_safe_wal=strict), (*first, last))
        assert (check.status, version in check.observed) == (status, True)
    for sound in ((3, 6, 23), (3, 44, 6), (3, 50, 7), (3, 51, 3), (4, 0, 0)):
        assert _wal_reset_race(settings, sound).status == "pass"


# --- the file system, by name

MOUNTS = r"""
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 22 0:30 / /nfs rw,relatime shared:1 - nfs4 server:/export rw,vers=4.2
34 22 0:34 / /ram rw - tmpfs tmpfs rw
36 22 0:36 / /with\040blank\011tab\134back\012line rw - xfs /dev/sdb1 rw
37 30 8:2 / /nfs/local rw - btrfs /dev/sdc rw
38 37 0:38 / /nfs/local rw - tmpfs hides-what-was-mounted-there-before rw
39 34 0:39 /sub /ram/bound rw - ext4 /dev/sda1 rw
40 22 0:40 / /fuse rw - fuse.gocryptfs x rw
""".strip("\n")


def test_the_file_system_is_that_of_the_innermost_and_latest_mount(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/nfs/a")
    kinds = {
        "ext4": ("/", "/var/lib", "/nfsx", "/ram/bound/x"),
        "nfs4": ("/nfs", "/nfs/a/b", tmp_path / "link"),
        "tmpfs": ("/ram/x", "/nfs/local/x"),
        "xfs": ("/with blank\ttab\\back\nline/x",),
    }
    for kind, paths in kinds.items():
        assert {file_system(Path(path), MOUNTS) for path in paths} == {kind}
    assert file_system(Path("/"), "") == "unknown"
    assert file_system(Path("/proc")) == "proc"


# What development, staging and production say of each file system; unknown ones end with what is meant to look alike.
VERDICTS = {
    "pass pass pass": "ext2 ext3 ext4 xfs btrfs zfs f2fs bcachefs jfs nilfs2",
    "warn warn refused": "tmpfs ramfs",
    "warn warn warn": "overlay aufs fuse fuseblk fuseblk.ntfs-3g fuse.gocryptfs fuse.bindfs fuse.ext4 fuse.tmpfs"
    " unheard nfsx xnfs ext5 myxfs virtiofsd 9pfs NFS lustre2",
    "warn refused refused": "virtiofs 9p fakeowner fuse.grpcfuse fuse.osxfs",
    "refused refused refused": "nfs nfs4 cifs smb3 smbfs afs ceph lustre gpfs ocfs2 gfs2 gfs beegfs fhgfs pvfs2"
    " orangefs coda ncpfs panfs acfs vxfs ibrix vboxsf vmhgfs prl_fs drvfs fuse.sshfs fuse.glusterfs fuse.s3fs"
    " fuse.rclone fuse.ceph-fuse fuse.ceph fuse.mfs fuse.juicefs fuse.gcsfuse fuse.davfs fuse.vmhgfs-fuse fuse.cephfs"
    " fuse.gvfsd-fuse fuse.blobfuse2",
}


@pytest.mark.parametrize(("verdict", "names"), VERDICTS.items())
def test_each_file_system_gets_its_verdict_by_its_exact_name(
    verdict: str, names: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in names.split():
        monkeypatch.setattr("abathur_nb.health.path_on_disk.file_system", lambda _, name=name: name)
        for env, wanted in zip(ENVS, verdict.split(), strict=True):
            checks = location_checks(resolve(env, db_path=settings.db_path))
            (told,) = (check for check in checks if check.name == "file system")
            assert told.observed.startswith(f"{name} at ")
            assert ("refused" if forbids([told]) else told.status) == wanted, name
            assert "an unknown type" in told.observed or kind_of(name) != "unknown"


async def test_a_tmpfs_is_refused_where_it_cannot_be_tried(mounted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = resolve("development", db_path=mounted / "data" / "abathur.db")
    assert (await checked(settings))["file system behaviour"].status == "pass"
    monkeypatch.setattr(sys, "executable", "/nowhere/python")  # the second process of the probe does not start
    assert (await nb.initialize_database(settings)).refused
    assert list(mounted.iterdir()) == []


async def test_a_read_only_file_system_is_refused(mounted: Path) -> None:
    remount(mounted, "ro")
    checks = await checked(resolve("development", db_path=mounted / "abathur.db"), refused=True)
    assert "tmpfs, mounted read-only" in checks["file system"].observed
    assert f"findmnt -T {mounted}" in checks["file system"].remedy
    assert [checks[name].status for name in ("file system", "directory")] == ["fail", "fail"]
    assert "is mounted read-only" in checks["file system behaviour"].observed
    assert list(mounted.iterdir()) == []


def test_free_disk_has_two_limits(settings: Settings) -> None:
    for low, enough, status in ((0, 0, "pass"), (0, 10**9, "warn"), (10**9, 10**9, "fail")):
        found = location_checks(replace(settings, min_free_mb=low, recommended_free_mb=enough))
        assert {check.name: check.status for check in found}["free disk"] == status
        assert not forbids(found)


# --- the directory


REFUSED = "fail refused refused"  # by development, staging, production
SHARED = {  # by mode and group
    (0o755, 0): "warn warn warn",
    (0o1777, 0): REFUSED,
    (0o702, 0): REFUSED,
    (0o770, 0): "warn warn warn",  # root's own group: what a umask of 002 makes for any user
    (0o2770, 65534): REFUSED,
}


@pytest.mark.parametrize(("mode", "gid"), SHARED)
async def test_a_directory_that_others_write_to_fails(mode: int, gid: int, tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    os.chown(folder, 0, gid)
    folder.chmod(mode)
    for env, verdict in zip(ENVS, SHARED[mode, gid].split(), strict=True):
        refused = verdict == "refused"
        check = (await checked(resolve(env, db_path=folder / "x.db"), refused=refused))["directory"]
        assert check.status == ("fail" if refused else verdict)
        assert f"mode {mode:04o}" in check.observed
        told = f"if nobody else uses it: chmod 700 '{folder}'; else take a directory of its own: "
        assert check.remedy.startswith(told)


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


def make(path: Path, names: str, **given: tuple[int, int]) -> Path:
    """Make directories inside each other, each root's and 0755 unless an owner and a mode are given."""
    for name in names.split("/"):
        path /= name
        path.mkdir(exist_ok=True)
        owner, mode = given.get(name, (0, 0o755))
        os.chown(path, owner, owner)
        path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("given", "verdicts"),
    [
        ({"a": (0, 0o700), "b": (0, 0o711)}, "pass pass pass"),
        ({"b": (65534, 0o755)}, REFUSED),
        ({"a": (NAMELESS, 0o700)}, REFUSED),
        ({"a": (0, 0o757)}, REFUSED),
        ({"b": (0, 0o775)}, "pass pass pass"),  # root's own group
        ({"a": (0, 0o1777)}, "warn warn warn"),  # who may write to it can't rename what is root's in it
        ({"a": (65534, 0o1777)}, REFUSED),
    ],
)
async def test_who_can_swap_a_directory_above_is_named(
    given: dict[str, tuple[int, int]], verdicts: str, apart: Path
) -> None:
    made = "b" in given  # else its directory is missing
    folder = make(apart, "a/b/data" if made else "a/b", data=(0, 0o700), **given)
    path = (folder if made else folder / "data") / "x.db"
    for env, verdict in zip(ENVS, verdicts.split(), strict=True):
        settings = replace(resolve(env, db_path=path), service_account="")
        checks = await checked(settings, refused=verdict == "refused")
        above = checks["directories above"]
        assert above.status == {"refused": "fail"}.get(verdict, verdict), above
        if above.failed:
            assert all(f"{apart / ('a' if name == 'a' else 'a/b')} is " in above.observed for name in given)
        if verdict == "refused":
            assert (await nb.initialize_database(settings)).refused
            assert not path.exists()


async def test_links_are_followed_to_each_directory_that_they_lead_through(apart: Path) -> None:
    make(apart, "a")
    make(apart, "sticky", sticky=(0, 0o1777))
    for name in ("safe/data", "others/inner/data"):
        make(apart, name, data=(0, 0o700), others=(65534, 0o755))
    for folder, target, owner, status in (
        ("a", f"{apart}/safe/./", 0, "pass"),
        ("a", "../others/inner", 0, "fail"),  # what it leads to lies in a directory of another user
        ("sticky", "../safe", 65534, "fail"),  # its owner can turn it
    ):
        link = apart / folder / "link"
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        os.lchown(link, owner, owner)
        checks = await checked(resolve(db_path=link / "data" / "x.db"))
        assert checks["directories above"].status == status, target


def test_an_owner_that_the_user_namespace_does_not_map_warns_in_development(apart: Path) -> None:
    make(apart, "a/data", a=(12345, 0o755), data=(0, 0o700))
    program = """if True:
        import sys
        import abathur_nb as nb
        from abathur_nb.health.path_on_disk import forbids, location_checks
        for env in ("development", "production"):
            found = location_checks(nb.resolve(env, db_path=sys.argv[1]))
            (above,) = (check for check in found if check.name == "directories above")
            print(above.status, forbids(found), above.observed)
        """
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", program, str(apart / "a/data/x.db")]
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    assert [line.split()[:2] for line in told] == [["warn", "False"], ["fail", "True"]]
    assert f"{apart}/a is nobody's, mode 0755, who is not in this user namespace" in told[0]


# --- the one who is to own it


def test_a_missing_directory_is_made_for_its_future_owner_or_warns(tmp_path: Path) -> None:
    settings = resolve("production", db_path=tmp_path / "none" / "x.db")
    for account, origin, status in (
        (ME, "default", "pass"),
        ("no-such-account", "argument", "pass"),  # at a path of one's own
        ("no-such-account", "default", "warn"),
        ("nobody", "default", "warn"),
        ("nobody", "argument", "warn"),
    ):
        settings = replace(settings, service_account=account, origins={"db_path": origin})
        found = location_checks(settings)
        assert (found[0].status, forbids(found)) == (status, False), account
        if status == "warn":
            user = f"sudo useradd --system --user-group {account} && " if account != "nobody" else ""
            assert found[0].remedy.startswith(f"{user}sudo install -d -o {account} -m 700 {tmp_path}/none")


def test_the_install_command_makes_a_directory_of_the_account(tmp_path: Path) -> None:
    """It is run, without its sudo."""
    folder = tmp_path / "it's # mine" / "a b"
    command = install_command(replace(resolve(db_path=folder / "x.db"), service_account="nobody"), folder)
    subprocess.run(["sh", "-euc", command.removeprefix("sudo ")], check=True)
    assert (folder.stat().st_uid, stat.S_IMODE(folder.stat().st_mode)) == (65534, 0o700)
    for account in ("a b", "$(touch canary)", "x; touch canary"):
        command = install_command(replace(resolve(), service_account=account), tmp_path)
        assert shlex.split(command).count(account) == 2


AS_OTHER = """
for name in sys.argv[1:]:
    settings = nb.resolve("production", db_path=name)
    report = asyncio.run(nb.preflight(settings))
    (found,) = (check for check in report.checks if check.name == "directory")
    print("|".join((found.status, str(report.refused), found.observed, found.remedy)))
"""


def test_a_user_without_privileges_is_refused_where_a_change_would_fail(public: Path) -> None:
    modes = {"roots": 0o755, "shared": 0o777, "drop": 0o733, "own": 0o300}  # init must open it, to force a name to disk
    for name, mode in modes.items():
        (public / name).mkdir()
        (public / name).chmod(mode)
    os.chown(public / "own", 65534, 65534)
    before = tree(public)
    places = [*modes, "none", "drop/data"]
    lines = run_as_other(AS_OTHER, *(public / name / "x.db" for name in places)).splitlines()
    found = {name: line.split("|") for name, line in zip(places, lines, strict=True)}
    other = user_name(65534)
    assert {tuple(told[:2]) for told in found.values()} == {("fail", "True")}
    run = rf"sudo -u {ME} \S+ -m abathur_nb run init --env production -p db_path {public}/roots/x.db"
    assert re.search(run, found["roots"][3])
    assert found["roots"][3].endswith(f"take a directory of its own: -p db_path {public}/roots/abathur/x.db")
    assert found["none"][2] == f"{public}/none is missing, and {other} may not create it in {public}"
    assert found["none"][3] == install_command(resolve("production"), public / "none")
    assert found["drop/data"][2] == f"{public}/drop/data is missing, and {other} may not create it in {public}/drop"
    assert found["own"][3] == f"chmod 700 {public / 'own'}"
    assert tree(public) == before


@pytest.mark.parametrize("stage", ["", ".abathur-probe-*", "*/probe.db", "*/probe.db-wal", "second process"])
async def test_a_cancelled_preflight_leaves_nothing_behind(
    stage: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes: list[asyncio.subprocess.Process] = []
    start = asyncio.create_subprocess_exec

    async def noted(*command: Any, **options: Any) -> asyncio.subprocess.Process:
        processes.append(await start(*command, **options))
        return processes[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", noted)
    task = asyncio.create_task(nb.preflight(settings))
    while not task.done():
        if not stage or (processes if stage == "second process" else any(tmp_path.glob(stage))):
            break
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert list(tmp_path.iterdir()) == []
    assert [process for process in processes if process.returncode is None] == []
