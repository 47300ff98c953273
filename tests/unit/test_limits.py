"""What SQL lets pass and the store cannot read: found in every row that holds it, and in no other."""

import json
import random
import sqlite3
from contextlib import closing

import pytest
from damage import run_sql
from validate_helpers import failing, validated
from values_helpers import BEYOND, nested, within

from abathur_nb.config.settings import Settings
from abathur_nb.errors import RefusedError
from abathur_nb.store.database import Database
from abathur_nb.store.values import MAX_BYTES, _json_fault, _suspicious, json_fault, stored


def insert(text: str) -> str:
    """Return the statement of somebody who writes whatever SQLite takes for JSON."""
    literal = text.replace("'", "''").replace("\0", "' || char(0) || '")
    return f"INSERT INTO sessions (id, app_name, user_id, events) VALUES ('s', 'a', 'u', '{literal}')"


@pytest.mark.parametrize(("text", "told"), BEYOND, ids=range(len(BEYOND)))
async def test_what_the_store_would_not_write_is_named_with_the_reason(
    database: Settings, text: str, told: str
) -> None:
    """SQLite's own check passes it, and the integrity check too; who lists the rows meets an error."""
    run_sql(database.db_path, insert(text))
    with closing(sqlite3.connect(database.db_path)) as conn:
        assert conn.execute("SELECT json_valid(events), json_type(events) FROM sessions").fetchone() == (1, "array")
    checks = await validated(database)
    assert failing(checks) == {"JSON limits"}
    assert checks["JSON limits"].observed == "broken: sessions.events × 1"
    (evidence,) = checks["JSON limits"].evidence
    assert evidence.startswith("sessions.events: 1 row, by key: 's' (")
    assert told in evidence
    assert len(evidence) < 250


@pytest.mark.parametrize("text", within(), ids=range(len(within())))
async def test_what_only_looks_suspicious_passes(database: Settings, text: str) -> None:
    run_sql(database.db_path, insert(text))
    assert failing(await validated(database)) == set()


def test_whatever_is_beyond_the_limits_is_suspicious() -> None:
    """A closer look is taken at nothing else."""
    assert all(_suspicious(text.encode()) for text, _ in BEYOND)
    random.seed(1)
    pieces = [*'10.eE+-[],"u', "9" * 100, "9" * 300, "99", "400", "\\", "d8", "D8", "00"]
    found = 0
    for _ in range(100_000):
        text = "[" + "".join(random.choices(pieces, k=random.randint(1, 9))) + "]"  # noqa: S311 - no secret
        try:
            json.loads(text)
        except ValueError:
            continue
        found += bool(json_fault(text))
        assert _json_fault(text) == json_fault(text), text
    assert found > 100


def test_rows_like_those_of_the_store_are_not_suspicious() -> None:
    """Else the closer look, ten times as slow, would be taken at every row."""
    usual = {"text": "An event, 'quoted' \"twice\"\nand \\ escaped: 2026-11-23", "n": [1, 2.5, -3, 1e6, True, None]}
    assert not _suspicious(json.dumps([usual] * 20).encode())
    assert not _suspicious(b"x" * 1000)
    assert not _suspicious(None)


def test_the_bytes_of_what_is_no_text_are_told_and_all_else_is_as_it_was() -> None:
    assert stored("a\udcff") == b"a\xff"
    assert [stored(value) for value in ("é", b"a", 7, None)] == ["é", b"a", 7, None]


async def test_the_store_fails_at_what_validate_names(database: Settings) -> None:
    run_sql(database.db_path, insert("[" + "9" * 4301 + "]"))
    assert failing(await validated(database)) == {"JSON limits"}
    async with Database.open(database) as db:
        with pytest.raises(RefusedError, match="run validate"):
            await db.sessions.get_session("s")


async def test_the_largest_that_the_store_writes_passes(database: Settings) -> None:
    async with Database.open(database) as db:
        await db.memory.add_memory("user:a", "k", {"a": "x" * (MAX_BYTES - 8)}, "semantic", "me")
        await db.memory.add_memory("user:a", "l", nested(100), "semantic", "me")
    assert failing(await validated(database)) == set()
