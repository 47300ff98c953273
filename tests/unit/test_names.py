"""One rule for names, printable text, whole numbers and JSON: at every verb and parameter, the same on every Python."""

import math
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest
from damage import query, run_sql
from values_helpers import BEYOND, nested, within

import abathur_nb as nb
from abathur_nb.config.settings import Settings
from abathur_nb.errors import ConfigurationError, InvalidValueError, RefusedError
from abathur_nb.health.rows import look_of
from abathur_nb.report import Check
from abathur_nb.runbook.validate import validate_database
from abathur_nb.store.values import (
    MAX_BYTES,
    check_name,
    check_namespace,
    check_whole,
    decoded,
    json_fault,
    json_text,
    prefix_range,
    spellings,
)
from abathur_nb.text import is_printable, printable, shown

REFUSED = (*(range(0x20), range(0x7F, 0xA0), range(0x2028, 0x202F), range(0x2066, 0x206A), range(0xD800, 0xE000)),)
# fmt: off
GOOD = (
    "علی\u200cرضا", "山田\u3000太郎", "👨\u200d👩\u200d👧", "\U0001fae8", "क्\u200dष", "10\u202f000\xa0km",
    "שלום\u200f", "❤\ufe0f",
    "\U0001fbfa", "\U000e0041x", "\ufffex", "\u0378", "한국어", "ไทย", "y\xad", "\ue000", "'; DROP TABLE t;--",
)
BLANK = (
    "", " ", "\u3000", "\xa0\u2009", "\u200d", "\u200c", "\u200b \ufeff", "\u2060", "\ufe0f", "\u3164", "\u2800",
    "\U000e0020",
)
BAD = (
    *BLANK, "a\0", "a\nb", "\t", "a\x7f", "a\x9b", "a\ud800", "\u2028", "a\u2029", *(f"a{chr(c)}" for c in REFUSED[3]),
)
LIKE = (  # pairs that look alike
    ("é한", normalize("NFD", "é한")), ("علی\u200cرضا", "علیرضا"), ("Ａlice", "Alice"), ("ﬁle", "file"),
    ("\u0440\u0430\u0443", "pay"), ("a\u200bb", "ab"), ("a\xa0b", "a b"), ("soft\xadware", "software"),
    ("❤\ufe0f", "❤"), ("\u0391\u0392", "AB"),
)
UNLIKE = (
    "Alice", "alice", "ALICE", "new york", "newyork", "straße", "strasse", "résumé", "resume", "мир", "mir", "東京",
    "东京", "ё", "е\u0432", "علي", "على", "user-1", "user_1", "naïve", "naive", "ı", "i", "ñ", "n", "カ", "ガ", "か",
    "😀", "😃",
)
# fmt: on
NFC, NFD = LIKE[0]

SESSION = {"session_id": "new", "app_name": "a", "user_id": "u"}
MEMORY: dict[str, Any] = {"namespace": "new:", "key": "k", "value": {}, "memory_type": "semantic", "created_by": None}


OLD, MEMORIES, STATE = ("user:m", "k"), "memory_entries", "sessions, json_each(state)"


async def _session(db: nb.Database, **given: Any) -> None:
    await db.sessions.create_session(**{**SESSION, **given})


async def _memory(db: nb.Database, **given: Any) -> int:
    return await db.memory.add_memory(**{**MEMORY, **given})


# Each parameter that takes a name, of each verb that writes one, and the table and column that it ends up in.
WRITES: dict[str, tuple[Callable[[nb.Database, str], Any], str, str]] = {
    "create_session session_id": (lambda db, name: _session(db, session_id=name), "sessions", "id"),
    "create_session app_name": (lambda db, name: _session(db, app_name=name), "sessions", "app_name"),
    "create_session user_id": (lambda db, name: _session(db, user_id=name), "sessions", "user_id"),
    "create_session project_id": (lambda db, name: _session(db, project_id=name), "sessions", "project_id"),
    "create_session initial_state": (lambda db, name: _session(db, initial_state={name: 1}), STATE, "key"),
    "append_event state_delta": (lambda db, name: db.sessions.append_event("s", {}, {name: 1}), STATE, "key"),
    "set_state key": (lambda db, name: db.sessions.set_state("s", name, 1), STATE, "key"),
    "add_memory namespace": (lambda db, name: _memory(db, namespace=f"{name}:"), MEMORIES, "rtrim(namespace, ':')"),
    "add_memory key": (lambda db, name: _memory(db, key=name), MEMORIES, "key"),
    "add_memory created_by": (lambda db, name: _memory(db, created_by=name), MEMORIES, "created_by"),
    "add_memory task_id": (lambda db, name: _memory(db, task_id=name), "audit", "task_id"),
    "update_memory updated_by": (lambda db, name: db.memory.update_memory(*OLD, {}, name), MEMORIES, "updated_by"),
    "update_memory task_id": (lambda db, name: db.memory.update_memory(*OLD, {}, None, name), "audit", "task_id"),
    "delete_memory task_id": (lambda db, name: db.memory.delete_memory(*OLD, name), "audit", "task_id"),
}


