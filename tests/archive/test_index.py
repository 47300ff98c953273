"""What the index tells of each environment: the newest runs of its database, and what keeps it from telling them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import archives
import pytest
from archives import run_at

import abathur_nb as nb
from abathur_nb.config.settings import Settings
from abathur_nb.evidence.ledger import LEDGER
from abathur_nb.evidence.record import RECORD
from abathur_nb.report import Check

MORNING, NOON, EVENING = "20261001T080000", "20261001T120000", "20261001T180000"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have every environment but development below a directory of the test, and return the settings file."""
    file = tmp_path / "abathur.toml"
    file.write_text(
        "".join(
            f'[environments.{env}]\ndb_path = "{tmp_path}/{env}/abathur.db"\narchive_dir = "{tmp_path}/{env}/runs"\n'
            for env in ("staging", "production", "qa")
        ),
        encoding="utf-8",
    )
    monkeypatch.setenv("ABATHUR_CONFIG", str(file))
    return file


def check(overview: nb.Overview, env: str = "development") -> Check:
    return archives.check(overview.report, env)


def cell(overview: nb.Overview, notebook: str, env: str = "development") -> str:
    table = overview._table()
    (row,) = (row for row in table.rows if row[0] == notebook)
    return row[table.heads.index(env)]


def test_of_each_notebook_the_newest_run_is_told_whatever_its_verdict(settings: Settings) -> None:
    run_at(settings, MORNING, "validate", "fail", reports=(archives.RED,))
    run_at(settings, NOON, "validate")
    run_at(settings, MORNING, "backup")
    failed = run_at(settings, EVENING, "backup", "fail", reports=(archives.RED,))
    dead = run_at(settings, NOON, "explain", None)
    overview = nb.show_environments(settings)
    assert cell(overview, "validate") == "✓ pass\n2026-10-01 12:00:00"
    assert cell(overview, "backup") == "✗ fail\n2026-10-01 18:00:00"
    assert cell(overview, "explain") == "? unsealed\n2026-10-01 12:00:00"
    assert cell(overview, "init") == "–"
    found = check(overview)
    assert (found.status, found.observed) == ("warn", "backup fail, explain unsealed")
    assert found.evidence == (f"{failed} backup fail: tables", f"{dead} explain unsealed")
    assert overview.report.ok, "of a run that failed, its own verdict has told"


def test_each_environment_is_read_from_its_own_archive(settings: Settings) -> None:
    staging = nb.resolve("staging")
    staging.archive_dir.parent.mkdir(mode=0o700)
    run_at(staging, NOON, "validate", "fail", reports=(archives.RED,))
    run_at(settings, NOON, "validate")
    overview = nb.show_environments(settings)
    assert (cell(overview, "validate"), cell(overview, "validate", "staging")) == (
        "✓ pass\n2026-10-01 12:00:00",
        "✗ fail\n2026-10-01 12:00:00",
    )
    assert (check(overview).status, check(overview, "staging").status) == ("pass", "warn")
    assert check(overview, "production").status == "skip"


def test_runs_of_another_database_or_environment_are_not_its_own(settings: Settings, tmp_path: Path) -> None:
    other = nb.resolve("development", db_path=tmp_path / "other.db", archive_dir=settings.archive_dir)
    qa = nb.resolve("qa", db_path=settings.db_path, archive_dir=settings.archive_dir)
    run_at(other, NOON, "validate")
    run_at(other, NOON, "explain", None)
    run_at(qa, NOON, "init")
    overview = nb.show_environments(settings)
    assert overview.newest["development"] == {}
    assert check(overview).observed == "no run of its database yet"


@pytest.mark.parametrize("file", [RECORD, LEDGER])
def test_an_archive_that_is_not_as_it_was_written_fails_and_names_the_first_fault(
    file: str, settings: Settings
) -> None:
    folder = run_at(settings, MORNING, "init")
    run_at(settings, NOON)
    path = settings.archive_dir / file if file == LEDGER else folder / file
    path.write_bytes(path.read_bytes().replace(b'"verdict":"pass"', b'"verdict":"fail"', 1))
    overview = nb.show_environments(settings)
    found = check(overview)
    assert found.status == "fail"
    assert found.observed.startswith("altered or damaged: ")
    assert found.remedy == f"python -m abathur_nb verify {settings.archive_dir}"
    assert any(file in line for line in found.evidence)
    if file == RECORD:
        assert cell(overview, "init") == "✗ altered\n2026-10-01 08:00:00"


def test_an_archive_of_another_account_is_skipped_but_ones_own_must_be_read() -> None:
    staging = nb.resolve("staging")
    staging.archive_dir.parent.mkdir(mode=0o700)
    run_at(staging, NOON)
    told = {}
    staging.archive_dir.parent.chmod(0)
    try:
        for env in ("development", "staging"):
            program = f"import abathur_nb as nb; print(nb.show_environments(nb.resolve({env!r})).report.to_json())"
            # Not even root enters a closed directory without this.
            bounded = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
            done = subprocess.run([*bounded, sys.executable, "-c", program], capture_output=True, text=True, check=True)
            told[env] = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    finally:
        staging.archive_dir.parent.chmod(0o700)
    found = told["development"]["staging"]
    assert found["status"] == "skip"
    assert found["observed"] == f"could not run: {staging.archive_dir} cannot be read: Permission denied"
    assert "run this notebook as abathur, who owns it" in found["remedy"]
    assert told["staging"]["staging"]["status"] == "error"


def test_settings_that_are_wrong_fail_their_environment_and_the_others_are_told(
    settings: Settings, elsewhere: Path
) -> None:
    run_at(settings, NOON)
    with elsewhere.open("a", encoding="utf-8") as file:
        file.write('readers = "many"\nmemory_p99_ms = 0\n')
    overview = nb.show_environments(settings)
    found = check(overview, "qa")
    assert found.status == "fail"
    assert "readers (from settings file" in found.observed
    assert "memory_p99_ms (from settings file" in found.observed
    assert cell(overview, "database", "qa") == "?"
    assert check(overview).status == "pass"
    assert not overview.report.ok
