"""Taking a backup: a copy of one snapshot, proven by restoring it, published with its manifest."""

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter
from typing import Any

from abathur_nb.backups.copying import copy_in, copy_out, difference, publish, read_content
from abathur_nb.backups.manifest import (
    Backup,
    file_sha256,
    manifest_of,
    next_sequence,
    pack,
    read_backup,
    unpack,
    write_manifest,
)
from abathur_nb.backups.retention import remove
from abathur_nb.config.settings import Settings
from abathur_nb.errors import AbathurError, RefusedError
from abathur_nb.evidence.run import person_and_host, versions_of
from abathur_nb.files import (
    fsync,
    locked,
    make_private_file,
    private_directory,
    scratch_directory,
)
from abathur_nb.health.checks import file_checks
from abathur_nb.report import Check
from abathur_nb.store.connection import connect, pragma
from abathur_nb.store.schema import not_ours, quoted, read_schema
from abathur_nb.store.sql import load_queries
from abathur_nb.text import counted, timestamp, utc_now

COPIES = 3  # the backup, its proof, and what the proof writes before it is forced to its place


async def back_up(settings: Settings, *, reason: str, compress: bool = False) -> tuple[Backup, list[Check]]:
    """Take a backup and prove it; return it with its checks, none of which failed.

    What its database itself fails of ``validate`` is a warning, and is kept in the manifest: a broken database is
    backed up too, before it is repaired. Raises RefusedError, BusyError, sqlite3.Error, OSError; then there is none.
    """
    folder = settings.backup_dir
    with (
        private_directory(folder, owned_as=settings.db_path.parent),
        scratch_directory(folder, "backup") as scratch,
    ):
        draft = scratch / "copy.db"
        async with connect(settings.db_path, settings=settings) as conn:
            await conn.execute_fetchall("BEGIN")
            rows = await conn.apply(_count_rows)  # the first read takes the snapshot
            taken_at = datetime.now(UTC)
            with _progress(2 * rows) as progress:
                ids = {name: await pragma(conn, name) for name in ("application_id", "user_version")}
                alien = not_ours(await read_schema(conn))
                content = await read_content(conn, progress=progress)
                started = perf_counter()
                await copy_out(conn, draft, owned_as=folder)
                copied_s = perf_counter() - started
                await conn.rollback()
                unpacked = draft.stat().st_size
                draft = await asyncio.to_thread(pack, draft) if compress else draft
                # The disk and the processor work at the same time.
                asks = (asyncio.to_thread(file_sha256, draft), asyncio.to_thread(fsync, draft))
                digest, _ = await asyncio.gather(*asks)
                facts = {
                    "reason": reason,
                    "taken_at": timestamp(taken_at),
                    "env": settings.env,
                    "database": str(settings.db_path),
                    **ids,
                    "content": asdict(content),
                    "bytes": draft.stat().st_size,
                    "bytes_unpacked": unpacked,
                    "sha256_of_file": digest,
                    **person_and_host(),
                    "versions": versions_of(),
                }
                backup = Backup(draft, facts)
                facts["proof"] = await prove(settings, backup, scratch, progress)
        backup = _publish(backup, folder)
    return backup, _checks(backup, copied_s, alien)


@asynccontextmanager
async def kept_before(settings: Settings, reason: str, done: list[Check]) -> AsyncIterator[Callable[[], object]]:
    """Back up before a change, and add to ``done`` a check that says so.

    The block calls what it is lent once the change is committed. If it is refused before that, the backup is removed,
    so that nothing has changed.
    """
    committed = list[bool]()
    with private_directory(settings.backup_dir, owned_as=settings.db_path.parent):
        backup, _ = await back_up(settings, reason=reason)
        path = str(backup.path)
        done.append(Check("kept", "pass", "a proven backup of it", path, name="backup before", data={"path": path}))
        try:
            yield lambda: committed.append(True)
        except (sqlite3.Error, OSError, AbathurError) as error:
            # After a fault of the disk nobody knows what was committed.
            unknown = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_IOERR
            if len(done) == 1 and not committed and not unknown:
                done.clear()
                remove(backup)
            raise


