"""The table of runs: what was asked, what came of it, and what is not evidence, in words."""

import json
from pathlib import Path
from typing import Any

import pytest
from archives import archive, record_with, run, start

from abathur_nb.cli import main
from abathur_nb.config.settings import Settings
from abathur_nb.evidence.canonical import sealed, unsealed
from abathur_nb.evidence.record import RECORD, Entry
from abathur_nb.runbook.index import table


def entry(run_id: str = "20261123T101500123Z-9f3ac1", **more: Any) -> Entry:
    """Return a sealed run that was never written."""
    return Entry(run_id, Path(run_id), None, record_with(run_id=run_id, **{"env": "staging", **more}), None)


def listed(settings: Settings, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["runs", "--archive", str(settings.archive_dir), *arguments]) == 0
    return capsys.readouterr().out


def test_each_run_is_a_line_and_the_newest_is_the_last(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    archive(settings)
    head, *rows = listed(settings, capsys).splitlines()[:7]
    assert head.split() == ["when", "(UTC)", "what", "env", "verdict", "duration", "who", "run", "archived"]
    places = [head.index(word) for word in ("verdict", "archived")]
    assert [row[places[0] :].split()[0] for row in rows] == ["pass", "fail", "pass", "pass", "pass", "UNSEALED"]
    assert [row[places[1] :] for row in rows] == ["yes, with other cells than the template's"] * 4 + ["NO"] * 2
    ids = sorted(path.name for path in settings.archive_dir.iterdir() if path.is_dir())
    shown = [row[head.index("run  ") :].split()[0] for row in rows]
    assert shown == ids


def test_an_unsealed_and_an_altered_run_stand_out_in_words(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    start(settings)
    folder = run(settings)
    record = unsealed((folder / RECORD).read_bytes())
    record["facts"]["rows"]["tasks"] += 1
    (folder / RECORD).write_bytes(sealed(record))
    *_, unsealed_row, altered_row, first, second, fault = listed(settings, capsys).splitlines()
    assert " UNSEALED " in unsealed_row
    assert " ALTERED " in altered_row
    assert first.endswith("was never sealed: it died, or still runs. It is not evidence.")
    assert second.endswith("is not as it was written: verify says what is wrong.")
    assert fault == f"  {folder.name}/{RECORD}: it is not the file that the ledger names"


def test_json_has_one_object_a_line(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    archive(settings)
    runs = [json.loads(line) for line in listed(settings, capsys, "--json").splitlines()]
    assert [one["verdict"] for one in runs] == ["pass", "fail", "pass", "pass", "pass", "unsealed"]
    assert [one["archived"] for one in runs] == [True] * 4 + [False] * 2
    assert runs[0].keys() == runs[-1].keys()
    assert (runs[0]["notebook"], runs[0]["env"]) == ("validate", "development")
    assert runs[0]["seconds"] >= 0
    assert runs[-1]["seconds"] is runs[-1]["ended_at"] is None
    assert runs[-1]["user"] == runs[0]["user"]


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        ("2026-11-23 10:15:00.173", "0.1 s"),
        ("2026-11-23 10:16:39.000", "98.9 s"),
        ("2026-11-23 10:17:00.123", "2.0 minutes"),
        ("2026-11-23 12:18:03.123", "2.1 hours"),
        ("2026-11-23 10:14:59.123", "-1.0 s"),  # the clock was set back
    ],
)
def test_a_duration_is_told_as_people_say_it(ended: str, words: str) -> None:
    assert f"  {words}  " in table([entry(ended_at=ended)]).splitlines()[1]


@pytest.mark.parametrize("hostile", ["\x1b[2J", "a\nb", "\r", "\u202e", "\udc80", "<b>", "\x07"])
def test_no_name_can_steer_a_terminal_or_break_a_line(hostile: str) -> None:
    lines = table([entry(notebook=hostile, user=hostile, host=hostile, env=hostile)]).splitlines()
    assert len(lines) == 3
    assert lines[1].isprintable()