def test_what_is_printable_is_a_matter_of_ranges_and_not_of_the_version_of_unicode() -> None:
    refused = {code for codes in REFUSED for code in codes} - {0x202F}
    assert {code for code in range(0x110000) if not is_printable(f"a{chr(code)}")} == refused
    for name in GOOD:
        assert (is_printable(name), printable(name)) == (True, name)
        assert shown(name) == (repr(name) if "'" in name else f"'{name}'")
        assert Check("a", "pass", name, name, name).observed == name
    for name in BAD:
        assert not is_printable(name) or name == ""
        printable(name).encode()


@pytest.mark.parametrize("name", [*BAD, b"a:b", "x:" * 500_000, None, 7, ["a:b"], "a" * 513], ids=range(len(BAD) + 6))
def test_what_is_not_a_name_of_1_to_512_printable_characters_is_refused(name: Any) -> None:
    with pytest.raises(InvalidValueError, match=r"^Invalid key: expected 1 to 512 printable characters, found "):
        check_name("key", name)
    with pytest.raises(InvalidValueError, match=r"^Invalid namespace format: expected 1 to 512 printable characters"):
        check_namespace(name)
    if name not in BLANK:  # a prefix may be empty
        with pytest.raises(InvalidValueError, match=r"^Invalid namespace_prefix: "):
            prefix_range(name)


def test_any_other_text_is_a_name_and_a_namespace_holds_a_colon() -> None:
    for name in (*GOOD, "x" * 511):
        check_name("key", name)
        check_namespace(f"{name}:")
        with pytest.raises(InvalidValueError, match="with a `:`, such as"):
            check_namespace(name)
    check_name("task_id", None, optional=True)
    assert check_name("key", "e\u0301" * 512) == "é" * 512, "it is measured in NFC"
    for wrong in ("\u0958" * 512, ""):  # two characters each in NFC
        with pytest.raises(InvalidValueError):
            check_name("key", wrong, optional=True)
    assert list(spellings("a", NFC, None)) == [("a", NFC, None)]
    assert list(spellings(NFD, NFD)) == [(NFD, NFD), (NFD, NFC), (NFC, NFD), (NFC, NFC)]


def test_a_whole_number_is_one_and_in_its_range() -> None:
    check_whole("limit", 1, 1, 10)
    check_whole("limit", 10, 1, 10)
    wrong: list[Any] = [0, -1, 11, True, 1.0, "1", None, float("nan"), 2**63]
    for value in wrong:
        with pytest.raises(InvalidValueError, match=r"^Invalid limit: expected a whole number in 1\.\.10, found "):
            check_whole("limit", value, 1, 10)


@pytest.mark.parametrize("write", WRITES)
async def test_every_verb_holds_a_name_to_the_rule_and_writes_it_in_nfc(db: nb.Database, write: str) -> None:
    go, table, column = WRITES[write]
    await _session(db, session_id="s")
    await _memory(db, namespace="user:m")
    for bad in ("a\nb", "\u202eb"):
        with pytest.raises(InvalidValueError, match="expected 1 to 512 printable"):
            await go(db, bad)
    await go(db, NFD)
    async with db.read() as conn:
        assert NFC in [row[0] for row in await conn.execute_fetchall(f"SELECT {column} FROM {table}")]


def test_settings_hold_to_the_same_rule(tmp_path: Path) -> None:
    for name in GOOD:
        assert nb.resolve("development", db_path=tmp_path / name / "x.db").db_path.parent.name == name
    for name in (name for name in BAD if name not in BLANK):
        with pytest.raises(ConfigurationError, match="printable"):
            nb.resolve("development", db_path=f"{tmp_path}/{name}/x.db")