async def prove(
    settings: Settings, backup: Backup, scratch: Path, progress: Callable[[int], object] | None = None
) -> dict[str, Any]:
    """Restore a backup into ``scratch``, validate what comes out, and compare it with the snapshot, row by row.

    Returns when, the seconds that restoring and validating took, and the names of the checks that failed, as the
    snapshot's database must have failed them. Raises RefusedError where the content is another than the snapshot's.
    """
    restored = replace(settings, db_path=scratch / "restored.db")
    at, started = utc_now(), perf_counter()
    make_private_file(restored.db_path)
    source = await asyncio.to_thread(unpack, backup, scratch)
    content, _ = await copy_in(source, restored, progress=progress)
    restored_s = perf_counter() - started
    if content != backup.content:
        raise RefusedError(
            f"{backup.path.name} does not hold what was backed up: {difference(backup.content, content)}",
            "take another backup; if it comes again, see to the disk: dmesg | tail",
        )
    checks = await file_checks(restored)
    validated_s = perf_counter() - started - restored_s
    findings = [check.name for check in checks if check.failed]
    return {"at": at, "restored_s": restored_s, "validated_s": validated_s, "findings": findings}


def _count_rows(conn: sqlite3.Connection) -> int:
    rows = 0
    for (name,) in conn.execute(load_queries("inspect.sql")["tables"].sql).fetchall():
        with suppress(sqlite3.OperationalError):  # a table of others, whose order this process does not know
            rows += conn.execute(f"SELECT count(*) FROM {quoted(name)} NOT INDEXED").fetchone()[0]
    return rows


@contextmanager
def _progress(rows: int) -> Iterator[Callable[[int], object]]:
    """Show a bar of the rows that are read, for the copy and for its proof, when it takes longer than a second."""
    from tqdm import tqdm

    with tqdm(total=rows, desc="backup", unit=" rows", mininterval=1, delay=1, file=sys.stdout) as bar:
        yield bar.update


def _publish(backup: Backup, folder: Path) -> Backup:
    """Give a proven backup and its manifest their names, durably, and the next number of the directory."""
    stem = f"abathur_{backup.facts['reason']}"
    suffix = ".db.zst" if backup.compressed else ".db"
    moment, draft = backup.taken_at, backup.path.with_name("manifest.json")
    with locked(folder):
        sequence = next_sequence(folder)
        while True:
            path = folder / f"{stem}_{moment:%Y%m%d_%H%M%S}_{moment.microsecond // 1000:03}{suffix}"
            draft.unlink(missing_ok=True)
            write_manifest(draft, {**backup.facts, "file": path.name, "sequence": sequence})
            try:
                # The manifest first: alone it is swept, and a copy without a manifest would be taken for a backup.
                publish(draft, manifest_of(path))
                try:
                    publish(backup.path, path)
                except OSError:
                    manifest_of(path).unlink()
                    raise
            except FileExistsError:  # another one of the same millisecond
                moment += timedelta(milliseconds=1)
                continue
            return read_backup(path)


def _checks(backup: Backup, copied_s: float, alien: str) -> list[Check]:
    proof, content = backup.facts["proof"], backup.content
    took = proof["restored_s"] + proof["validated_s"]
    return [
        Check(
            "copy",
            "pass",
            expected="one snapshot, in one step",
            observed=f"{backup.path}, {backup.facts['bytes']:,} bytes, copied in {copied_s:.2f} s",
            evidence=tuple(f"{name}: {counted(count, 'row')}" for name, count in content.rows.items()),
            data={"path": str(backup.path), "bytes": backup.facts["bytes"], "rows": dict(content.rows)},
        ),
        Check(
            "proof",
            "pass",
            expected="restored, it holds the very rows of the snapshot",
            observed=f"{counted(content.total, 'row')}, digest {content.digest[:12]}…; "
            f"restored and validated in {took:.2f} s",
            evidence=(
                f"digest {content.digest}",
                f"file {backup.facts['sha256_of_file']}",
                f"taken at {backup.facts['taken_at']} UTC",
            ),
            data={"digest": content.digest, "sha256_of_file": backup.facts["sha256_of_file"]},
        ),
        Check.that(
            "what_it_holds",
            not backup.findings,
            expected="a database that passes validate",
            observed=(
                f"one that fails: {', '.join(backup.findings)}" if backup.findings else "one that passes validate"
            )
            + (f"; it holds {alien}: compared are its pages and the rows of its tables" if alien else ""),
            remedy="run validate.ipynb: the database itself has these faults",
            otherwise="warn",
        ),
    ]
