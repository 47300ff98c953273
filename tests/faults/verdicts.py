"""What validate and troubleshoot say: nothing of a good database, whatever its past; of a changed schema, what it is.

The controls are the same good databases with one fault each, which both must name, and the runbook's own validation
(section 2.7), which counts.
"""

import asyncio
import shutil
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from damage import MEMORY, ROWS, edit_schema, leave_log, run_sql

import abathur_nb as nb
from abathur_nb.config.settings import Settings
from abathur_nb.measure import synthetic
from abathur_nb.store.connection import connect
from abathur_nb.store.schema import SchemaObject, expected_columns, expected_objects, expected_tables
from faults.experiments import Experiment, Outcome, content_of, fault_in, settings_of
from faults.strikes import prepare

_Deed = Callable[[Settings, Random], Coroutine[Any, Any, None]]
_Change = Callable[[Path, SchemaObject], object]


def look_at(name: str, settings: Settings, random: Random) -> tuple[bool, str]:
    """Do to a good database what is drawn, and ask whether all is well."""
    deeds = random.sample(sorted(_DEEDS), random.randrange(6))
    for deed in deeds:
        asyncio.run(_DEEDS[deed](settings, random))
    if name == "naive":
        run_sql(settings.db_path, random.choice(_FAULTS))
    reports = asyncio.run(nb.validate_database(settings)), asyncio.run(nb.troubleshoot(settings))
    alarms = [
        [f"{report.title}: {c.name}: {c.observed}" for c in report.checks if c.status not in ("pass", "skip")]
        for report in reports
    ]
    alarmed = any(alarms) if name == "sound" else all(alarms)
    told = "; ".join(line for lines in alarms for line in lines)
    return True, f"after {', '.join(deeds) or 'nothing'}: {told}" if alarmed else ""


# --- what a good database may have been through


def _sql(*statements: str) -> _Deed:
    async def run(settings: Settings, _: Random) -> None:
        run_sql(settings.db_path, *statements)

    return run


def _verb(verb: Callable[..., Coroutine[Any, Any, nb.Report]], **given: Any) -> _Deed:
    async def run(settings: Settings, _: Random) -> None:
        (await verb(settings, **given)).raise_for_failures()

    return run


async def _fill(settings: Settings, random: Random) -> None:
    async with connect(settings.db_path, settings.busy_timeout_ms, mode="rw") as conn:
        await synthetic.fill(conn, random.choice((1, 10, 100, 900)))


async def _remember(settings: Settings, random: Random) -> None:
    async with nb.Database.open(settings) as db:
        for number in range(random.randrange(1, 20)):
            place = (f"user:{random.randrange(10**9)}", f"é{number}\U0001f600")
            await db.memory.add_memory(*place, {"a": [None, 1e300, "\u2028"]}, "episodic", "me")
            for version in range(random.randrange(12)):
                await db.memory.update_memory(*place, [version], "me")
            if random.random() < 0.5:
                await db.memory.delete_memory(*place)
            if random.random() < 0.2 and await db.memory.get_memory(*place) is None:
                await db.memory.add_memory(*place, [], "semantic", None)


async def _converse(settings: Settings, random: Random) -> None:
    async with nb.Database.open(settings) as db:
        for _ in range(random.randrange(1, 10)):
            session = f"s-{random.randrange(10**9)}"
            await db.sessions.create_session(session, "app", "alice", initial_state={"k": 1})
            for number in range(random.randrange(20)):
                await db.sessions.append_event(session, {"n": number, "text": "x" * 500}, {"k": number})
            if random.random() < 0.5:
                await db.sessions.terminate_session(session)


async def _change_seeds(settings: Settings, _: Random) -> None:
    async with nb.Database.open(settings) as db:
        await db.memory.update_memory("app:abathur:defaults", "user_preference_template", {"mine": 1}, "me")


async def _leave_log(settings: Settings, random: Random) -> None:
    leave_log(settings.db_path, MEMORY.replace("'k'", f"'logged-{random.randrange(10**9)}'"))


async def _back_up(settings: Settings, random: Random) -> None:
    (await nb.backup_database(settings, compress=random.random() < 0.3)).raise_for_failures()


async def _restore(settings: Settings, random: Random) -> None:
    await _back_up(settings, random)
    await _remember(settings, random)
    (await nb.restore_database(settings, apply=True)).raise_for_failures()


async def _repair(settings: Settings, random: Random) -> None:
    run_sql(settings.db_path, random.choice(_FAULTS))
    (await nb.troubleshoot(settings, repair=True)).raise_for_failures()


async def _leave_aside(settings: Settings, random: Random) -> None:
    """Restore in place of a file that is damaged, which is moved aside."""
    await _back_up(settings, random)
    for suffix in ("-wal", "-shm"):
        Path(f"{settings.db_path}{suffix}").unlink(missing_ok=True)
    header = settings.db_path.read_bytes()[:100]  # by which it is known for one of ours
    settings.db_path.write_bytes(header + b"damaged" * 1000)
    (await nb.restore_database(settings, apply=True)).raise_for_failures()


_DEEDS: dict[str, _Deed] = {
    "rows": _sql(*(row.replace("INSERT", "INSERT OR IGNORE") for row in ROWS)),
    "many rows": _fill,
    "memories": _remember,
    "sessions": _converse,
    "a seed that was changed": _change_seeds,
    "pages that are free": _sql("DELETE FROM metrics", "DELETE FROM checkpoints", "DELETE FROM document_index"),
    "statistics": _sql("ANALYZE", "PRAGMA optimize"),
    "VACUUM": _sql("VACUUM"),
    "a log that was left": _leave_log,
    "a backup": _back_up,
    "a restoration": _restore,
    "a fresh start": _verb(nb.roll_back, to="fresh", apply=True),
    "a repair": _repair,
    "a damaged file that was replaced": _leave_aside,
    "init": _verb(nb.initialize_database),
}