async def test_a_name_is_looked_for_as_given_and_then_in_nfc(db: nb.Database, database: Settings) -> None:
    """As the store has written it: another spelling finds the same row."""
    await _session(db, session_id=NFC, project_id=NFC, initial_state={NFC: 0})
    await _memory(db, namespace=f"{NFC}:x", key=NFC)
    for n, spelling in enumerate((NFC, NFD)):
        with pytest.raises(InvalidValueError, match="already exists"):
            await _session(db, session_id=spelling)
        with pytest.raises(InvalidValueError, match="already exists"):
            await _memory(db, namespace=f"{spelling}:x", key=spelling)
        await db.sessions.append_event(spelling, {}, {spelling: n})
        assert await db.sessions.get_state(spelling, spelling) == n
        await db.sessions.set_state(spelling, spelling, [n])
        await db.sessions.terminate_session(spelling)
        assert (await db.sessions.get_session(spelling) or {})["state"] == {NFC: [n]}
        assert await db.sessions.list_sessions(spelling, "terminated", 1)
        await db.memory.update_memory(f"{spelling}:x", spelling, {"n": n}, None)
        assert (await db.memory.get_memory(f"{spelling}:x", spelling) or {})["value"] == {"n": n}
        assert await db.memory.get_memory(f"{spelling}:x", spelling, 1)
        assert len(await db.memory.get_memory_history(f"{spelling}:x", spelling)) == n + 2
        assert len(await db.memory.search_memories(spelling)) == 1
        explored = await nb.explore(database, namespace=spelling, key=spelling, session=spelling)
        assert [check.name for check in explored.report.checks if check.status != "pass"] == []
    assert await db.memory.delete_memory(f"{NFD}:x", NFD)
    with pytest.raises(InvalidValueError, match="two of its keys become equal in NFC"):
        await _session(db, session_id="two", initial_state={NFC: 1, NFD: 2})
    assert not [check for check in (await validate_database(database)).checks if check.status == "warn"]


async def test_rows_that_were_stored_otherwise_stay_reachable_and_are_changed(database: Settings) -> None:
    run_sql(
        database.db_path,
        "INSERT INTO sessions (id, app_name, user_id, project_id, state) "
        f"VALUES ('{NFD}', 'a', 'u', '{NFD}', '{{\"{NFD}\": 0}}')",
        "INSERT INTO memory_entries (namespace, key, value, memory_type) "
        f"VALUES ('{NFC}:x', '{NFD}', '{{}}', 'semantic')",  # each name by itself
    )
    async with nb.Database.open(database) as db:
        with pytest.raises(InvalidValueError, match="already exists"):
            await _session(db, session_id=NFD)
        with pytest.raises(InvalidValueError, match="already exists"):
            await _memory(db, namespace=f"{NFD}:x", key=NFD)
        assert await db.sessions.get_state(NFD, NFD) == 0
        await db.sessions.set_state(NFD, NFD, 1)
        assert (await db.sessions.get_session(NFD) or {})["state"] == {NFC: 1}, "one key, not two"
        assert [row["id"] for row in await db.sessions.list_sessions(NFD)] == [NFD]
        await db.memory.update_memory(f"{NFD}:x", NFD, {"n": 2}, None)
        found = await db.memory.get_memory(f"{NFD}:x", NFD) or {}
        assert (found["namespace"], found["key"], found["version"]) == (f"{NFC}:x", NFD, 2)
        assert await db.memory.delete_memory(f"{NFD}:x", NFD)
        assert await db.memory.get_memory(f"{NFD}:x", NFD) is None
        assert len(await db.memory.get_memory_history(f"{NFD}:x", NFD)) == 2
    told = query(database.db_path, "SELECT memory_namespace, json_extract(action_data, '$.key') FROM audit")
    assert set(told) == {(f"{NFC}:x", NFD)}, "the audit names the rows that changed"


