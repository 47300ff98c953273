"""What is measured, exposed and alerted: in time, whatever the database holds, and in Prometheus as in the notebook."""

import asyncio
import json
import re
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import product
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any

import aiosqlite
import pytest
import yaml
from damage import ROWS, query, run_sql, untouched
from explore_helpers import insert
from main_helpers import command, metrics, parsed, promtool
from mounting import tmpfs
from sampling import sampled

import abathur_nb as nb
from abathur_nb.config.settings import Settings
from abathur_nb.measure import alerts, synthetic
from abathur_nb.measure import snapshot as measuring
from abathur_nb.measure.snapshot import read_some, rows_within
from abathur_nb.report import Check
from abathur_nb.store.connection import connect
from abathur_nb.store.sql import load_queries
from abathur_nb.store.values import MAX_BYTES
from abathur_nb.text import AHEAD_S

COLUMNS = {"events": '["x"]', "state": '{"":"x"}', "metadata": '{"":"x"}'}
LARGE = f"(SELECT replace(hex(zeroblob({MAX_BYTES // 2 - 50})), '0', 'x'))"  # nearly as large as can be
HUNG_S = 20  # ten times what it takes


@pytest.fixture
async def filled(database: Settings) -> Settings:
    """Return the settings of a database with 2,000 synthetic sessions and memories."""
    async with connect(database.db_path, database.busy_timeout_ms, mode="rw") as writer:
        await synthetic.fill(writer, 2000)
    return database


@pytest.fixture
async def conn(filled: Settings) -> AsyncIterator[aiosqlite.Connection]:
    async with connect(filled.db_path, filled.busy_timeout_ms) as reader:
        yield reader


def fill_column(settings: Settings, session_id: str, column: str, size: int) -> None:
    value = COLUMNS[column].replace("x", "x" * (size - len(COLUMNS[column]) + 1))
    insert(settings, f"UPDATE sessions SET {column} = ? WHERE id = ?", value, session_id)


async def add_sessions(settings: Settings, *names: str) -> None:
    async with nb.Database.open(settings) as db:
        for name in names:
            await db.sessions.create_session(name, "app", "alice")


def rows_in(found: alerts.Snapshot, table: str) -> float:
    return found.value("abathur_rows", {"table": table}) or 0


async def warned(settings: Settings) -> dict[str, Check]:
    """Return what monitor and validate warn of about sessions, by the name of the check."""
    checks = [*(await nb.monitor(settings)).report.checks, *(await nb.validate_database(settings)).checks]
    assert all(check.remedy for check in checks if check.status == "warn")
    return {check.name: check for check in checks if "session" in check.name and check.status == "warn"}


HALF = {"largest session, 50 %", "session sizes"}
NEAR = {
    ("events", 49.99): set[str](),
    ("state", 50.01): HALF,
    ("metadata", 79.99): HALF,
    ("events", 80.01): HALF | {"largest session, 80 %"},
}


@pytest.mark.parametrize(("column", "percent"), NEAR)
async def test_a_session_that_nears_its_limit_is_named(database: Settings, column: str, percent: float) -> None:
    await add_sessions(database, "small", "it's", "other")
    size, names = int(MAX_BYTES * percent / 100), NEAR[column, percent]
    fill_column(database, "it's", column, size)
    found = {name: check for name, check in (await warned(database)).items() if "retrieval" not in name}
    assert found.keys() == names
    assert all("it's" in check.observed and column in check.observed for check in found.values())
    assert all("trim_events" in check.remedy for check in found.values())
    if names:
        assert f"{int('80 %' in ' '.join(names))} over 80 %" in found["session sizes"].observed
    assert parsed(metrics(database))[alerts.SESSION_BYTES][f"{column}, it's"] == size


async def test_validate_reads_every_session_and_monitor_says_how_many_it_looked_at(filled: Settings) -> None:
    """The large one is neither new nor used lately: monitor sees it by chance."""
    oldest = "SELECT id FROM sessions WHERE status = 'archived' ORDER BY last_update_time"
    name = query(filled.db_path, oldest)[0][0]
    fill_column(filled, name, "events", int(MAX_BYTES * 0.9))
    assert name in (await warned(filled))["session sizes"].observed
    found = await nb.monitor(filled)
    share = found.snapshot.value(alerts.READ, {"of": "sizes of sessions"}) or 0
    assert 0 < share < 1  # as many as its time allowed
    assert f"sizes of sessions from {share:.2%} of the rows" in found.report.checks[0].observed


