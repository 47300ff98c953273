"""An operation killed, or refused by a full disk, at each of its mutating calls; the controls are recipes of a shell.

At every moment the old state is there, or the new one; of the old one nothing is lost; a rerun completes.
"""

import asyncio
import shutil
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

# A victim is forked with everything imported.
import tqdm  # noqa: F401
from damage import MEMORY, ROWS, run_sql

import abathur_nb as nb
from abathur_nb.backups.manifest import Content, list_backups
from abathur_nb.backups.taking import unpack
from abathur_nb.config.settings import Settings
from abathur_nb.store.target import journal_of
from faults.experiments import (
    INITIALIZERS,
    BrokenHarnessError,
    Deed,
    Experiment,
    Outcome,
    Place,
    Planner,
    content_of,
    first_backup,
    initialize,
    make_database,
    newest_backup,
    settings_of,
)
from faults.initializations import harm_of
from faults.victim import Call, Ending, calls_within, injected_within, run_undisturbed, traced

_ATTEMPTS = 10
_KNOWN: dict[tuple[str, str], list[Call]] = {}  # what one sweep has traced serves the others
_CHUNK = 8192  # bytes that a naive copy writes at a time


class Operation(NamedTuple):
    """Name what is done to a database, the naive way to do it, when it is done, and what has spoiled it before."""

    title: str
    sound: Deed
    naive: Deed
    is_done: Callable[[Settings], bool]
    spoil: Callable[[Settings], object] | None = None


def prepare(db: Path) -> Settings:
    """Make a database with a backup of it, and rows that were written since."""
    settings = make_database(db)
    run_sql(db, *ROWS)
    asyncio.run(nb.backup_database(settings)).raise_for_failures()
    run_sql(db, *(MEMORY.replace("'k'", f"'k{n}'") for n in range(40)))
    return settings


def _deed(verb: Callable[..., Coroutine[Any, Any, nb.Report]], **given: Any) -> Deed:
    async def run(db: Path) -> dict[str, Any]:
        return (await verb(settings_of(db), **given)).to_dict()

    return run


def _recipe(follow: Callable[[Path], object]) -> Deed:
    async def run(db: Path) -> dict[str, Any]:
        follow(db)
        return {"ok": True, "checks": []}

    return run


def _statements(*statements: str) -> Deed:
    return _recipe(lambda db: run_sql(db, *statements))


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("wb", buffering=0) as write:
        while chunk := read.read(_CHUNK):
            write.write(chunk)


def _copy_back(db: Path) -> None:
    _copy(newest_backup(settings_of(db)), db)
    for suffix in ("-wal", "-shm"):
        Path(f"{db}{suffix}").unlink(missing_ok=True)


def _spoil_pages(settings: Settings) -> None:
    with settings.db_path.open("r+b") as file:
        file.seek(5000)
        file.write(b"x" * 100_000)


def _is_fresh(settings: Settings) -> bool:
    content = content_of(settings.db_path)
    held = {name: rows for name, rows in content.rows.items() if rows} if content else {}
    return held in ({"memory_entries": 3, "sqlite_sequence": 1}, {"memory_entries": 3})


_FILLED = ("audit", "checkpoints", "state", "agents", "tasks", "sessions", "document_index", "metrics")
_SPOILING = (
    "UPDATE tasks SET input_data = 'broken', session_id = 'lost'",
    "INSERT INTO agents (id, name, specialization, task_id, model) VALUES ('lost', 'n', 's', 'no', 'm')",
    "DROP INDEX idx_audit_task",
)
_INIT = (INITIALIZERS["sound"], INITIALIZERS["naive"], lambda s: asyncio.run(nb.validate_database(s)).ok)
_RESTORE = (
    _deed(nb.restore_database, apply=True),
    _recipe(_copy_back),
    lambda s: content_of(s.db_path) == first_backup(s).content,
)
OPERATIONS = {
    "init": Operation("initialization", *_INIT),
    # Of which one has made the database, and was killed before it removed its scratch directory.
    "init again": Operation("a second initialization", *_INIT),
    "backup": Operation(
        "backup",
        _deed(nb.backup_database, reason="swept"),
        _recipe(lambda db: _copy(db, settings_of(db).backup_dir / "abathur_swept_20990101_000000_000.db")),
        lambda s: any(s.backup_dir.glob("abathur_swept_*.db")),
    ),
    "restore": Operation("restore", *_RESTORE),
    "rollback": Operation(
        "rollback to a fresh start",
        _deed(nb.roll_back, to="fresh", apply=True),
        _statements(
            *(f"DELETE FROM {table}" for table in _FILLED),
            "DELETE FROM memory_entries WHERE namespace NOT LIKE 'app:abathur:%'",
        ),
        _is_fresh,
    ),
    "replace": Operation("restore of a damaged file", *_RESTORE, _spoil_pages),
    "repair": Operation(
        "repair",
        _deed(nb.troubleshoot, repair=True),
        _statements(
            "UPDATE tasks SET input_data = '{}' WHERE NOT json_valid(input_data)",
            "DELETE FROM agents WHERE task_id NOT IN (SELECT id FROM tasks)",
            "UPDATE tasks SET session_id = NULL WHERE session_id NOT IN (SELECT id FROM sessions)",
            "CREATE INDEX idx_audit_task ON audit (task_id, timestamp DESC)",
        ),
        lambda s: asyncio.run(nb.troubleshoot(s)).ok,
        lambda s: run_sql(s.db_path, *_SPOILING),
    ),
}


def strikes(effect: str, *operations: str) -> Planner:
    """Return what plans a fault at each mutating call of operations; of the naive one at those of the first."""
    return partial(_at_each_call, effect, operations)


