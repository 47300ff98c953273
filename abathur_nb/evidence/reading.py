"""Reading an archive back: its runs, one of them by the beginning of its id, and which archive is meant."""

import argparse
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abathur_nb.config.settings import Settings, absolute_path, resolve
from abathur_nb.errors import ConfigurationError, RefusedError
from abathur_nb.evidence.canonical import misfits, moment, sha256, unsealed
from abathur_nb.evidence.ledger import LEDGER, RUN_ID, Ledger, Line, read_ledger
from abathur_nb.evidence.record import EXIT_CODES, RECORD, STARTED
from abathur_nb.files import read_regular
from abathur_nb.report import id_of
from abathur_nb.text import shown, url_fault

__all__ = [
    "Entry",
    "archive_at",
    "chosen_archive",
    "find_run",
    "first_run",
    "id_in",
    "is_folder",
    "read_archive",
    "read_entry",
    "run_ids",
]

_FORMATS = (1,)
_NAMED = 5  # runs that an error names
_IN_LINE = ("run_id", "notebook", "env", "verdict", "started_at", "ended_at")  # that the ledger repeats of a record
_TEXTS = ("run_id", "notebook", "env", "user", "host", "ledger_head")
_CHECK = {**dict.fromkeys(("name", "status", "expected", "observed", "id?"), str), "data?": dict}
_STARTED = {
    **dict.fromkeys(_TEXTS, str),
    **dict.fromkeys(("parameters", "settings", "versions"), dict),
    "started_at": moment,
    "template": {"name": str},
}
_SHAPES: Mapping[str, Mapping[str, Any]] = {
    STARTED: _STARTED,
    RECORD: {
        **_STARTED,
        **dict.fromkeys(("started_sha256", "verdict"), str),
        "ended_at": moment,
        "reports": [{"title": str, "checks": [_CHECK]}],
        "facts": {},
        "database": {},
        "error": (dict, type(None)),
    },
}


def id_in(check: Mapping[str, Any]) -> str:
    """Return the id of a check of a record; of an old record, which holds titles only, the one that it has now."""
    return str(check.get("id") or id_of(check["name"]))


@dataclass(frozen=True, slots=True)
class Entry:
    """Hold what an archive has of one run. ``started`` and ``record`` are None where absent or not as written.

    ``line`` is its line in the ledger: None for a run whose executed notebook was not archived. ``faults`` says what
    of the two files is not as it was written, by itself or by the ledger.
    """

    run_id: str
    folder: Path
    started: Mapping[str, Any] | None
    record: Mapping[str, Any] | None
    line: Line | None
    faults: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """Return the verdict of the sealed record, ``unsealed`` where there is none, ``altered`` with a fault."""
        if self.faults:
            return "altered"
        return str(self.record["verdict"]) if self.record else "unsealed"


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
    """Tell whether a directory stands there, and no link to one. Read-only."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def read_entry(archive: Path, run_id: str, line: Line | None) -> Entry:
    """Return one run of an archive, whose line in the ledger is ``line``. Read-only; follows no link."""
    folder = archive / run_id
    if not is_folder(folder):
        words = "it is no directory that can be read" if os.path.lexists(folder) else "its folder is gone"
        return Entry(run_id, folder, None, None, line, (f"{run_id}: {words}",))
    found: dict[str, dict[str, Any]] = {}
    digests: dict[str, str] = {}
    faults = []
    for name, shape in _SHAPES.items():
        try:
            content = read_regular(folder / name)
            digest = sha256(content)
            if line and digest != line.data["files"].get(name):
                raise ValueError("it is not the file that the ledger names")
            data = unsealed(content)
            _require(data, shape, run_id)
            found[name], digests[name] = data, digest
        except FileNotFoundError:
            if line or (name == STARTED and os.path.lexists(folder / RECORD)):
                faults.append(f"{run_id}/{name}: it is gone")
        except OSError as error:
            faults.append(f"{run_id}/{name}: it cannot be read: {error.strerror}")
        except ValueError as error:
            faults.append(f"{run_id}/{name}: {error}")
    if record := found.get(RECORD):
        faults += [f"{run_id}/{RECORD}: {fault}" for fault in _disagreements(record, found, digests, line)]
    return Entry(run_id, folder, found.get(STARTED), record, line, tuple(faults))


def _require(data: Mapping[str, Any], shape: Mapping[str, Any], run_id: str) -> None:
    if data.get("format") not in _FORMATS:
        raise ValueError(f"its format is {shown(data.get('format'))}, known is {_FORMATS[-1]}: update abathur_nb")
    if faults := misfits(data, shape):
        raise ValueError(f"not a record of a run: {'; '.join(faults)}")
    if "verdict" in shape and data["verdict"] not in EXIT_CODES:
        raise ValueError(f"verdict: expected one of {', '.join(EXIT_CODES)}, found {shown(data['verdict'])}")
    if data["run_id"] != run_id:
        raise ValueError(f"it is of run {shown(data['run_id'])}")


def _disagreements(
    record: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]], digests: Mapping[str, str], line: Line | None
) -> Iterator[str]:
    """Yield what a sealed record says otherwise than how its run started, or than its line in the ledger."""
    if record["started_sha256"] != digests.get(STARTED, record["started_sha256"]):
        yield f"it does not belong to this {STARTED}"
    told = {STARTED: found.get(STARTED, {}), LEDGER: {name: line.data[name] for name in _IN_LINE} if line else {}}
    for source, data in told.items():
        if other := sorted(name for name in data if record.get(name) != data[name]):
            yield f"{', '.join(other)} is not what {source} says"


def find_run(archive: Path, beginning: str) -> Entry:
    """Return the one run whose id begins so; raise ConfigurationError if there is none, or more than one. Read-only."""
    lines = read_ledger(archive).runs
    known = sorted(run_ids(archive) | lines.keys())
    found = [run_id for run_id in known if beginning and run_id.startswith(beginning)]
    if len(found) == 1:
        return read_entry(archive, found[0], lines.get(found[0]))
    told = ", ".join(found[:_NAMED]) + (f" and {len(found) - _NAMED} more" if len(found) > _NAMED else "") or "none"
    raise ConfigurationError(f"run {shown(beginning)}: expected the beginning of one run id, found {told} in {archive}")


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
