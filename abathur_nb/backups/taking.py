"""Take a backup: copy one snapshot, prove it by restoring it, publish it with its manifest. Unpack a backup."""

import asyncio
import hashlib
import marshal
import os
import shutil
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from shlex import quote
from time import monotonic, perf_counter
from typing import Any

import aiosqlite

from abathur_nb.backups.manifest import FORMAT, Backup, Content, manifest_of, next_sequence
from abathur_nb.config.settings import Settings
from abathur_nb.errors import RefusedError
from abathur_nb.evidence.canonical import canonical, sealed, sha256
from abathur_nb.evidence.run import person_and_host, versions_of
from abathur_nb.files import at, fsync, locked, make_private_file, open_regular, private_directory, scratch_directory
from abathur_nb.health.checks import file_checks
from abathur_nb.health.path_on_disk import free_mb
from abathur_nb.report import Check
from abathur_nb.store.apart import ask
from abathur_nb.store.connection import bound, connect, locked_by, opened, pragma, require_short_schema, run_to_end
from abathur_nb.store.guarded import Connection
from abathur_nb.store.schema import expected_tables, not_ours, quoted, read_schema
from abathur_nb.store.sql import load_queries, normalized
from abathur_nb.text import MB, counted, file_stamp, timestamp, utc_now

_STEP = 1000  # rows between two reports of progress
_COLUMNS = 100  # columns for one call of a function: SQLite allows 127 arguments
_RETRY_S = 0.05  # between two tries to write to a locked database


async def read_content(conn: Connection, *, progress: Callable[[int], object] = bool) -> Content:
    """Return the digest and the row counts of all tables, in the open transaction of ``conn``. Read-only.

    They include ``sqlite_sequence``, but not statistics (``sqlite_stat…``), virtual tables and generated columns. Rows
    are hashed in table order, as values in ``marshal`` format 2, which all versions of Python share; a text is hashed
    as its bytes, even if they are invalid UTF-8. ``progress`` gets the number of rows since its last call, from the
    connection's thread. Raises sqlite3.Error.
    """
    # One call to that thread: with several for each of 20,000 tables, the calls took as long as the rows.
    return await conn.apply(partial(_read, progress))


def _read(progress: Callable[[int], object], conn: sqlite3.Connection) -> Content:
    digest, done, rows = hashlib.sha256(), 0, dict[str, int]()

    def feed(*values: Any) -> int:
        nonlocal done
        digest.update(marshal.dumps(values, 2))
        done += 1
        if done % _STEP == 0:
            progress(_STEP)
        return 1

    # A function that SQLite calls holds one row at a time; a cursor would hold a batch of rows of any size.
    conn.create_function("abathur_digest", -1, feed)
    for (name,) in conn.execute(load_queries("inspect.sql")["tables"].sql).fetchall():
        found = conn.execute("SELECT name FROM pragma_table_xinfo(?) WHERE hidden = 0 ORDER BY cid", (name,)).fetchall()
        columns = [quoted(column) for (column,) in found]
        calls = [_call(columns[start : start + _COLUMNS]) for start in range(0, len(columns), _COLUMNS)]
        # NOT INDEXED reads rows in table order, which a copy shares.
        select = f"SELECT {', '.join(calls)} FROM {quoted(name)} NOT INDEXED"
        try:
            conn.execute(f"EXPLAIN {select}").close()
        except sqlite3.OperationalError as error:
            if name in expected_tables() or getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_ERROR:
                raise
            continue  # a table of another program, unreadable here, such as for its collation
        digest.update(canonical({"table": name, "columns": [column for (column,) in found]}))
        ((rows[name], *_),) = conn.execute(select).fetchall()
    found = conn.execute(load_queries("inspect.sql")["schema"].sql).fetchall()
    progress(done % _STEP)
    schema = {name: normalized(sql or "") for _, name, _, sql in found}
    return Content(digest.hexdigest(), sha256(canonical(schema)), rows)


def _call(columns: Sequence[str]) -> str:
    texts = " || ".join(f"(typeof({column}) = 'text')" for column in columns)
    values = ", ".join(f"CASE typeof({c}) WHEN 'text' THEN CAST({c} AS BLOB) ELSE {c} END" for c in columns)
    return f"count(abathur_digest({texts}, {values}))"


