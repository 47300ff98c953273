"""explain.ipynb: each query is served by its index, and where one is missing the notebook shows what suffers."""

from pathlib import Path

from damage import drop_index, untouched
from notebook_runs_helpers import NOTEBOOKS, papermill

from abathur_nb.config.settings import Settings
from abathur_nb.store.sql import load_queries

SOURCE = NOTEBOOKS / "explain.ipynb"


def test_it_shows_the_plan_of_each_query_and_the_matrix_of_indexes(database: Settings, tmp_path: Path) -> None:
    run = papermill(SOURCE, tmp_path / "out.ipynb", "-r", "db_path", str(database.db_path)).succeeded()
    html = "".join(run.shown())
    for name in load_queries():
        assert f"{name} — " in html
    (picture,) = run.shown("image/png")
    assert len(picture) > 20_000
    assert any(
        text.startswith("Matrix of 33 indexes") and text.endswith("unused: none") for text in run.shown("text/plain")
    )


def test_a_dropped_index_is_named_with_the_query_that_misses_it(database: Settings, tmp_path: Path) -> None:
    drop_index(database.db_path)
    with untouched(database.db_path):
        run = papermill(SOURCE, tmp_path / "out.ipynb", "-r", "db_path", str(database.db_path))
    run.failed(f"ChecksFailedError: explain of {database.db_path}: ", "idx_audit_task").showed_its_report()
    assert (
        "audit_of_task: full scan of the index idx_audit_timestamp; no use of idx_audit_task, which is missing"
        in run.report
    )
    assert "run troubleshoot.ipynb: it shows the plan that makes it again" in run.report
    assert any("unused: idx_audit_task" in text for text in run.shown("text/plain"))
