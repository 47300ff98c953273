"""What a repair took out is put back as far as the rules let it, and a file of another shape is refused."""

import json
import re
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from damage import AGENT, SESSION, TASK, fingerprint, query, run_sql, untouched
from hostile import BYTES, PLACES, reshaped
from sampling import sampled
from troubleshoot_helpers import check_of, rows_of

import abathur_nb as nb
from abathur_nb.backups.manifest import list_backups
from abathur_nb.config.settings import Settings
from abathur_nb.evidence.canonical import canonical, sha256
from abathur_nb.repair.quarantine import plain, quarantine_dir, read_quarantine, value_of


@pytest.fixture
async def values(database: Settings) -> Path:
    """Return a quarantine file of a value of each kind: a text that is not UTF-8, a blob, an infinite number."""
    row = "UPDATE tasks SET input_data = CAST(x'ff' AS TEXT), session_id = 's1', result_data = x'00', priority = 9e999"
    run_sql(database.db_path, SESSION, TASK, row, "PRAGMA foreign_keys = OFF", "DELETE FROM sessions")
    await nb.troubleshoot(database, repair=True)
    (path,) = quarantine_dir(database).iterdir()
    return path


def written(lines: list[dict[str, Any]]) -> bytes:
    """Return a quarantine file that holds these lines, the head first, with the hash that is right for them."""
    whole = b"".join(map(canonical, lines))
    return whole + canonical({"rows": len(lines) - 1, "sha256": sha256(whole)})


@pytest.mark.parametrize("every", sampled((1, 9), 9))
async def test_any_other_shape_is_refused_or_put_back(every: int, database: Settings, values: Path) -> None:
    lines = [json.loads(line) for line in values.read_bytes().splitlines()[:-1]]
    assert values.read_bytes() == written(lines), "the control"
    before, refused, taken = fingerprint(database.db_path), 0, list[str]()
    for number, line in enumerate(lines):
        for what, changed in islice(reshaped(line), 0, None, every):
            values.write_bytes(written([*lines[:number], changed, *lines[number + 1 :]]))
            try:
                read_quarantine(values)
            except nb.RefusedError as error:
                refused += str(values) in error.observed
                continue
            report = await nb.troubleshoot(database, put_back=values)
            assert report.ok or what.startswith("env"), (what, str(report))
            taken.append(what)
    assert refused > len(taken) > 30 // every, taken
    assert fingerprint(database.db_path) == before


async def test_what_is_not_its_json_or_not_a_file_is_refused_with_its_name(database: Settings, values: Path) -> None:
    whole = values.read_bytes()
    first, *rest = whole.splitlines(keepends=True)
    cut = [whole[:left] for left in (0, 1, len(first), len(whole) - 1)]
    spoilt = [one for content in BYTES.values() for one in (content, first + content, first + content + rest[-1])]
    altered = [whole.replace(b'"t1"', b'"t2"', 1), first + b"".join(rest[1:])]
    for content in (*cut, *spoilt, *altered):
        assert content != whole
        values.write_bytes(content)
        await refused(database, values, "the file is empty or cut off" if content in cut else "")
    values.write_bytes(whole)
    assert (await nb.troubleshoot(replace(database, env="staging"), put_back=values)).refused
    for make in PLACES.values():
        shutil.rmtree(values) if values.is_dir() and not values.is_symlink() else values.unlink()
        make(values)
        await refused(database, values)
    values.unlink()
    await refused(database, values)


async def refused(settings: Settings, file: Path, why: str = "") -> None:
    with untouched(settings.db_path):
        report = await nb.troubleshoot(settings, put_back=file, repair=True)
    assert report.refused
    assert str(file) in report.checks[-1].observed
    assert report.checks[-1].observed.endswith(why)


LOST = (
    TASK,
    AGENT,
    "UPDATE agents SET name = 'é' || char(0) || '\u2028', resource_usage = '[1e3]'",
    "INSERT INTO tasks (id, prompt, session_id) VALUES ('t2', 'p', 's1')",
    SESSION,
    "INSERT INTO audit (action_type, agent_id) VALUES ('x', 'a1')",
    "INSERT INTO checkpoints (task_id, iteration, state) VALUES ('t1', 0, '{}')",
    "INSERT INTO state (task_id, key, value) VALUES ('t1', 'k', '[]')",
)