async def test_rows_of_sixteen_megabytes_are_measured_in_time_and_no_figure_is_missing(
    database: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("_STEP_S", "_ALL_S", "_SAMPLE_S"):  # a busy machine takes ten times as long
        monkeypatch.setattr(measuring, limit, 10 * getattr(measuring, limit))
    numbers = "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 6)"
    value = f"'[\"' || {LARGE} || '\"]'"
    run_sql(
        database.db_path,
        f"INSERT INTO sessions (id, app_name, user_id, events) {numbers} SELECT n, 'a', 'u', {value} FROM n",
        "INSERT INTO memory_entries (namespace, key, value, memory_type) "
        f"{numbers} SELECT 'n:' || n, 'k', {value}, 'semantic' FROM n",
        f"INSERT INTO state (task_id, key, value) {numbers} SELECT n, 'k', {value} FROM n",  # no index has its times
    )
    async with asyncio.timeout(HUNG_S):
        found = (await nb.monitor(database)).snapshot
    assert (rows_in(found, "sessions"), rows_in(found, "memory_entries")) == (6, 9)
    assert 0 < rows_in(found, "state") <= 6
    for what in ("session", "memory"):
        assert found.value(alerts.RETRIEVAL, {"retrieval": what, "percentile": "p99"})


async def test_rows_of_which_a_hundred_take_too_long_are_read_one_by_one(conn: aiosqlite.Connection) -> None:
    numbers = "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 30000 + value)"
    rows, share = await read_some(
        conn, inf, f"SELECT ({numbers} SELECT max(n) FROM n) FROM json_each(:ids)", {}, 100, 100
    )
    assert rows
    assert share > 0.05, "on a busy machine one row may take too long"


async def test_a_value_longer_than_the_store_writes_is_not_retrieved(database: Settings) -> None:
    value = f"'[\"' || {LARGE} || {LARGE} || {LARGE} || '\"]'"
    run_sql(database.db_path, f"INSERT INTO sessions (id, app_name, user_id, events) VALUES ('s', 'a', 'u', {value})")
    found = (await nb.monitor(database)).snapshot
    assert found.value(alerts.RETRIEVAL, {"retrieval": "memory", "percentile": "p99"})
    assert found.value(alerts.RETRIEVAL, {"retrieval": "session", "percentile": "p99"}) is None


async def test_a_checkpoint_of_a_writer_gets_through_while_monitor_runs(database: Settings) -> None:
    async with nb.Database.open(database) as db:
        for n in range(30):
            await db.sessions.create_session(f"s{n}", "app", "alice")
            await db.sessions.append_event(f"s{n}", {"x": "x" * 4_000_000})
    look, begun, moments = asyncio.create_task(nb.monitor(database)), monotonic(), list[float]()
    with closing(sqlite3.connect(database.db_path, isolation_level=None, timeout=0)) as conn:
        while not look.done():
            await asyncio.sleep(0.001)
            with suppress(sqlite3.OperationalError):
                conn.execute("INSERT INTO metrics (metric_name, metric_value) VALUES ('w', 1)")
                ((busy, _, _),) = conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                moments += [] if busy else [(monotonic() - begun)]
    assert look.result().report.ok
    took = monotonic() - begun
    assert any(took / 5 < moment < took * 4 / 5 for moment in moments), (took, moments)


async def test_a_read_that_does_not_end_is_interrupted_and_the_next_one_runs(conn: aiosqlite.Connection) -> None:
    endless = "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n) SELECT count(*) FROM n"
    async with asyncio.timeout(HUNG_S):
        for until in (-inf, monotonic(), monotonic() + 0.05, inf):
            assert await rows_within(conn, until, endless, {}) is None
            assert len(await rows_within(conn, inf, "SELECT 1 AS one", {}) or ()) == 1
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        await rows_within(conn, inf, "SELECT * FROM none", {})


async def test_a_sample_of_every_row_is_exact_and_one_of_some_is_an_estimate(conn: aiosqlite.Connection) -> None:
    ask, given = load_queries("monitor.sql"), {"since": "2025-06-01", "table": "memory_entries"}
    (exact,) = [row for row in await conn.execute_fetchall(ask["growth"].sql, given) if row["rows"]]
    assert (exact["rows"], 0 < exact["recent"] < exact["rows"]) == (2003, True)
    for until, most, read in ((inf, 5000, 2003), (inf, 1000, 1000), (-inf, 5000, 100)):
        rows, share = await read_some(conn, until, ask["growth_of_some"].sql, given, 2003, most)
        found, recent = (sum(row[name] for row in rows) for name in ("rows", "recent"))
        assert (found, share) == (read, read / 2003)
        assert abs(recent / share - exact["recent"]) <= (0 if share == 1 else 800)
    versions, share = await read_some(conn, inf, ask["some_versions"].sql, given, 2003, 5000)
    ((deleted, current),) = await conn.execute_fetchall(
        "SELECT (SELECT count(*) FROM memory_entries WHERE is_deleted),"
        " (SELECT count(*) FROM (SELECT 1 FROM memory_entries WHERE NOT is_deleted GROUP BY namespace, key))"
    )
    assert share == 1
    assert [sum(row[name] for row in versions) for name in ("rows", "deleted")] == [exact["rows"], deleted]
    assert sum(row["rows"] - row["deleted"] - row["superseded"] for row in versions) == current


async def test_a_sample_is_drawn_whatever_the_last_rowid_is(conn: aiosqlite.Connection, filled: Settings) -> None:
    given = {"since": "2025-06-01", "table": "memory_entries"}
    sql = load_queries("monitor.sql")["growth_of_some"].sql
    for last in (0, 1, 100, 101, 2003, 2**63 - 1):
        rows, share = await read_some(conn, inf, sql, given, last, 3000)
        assert (share == 1) == (last < 3000)
        assert sum(row["rows"] for row in rows) == (last if share == 1 else 0)
    row = "(id, timestamp, metric_name, metric_value) VALUES ({}, '2020-01-01 00:00:00.000', 'm', 1)"
    ids = (2**62, 2**63 - 2, 2**63 - 1)
    run_sql(filled.db_path, "DELETE FROM metrics", *(f"INSERT INTO metrics {row.format(n)}" for n in ids))
    assert rows_in((await nb.monitor(filled)).snapshot, "metrics") == 3
    run_sql(filled.db_path, "DELETE FROM sessions WHERE rowid > 1", "UPDATE sessions SET rowid = -5")
    assert rows_in((await nb.monitor(filled)).snapshot, "sessions") == 1


VALUES = ("events = '[broken'", "state = x'00'", "metadata = 7", "status = 5")
SPOILT = {
    "values": [f"sessions SET {value} WHERE id = 's{n}'" for n, value in enumerate(VALUES)],
    **{of: [f"{of} = CAST(x'ff41' AS TEXT) WHERE rowid = 1"] for of in ("sessions SET id", "sessions SET events")},
    "memory_entries SET key": ["memory_entries SET key = CAST(x'ff41' AS TEXT) WHERE rowid = 1"],
}


@pytest.mark.parametrize("changes", SPOILT.values(), ids=SPOILT)
async def test_a_row_that_cannot_be_read_leaves_the_rest_measured(changes: list[str], database: Settings) -> None:
    """It is a fault of the row, and validate's to find: the database can be read."""
    await add_sessions(database, *(f"s{n}" for n in range(4)))
    run_sql(database.db_path, *(f"UPDATE {change}" for change in changes))
    found = await nb.monitor(database)
    assert (found.snapshot.value("abathur_up"), rows_in(found.snapshot, "sessions")) == (1, 4), str(found.report)


# --- the notebook and Prometheus judge by the same rules


# promtool's clock begins at 0; each rule has waited for its time by then.
MINUTES = 60
NOW = datetime.fromtimestamp(MINUTES * 60, UTC)
JUDGED = [rule for rule in alerts.RULES if rule.fires != "absent"]
SEVERITIES = {"critical": "fail", "warning": "warn"}


def sample(rule: alerts.Rule, value: float, given: dict[tuple[str, str], alerts.Sample]) -> alerts.Sample:
    """Return what makes the value of a rule, in its setting's unit, such as it is wanted."""
    value *= rule.unit.size
    if rule.per:
        return alerts.Sample(rule.per, given[key_of(rule)].value / value)
    return alerts.Sample(rule.gauge, NOW.timestamp() - value if rule.age else value, rule.labels)


def key_of(found: alerts.Rule | alerts.Sample) -> tuple[str, str]:
    return found.gauge if isinstance(found, alerts.Rule) else found.name, json.dumps(dict(found.labels))


def snapshot(settings: Settings, *others: alerts.Rule, share: float = 0.5) -> alerts.Snapshot:
    """Return a snapshot in which no rule fires, but for ``others``: their values are that share over their limits."""
    given: dict[tuple[str, str], alerts.Sample] = {}
    for rule in sorted(JUDGED, key=lambda rule: (bool(rule.per), rule not in others, -rule.limit_of(settings))):
        over = 1 + share if rule in others else 0.5
        factor = over if rule.fires == "above" else 1 / over
        if rule.gauge == "abathur_disk_free_bytes" and not rule.per and rule not in others:
            factor = 1000
        found = sample(rule, rule.limit_of(settings) * factor, given)
        given.setdefault(key_of(found), found)  # of two rules of one gauge, the one that is to fire first
    return alerts.Snapshot(NOW, alerts.place_of(settings), tuple(given.values()))


def series(found: alerts.Snapshot) -> Iterator[dict[str, str]]:
    for one in found.samples:
        labels = ",".join(f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in {**found.place, **one.labels}.items())
        yield {"series": f"{one.name}{{{labels}}}", "values": f"{one.value:.12f}+0x{MINUTES + 1}"}


def fired_in_prometheus(
    rules: dict[str, Any], cases: dict[str, tuple[list[dict[str, str]], set[str]]], folder: Path
) -> None:
    """Have promtool evaluate the rules on each case's series; fail unless exactly the expected alerts fire."""
    (folder / "rules.yml").write_text(yaml.safe_dump(rules), encoding="utf-8")
    asked = {"expr": 'count by (alertname) (ALERTS{alertstate="firing"})', "eval_time": f"{MINUTES}m"}
    tests = []
    for given, expected in cases.values():
        firing = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(expected)]
        tests += [{"interval": "1m", "input_series": given, "promql_expr_test": [{**asked, "exp_samples": firing}]}]
    told = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": tests}
    (folder / "test.yml").write_text(yaml.safe_dump(told), encoding="utf-8")
    promtool("test", "rules", folder / "test.yml")


