"""benchmark.ipynb: a limit is met, not met, or not proven; the live rows stay."""

import json
from pathlib import Path

from damage import untouched
from patience import GENEROUS
from test_notebook_runs import NOTEBOOKS, Run, papermill

import abathur_nb as nb
from abathur_nb.config.settings import Settings

SOURCE = NOTEBOOKS / "benchmark.ipynb"


def benchmark(database: Settings, output: Path, *arguments: str, **env: str) -> Run:
    path = str(database.db_path)
    with untouched(database.db_path):
        run = papermill(SOURCE, output, "-r", "db_path", path, "-p", "rows", "500", *arguments, env={**GENEROUS, **env})
    beside = {path.name for path in database.db_path.parent.iterdir()}
    assert beside <= {"abathur.db", "abathur.db-wal", "abathur.db-shm", "runs"}
    return run


async def test_a_full_run_is_held_against_an_earlier_one_and_saved_for_the_next(
    database: Settings, tmp_path: Path
) -> None:
    earlier, saved = tmp_path / "earlier.json", tmp_path / "saved.json"
    (await nb.run_benchmark(database, rows=500, repetitions=299)).save(earlier)
    arguments = (
        "-y",
        "full: true",
        "-p",
        "repetitions",
        "299",
        "-r",
        "baseline",
        str(earlier),
        "-r",
        "save_to",
        str(saved),
    )
    with untouched(earlier):
        run = benchmark(database, tmp_path / "out.ipynb", *arguments).succeeded()
    assert run.report.count(" samples: met") == 3
    assert "memory retrieval against the baseline: " in run.report
    assert "the baseline's machine: the same" in run.report
    assert len(run.shown("image/png")) == 3  # the two curves are drawn with `full` only
    assert saved.stat().st_mode & 0o777 == 0o600
    assert json.loads(saved.read_text())["report"]["ok"] is True
    assert f"'saved as {saved}'" in run.shown("text/plain")


def test_a_limit_that_is_not_met_fails_it_by_name(database: Settings, tmp_path: Path) -> None:
    run = benchmark(database, tmp_path / "out.ipynb", "-p", "repetitions", "299", ABATHUR_SESSION_P99_MS="0.001")
    run.failed(f"benchmark of {database.db_path}: 1 of 3 checks failed: session retrieval: p99 ", ": not met")
    run.showed_its_report()
    assert "p99 < 0.001 ms, with 95 % confidence" in run.report
    assert run.report.count(" samples: met") == 2


def test_too_few_repetitions_prove_nothing_and_fail_it(database: Settings, tmp_path: Path) -> None:
    run = benchmark(database, tmp_path / "out.ipynb", "-p", "repetitions", "298")
    run.failed("2 of 3 checks failed: ", "298 samples: not enough samples").showed_its_report()
    assert "ask for more: -p repetitions 1000" in run.report


def test_a_baseline_that_is_none_stops_it_before_anything_is_measured(database: Settings, tmp_path: Path) -> None:
    run = benchmark(database, tmp_path / "out.ipynb", "-r", "baseline", str(tmp_path / "absent.json"))
    run.failed("ConfigurationError: baseline: ", "absent.json' cannot be read: No such file or directory")
