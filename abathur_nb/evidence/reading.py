"""Reading an archive back: its runs, one of them by the beginning of its id, and which archive is meant."""

import argparse
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from abathur_nb.config.settings import Settings, absolute_path, resolve
from abathur_nb.errors import ConfigurationError, RefusedError
from abathur_nb.evidence.canonical import sha256, unsealed
from abathur_nb.evidence.ledger import LEDGER, RUN_ID, Ledger, Line, read_ledger
from abathur_nb.evidence.record import RECORD, STARTED, Record, Started, read_run
from abathur_nb.files import read_regular
from abathur_nb.text import shown, url_fault

_NAMED = 5  # runs that an error names
IN_LINE = ("run_id", "notebook", "env", "verdict", "started_at", "ended_at")  # that the ledger repeats of a record


@dataclass(frozen=True, slots=True)
class Entry:
    """Hold what an archive has of one run. ``started`` and ``record`` are None where absent or not as written.

    ``line`` is its line in the ledger: None for a run whose executed notebook was not archived. ``faults`` says what
    of the two files is not as it was written, by itself or by the ledger.
    """

    run_id: str
    folder: Path
    started: Started | None
    record: Record | None
    line: Line | None
    faults: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """Return the verdict of the sealed record, ``unsealed`` where there is none, ``altered`` with a fault."""
        if self.faults:
            return "altered"
        return self.record.verdict if self.record else "unsealed"

    @property
    def known(self) -> Record | Started | None:
        """Return the record, of a run that has none how it started."""
        return self.record or self.started


def run_ids(archive: Path) -> frozenset[str]:
    """Return the names in an archive that are those of runs; raise RefusedError if it can't be read. Read-only."""
    try:
        return frozenset(path.name for path in archive.iterdir() if RUN_ID.fullmatch(path.name))
    except OSError as error:
        raise RefusedError(f"the archive {archive} cannot be read: {error.strerror}") from None


def read_archive(archive: Path, ledger: Ledger | None = None) -> tuple[Entry, ...]:
    """Return the runs of an archive, oldest first, those that only the ledger knows included. Read-only.

    Raises RefusedError for an archive that can't be read.
    """
    found = run_ids(archive)
    lines = (read_ledger(archive) if ledger is None else ledger).runs
    return tuple(read_entry(archive, run_id, lines.get(run_id)) for run_id in sorted(found | lines.keys()))


def is_folder(path: Path) -> bool:
    """Return whether a directory is there, and no link to one. Read-only."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def read_entry(archive: Path, run_id: str, line: Line | None) -> Entry:
    """Return one run of an archive, whose line in the ledger is ``line``. Read-only; follows no link."""
    folder = archive / run_id
    if not is_folder(folder):
        words = "it is not a directory that can be read" if os.path.lexists(folder) else "its folder is gone"
        return Entry(run_id, folder, None, None, line, (f"{run_id}: {words}",))
    found = dict[str, Started]()
    digests = dict[str, str]()
    faults = []
    for name, kind in {STARTED: Started, RECORD: Record}.items():
        try:
            content = read_regular(folder / name)
            digest = sha256(content)
            if line and digest != line.data["files"].get(name):
                raise ValueError("it is not the file that the ledger names")
            data: Started = read_run(kind, unsealed(content))
            if data.run_id != run_id:
                raise ValueError(f"it is of run {shown(data.run_id)}")
            found[name], digests[name] = data, digest
        except FileNotFoundError:
            if line or (name == STARTED and os.path.lexists(folder / RECORD)):
                faults.append(f"{run_id}/{name}: it is gone")
        except OSError as error:
            faults.append(f"{run_id}/{name}: it cannot be read: {error.strerror}")
        except ValueError as error:
            faults.append(f"{run_id}/{name}: {error}")
    record, started = found.get(RECORD), found.get(STARTED)
    if isinstance(record, Record):
        belongs = record.started_sha256 == digests.get(STARTED, record.started_sha256)
        faults += [f"{run_id}/{RECORD}: {fault}" for fault in _disagreements(record, belongs, started, line)]
    return Entry(run_id, folder, started, record if isinstance(record, Record) else None, line, tuple(faults))


def _disagreements(record: Record, belongs: bool, started: Started | None, line: Line | None) -> Iterator[str]:
    """Yield what a sealed record says otherwise than how its run started, or than its line in the ledger."""
    if not belongs:
        yield f"it does not belong to this {STARTED}"
    noted = {STARTED: {each.name: getattr(started, each.name) for each in fields(Started)} if started else {}}
    noted[LEDGER] = {name: line.data[name] for name in IN_LINE} if line else {}
    for source, data in noted.items():
        if other := sorted(name for name in data if getattr(record, name) != data[name]):
            yield f"{', '.join(other)} is not what {source} says"


def find_run(archive: Path, beginning: str) -> Entry:
    """Return the one run whose id begins so; raise ConfigurationError if there is none, or more than one. Read-only."""
    lines = read_ledger(archive).runs
    known = sorted(run_ids(archive) | lines.keys())
    found = [run_id for run_id in known if beginning and run_id.startswith(beginning)]
    if len(found) == 1:
        return read_entry(archive, found[0], lines.get(found[0]))
    noted = ", ".join(found[:_NAMED]) + (f" and {len(found) - _NAMED} more" if len(found) > _NAMED else "") or "none"
    raise ConfigurationError(
        f"run {shown(beginning)}: expected the beginning of one run id, found {noted} in {archive}"
    )


def chosen_archive(arguments: argparse.Namespace) -> Path | str:
    """Return the archive that the arguments name, as `archive_at` does; raise ConfigurationError if there is none."""
    if arguments.archive is None:
        env = "development" if arguments.env is None else arguments.env
        archive = resolve(env, db_path=arguments.db_path).archive_dir
        if not os.path.isdir(archive):  # noqa: PTH112 - False, where Path raises for one in a closed directory
            raise ConfigurationError(f"no archive at {archive}: the first recorded run makes it")
        return archive
    if arguments.env is not None or arguments.db_path is not None:
        raise ConfigurationError("--archive: expected it, or --env and --db-path, found both")
    return archive_at("--archive", arguments.archive)


def archive_at(name: str, value: object) -> Path | str:
    """Return the directory that an argument names, or a URL as it is; `stores.local` looks whether a copy is there.

    Raises ConfigurationError where there is no directory. Read-only.
    """
    if fault := url_fault(name, str(value)):
        raise ConfigurationError(fault)
    if isinstance(value, str) and "://" in value:
        return value
    faults: list[str] = []
    archive = absolute_path(name, value, "argument", relative_paths=True, faults=faults)
    if archive is None:
        raise ConfigurationError(faults)
    if not os.path.isdir(archive):  # noqa: PTH112 - False, where Path raises for one in a closed directory
        raise ConfigurationError(f"{name}: expected the directory of an archive, found none at {archive}")
    return archive


def first_run(settings: Settings) -> str:
    """Return the remedy where an environment has no archive yet."""
    return f"the first recorded run makes it: papermill init.ipynb out.ipynb {settings.as_arguments}"