def firing(found: alerts.Snapshot, settings: Settings) -> set[str]:
    judged = alerts.alerts_of(found, settings)
    return {check.evidence[0].partition(",")[0] for check in judged if check.status != "pass"}


@pytest.mark.needs("promtool")
def test_on_each_side_of_each_limit_and_of_now_both_judge_alike(database: Settings, tmp_path: Path) -> None:
    database = replace(database, db_path=tmp_path / 'a b"quo\\te{{brace}}ünï' / "x.db")  # which is a label
    cases = {}
    for rule in JUDGED:
        for share in (-0.01, 0, 0.01):
            found = snapshot(database, rule, share=share)
            sizes = [r for r in JUDGED if r.gauge == rule.gauge == alerts.SESSION_BYTES]
            lower = {r.name for r in sizes if r.limit_of(database) < rule.limit_of(database)}
            cases[f"{rule.name} {share}"] = (found, lower | ({rule.name} if share > 0 else set()))
        for seconds in (300, 301, 366 * 86_400) if rule.age else ():  # five minutes ahead are none
            samples = [one for one in snapshot(database).samples if one.name != rule.gauge]
            moment = alerts.Sample(rule.gauge, NOW.timestamp() + seconds)
            found = alerts.Snapshot(NOW, alerts.place_of(database), (moment, *samples))
            cases[f"{rule.name} {seconds}"] = (found, {rule.name} if seconds > AHEAD_S else set())
            told = [check for check in alerts.alerts_of(found, database) if check.status != "pass"]
            assert all(check.observed.endswith(" in the future") for check in told)
            assert all("timedatectl" in check.remedy for check in told)
    cases["all"] = (snapshot(database, *JUDGED), {rule.name for rule in JUDGED})
    for name, (found, expected) in cases.items():
        assert firing(found, database) == expected, name
    given = {name: ([*series(found)], expected) for name, (found, expected) in cases.items()}
    fired_in_prometheus(alerts.prometheus_rules(database), given, tmp_path)


