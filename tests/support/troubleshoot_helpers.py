"""What test_troubleshoot and other tests share."""

import sqlite3
from contextlib import closing
from pathlib import Path

from abathur_nb.report import Check, Report
from abathur_nb.store.schema import expected_tables


def check_of(report: Report, name: str) -> Check:
    return next(check for check in report.checks if check.name == name)


def failed(report: Report) -> set[str]:
    return {check.name for check in report.checks if check.failed}


def rows_of(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Return every row of every table, with its rowid; bytes for text."""
    with closing(sqlite3.connect(path)) as conn:
        conn.text_factory = bytes
        return {table: conn.execute(f"SELECT rowid, * FROM {table}").fetchall() for table in expected_tables()}