# --- what a broken one has


_FAULTS = (
    "INSERT INTO checkpoints (task_id, iteration, state) VALUES ('nowhere', 0, '{}')",
    "INSERT INTO tasks (id, prompt, input_data) VALUES ('bad', 'p', 'no json')",
    "INSERT INTO agents (id, name, specialization, task_id, model) VALUES ('bad', 'n', 's', 'nowhere', 'm')",
    "UPDATE memory_entries SET metadata = '[]' WHERE id = 1",
    "UPDATE memory_entries SET value = '{\"theirs\": 1}' WHERE version = 1 AND key = 'default_workflow'",
    "DELETE FROM memory_entries WHERE version = 1 AND key = 'memory_lifecycle_policies'",
    "DROP INDEX idx_agents_session",
    "ALTER TABLE audit ADD COLUMN of_theirs",
    "PRAGMA journal_mode = DELETE",
)

# --- a change to each of the 33 indexes, and to each of the 9 tables


def schema_mutations(name: str, every: int, seed: int, folder: Path) -> list[Experiment]:
    """Return the experiments: each changes another object, in a way that is drawn."""
    template = prepare(folder / f"template-{name}" / "abathur.db").db_path
    objects = sorted(expected_objects().values())
    return [partial(_mutate, name, template, f"{seed}-{found.name}", found) for found in objects[seed % every :: every]]


def _mutate(name: str, template: Path, seed: str, found: SchemaObject, folder: Path) -> Outcome:
    settings = settings_of(folder / "data" / "abathur.db")
    shutil.copytree(template.parent, settings.db_path.parent)
    before = content_of(settings.db_path)
    changes = _OF_TABLES if found.type == "table" else _OF_INDEXES
    change = Random(seed).choice([*changes])  # noqa: S311 - to be repeatable
    changes[change](settings.db_path, found)
    changed = content_of(settings.db_path)
    struck = bool(before and changed and before.schema != changed.schema)
    if name == "sound":
        harm = _unnamed(settings, found)
    else:
        harm = "" if fault_in(settings.db_path, *_SEED_VALIDATION) else "not found"
    return Outcome(1, int(struck), f"{change} {found.name}: {harm}" if harm else "")


def _unnamed(settings: Settings, found: SchemaObject) -> str:
    """Say if a changed object is not named, or not repaired; empty if it is."""
    before = content_of(settings.db_path)
    check = "tables" if found.type == "table" else "indexes"
    report = asyncio.run(nb.troubleshoot(settings))
    told = [c.observed for c in report.checks if c.failed and c.name == check]
    if not any(f" {word}: {found.name}" in text for text in told for word in ("missing", "altered")):
        return "not named"
    repaired = asyncio.run(nb.troubleshoot(settings, repair=True))
    validated = asyncio.run(nb.validate_database(settings))
    if not repaired.ok or not validated.ok:
        return f"named, but not repaired: {repaired.summary}, {validated.summary}"
    after = content_of(settings.db_path)
    if found.type == "index" and (before is None or after is None or after.digest != before.digest):
        return "its repair changed rows"
    return ""


# --- what is done to an index or to a table


def _made_anew(change: Callable[[SchemaObject], str]) -> _Change:
    return lambda db, index: run_sql(db, f"DROP INDEX {index.name}", change(index))


def _column(index: SchemaObject, number: int = 0) -> str:
    return expected_columns(index.table)[number].name


def _move(index: SchemaObject) -> str:
    other = next(table for table in expected_tables() if table != index.table)
    return f"CREATE INDEX {index.name} ON {other} ({expected_columns(other)[0].name})"


def _restrict(index: SchemaObject) -> str:
    """Leave rows out: those for which it was made, if it was partial."""
    whole, _, condition = " ".join(index.sql.split()).partition(" WHERE ")
    return f"{whole} WHERE " + (f"NOT ({condition})" if condition else f"{_column(index)} > ''")


def _widen(index: SchemaObject) -> str:
    whole, _, condition = " ".join(index.sql.split()).partition(" WHERE ")
    return f"{whole.rstrip()[:-1]}, {_column(index, -1)}){f' WHERE {condition}' if condition else ''}"


_OF_INDEXES: dict[str, _Change] = {
    "drop": lambda db, index: run_sql(db, f"DROP INDEX {index.name}"),
    "collate": _made_anew(lambda i: f"CREATE INDEX {i.name} ON {i.table} ({_column(i)} COLLATE NOCASE)"),
    "move": _made_anew(_move),
    "restrict": _made_anew(_restrict),
    "widen": _made_anew(_widen),
}
_OF_TABLES: dict[str, _Change] = {
    "allow NULL in": lambda db, table: edit_schema(db, table.name, "TEXT NOT NULL", "TEXT"),
    "change a type of": lambda db, table: edit_schema(db, table.name, "TEXT NOT NULL", "VARCHAR NOT NULL"),
    "add a column to": lambda db, table: run_sql(db, f"ALTER TABLE {table.name} ADD COLUMN of_a_migration"),
}


# The runbook's own validation: queries that count faults.
_SEED_VALIDATION = (
    "SELECT count(*) FROM pragma_foreign_key_check",
    f"SELECT count(*) < 9 FROM sqlite_master WHERE type = 'table' AND name IN {(*expected_tables(),)}",
    "SELECT count(*) < 30 FROM sqlite_master WHERE type = 'index'",
    "SELECT count(*) < 3 FROM memory_entries WHERE namespace LIKE 'app:abathur:%'",
)