@pytest.mark.needs("promtool")
def test_a_rule_waits_before_it_fires_and_one_fires_where_nobody_measures(database: Settings, tmp_path: Path) -> None:
    found = snapshot(database, *JUDGED)
    lately = [{**one, "values": f"_x{MINUTES - 1} {one['values'].partition('+')[0]}+0x1"} for one in series(found)]
    at_once = {rule.name for rule in JUDGED if rule.wait == "0m"}
    assert 0 < len(at_once) < len(JUDGED)
    cases = {"lately": (lately, at_once), "none": (list[dict[str, str]](), {"AbathurMetricsAbsent"})}
    fired_in_prometheus(alerts.prometheus_rules(database), cases, tmp_path)


def test_a_critical_alert_fails_where_the_settings_say_so_and_warns_elsewhere(database: Settings) -> None:
    assert (nb.resolve("development").alerts_fail, nb.resolve("production").alerts_fail) == (False, True)
    for rule, strict in product(JUDGED, (True, False)):
        checks = alerts.alerts_of(snapshot(database, rule), replace(database, alerts_fail=strict))
        (check,) = (check for check in checks if check.name == rule.title)
        assert (check.status, bool(check.remedy)) == (SEVERITIES[rule.severity] if strict else "warn", True)
        assert rule.expression(database) in check.evidence[0]


