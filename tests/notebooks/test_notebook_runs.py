"""Each notebook run by papermill, as an operator runs it; what it shows and how it fails, in this process."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import archives
import nbformat
import pytest
from archives import run_at
from cells import NOTEBOOKS, Outcome, fresh, run_cells
from damage import AGENT, MEMORY, ROWS, TASK, drop_index, fingerprint, flip_bits, query, run_sql, spoil_json, untouched
from explore_helpers import HOSTILE, fill, insert
from IPython.core.interactiveshell import InteractiveShell
from notebook_runs_helpers import papermill
from patience import GENEROUS
from running import record_of
from situations import edited, gone, leave, spoiled, tree

import abathur_nb as nb
from abathur_nb.config.settings import Settings, resolve
from abathur_nb.evidence.record import RECORD, Entry, read_archive

NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
WITHOUT_A_DATABASE = {"history", "index", "init", "preflight", "readiness", "restore"}
# Enough of everything for the benchmark to claim a p99, and no more.
QUICK: dict[str, dict[str, Any]] = {"benchmark": {"rows": 500, "repetitions": 299}, "rollback": {"to": "fresh"}}
Run = Callable[..., Outcome]


@pytest.fixture
def run(shell: InteractiveShell, settings: Settings) -> Run:
    """Return what runs a notebook on the test's database."""

    def run_it(name: str, **parameters: Any) -> Outcome:
        return run_cells(fresh(shell), name, **{"db_path": str(settings.db_path), **parameters})

    return run_it


def own(settings: Settings) -> Entry:
    """Return the newest run of the archive."""
    return read_archive(settings.archive_dir)[-1]


# Nothing is ready before it is proven.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "readiness"])
async def test_a_copy_passes_under_papermill_from_any_directory(name: str, database: Settings, tmp_path: Path) -> None:
    away = tmp_path / "away"
    away.mkdir()
    if name == "restore":
        (await nb.backup_database(database)).raise_for_failures()
    copy = Path(shutil.copy(NOTEBOOKS / f"{name}.ipynb", tmp_path))
    before = copy.read_bytes()
    given: dict[str, Any] = {**QUICK.get(name, {}), "db_path": database.db_path}
    if name == "fleet":
        given["inventory"] = tmp_path / "fleet.toml"
        other = resolve(db_path=tmp_path / "other" / "abathur.db")
        await nb.initialize_database(other)
        databases = json.dumps([str(other.db_path)])
        given["inventory"].write_text(f'[hosts.here]\nenv = "development"\ndatabases = {databases}')
    arguments = [word for key, value in given.items() for word in ("-p", key, str(value))]
    with untouched(database.db_path):
        done = papermill(copy, tmp_path / "out.ipynb", *arguments, cwd=away, env=GENEROUS).succeeded()
    title = "initialize" if name == "init" else name
    assert done.report.startswith((f"{title} passed: ", f"{title} (plan) passed: "))
    subject = {"history": database.archive_dir, "fleet": given.get("inventory")}.get(name, database.db_path)
    assert done.report.splitlines()[1].strip().startswith(f"{subject} · ")
    assert "<p>abathur_nb " in done.of("execute_result")[0].data["text/html"], "settings of this run, versions, time"
    assert list(away.iterdir()) == []
    assert copy.read_bytes() == before
    beside = {path.name for path in database.db_path.parent.iterdir()}
    assert beside <= {"abathur.db", "abathur.db-wal", "abathur.db-shm", "backups", "runs"}
    assert_recorded(name, database)


def assert_recorded(name: str, settings: Settings) -> None:
    record = record_of(own(settings))
    assert (record["notebook"], record["verdict"]) == (name, "pass")


