"""benchmark.ipynb: a limit is met, not met, or not proven; the live rows stay."""

from pathlib import Path

import nbformat
from damage import untouched
from notebook_runs_helpers import NOTEBOOKS, Run, papermill
from patience import GENEROUS

from abathur_nb.config.settings import Settings
from abathur_nb.evidence.archive import keep
from abathur_nb.evidence.record import read_archive

SOURCE = NOTEBOOKS / "benchmark.ipynb"


def benchmark(database: Settings, output: Path, *arguments: str, **env: str) -> Run:
    path = str(database.db_path)
    with untouched(database.db_path):
        run = papermill(SOURCE, output, "-r", "db_path", path, "-p", "rows", "500", *arguments, env={**GENEROUS, **env})
    beside = {path.name for path in database.db_path.parent.iterdir()}
    assert beside <= {"abathur.db", "abathur.db-wal", "abathur.db-shm", "runs"}
    return run


def test_a_full_run_is_compared_with_the_one_before_it(database: Settings, tmp_path: Path) -> None:
    arguments = ("-p", "full", "True", "-p", "repetitions", "299")
    benchmark(database, tmp_path / "one.ipynb", *arguments).succeeded()
    (earlier,) = read_archive(database.archive_dir)
    keep(earlier.folder, database, nbformat.read(tmp_path / "one.ipynb", as_version=4))
    run = benchmark(database, tmp_path / "out.ipynb", *arguments).succeeded()
    assert run.report.count(" samples: met") == 3
    assert "memory retrieval against the earlier run: " in run.report
    assert "machine: the same" in run.report
    assert len(run.shown("image/png")) == 3  # the two curves are drawn with `full` only


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


def test_a_run_that_is_none_stops_it_before_anything_is_measured(database: Settings, tmp_path: Path) -> None:
    run = benchmark(database, tmp_path / "out.ipynb", "-r", "compare_with", "2001")
    run.failed("ConfigurationError: run '2001': expected the beginning of one run id, found none")