MOMENT = re.compile("_at$|_time$|^timestamp$")


@pytest.fixture
async def quarantine(database: Settings) -> Path:
    """Return what a repair wrote after a task and a session were deleted by somebody who minds no reference."""
    run_sql(database.db_path, *LOST)
    run_sql(database.db_path, "DELETE FROM tasks WHERE id = 't1'", "DELETE FROM sessions")
    (await nb.troubleshoot(database, repair=True)).raise_for_failures()
    (found,) = quarantine_dir(database).iterdir()
    return found


async def test_every_row_comes_back_once_its_parents_are_there(database: Settings, quarantine: Path) -> None:
    path = database.db_path
    assert rows_of(path)["agents"] == rows_of(path)["checkpoints"] == []
    run_sql(path, TASK, SESSION)
    with untouched(path):
        plan = await nb.troubleshoot(database, put_back=quarantine.name)
    assert plan.ok
    assert "1 row of agents" in check_of(plan, "plan").observed
    (await nb.troubleshoot(database, put_back=quarantine.name, repair=True)).raise_for_failures()
    assert all(backup.before_a_change for backup in list_backups(database.backup_dir)[0]), "never restored unasked"
    other = nb.resolve("development", db_path=path.with_name("other") / "abathur.db")
    (await nb.initialize_database(other)).raise_for_failures()
    run_sql(other.db_path, *LOST)
    for table in ("agents", "tasks", "sessions", "audit", "checkpoints", "state"):
        columns = [name for _, name, *_ in query(path, f"PRAGMA table_info({table})") if not MOMENT.search(name)]
        select = f"SELECT {', '.join(map('hex({0}), typeof({0})'.format, columns))} FROM {table} ORDER BY 1"
        assert query(path, select) == query(other.db_path, select)
    with untouched(path):
        again = await nb.troubleshoot(database, put_back=quarantine, repair=True)
    assert again.ok
    assert "0 can be put back, 5 are there already" in check_of(again, "quarantine").observed


def test_every_value_of_sqlite_comes_back_from_json_as_it_was() -> None:
    with closing(sqlite3.connect(":memory:")) as conn:
        conn.text_factory = lambda text: text.decode(errors="surrogateescape")
        for sql in ("NULL", "1", "-1.5", "9e999", "'é'", "''", "x''", "x'ff'", "CAST(x'ff00fe' AS TEXT)"):
            ((value,),) = conn.execute(f"SELECT {sql}")
            mark, bound = value_of(json.loads(json.dumps(plain(value), allow_nan=False)))
            same = f"SELECT {mark} IS {sql} AND typeof({mark}) = typeof({sql})"
            assert conn.execute(same, (bound, bound)).fetchone() == (1,)


async def test_a_row_that_breaks_a_rule_stays_and_is_named(database: Settings, quarantine: Path) -> None:
    run_sql(database.db_path, SESSION)
    before = rows_of(database.db_path)["agents"]
    report = await nb.troubleshoot(database, put_back=quarantine.name, repair=True)
    told = check_of(report, "quarantine")
    assert (report.ok, told.status) == (True, "warn")
    assert "1 can be put back, 0 are there already, 4 stay in the file" in told.observed
    assert any("agents: 'a1': FOREIGN KEY constraint failed" in line for line in told.evidence)
    assert rows_of(database.db_path)["agents"] == before


async def test_what_was_changed_since_or_has_its_place_taken_is_left(database: Settings, quarantine: Path) -> None:
    path = database.db_path
    run_sql(path, TASK, SESSION, "INSERT INTO sessions (id, app_name, user_id) VALUES ('s2', 'app', 'bob')", AGENT)
    run_sql(path, "UPDATE tasks SET session_id = 's2'", "DELETE FROM audit")
    report = await nb.troubleshoot(database, put_back=quarantine.name)
    told = "\n".join(check_of(report, "quarantine").evidence)
    assert "agents: 'a1': UNIQUE constraint failed: agents.id" in told
    assert "tasks: 't2', session_id: its row was deleted or changed since" in told
