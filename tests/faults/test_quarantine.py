"""A quarantine file is read as it was written, or named with what is wrong; never a bare traceback."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from damage import SESSION, TASK, fingerprint, run_sql
from hostile import BYTES, PLACES, reshaped

import abathur_nb as nb
from abathur_nb.config.settings import Settings
from abathur_nb.evidence.canonical import canonical, sha256
from abathur_nb.repair.quarantine import quarantine_dir, read_quarantine


@pytest.fixture
async def quarantine(database: Settings) -> Path:
    """Return a quarantine file of a value of each kind: a text that is not UTF-8, a blob, an infinite number."""
    row = "UPDATE tasks SET input_data = CAST(x'ff' AS TEXT), session_id = 's1', result_data = x'00', priority = 9e999"
    run_sql(database.db_path, SESSION, TASK, row, "PRAGMA foreign_keys = OFF", "DELETE FROM sessions")
    await nb.troubleshoot(database, repair=True)
    (path,) = quarantine_dir(database).iterdir()
    return path


def written(lines: list[dict[str, Any]]) -> bytes:
    """Return a quarantine file that holds these lines, the head first, with the hash that is right for them."""
    whole = b"".join(map(canonical, lines))
    return whole + canonical({"rows": len(lines) - 1, "sha256": sha256(whole)})


async def test_of_another_shape_it_is_refused_or_put_back_and_nothing_else(
    database: Settings, quarantine: Path
) -> None:
    lines = [json.loads(line) for line in quarantine.read_bytes().splitlines()[:-1]]
    assert quarantine.read_bytes() == written(lines), "the control"
    before, refused, taken = fingerprint(database.db_path), 0, list[str]()
    for number, line in enumerate(lines):
        for what, changed in reshaped(line):
            quarantine.write_bytes(written([*lines[:number], changed, *lines[number + 1 :]]))
            try:
                read_quarantine(quarantine)
            except nb.RefusedError as error:
                refused += str(quarantine) in error.observed
                continue
            report = await nb.troubleshoot(database, put_back=quarantine)
            assert report.ok or what.startswith("env"), (what, str(report))
            taken.append(what)
    assert refused > len(taken) > 30, taken
    assert fingerprint(database.db_path) == before


@pytest.mark.parametrize("content", BYTES.values(), ids=BYTES)
async def test_what_is_not_its_json_is_refused_with_its_name(
    content: bytes, database: Settings, quarantine: Path
) -> None:
    first, *rest = quarantine.read_bytes().splitlines(keepends=True)
    for spoilt in (content, first + content, first + content + rest[-1]):
        quarantine.write_bytes(spoilt)
        report = await nb.troubleshoot(database, put_back=quarantine)
        assert report.refused
        assert str(quarantine) in report.checks[-1].observed


@pytest.mark.parametrize("make", PLACES.values(), ids=PLACES)
async def test_what_is_not_a_file_is_refused_with_its_name(make: Any, database: Settings, quarantine: Path) -> None:
    os.unlink(quarantine)  # noqa: PTH108
    make(quarantine)
    report = await nb.troubleshoot(database, put_back=quarantine)
    assert report.refused
    assert str(quarantine) in report.checks[-1].observed