def _at_each_call(
    effect: str, operations: Sequence[str], name: str, every: int, seed: int, folder: Path
) -> list[Experiment]:
    experiments: list[Experiment] = []
    for operation in operations if name == "sound" else operations[:1]:
        template = folder / f"template-{name}-{operation}"
        if not operation.startswith("init"):
            settings = prepare(template / "data" / "abathur.db")
            if spoil := OPERATIONS[operation].spoil:
                spoil(settings)
        calls = _calls(operation, name, template, folder)
        for call in calls:
            alike = [other for other in calls if (other.thread, other.name) == (call.thread, call.name)]
            # How many of its kind in its thread come before it, those left out that are on other paths.
            rank = alike.index(call)
            experiments.append(partial(_fault_at, operation, name, effect, template, call, rank))
    step = every if name == "sound" else max(1, every // 4)  # a naive way makes few calls
    return experiments[seed % step :: step]


def _calls(operation: str, name: str, template: Path, folder: Path) -> list[Call]:
    """Trace an operation that nothing disturbs, once for each of its threads; return its calls in order."""
    if known := _KNOWN.get((operation, name)):
        return known
    calls: list[Call] = []
    for thread in count():
        place = _place(operation, folder / f"traced-{name}-{operation}-{thread}", template)
        ending, log = traced(getattr(OPERATIONS[operation], name), place, thread)
        if not ending.ok or (name == "sound" and not OPERATIONS[operation].is_done(settings_of(place.db))):
            raise BrokenHarnessError(f"{operation}, {name}: undisturbed it fails: {ending.fault or ending.report}")
        if log is None:  # no such thread
            _KNOWN[operation, name] = calls
            return calls
        calls += calls_within(log, thread, place.top)
    raise AssertionError


def _place(operation: str, root: Path, template: Path) -> Place:
    place = Place(root)
    if operation == "init again":
        run_undisturbed(initialize, place, "predecessor")
        place.make_leftover()
    elif operation != "init":
        shutil.copytree(template, place.top, dirs_exist_ok=True)
    return place


def _fault_at(operation: str, name: str, effect: str, template: Path, call: Call, rank: int, folder: Path) -> Outcome:
    for attempt in range(_ATTEMPTS):
        place = _place(operation, folder / str(attempt), template)
        before = content_of(place.db)
        bytes_before = place.db.read_bytes() if place.db.exists() else b""
        fault = f"{call.name}:{effect}:when={call.number}"
        ending, log = traced(getattr(OPERATIONS[operation], name), place, call.thread, fault)
        if log and (ending.killed if effect == "signal=KILL" else injected_within(log, place.top)):
            if operation.startswith("init"):
                harm = harm_of(place, ending, sound=name == "sound")
            elif name == "sound":
                harm = _harm(operation, place, ending, before, bytes_before)
            else:
                harm = _half(operation, place, before, bytes_before) or _lost(place, before, bytes_before)
            return Outcome(1, 1, f"{effect} at {call}: {harm}" if harm else "")
        # How many files of /proc it opens before depends on how many processes there are: aim again.
        alike = [c for c in calls_within(log or "", call.thread, place.top) if c.name == call.name]
        call = alike[rank] if rank < len(alike) else call
    # Which of two threads is the first to open a database is left to chance, and to the tracer that slows one down.
    return Outcome(0, 0)


def _half(operation: str, place: Place, before: Content | None, bytes_before: bytes) -> str:
    """Say what is neither old nor new; empty if nothing is."""
    settings = settings_of(place.db)
    if operation == "backup":
        good = (before, first_backup(settings).content)
        bad = [path.name for path in settings.backup_dir.glob("abathur_*.db") if content_of(path) not in good]
        return f"half a backup: {bad[0]}" if bad else ""
    found = content_of(place.db)
    same = found == before if before else place.db.exists() and place.db.read_bytes() == bytes_before
    return "" if same or OPERATIONS[operation].is_done(settings) else "neither the old state nor the new one"


def _harm(operation: str, place: Place, ending: Ending, before: Content | None, bytes_before: bytes) -> str:
    settings, done = settings_of(place.db), OPERATIONS[operation].is_done
    begun = journal_of(place.db).exists()  # a replacement under a journal, which nobody opens before it is completed
    if not begun and (fault := _half(operation, place, before, bytes_before)):
        return fault
    if not ending.killed:
        if ending.fault:
            return ending.fault
        if ending.ok and not done(settings):
            return "it claims a success that is none"
        if not begun and (
            empty := [f.name for f in place.db.parent.glob("abathur_aside_*") if not any(f.glob("abathur.db*"))]
        ):
            return f"left behind: {', '.join(empty)}"
    if fault := _lost(place, before, bytes_before):
        return fault
    second = run_undisturbed(OPERATIONS[operation].sound, place, "second")
    if second.fault or not second.ok:
        return f"a rerun fails: {second.fault or second.report['summary']}"
    if not done(settings):
        return "after a rerun it is not done"
    if left := [path.name for folder in (place.db.parent, settings.backup_dir) for path in folder.glob(".abathur-*")]:
        return f"left behind: {', '.join(left)}"
    return _lost(place, before, bytes_before)


def _lost(place: Place, before: Content | None, bytes_before: bytes) -> str:
    """Say if the old state stands nowhere any more: not at its place, in no proven backup, not aside."""
    settings = settings_of(place.db)
    if before:
        if content_of(place.db) == before:
            return ""
        for backup in list_backups(settings.backup_dir)[0]:
            unpack(backup, place.root)
            if backup.content == before and content_of(backup.path) == before:
                return ""
        return "the old state is lost"
    files = [place.db, *place.db.parent.glob("abathur_aside_*/abathur.db")]
    return "" if any(path.exists() and path.read_bytes() == bytes_before for path in files) else "the old file is lost"