def difference(wanted: Content, found: Content) -> str:
    """Return how the content ``found`` differs from ``wanted``."""
    counts = {name: (found.rows.get(name), wanted.rows.get(name)) for name in sorted({*wanted.rows, *found.rows})}
    if tables := [f"{name}: {now} rows, expected {then}" for name, (now, then) in counts.items() if now != then]:
        return ", ".join(tables)
    return "the schema differs" if wanted.schema != found.schema else "the same number of rows, other values"


async def copy_out(conn: aiosqlite.Connection, path: Path, *, owned_as: Path) -> None:
    """Write the snapshot that ``conn`` sees to a new file, 0600, in WAL mode; ``publish`` forces it to the disk.

    It copies in one step: in several, SQLite would restart the copy at each commit of a writer. If root runs this, the
    file gets the owner of ``owned_as``. Raises FileExistsError.
    """
    make_private_file(path, owned_as=owned_as)
    async with opened(f"{path.as_uri()}?mode=rw") as target:
        # A half-written new file is thrown away, so it needs no journal.
        await target.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;")
        await run_to_end(conn.backup(target))


@asynccontextmanager
async def open_copy(path: Path) -> AsyncIterator[Connection]:
    """Open a database file that nobody changes, without its log and without making side files. Read-only."""
    async with opened(f"{path.as_uri()}?mode=ro&immutable=1") as conn:
        conn.row_factory = sqlite3.Row
        await bound(conn, path)
        await conn.apply(partial(require_short_schema, path))
        yield conn


async def copy_in(
    source: Path, settings: Settings, *, progress: Callable[[int], object] = bool, written: Callable[[], object] = bool
) -> tuple[Content, bool]:
    """Replace the content of the live database by that of ``source``, in one transaction.

    At every moment each reader sees either the old content or the new one. Waits ``busy_timeout_ms`` for a writer, and
    calls ``written`` once the new content is committed. Returns the content read back, and whether another process has
    written meanwhile. Raises BusyError, sqlite3.Error.
    """
    path = settings.db_path
    deadline = monotonic() + settings.busy_timeout_ms / 1000

    def give_up(status: int, _remaining: int, _total: int) -> None:
        if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) and monotonic() > deadline:
            raise TimeoutError

    async with open_copy(source) as copy, connect(path, settings.busy_timeout_ms, mode="rw") as live:
        await live.execute_fetchall("PRAGMA synchronous = FULL")
        version = await pragma(live, "data_version")
        try:
            await run_to_end(copy.backup(live, progress=give_up, sleep=_RETRY_S))
        except TimeoutError:
            raise locked_by(path) from None
        written()
        await live.execute_fetchall("BEGIN")
        found = await read_content(live, progress=progress)
        # data_version ignores the commits of this connection.
        return found, await pragma(live, "data_version") != version


def publish(draft: Path, path: Path) -> None:
    """Give a finished file its name, durably. Raises FileExistsError if the name exists; then nothing has changed."""
    fsync(draft)
    os.link(draft, path)  # refuses a name that exists, where rename would replace it
    try:
        fsync(path.parent)
    except OSError:
        path.unlink()
        raise


COPIES = 3  # the backup, its proof, and the log of the proof
_CHUNK = 2**20  # bytes
# A backup may unpack to this many times its size, or to 256 MiB; ``pack`` obeys this. zstd allows 32,000 times.
_RATIO, _ALWAYS = 1000, 256 * 2**20
_SPARE_MB = 50  # MB of the disk that unpacking leaves free


class UnfitBackupError(RefusedError):
    """Raised for a backup that cannot be restored: the operator has to name another one."""

    def __init__(self, observed: str) -> None:
        super().__init__(observed, "choose another backup")