@pytest.mark.needs("promtool")
def test_prometheus_loads_the_rules_of_an_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABATHUR_BACKUP_MAX_AGE_HOURS", "50")
    done = command("alerts", "--env", "production")
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "rules.yml").write_text(done.stdout)
    promtool("check", "rules", tmp_path / "rules.yml")
    rules = {rule["alert"]: rule for rule in yaml.safe_load(done.stdout)["groups"][0]["rules"]}
    assert list(rules) == [rule.name for rule in alerts.RULES]
    old = rules["AbathurBackupOld"]
    assert re.search(r'env="production".* > 180000\.0 or .* < -300$', old["expr"])
    assert "over 50.0 hours" in old["annotations"]["summary"]


# --- what Prometheus collects is what was measured, or says that nothing could be


@pytest.mark.needs("promtool")
async def test_promtool_has_nothing_to_say_of_the_metrics_whatever_the_names_are(database: Settings) -> None:
    row = "INSERT INTO memory_entries (namespace, key, value, memory_type) VALUES ('{}', 'k', '{{}}', 'semantic')"
    names = ('a:"} 9\nabathur_up 0', "a:\\", "a:\u202e", "a:{{x}}")
    run_sql(database.db_path, *ROWS, *(row.format(name) for name in names))
    with untouched(database.db_path):
        text = metrics(database)
    assert promtool("check", "metrics", given=text) == ""
    found = parsed(text)
    assert (found.keys(), found["abathur_up"]) == (alerts.GAUGES.keys(), {"": 1})
    assert len(found["abathur_namespace_rows"]) == 3 + 1 + 4
    assert f'database="{database.db_path}",env="development"' in text


@pytest.mark.needs("strace")
def test_the_file_is_replaced_whole_and_its_scratch_file_private(database: Settings, tmp_path: Path) -> None:
    folder, log = tmp_path / "textfile", tmp_path / "log"
    folder.mkdir()
    file = folder / "abathur.prom"
    file.write_text("old")
    traced = ["strace", "-f", "-y", "-e", "trace=openat,rename,renameat2", "-o", str(log)]
    arguments = ["metrics", "--db-path", str(database.db_path), "--output", str(file)]
    subprocess.run([*traced, sys.executable, "-m", "abathur_nb", *arguments], check=True, umask=0)
    (made,) = (line for line in log.read_text().splitlines() if "O_CREAT" in line and f'"{folder}/' in line)
    assert "O_EXCL" in made
    assert ", 0600) = " in made
    assert parsed(file.read_text())["abathur_up"] == {"": 1}
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert list(folder.iterdir()) == [file]


@pytest.mark.parametrize(
    "name", sampled(("x.txt", "no/where/x.prom", "folder.prom", "link.prom", ""), "x.txt", "link.prom")
)
def test_an_output_that_nobody_would_collect_or_write_is_refused(name: str, database: Settings, tmp_path: Path) -> None:
    (tmp_path / "folder.prom").mkdir()
    (tmp_path / "link.prom").symlink_to("elsewhere")
    with tmpfs(tmp_path / "full", "nr_inodes=1") as full:
        for place, words in ((tmp_path / name, "--output: "), (full / "x.prom", f"the disk of {full} is full")):
            done = command("metrics", "--db-path", str(database.db_path), "--output", str(place))
            assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
            assert words in done.stderr


async def test_of_a_database_that_cannot_be_read_just_that_is_collected(database: Settings, tmp_path: Path) -> None:
    database.db_path.write_bytes(b"x" * 5000)
    file = tmp_path / "abathur.prom"
    done = command("metrics", "--db-path", str(database.db_path), "--output", str(file))
    assert done.returncode == 1
    assert "not SQLite" in done.stderr
    found = parsed(file.read_text())
    assert found["abathur_up"] == {"": 0}
    assert found["abathur_database_bytes"] == {"": 5000}
    assert "abathur_rows" not in found