@pytest.mark.parametrize("name", ["preflight", "init", "validate", "explain", "backup", "troubleshoot"])
def test_a_run_without_a_picture_loads_no_matplotlib_and_no_pandas(
    name: str, database: Settings, tmp_path: Path
) -> None:
    """Each costs a run more time than all that it does."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell("import sys; print(*sys.modules)"))
    nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    arguments = ("-p", "db_path", database.db_path)
    done = papermill(tmp_path / f"{name}.ipynb", tmp_path / "out.ipynb", *arguments, env=GENEROUS).succeeded()
    loaded = {module.partition(".")[0] for module in done.of("stream")[-1].text.split()}
    assert "abathur_nb" in loaded
    assert loaded & {"matplotlib", "numpy", "pandas", "nbformat"} == set()


def test_a_failure_is_one_line_and_papermill_exits_with_1(database: Settings, tmp_path: Path) -> None:
    drop_index(database.db_path)
    done = papermill(NOTEBOOKS / "validate.ipynb", tmp_path / "out.ipynb", "-p", "db_path", database.db_path)
    done.failed(f"ChecksFailedError: validate of {database.db_path}: ", "missing: idx_audit_task")
    assert "missing: idx_audit_task" in done.report


def test_init_makes_the_database_and_a_second_run_changes_no_byte(run: Run, settings: Settings) -> None:
    planned = run("init", dry_run=True).passed()
    assert planned.report.startswith("initialize (dry run) passed: ")
    html = "".join(planned.of("text/html"))
    for statement in ("PRAGMA journal_mode = WAL;", "CREATE TABLE memory_entries", "CREATE INDEX idx_audit_task"):
        assert statement in html
    assert "not made yet: this is the schema of sql/" in html
    assert not settings.db_path.parent.exists()
    first = run("init").passed()
    made = fingerprint(settings.db_path)
    for step in ("2.1", "2.2", "2.3", "2.4", "2.5", "2.6", "2.7"):  # numbered as in section 2 of the prose runbook
        assert re.search(rf"^✓ pass +{step} ", first.report, re.MULTILINE), first.report
    assert "<b>memory_entries</b> — 3 rows" in "".join(first.of("text/html"))
    run("validate").passed()
    assert "create: already initialized: left as it is" in run("init").passed().report
    assert fingerprint(settings.db_path) == made


@pytest.mark.parametrize("env", ["staging", "production", "rehearsal"])
def test_an_environment_takes_ones_own_path(env: str, public: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    config, path = public / "own.toml", public / "own" / "x.db"
    config.write_text(f'[environments.rehearsal]\ndb_path = "{path}"\nsynchronous = "FULL"\n')
    monkeypatch.setenv("ABATHUR_CONFIG", str(config))
    done = run("init", env=env, db_path=None if env == "rehearsal" else str(path)).passed()
    for shown in (f">{env}</td>", f"{path.parent}/backups"):  # not production's own /backups
        assert shown in done.of("text/html")[0]
    assert ("synchronous = 2" in done.report) == (env == "rehearsal")
    assert path.stat().st_size


SHOWS: dict[str, tuple[dict[str, Any], int, tuple[str, ...]]] = {  # given, how many pictures, what is shown
    "validate": ({}, 0, ("CREATE INDEX idx_memory_", "memory_entries · rows ", "░</td>")),
    "explain": ({}, 0, ("get_session", "search_memories", "33 of 33 indexes serve a query", "child_tasks, delete")),
    "explore": (
        {"session": "s1", "key": "tea"},
        1,
        ("<title>Diagram of 9 tables", "app:mode", 'value["kinds"][1]', "user:alice:likes tea: 3 versions", "last day"),
    ),
    "monitor": ({}, 1, ("age of the last proven backup: ",)),
    "index": ({}, 0, ("✗ fail\n2026-10-04 08:00:00", "development: validate fail")),
    "history": (
        {},
        3,
        (
            *("newest validate: fail: tables, 2026-10-04 08:00:00, run ", "sealed: missing for 1 run"),
            *("pass → fail", "idx_a</td>", "→ nothing", "Verdicts of 5 runs, 2026-10-01 to 2026-10-05: "),
            "p99 0.7 ms at first",
        ),
    ),
    "preflight": ({"team_trained": "Ada, 2026-11-20"}, 0, ("team trained on procedures: said by Ada on 2026-11-20",)),
}
LIMITED = {**archives.FACTS, "limits_ms": {"session retrieval": ["p99", 10.0]}, "machine": {"rows": 500}}


def eventful(settings: Settings) -> Path:
    """Make an archive in which much has happened, and return its directory."""
    run_at(settings, "20261001T080000", "init", facts=LIMITED)
    run_at(settings, "20261002T080000", "benchmark", facts=LIMITED)
    without = {**LIMITED, "schema": {"tasks": LIMITED["schema"]["tasks"]}}
    run_at(settings, "20261003T080000", "validate", facts=LIMITED)
    run_at(settings, "20261004T080000", "validate", "fail", reports=(archives.RED,), facts=without)
    run_at(settings, "20261005T080000", "explain", None)
    return settings.archive_dir


@pytest.fixture
async def rich(database: Settings) -> Settings:
    """Return the settings of a database with rows, a history, what somebody hostile wrote, and an eventful archive."""
    run_sql(database.db_path, *(row for row in ROWS if "'s1'" not in row))
    await fill(database)
    insert(database, "INSERT INTO sessions (id, app_name, user_id) VALUES (?1, ?1, ?1)", HOSTILE)
    eventful(database)
    return database


@pytest.mark.parametrize("name", SHOWS)
def test_it_shows_what_there_is_changes_nothing_and_is_recorded(name: str, rich: Settings, run: Run) -> None:
    given, pictures, shown = SHOWS[name]
    with untouched(rich.db_path):
        done = run(name, **given).passed()
    assert len(done.of("image/png")) == pictures
    everything = "".join(str(text) for data in done.shown for text in data.values())
    for words in shown:
        assert words in everything, words
    assert "<script" not in "".join(done.of("text/html"))
    assert_recorded(name, rich)
    record = record_of(own(rich))
    assert given.items() <= record["parameters"].items()
    for part, key, value in {"explore": [("rows", "sessions", 2)], "history": [("history", "runs", 5)]}.get(name, []):
        assert record["facts"][part][key] == value


def rewrite(old: bytes, new: bytes) -> Callable[[Settings], object]:
    """Return what makes a run and alters its record."""
    return spoiled(lambda content: content.replace(old, new), lambda s: [run_at(s, "20261001T080000") / RECORD])


lacking = edited("DROP INDEX idx_audit_task")
text = spoiled(lambda _: b"text\n" * 999, lambda settings: [settings.db_path])
VIRTUAL = 'CREATE VIRTUAL TABLE "$\\frac$<script>alert(1)</script>" USING fts5(x)'
MISSED = "audit_of_task: full scan of the index idx_audit_timestamp; idx_audit_task is not used"
SMALL = QUICK["benchmark"]
# The notebook, what is spoiled, what is given (in capitals: a variable), words of the error, and words that are shown.
Fails = tuple[str, Callable[[Settings], object], dict[str, Any], str, tuple[str, ...]]
FAILS: tuple[Fails, ...] = (
    ("validate", lacking, {}, "missing: idx_audit_task", ("CREATE INDEX idx_audit_task ON audit",)),
    ("validate", lambda s: spoil_json(s.db_path), {}, "broken: tasks.input_data", ("1 row, by key: 't1'",)),
    ("validate", edited(VIRTUAL), {}, "virtual table $\\frac$<script>", ("$\\frac$<script>",)),
    ("explain", lacking, {}, "idx_audit_task", (MISSED,)),
    ("init", text, {}, "preflight of ", ("is not SQLite",)),
    ("init", lacking, {}, "missing: idx_audit_task", ("-m abathur_nb run troubleshoot",)),
    (
        "preflight",
        text,
        {"ABATHUR_MIN_FREE_MB": str(10**9)},
        "free disk: ",
        ("database file: ",),
    ),
    ("monitor", lambda s: flip_bits(s.db_path, 0, 999), {"record": True}, "monitor of", ()),
    ("monitor", leave, {"ABATHUR_ALERTS_FAIL": "true"}, "age of the last proven backup: ", ()),
    ("index", rewrite(b'"verdict":"pass"', b'"verdict":"fail"'), {}, f"/{RECORD}: ", ()),
    ("history", rewrite(b"[0.5,0.7,null]", b"[0.5,0.6,null]"), {}, f"/{RECORD}: its hash is not the one", ()),
    ("benchmark", leave, {**SMALL, "ABATHUR_SESSION_P99_MS": "0.001"}, ": not met", ("p99 < 0.001 ms, with 95 %",)),
    ("readiness", leave, {}, "readiness of", ("run explain --env development",)),
)


@pytest.mark.parametrize("fails", FAILS, ids=[f"{name} {n}" for n, (name, *_) in enumerate(FAILS)])
def test_it_fails_and_changes_nothing(
    fails: Fails, database: Settings, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, spoil, given, error, shown = fails
    spoil(database)
    for variable, value in {**GENEROUS, **{key: value for key, value in given.items() if key.isupper()}}.items():
        monkeypatch.setenv(variable, value)
    with untouched(database.db_path):
        done = run(name, **{key: value for key, value in given.items() if not key.isupper()})
    done.failed(error).showed_its_report()
    told = "\n".join(str(text) for data in done.shown for text in data.values())
    for words in shown:
        assert words in told, words
    assert "<script>" not in "".join(done.of("text/html"))
    assert own(database).verdict in ("fail", "refused")


def test_a_parameter_that_is_refused_stops_it_before_anything_is_done(run: Run, database: Settings) -> None:
    refused: tuple[tuple[str, str, Any, str], ...] = (
        ("benchmark", "compare_with", "2001", "run '2001': expected the beginning of one run id, found none"),
        ("history", "archive", "/none", "archive: expected the directory of an archive, found none at /none"),
        ("rollback", "apply", True, "to: expected 'fresh' or a backup"),
        # By the guard, so that no run begins.
        ("explore", "limit", 1001, "1..1000"),
        ("history", "archive", 7, "archive: expected str, found "),
        ("preflight", "team_trained", "yes", 'as in "Ada Lovelace, 2026-11-20", found'),
    )
    for number, (name, parameter, value, told) in enumerate(refused, 1):
        with untouched(database.db_path):
            stopped = run(name, **{parameter: value}).failed("Error: ", told)
        assert stopped.before == (number > 3), "nothing of the cell was run"
        assert [entry.verdict for entry in read_archive(database.archive_dir)] == ["refused"] * min(number, 3)


def test_where_there_is_nothing_nothing_is_made(run: Run, settings: Settings) -> None:
    for name in NAMES:
        if name == "fleet":  # it is about other databases, and its record anchors theirs
            continue
        done = run(name, **QUICK.get(name, {}))
        if name in ("preflight", "index"):
            done.passed()
        elif name not in WITHOUT_A_DATABASE:
            done.failed(f"{name} of {settings.db_path}: refused: database file: no database").showed_its_report()
            assert "-m abathur_nb run init --env development -p db_path" in done.report
        elif name != "init":
            assert done.line
        if name == "init":
            shutil.rmtree(settings.db_path.parent)
        assert fingerprint(settings.db_path.parent) is None, name


def namespaces(settings: Settings) -> set[str]:
    return {name for (name,) in query(settings.db_path, "SELECT namespace FROM memory_entries")}


def test_what_is_lost_comes_back_and_what_was_stays(
    run: Run, database: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_sql(database.db_path, MEMORY)
    run("backup", reason="before").passed()
    run_sql(database.db_path, "UPDATE memory_entries SET namespace = 'user:bob' WHERE namespace = 'user:a'")
    with untouched(database.db_path):
        assert "restore (plan) passed" in run("restore").passed().report
        drill = run("restore", drill=True).passed().report
    assert {"RTO: ", "RPO: "} <= {*re.findall("R[TP]O: ", drill)}
    assert "abathur_pre_restore_" in run("restore", apply=True).passed().report
    assert {"user:a", "app:abathur:config"} <= namespaces(database)
    assert "user:bob" not in namespaces(database)
    kept = next(name for name, *_ in nb.show_backups(database).rows if "pre_restore" in name)
    run("restore", apply=True, backup=kept).passed()
    assert "user:bob" in namespaces(database), "undone"
    monkeypatch.setenv("ABATHUR_CONFIRM_CHANGES", "true")
    with untouched(database.db_path):
        run("rollback", to="fresh").passed()
        refused = run("rollback", to="fresh", apply=True)
        refused.failed("rollback of", "refused").showed_its_report()
        run("rollback", to="fresh", apply=True, confirm="0123456789abcdef").failed("plan")
    confirm = refused.report.rpartition("-p confirm ")[2].split()[0]
    run("rollback", to="fresh", apply=True, confirm=confirm).passed()
    assert len(namespaces(database)) == 3


def test_a_spoiled_database_is_diagnosed_then_repaired_and_its_rows_are_put_back(run: Run, database: Settings) -> None:
    run_sql(database.db_path, TASK, AGENT, "DELETE FROM tasks", "DROP INDEX idx_audit_task")
    with untouched(database.db_path):
        found = run("troubleshoot").failed("troubleshoot (plan) of").showed_its_report()
    assert "DELETE FROM agents WHERE" in found.report
    repaired = run("troubleshoot", repair=True).passed()
    run("validate").passed()
    run_sql(database.db_path, TASK)
    put_back = repaired.report.rpartition("-p put_back ")[2].split()[0]
    run("troubleshoot", repair=True, put_back=put_back).passed()
    assert query(database.db_path, "SELECT id FROM agents") == [("a1",)]


def test_history_reads_a_copy_and_the_archive_of_a_lost_database(run: Run, database: Settings, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(eventful(database), tmp_path / "copy"))
    gone(database)
    before = tree(copy)
    for given in ({"archive": str(copy)}, {}):
        done = run("history", **given).passed()
        assert any(text.startswith("Verdicts of ") for text in done.of("text/plain"))
    assert tree(copy) == before
    record = record_of(own(database))
    assert (record["verdict"], record["database"]) == ("pass", {"before": None, "after": None})
    assert record["facts"]["history"]["archive"] == str(database.archive_dir)