@pytest.mark.parametrize("column", ["namespace", "key", "session", "user", "app", "project"])
async def test_validate_warns_of_names_that_look_alike(database: Settings, column: str) -> None:
    rows = []
    for number, name in enumerate(name for pair in LIKE for name in pair):
        given = {"session": f"s{number}", "app": "a", "user": "u", "project": "p", "namespace": "x"}
        given |= {"key": f"k{number}", column: name}
        rows += [
            "INSERT INTO sessions (id, app_name, user_id, project_id) "
            "VALUES ('{session}', '{app}', '{user}', '{project}')".format_map(given),
            "INSERT INTO memory_entries (namespace, key, value, memory_type) "
            "VALUES ('{namespace}:', '{key}', '{{}}', 'semantic')".format_map(given),
        ]
    run_sql(database.db_path, *rows)
    report = await validate_database(database)
    (check,) = [check for check in report.checks if check.name == "names"]
    assert (check.status, report.ok) == ("warn", True)
    alike = [line for line in check.evidence if line.startswith(f"{column} '") and line.endswith("look alike")]
    assert len(alike) == len(LIKE), check.evidence
    assert f"{column} {ascii(NFD)[:-1]}" in "".join(line for line in check.evidence if "not in NFC" in line)
    assert all(line.isascii() for line in check.evidence), "what looks alike is told by its numbers"


async def test_ordinary_names_of_many_languages_raise_no_warning(db: nb.Database, database: Settings) -> None:
    assert len({look_of(name) for name in UNLIKE}) == len(UNLIKE)
    for name in (*UNLIKE, *GOOD):
        await _session(db, session_id=name, user_id=name, app_name=name, project_id=name)
        await _memory(db, namespace=f"{name}:", key=name)
    await _memory(db, namespace="other:", key="Ａlice")  # beside a key that looks alike in another namespace
    report = await validate_database(database)
    assert {check.name for check in report.checks if check.status != "pass"} == set()


def holds_itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


BAD_JSON = [
    (math.nan, "expected a JSON object"),
    ({"a": math.nan}, "not JSON"),
    ({"a": [math.inf]}, "not JSON"),
    ({"a": "\ud800"}, "not JSON"),
    ({"a": {1}}, "not JSON"),
    ({"a": b"x"}, "not JSON"),
    ({"a": 10**5000}, "not JSON"),
    ({1: "a"}, "expected text as keys"),
    ({False: "a"}, "expected text as keys"),
    ([{"a": {"b": {0: 1}}}], "expected text as keys"),
    (nested(101), "at most 100 levels"),
    (nested(100_000), "at most 100 levels"),
    (holds_itself(), "at most 100 levels"),
    ({"a": "x" * MAX_BYTES}, "at most 16,777,216 bytes"),
    ("text", "expected a JSON object (dict) or a JSON list, found 'text' (str)"),
    (7, "found 7 (int)"),
    ((1, 2), "(tuple)"),
]


@pytest.mark.parametrize(("value", "told"), BAD_JSON, ids=range(len(BAD_JSON)))
def test_values_that_are_not_json_are_refused(value: Any, told: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        json_text("value", value)
    assert str(caught.value).startswith("Invalid value: ")
    assert told in str(caught.value)
    assert len(str(caught.value)) < 400


def test_an_enclosed_value_may_have_one_level_less() -> None:
    assert json_text("event", nested(99), within=1)
    with pytest.raises(InvalidValueError, match="at most 99 levels"):
        json_text("event", nested(100), within=1)


def test_json_beyond_the_limits_is_told_in_one_line_and_within_them_there_is_no_fault() -> None:
    for text, told in BEYOND:
        assert told in json_fault(text)
        assert len(json_fault(text)) < 200
        assert "\n" not in json_fault(text)
    assert [json_fault(text) for text in within()] == [""] * len(within())


@pytest.mark.parametrize("spoiled", ["{broken", "", None, 7.5, b"\xff"])
def test_a_spoiled_column_is_refused_by_the_rows_key(spoiled: Any) -> None:
    with closing(sqlite3.connect(":memory:")) as conn:
        conn.row_factory = sqlite3.Row
        good = conn.execute("SELECT 's1' AS id, '[1]' AS events").fetchone()
        assert decoded(good, ("events",)) == {"id": "s1", "events": [1]}
        bad = conn.execute("SELECT 's1' AS id, ? AS events", (spoiled,)).fetchone()
        with pytest.raises(RefusedError, match=r"^events of row 's1' is not valid JSON: run validate"):
            decoded(bad, ("events",))
