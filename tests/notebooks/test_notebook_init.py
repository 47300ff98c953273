"""init.ipynb: the database stands, whole and valid, or nothing was made; what is there already stays."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from damage import drop_index, fingerprint, untouched
from notebook_runs_helpers import NOTEBOOKS, Run, in_kernel, papermill

import abathur_nb as nb
from abathur_nb.config.settings import Settings

SOURCE = NOTEBOOKS / "init.ipynb"


def init(path: Path, output: Path, *arguments: str) -> Run:
    return papermill(SOURCE, output, "-r", "db_path", str(path), *arguments)


async def holds_a_valid_database(path: Path) -> bool:
    return (await nb.validate_database(nb.resolve(db_path=path))).ok


async def test_on_a_fresh_path_it_makes_the_database_and_a_second_run_changes_no_byte(
    settings: Settings, tmp_path: Path
) -> None:
    path = settings.db_path
    first = init(path, tmp_path / "1.ipynb").succeeded()
    made = fingerprint(path)
    assert await holds_a_valid_database(path)
    assert (os.stat(path).st_mode & 0o777, os.stat(path.parent).st_mode & 0o777) == (0o600, 0o700)
    # Each step of the runbook's section 2, numbered as it is there.
    for step in ("2.1", "2.2", "2.3", "2.4", "2.5", "2.6", "2.7"):
        assert f"pass           {step} " in first.report or f"✓ pass           {step} " in first.report, (
            step,
            first.report,
            first.messages,
        )
    assert "<b>memory_entries</b> — 3 rows" in "".join(first.shown())
    assert first.cells[5].source.startswith("preflight.raise_for_failures()\n")

    second = init(path, tmp_path / "2.ipynb").succeeded()
    assert "create: already initialized: left as it is" in second.report
    assert fingerprint(path) == made


def test_a_dry_run_shows_the_exact_statements_and_leaves_nothing(
    settings: Settings, home: Path, tmp_path: Path
) -> None:
    run = init(settings.db_path, tmp_path / "out.ipynb", "-y", "dry_run: true").succeeded()
    assert run.report.startswith("initialize (dry run) passed: ")
    html = "".join(run.shown())
    for statement in (
        "PRAGMA journal_mode = WAL;",
        "CREATE TABLE memory_entries",
        "CREATE INDEX idx_audit_task",
        "COMMIT;",
    ):
        assert statement in html
    assert "not made yet: this is the schema of sql/" in html
    assert {path.name for path in tmp_path.iterdir()} == {"out.ipynb"}
    assert not (home / "abathur_data").exists()


def test_without_a_path_it_makes_developments_database(home: Path, tmp_path: Path) -> None:
    papermill(SOURCE, tmp_path / "out.ipynb").succeeded()
    assert {path.name for path in (home / "abathur_data").iterdir()} <= {
        "abathur.db",
        "abathur.db-wal",
        "runs",
        "abathur.db-shm",
    }
    assert (home / "abathur_data" / "abathur.db").stat().st_size > 0


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"this is a text, and by no means a database\n" * 50, "is not SQLite or is encrypted"),
        (b"", "empty shell of 0 bytes"),
    ],
    ids=["a text", "an empty shell"],
)
def test_what_is_no_database_is_refused_and_stays(content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(content)
    with untouched(path):
        run = init(path, tmp_path / "out.ipynb")
    run.failed("ChecksFailedError: preflight of ", "database file: ").showed_its_report()
    assert told in run.report
    assert {path.name for path in tmp_path.iterdir()} == {"x.db", "out.ipynb", "runs"}


def test_a_database_of_another_application_is_refused_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("CREATE TABLE others (things)")
        conn.execute("PRAGMA application_id = 7")
    with untouched(path):
        run = init(path, tmp_path / "out.ipynb").failed("another application's")
    run.showed_its_report()


async def test_a_database_that_is_not_valid_is_left_as_it_is_and_the_verdict_says_so(
    database: Settings, tmp_path: Path
) -> None:
    drop_index(database.db_path)
    with untouched(database.db_path):
        run = await in_kernel(SOURCE, tmp_path, db_path=str(database.db_path))
    assert run.code == 1
    assert "initialize of " in run.error
    assert "indexes: 32 indexes; missing: idx_audit_task" in run.error
    assert "papermill troubleshoot.ipynb" in run.report
    run.showed_its_report()


@pytest.mark.parametrize("env", ["staging", "production"])
async def test_the_stricter_environments_take_a_path_of_ones_own(env: str, public: Path, tmp_path: Path) -> None:
    path = public / "own" / "abathur.db"
    run = init(path, tmp_path / "out.ipynb", "-p", "env", env).succeeded()
    assert f"<td style='text-align:left;overflow-wrap:anywhere'>{env}</td>" in run.shown()[0]
    assert str(path.parent / "backups") in run.shown()[0]  # not production's /backups, which belongs to its own data
    assert await holds_a_valid_database(path)
    assert not Path("/var/lib/abathur").exists() or path.parent != Path("/var/lib/abathur")


async def test_an_environment_of_ones_own_comes_from_the_settings_file(tmp_path: Path) -> None:
    config = tmp_path / "own.toml"
    config.write_text(f'[environments.rehearsal]\ndb_path = "{tmp_path}/made/r.db"\nsynchronous = "FULL"\n')
    env = {"ABATHUR_CONFIG": str(config)}
    run = papermill(SOURCE, tmp_path / "out.ipynb", "-p", "env", "rehearsal", env=env).succeeded()
    assert f"settings file {config}" in run.shown()[0]
    assert "synchronous = 2" in run.report
    assert await holds_a_valid_database(tmp_path / "made" / "r.db")


def test_a_settings_file_that_is_missing_or_faulty_stops_it_before_anything_is_made(tmp_path: Path) -> None:
    config = tmp_path / "own.toml"
    config.write_text('[environments.rehearsal]\ndb_pth = "/x"\nreaders = 0\n')
    run = papermill(SOURCE, tmp_path / "out.ipynb", "-p", "env", "rehersal", env={"ABATHUR_CONFIG": str(config)})
    run.failed("ConfigurationError: ", "did you mean rehearsal?", "did you mean db_path?")
    assert {path.name for path in tmp_path.iterdir()} == {"own.toml", "out.ipynb"}
