"""A quarantine file is read as it was written, or named with what is wrong; never a bare traceback."""

import json
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from damage import SESSION, TASK, fingerprint, run_sql
from hostile import BYTES, PLACES, reshaped
from sampling import sampled

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


@pytest.mark.parametrize("every", sampled((1, 9), 9))
async def test_of_another_shape_it_is_refused_or_put_back_and_nothing_else(
    every: int, database: Settings, quarantine: Path
) -> None:
    lines = [json.loads(line) for line in quarantine.read_bytes().splitlines()[:-1]]
    assert quarantine.read_bytes() == written(lines), "the control"
    before, refused, taken = fingerprint(database.db_path), 0, list[str]()
    for number, line in enumerate(lines):
        for what, changed in islice(reshaped(line), 0, None, every):
            quarantine.write_bytes(written([*lines[:number], changed, *lines[number + 1 :]]))
            try:
                read_quarantine(quarantine)
            except nb.RefusedError as error:
                refused += str(quarantine) in error.observed
                continue
            report = await nb.troubleshoot(database, put_back=quarantine)
            assert report.ok or what.startswith("env"), (what, str(report))
            taken.append(what)
    assert refused > len(taken) > 30 // every, taken
    assert fingerprint(database.db_path) == before


async def test_what_is_not_its_json_or_not_a_file_is_refused_with_its_name(
    database: Settings, quarantine: Path
) -> None:
    first, *rest = quarantine.read_bytes().splitlines(keepends=True)
    for content in BYTES.values():
        for spoilt in (content, first + content, first + content + rest[-1]):
            quarantine.write_bytes(spoilt)
            await refused_by_name(database, quarantine)
    for make in PLACES.values():
        shutil.rmtree(quarantine) if quarantine.is_dir() and not quarantine.is_symlink() else quarantine.unlink()
        make(quarantine)
        await refused_by_name(database, quarantine)


async def refused_by_name(settings: Settings, file: Path) -> None:
    report = await nb.troubleshoot(settings, put_back=file)
    assert report.refused
    assert str(file) in report.checks[-1].observed