async def back_up(
    settings: Settings, *, reason: str, compress: bool = False, database: Path | None = None
) -> tuple[Backup, list[Check]]:
    """Take a backup and prove it; return it with its checks, none of which failed.

    A damaged database is backed up too, before its repair: the checks of ``validate`` that it fails become a warning,
    and the manifest lists them. If the file is a copy of ``database``, the manifest names ``database``. Raises
    RefusedError, BusyError, sqlite3.Error, OSError; then there is no backup.
    """
    from tqdm import tqdm

    folder, original = settings.backup_dir, database or settings.db_path
    with (
        private_directory(folder, owned_as=original.parent),
        scratch_directory(folder, "backup") as scratch,
        tqdm(desc="backup", unit=" rows", mininterval=1, delay=1, file=sys.stdout) as bar,
    ):
        draft = scratch / "copy.db"
        async with connect(settings.db_path, settings.busy_timeout_ms) as conn:
            await conn.execute_fetchall("BEGIN")
            # The first read takes the snapshot.
            ids = {name: await pragma(conn, name) for name in ("application_id", "user_version")}
            taken_at = datetime.now(UTC)
            alien = not_ours(await read_schema(conn))
            content = await read_content(conn, progress=bar.update)
            bar.total = 2 * sum(content.rows.values())  # the proof reads all rows again
            started = perf_counter()
            await copy_out(conn, draft, owned_as=folder)
            copied_s = perf_counter() - started
            await conn.rollback()
        unpacked = draft.stat().st_size
        draft = await asyncio.to_thread(pack, draft) if compress else draft
        # The file is hashed while the disk writes it.
        digest, _ = await asyncio.gather(asyncio.to_thread(ask, "digest", draft), asyncio.to_thread(fsync, draft))
        facts = {
            "reason": reason,
            "taken_at": timestamp(taken_at),
            "env": settings.env,
            "database": str(original),
            **ids,
            "content": asdict(content),
            "bytes": draft.stat().st_size,
            "bytes_unpacked": unpacked,
            "sha256_of_file": digest,
            **person_and_host(),
            "versions": versions_of(),
        }
        backup = Backup(draft, facts)
        facts["proof"] = await prove(settings, backup, scratch, bar.update)
        backup = _publish(backup, folder)
    return backup, _checks(backup, copied_s, alien)


async def prove(
    settings: Settings, backup: Backup, scratch: Path, progress: Callable[[int], object] = bool
) -> dict[str, Any]:
    """Restore a backup into ``scratch``, compare all rows with the snapshot by their digest, and validate the result.

    Returns the time, the seconds that restoring and validating took, and the ids of the failed checks. Raises
    RefusedError if the content differs.
    """
    restored = replace(settings, db_path=scratch / "restored.db")
    moment, started = utc_now(), perf_counter()
    make_private_file(restored.db_path)
    source = await asyncio.to_thread(unpack, backup, scratch)
    content, _ = await copy_in(source, restored, progress=progress)
    restored_s = perf_counter() - started
    if content != backup.content:
        observed = f"{backup.path.name} does not hold what was backed up: {difference(backup.content, content)}"
        raise RefusedError(observed, "take another backup; if this happens again, check the disk: dmesg | tail")
    findings = [check.id for check in await file_checks(restored) if check.failed]
    validated_s = perf_counter() - started - restored_s
    return {"at": moment, "restored_s": restored_s, "validated_s": validated_s, "findings": findings}


def _publish(backup: Backup, folder: Path) -> Backup:
    """Give a proven backup and its manifest their names and the next sequence number, durably."""
    suffix = ".db.zst" if backup.path.suffix == ".zst" else ".db"
    taken_at, draft = backup.taken_at, backup.path.with_name("manifest.json")
    with locked(folder):
        while True:
            path = folder / f"abathur_{backup.facts['reason']}_{file_stamp(taken_at)}{suffix}"
            if not os.path.lexists(path) and not os.path.lexists(manifest_of(path)):
                break
            taken_at += timedelta(milliseconds=1)
        facts = {**backup.facts, "format": FORMAT, "file": path.name, "sequence": next_sequence(folder)}
        make_private_file(draft)
        with at(draft):
            draft.write_bytes(sealed(facts))
        # The manifest first: a lone manifest is removed later, but a lone copy would look like a backup.
        publish(draft, manifest_of(path))
        try:
            publish(backup.path, path)
        except OSError:
            manifest_of(path).unlink()
            raise
    return Backup(path, facts)


