"""One bad file or line of an archive costs that one only, and is named; every reader goes on with the others."""

import asyncio
import json
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import archives
import pytest
from hostile import BYTES, PLACES, reshaped

import abathur_nb as nb
from abathur_nb.cli import main
from abathur_nb.config.settings import Settings
from abathur_nb.evidence.canonical import canonical, sealed, sha256, unsealed
from abathur_nb.evidence.ledger import FIRST, LEDGER
from abathur_nb.evidence.record import Entry, read_archive
from abathur_nb.evidence.verify import verify_archive
from abathur_nb.measure.snapshot import _last_validation
from abathur_nb.runbook.history import runs_table
from abathur_nb.runbook.index import aligned

# Each 41st change is tried, and each 410th on every reader: which is each field, and each value many times.
STEP, FULL = 41, 410


@pytest.fixture
def runs(database: Settings) -> list[str]:
    """Make three runs; the second is the one that is spoiled. Return their ids."""
    for _ in range(3):
        archives.run(database)
    return sorted(path.name for path in database.archive_dir.iterdir() if path.is_dir())


def relink(archive: Path, run_id: str, change: Callable[[dict[str, Any]], dict[str, Any]] = dict) -> None:
    """Write the ledger anew, so that its hashes are right for whatever a run has now, and its line as changed."""
    before, lines = FIRST, b""
    for line in map(unsealed, (archive / LEDGER).read_bytes().splitlines(keepends=True)):
        data = {name: value for name, value in line.items() if name != "previous"}
        if data["run_id"] == run_id:
            files = {name: sha256((archive / run_id / name).read_bytes()) for name in data["files"]}
            data = change({**data, "files": files})
        written = sealed({**data, "previous": before})
        lines, before = lines + written, sha256(written)
    (archive / LEDGER).write_bytes(lines)


def entries_of(settings: Settings) -> tuple[Entry, ...]:
    entries = read_archive(settings.archive_dir)
    assert aligned(runs_table(entries))
    assert all(entry.when for entry in entries)
    return entries


def assert_the_readers_go_on(settings: Settings, runs: list[str], capsys: Any, *, named: str = "") -> None:
    """Ask every reader; each must show the two other runs, and ``verify`` what is named."""
    verified = str(verify_archive(settings.archive_dir))
    assert named in verified
    history, overview = nb.read_history(settings), nb.show_environments(settings)
    assert {runs[0], runs[2]} <= {run.run_id for run in history.runs if run.sealed}
    assert named in str(history.report)
    assert overview.newest["development"]["validate"].run_id == runs[2]
    assert str(asyncio.run(nb.readiness(settings)))
    assert _last_validation(settings) > 0
    where = ("--archive", str(settings.archive_dir))
    assert (main(["runs", *where]), main(["runs", "--json", *where]), main(["diff", runs[0], runs[2], *where])) == (
        0,
    ) * 3
    assert main(["diff", *runs[:2], *where]) in (0, 1, 2)
    shown = "".join(capsys.readouterr())
    assert "Traceback" not in shown
    assert runs[2][:15] in shown


@pytest.mark.parametrize("name", ["record.json", "started.json", "statement.json", LEDGER])
def test_data_of_another_shape_costs_its_run_only(name: str, database: Settings, runs: list[str], capsys: Any) -> None:
    archive, run_id = database.archive_dir, runs[1]
    path = archive / LEDGER if name == LEDGER else archive / run_id / name
    content = path.read_bytes()
    data = (
        json.loads(content) if name == "statement.json" else unsealed(content.splitlines(keepends=True)[name == LEDGER])
    )
    data.pop("previous", None)
    original = (archive / LEDGER).read_bytes()
    for number, (what, changed) in islice(enumerate(reshaped(data)), 0, None, STEP):
        (archive / LEDGER).write_bytes(original)
        if name == LEDGER:
            relink(archive, run_id, lambda _, changed=changed: changed)  # type: ignore[misc]
        else:
            path.write_bytes(canonical(changed) if name == "statement.json" else sealed(changed))
            relink(archive, run_id)
        try:
            entries = entries_of(database)
            assert {entry.run_id for entry in entries if not entry.faults} >= {runs[0], runs[2]}
            if number % FULL == 0:
                assert_the_readers_go_on(database, runs, capsys)
        except BaseException as error:
            error.add_note(f"{name}: {what}")
            raise


SPOILED = ("record.json", "started.json", "statement.json", "notebook.ipynb", ".")


# Each way is tried on one file, and each file in several ways.
@pytest.mark.parametrize(("name", "spoil"), [*zip(SPOILED * 4, [*BYTES, *PLACES], strict=False)])
def test_a_file_that_is_none_of_ours_costs_its_run_only_and_is_named(
    name: str, spoil: str, database: Settings, runs: list[str], capsys: Any
) -> None:
    path = database.archive_dir / runs[1] / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    if spoil in PLACES:
        PLACES[spoil](path)
    else:
        path.write_bytes(BYTES[spoil])
    assert_the_readers_go_on(database, runs, capsys, named=runs[1])


def test_a_line_that_is_none_of_ours_costs_its_run_only_and_is_named(
    database: Settings, runs: list[str], capsys: Any
) -> None:
    lines = archives.ledger_lines(database.archive_dir)
    for number, content in enumerate(BYTES.values()):
        spoiled = [lines[0], content.rstrip(b"\n") + b"\n", lines[2]]
        (database.archive_dir / LEDGER).write_bytes(b"".join(spoiled))
        assert {entry.run_id for entry in entries_of(database)} >= {runs[0], runs[2]}
        assert f"{LEDGER} line 2: " in str(verify_archive(database.archive_dir))
        assert main(["runs", "--archive", str(database.archive_dir)]) == 0
        assert f"abathur_nb runs: {LEDGER} line 2: " in capsys.readouterr().err
        if number == 0:
            assert_the_readers_go_on(database, runs, capsys, named=f"{LEDGER} line 2: ")


def test_a_ledger_that_cannot_be_read_costs_no_record(database: Settings, runs: list[str], capsys: Any) -> None:
    path = database.archive_dir / LEDGER
    path.unlink()
    for make in PLACES.values():
        make(path)
        assert f"{LEDGER} cannot be read: " in str(verify_archive(database.archive_dir))
        if not path.is_dir():
            path.unlink()
        else:
            assert_the_readers_go_on(database, runs, capsys, named=f"{LEDGER} cannot be read: ")
            path.rmdir()


def test_a_moment_with_an_offset_is_converted(database: Settings, runs: list[str]) -> None:
    folder = database.archive_dir / runs[1]
    for name in ("started.json", "record.json"):
        data = unsealed((folder / name).read_bytes())
        data |= {"started_at": "2026-11-30 12:00:00.000+02:00"}
        if name == "record.json":
            data |= {
                "ended_at": "2026-11-30T10:00:07Z",
                "started_sha256": sha256((folder / "started.json").read_bytes()),
            }
        (folder / name).write_bytes(sealed(data))
    said = {"started_at": "2026-11-30 12:00:00.000+02:00", "ended_at": "2026-11-30T10:00:07Z"}
    relink(database.archive_dir, runs[1], lambda line: {**line, **said})
    (past,) = (run for run in read_archive(database.archive_dir) if run.run_id == runs[1])
    assert (past.verdict, past.seconds) == ("pass", 7)
