"""A change to each of the 33 indexes, and to each of the 9 tables: troubleshoot must name it, and repair it.

The control is the runbook's own validation (section 2.7), which counts.
"""

import asyncio
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from random import Random

from damage import edit_schema, run_sql

import abathur_nb as nb
from abathur_nb.config.settings import Settings
from abathur_nb.store.schema import SchemaObject, expected_columns, expected_objects, expected_tables
from faults.contents import content_of, settings_of
from faults.operations import prepare
from faults.outcomes import Experiment, Outcome

__all__ = ["schema_mutations"]


def schema_mutations(name: str, every: int, seed: int, folder: Path) -> list[Experiment]:
    """Return the experiments: each changes another object, in a way that is drawn."""
    template = prepare(folder / f"template-{name}" / "abathur.db").db_path
    objects = sorted(expected_objects().values())
    return [partial(_mutate, name, template, f"{seed}-{found.name}", found) for found in objects[seed % every :: every]]


def _mutate(name: str, template: Path, seed: str, found: SchemaObject, folder: Path) -> Outcome:
    settings = settings_of(folder / "data" / "abathur.db")
    shutil.copytree(template.parent, settings.db_path.parent)
    before = content_of(settings.db_path)
    change = Random(seed).choice(_OF_TABLES if found.type == "table" else _OF_INDEXES)  # noqa: S311 - to be repeatable
    change(settings.db_path, found)
    changed = content_of(settings.db_path)
    struck = bool(before and changed and before.schema != changed.schema)
    harm = _unnamed(settings, found) if name == "sound" else _seed_validation(settings.db_path)
    return Outcome(1, int(struck), f"{change.__name__} {found.name}: {harm}" if harm else "")


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


# --- what is done to an index


def _drop(db: Path, index: SchemaObject) -> None:
    run_sql(db, f"DROP INDEX {index.name}")


def _make_anew(db: Path, index: SchemaObject, sql: str) -> None:
    run_sql(db, f"DROP INDEX {index.name}", sql)


def _collate(db: Path, index: SchemaObject) -> None:
    column = expected_columns(index.table)[0].name
    _make_anew(db, index, f"CREATE INDEX {index.name} ON {index.table} ({column} COLLATE NOCASE)")


def _move(db: Path, index: SchemaObject) -> None:
    other = next(table for table in expected_tables() if table != index.table)
    _make_anew(db, index, f"CREATE INDEX {index.name} ON {other} ({expected_columns(other)[0].name})")


def _restrict(db: Path, index: SchemaObject) -> None:
    """Leave rows out: those for which it was made, if it was partial."""
    whole, _, condition = " ".join(index.sql.split()).partition(" WHERE ")
    where = (
        condition.replace(" IS NOT ", " IS ").replace(" = ", " <> ")
        if condition
        else f"{expected_columns(index.table)[0].name} > ''"
    )
    _make_anew(db, index, f"{whole} WHERE {where}")


def _widen(db: Path, index: SchemaObject) -> None:
    whole, _, condition = " ".join(index.sql.split()).partition(" WHERE ")
    last = expected_columns(index.table)[-1].name
    _make_anew(db, index, f"{whole.rstrip()[:-1]}, {last}){f' WHERE {condition}' if condition else ''}")


# --- what is done to a table


def _allow_null(db: Path, table: SchemaObject) -> None:
    edit_schema(db, table.name, "TEXT NOT NULL", "TEXT")


def _change_type(db: Path, table: SchemaObject) -> None:
    edit_schema(db, table.name, "TEXT NOT NULL", "VARCHAR NOT NULL")


def _add_column(db: Path, table: SchemaObject) -> None:
    run_sql(db, f"ALTER TABLE {table.name} ADD COLUMN of_a_migration")


_Change = Callable[[Path, SchemaObject], None]
_OF_INDEXES: tuple[_Change, ...] = (_drop, _drop, _collate, _move, _restrict, _widen)
_OF_TABLES: tuple[_Change, ...] = (_allow_null, _change_type, _add_column)


def _seed_validation(db: Path) -> str:
    """Validate as the runbook does; say ``not found`` if it is content."""
    with closing(sqlite3.connect(db)) as conn:
        sound = conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        references = conn.execute("PRAGMA foreign_key_check").fetchall()
        tables = {name for (name,) in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        indexes = conn.execute("SELECT count(*) FROM sqlite_master WHERE type = 'index'").fetchone()[0]
        seeds = conn.execute("SELECT count(*) FROM memory_entries WHERE namespace LIKE 'app:abathur:%'").fetchone()[0]
    content = sound and not references and tables >= set(expected_tables()) and indexes >= 30 and seeds >= 3
    return "not found" if content else ""