def _checks(backup: Backup, copied_s: float, alien: str) -> list[Check]:
    facts, content = backup.facts, backup.content
    took = facts["proof"]["restored_s"] + facts["proof"]["validated_s"]
    noted = f"it fails: {', '.join(backup.findings)}" if backup.findings else "it passes validate"
    noted += f"; it holds {alien}: only their SQL and the rows of ordinary tables were compared" if alien else ""
    size, digest, sha256 = facts["bytes"], content.digest, facts["sha256_of_file"]
    copied = f"{backup.path}, {size:,} bytes, copied in {copied_s:.2f} s"
    rows = tuple(f"{name}: {counted(count, 'row')}" for name, count in content.tables.items())
    found = {"path": str(backup.path), "bytes": size, "rows": dict(content.rows)}
    proven = f"{counted(content.total, 'row')}, digest {digest[:12]}…; restored and validated in {took:.2f} s"
    hashes = (f"digest {digest}", f"file {sha256}", f"taken at {facts['taken_at']} UTC")
    expected = "the restored backup has the rows of the snapshot"
    remedy = "run validate.ipynb: the database itself has these faults"
    return [
        Check("copy", "pass", "one snapshot, in one step", copied, evidence=rows, data=found),
        Check("proof", "pass", expected, proven, "", hashes, data={"digest": digest, "sha256_of_file": sha256}),
        Check.that("what_it_holds", not backup.findings, "a database that passes validate", noted, remedy, "warn"),
    ]


def unpack(backup: Backup, scratch: Path) -> Path:
    """Return the path of a backup's database; a compressed one is unpacked into ``scratch``.

    Raises RefusedError if any byte differs from the manifest, OSError if the backup cannot be read.
    """
    size, digest = os.lstat(backup.path).st_size, ask("digest", backup.path)
    stated, wanted = backup.facts["bytes"], backup.facts["sha256_of_file"]
    if (size, digest) != (stated, wanted):
        fault = f"{size:,} bytes of {stated:,}, sha256 {digest[:12]}… instead of {wanted[:12]}…"
        raise UnfitBackupError(f"{backup.path} is damaged: {fault}")
    if backup.path.suffix != ".zst":
        return backup.path
    target = scratch / backup.path.stem
    _decompress(backup, target)
    return target


def _decompress(backup: Backup, target: Path) -> None:
    """Unpack a backup to ``target``, within the size in its manifest, the ratio of ``pack`` and the free space."""
    zstd, disk, written = zstd_module(), target.parent.parent, 0
    packed, wanted = backup.facts["bytes"], backup.facts["bytes_unpacked"]
    most = min(wanted or 2**63, max(_ALWAYS, _RATIO * packed))
    room = max(free_mb(disk) - _SPARE_MB, 0)

    def require(size: int) -> None:
        if size > most:
            raise UnfitBackupError(f"{backup.path} is damaged: {packed:,} bytes unpack to more than {most:,}")
        if size > room * MB:
            needed = f"{backup.path} needs {size / MB:,.1f} MB unpacked, and the disk of {disk} has {room:,.1f} MB"
            remedy = f"make room: df -h {quote(str(disk))}"
            raise RefusedError(f"{needed} beyond the {_SPARE_MB} MB that must stay free", remedy)

    require(wanted)
    try:
        with open_regular(backup.path) as file, at(target), target.open("xb") as plain:
            target.chmod(0o600)
            reader = zstd.open(file, "rb")
            while chunk := reader.read(_CHUNK):
                written += len(chunk)
                require(written)
                plain.write(chunk)
    except (zstd.ZstdError, EOFError, MemoryError) as error:
        raise UnfitBackupError(f"{backup.path} can't be unpacked: {error}") from None


def zstd_module() -> Any:
    """Return the module that reads and writes zstd: Python's own from 3.14 on; raise RefusedError without one."""
    for name in ("compression.zstd", "zstandard"):
        with suppress(ImportError):
            return import_module(name)
    raise RefusedError("a compressed backup needs zstd, which is not installed", "pip install 'abathur_nb[zstd]'")


def pack(path: Path) -> Path:
    """Replace a file by its compressed form, unless ``unpack`` would refuse that; return the remaining file."""
    zstd = zstd_module()
    target = path.with_name(f"{path.name}.zst")
    with at(target), path.open("rb") as plain, target.open("xb") as packed, zstd.open(packed, "wb") as compressed:
        shutil.copyfileobj(plain, compressed, _CHUNK)
    if path.stat().st_size > max(_ALWAYS, _RATIO * target.stat().st_size):
        path, target = target, path
    else:
        shutil.copymode(path, target)
    path.unlink()
    return target
