"""validate.ipynb: each damage understood from the notebook alone, and not a byte changed."""

from collections.abc import Callable
from pathlib import Path

import pytest
from damage import drop_check, drop_index, flip_bits, run_sql, spoil_json, untouched
from notebook_runs_helpers import NOTEBOOKS, papermill

from abathur_nb.config.settings import Settings

SOURCE = NOTEBOOKS / "validate.ipynb"


def test_it_shows_the_schema_and_where_the_room_goes(database: Settings, tmp_path: Path) -> None:
    run = papermill(SOURCE, tmp_path / "out.ipynb", "-r", "db_path", str(database.db_path)).succeeded()
    html = "".join(run.shown())
    assert html.count("<details><summary><b>") == 9
    assert "CREATE INDEX idx_memory_" in html
    (picture,) = run.shown("image/png")
    assert len(picture) > 5000
    (words,) = (text for text in run.shown("text/plain") if text.startswith("Tables by size: "))
    assert "memory_entries 3 rows" in words


def _drop_index(path: Path) -> None:
    drop_index(path)


def _virtual_table_with_a_hostile_name(path: Path) -> None:
    run_sql(path, 'CREATE VIRTUAL TABLE "$\\frac$<script>alert(1)</script>" USING fts5(x)')


DAMAGES: list[tuple[Callable[[Path], None], tuple[str, ...], tuple[str, ...]]] = [
    (
        _drop_index,
        ("indexes: 32 indexes; missing: idx_audit_task",),
        ("the 33 of sql/", "CREATE INDEX idx_audit_task ON audit"),
    ),
    (drop_check, ("tables: ", "altered: tasks"), ("--- expected", "+++ found", "CHECK (status IN (")),
    (
        spoil_json,
        ("JSON columns: broken: tasks.input_data",),
        ("tasks.input_data: 1 row, by key: &#x27;t1&#x27;", "keep a copy of these rows"),
    ),
    (
        _virtual_table_with_a_hostile_name,
        ("other objects: extra: virtual table $\\frac$<script>",),
        ("$\\frac$&lt;script&gt;",),
    ),
]


@pytest.mark.parametrize(("spoil", "named", "told"), DAMAGES, ids=[row[0].__name__.strip("_") for row in DAMAGES])
def test_a_damage_is_named_with_what_was_expected_and_what_to_do(
    spoil: Callable[[Path], None], named: tuple[str, ...], told: tuple[str, ...], database: Settings, tmp_path: Path
) -> None:
    spoil(database.db_path)
    with untouched(database.db_path):
        run = papermill(SOURCE, tmp_path / "out.ipynb", "-r", "db_path", str(database.db_path))
    run.failed(f"ChecksFailedError: validate of {database.db_path}: ", *named).showed_its_report()
    report = next(html for html in run.shown() if "abathur-report" in html)
    for words in told:
        assert words in report
    assert "<script>" not in "".join(run.shown())
    first = report.index("✗ fail")
    assert first < report.index("✓ pass"), "failures stand first"


def test_a_corrupt_page_is_reported_and_the_other_cells_still_show_what_they_can(
    database: Settings, tmp_path: Path
) -> None:
    flip_bits(database.db_path, 3 * 4096, 4096)
    with untouched(database.db_path):
        run = papermill(SOURCE, tmp_path / "out.ipynb", "-r", "db_path", str(database.db_path))
    run.failed("validate of ", "CORRUPT").showed_its_report()
