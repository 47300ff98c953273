"""Reading an archive: each run for what it is and what it found out, one by its id, in a list, and which archive."""

import argparse
import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from archives import FACTS, GREEN, IDENTITY, archive, record_with, run, run_at, seal, start

import abathur_nb as nb
from abathur_nb.cli import main, make_parser
from abathur_nb.config.settings import Settings, resolve
from abathur_nb.errors import ConfigurationError
from abathur_nb.evidence.canonical import sealed, unsealed
from abathur_nb.evidence.record import RECORD, STARTED, Entry, find_run, read_archive, run_ids
from abathur_nb.evidence.stores import chosen_archive
from abathur_nb.runbook.history import runs_table
from abathur_nb.runbook.index import aligned


def parsed(*arguments: str) -> argparse.Namespace:
    return make_parser().parse_args(["runs", *arguments])


def test_the_runs_come_oldest_first_each_with_its_verdict_and_its_line(settings: Settings) -> None:
    entries = read_archive(archive(settings))
    assert [entry.verdict for entry in entries] == ["pass", "fail", "pass", "pass", "pass", "unsealed"]
    assert [entry.line.number if entry.line else None for entry in entries] == [1, 2, 3, 4, None, None]
    assert [entry.run_id for entry in entries] == sorted(run_ids(settings.archive_dir))
    assert not any(entry.faults for entry in entries)
    assert all(entry.started for entry in entries)
    assert entries[0].record is not None
    assert entries[0].record.run_id == entries[0].run_id
    assert entries[-1].record is None


def _replace_record(folder: Path) -> None:
    shutil.copy(folder.parent / max(run_ids(folder.parent) - {folder.name}) / RECORD, folder / RECORD)


def _rewrite(name: str, **changes: object) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        data = unsealed((folder / name).read_bytes())
        (folder / name).write_bytes(sealed(data | changes))

    return rewrite


def _flip(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes().replace(b"validate", b"Validate"))


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: (folder / STARTED).unlink(), f"{STARTED}: it is gone"),
    (_flip(RECORD), f"{RECORD}: its hash is not the one that it states"),
    (_flip(STARTED), f"{STARTED}: its hash is not the one that it states"),
    (_replace_record, f"{RECORD}: it is of run "),
    (_rewrite(STARTED, user="mallory"), f"{RECORD}: it does not belong to this {STARTED}"),
    (_rewrite(RECORD, user="mallory"), f"{RECORD}: user is not what {STARTED} says"),
    (_rewrite(RECORD, format=3), f"{RECORD}: its format is 3, known is 2"),
    (_rewrite(RECORD, verdict="splendid"), f"{RECORD}: not a record of a run: verdict: expected one of "),
    (lambda folder: (folder / RECORD).write_bytes(b""), f"{RECORD}: it is not canonical JSON"),
]


def test_a_run_that_is_not_as_it_was_written_is_altered_and_has_no_other_verdict(settings: Settings) -> None:
    """Where no ledger names its hashes; with a ledger every byte is compared."""
    run(settings)
    for damage, words in DAMAGES:
        folder = start(settings)
        seal(folder, settings)
        assert find_run(settings.archive_dir, folder.name).verdict == "pass"
        damage(folder)
        entry = find_run(settings.archive_dir, folder.name)
        assert entry.verdict == "altered"
        assert entry.faults[0].startswith(f"{folder.name}/{words}")


def test_a_check_of_an_old_record_has_the_id_of_its_title() -> None:
    for name, check_id in {"free disk": "free_disk", "50 concurrent reads": "50_concurrent_reads"}.items():
        told = {"expected": "", "observed": "", "remedy": "", "status": "pass", "evidence": [], "name": name}
        record = record_with(format=1, reports=[{**GREEN.to_dict(), "checks": [told]}])
        assert [check.id for check in record.checks] == [check_id]


def test_a_unique_beginning_names_a_run_and_what_names_none_or_several_is_refused(settings: Settings) -> None:
    folder = archive(settings)
    wanted = max(run_ids(folder))
    others = run_ids(folder) - {wanted}
    short = next(wanted[:n] for n in range(1, 27) if not any(other.startswith(wanted[:n]) for other in others))
    for beginning in (wanted, short):
        assert find_run(folder, beginning).run_id == wanted
    for beginning in ("", "2", "x", "../", "\0", "20261123T101500123Z-9f3ac1x", "*"):
        with pytest.raises(ConfigurationError, match="expected the beginning of one run id, found") as caught:
            find_run(folder, beginning)
        several = [run_id for run_id in sorted(run_ids(folder)) if beginning == "2"]
        assert ("none" in str(caught.value)) is (not several)
        assert all(run_id in str(caught.value) for run_id in several[:5])
        assert ("and 1 more" in str(caught.value)) is bool(several)


def test_the_archive_is_that_of_the_environment_or_the_database(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = archive(settings)
    assert chosen_archive(parsed("--db-path", str(settings.db_path))) == folder
    assert chosen_archive(parsed("--archive", str(folder))) == folder
    monkeypatch.setenv("ABATHUR_ARCHIVE_DIR", str(folder))
    assert chosen_archive(parsed()) == folder
    assert chosen_archive(parsed("--env", "production")) == folder


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "the first recorded run makes it"),
        (("--env", "prod"), "did you mean production"),
        (("--env", ""), "expected one of development, staging, production"),
        (("--db-path", ""), "db_path"),
        (("--archive", ""), "--archive (from argument): expected a path"),
        (("--archive", "a\0b"), "printable characters"),
        (("--archive", "absent"), "expected the directory of an archive, found none"),
        (("--archive", ".", "--env", "production"), "expected it, or --env and --db-path, found both"),
        (("--archive", ".", "--db-path", "x"), "found both"),
    ],
)
def test_what_names_no_archive_is_refused(
    arguments: tuple[str, ...], words: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    with pytest.raises(ConfigurationError) as caught:
        chosen_archive(parsed(*arguments))
    assert words in str(caught.value)
    assert list(home.iterdir()) == []


def entry(run_id: str = "20261123T101500123Z-9f3ac1", **more: Any) -> Entry:
    """Return a sealed run that was never written."""
    return Entry(run_id, Path(run_id), None, record_with(run_id=run_id, **{"env": "staging", **more}), None)


def listed(settings: Settings, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["runs", "--archive", str(settings.archive_dir), *arguments]) == 0
    return capsys.readouterr().out


def test_each_run_is_a_line_and_the_newest_is_the_last(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    archive(settings)
    head, *rows = listed(settings, capsys).splitlines()
    assert " ".join(head.split()) == "start (UTC) notebook env took who run archived what failed"
    assert [row.split()[1] for row in rows] == ["pass", "fail", "pass", "pass", "pass", "unsealed"]
    archived = [row[head.index("archived") : head.index("what failed")].strip() for row in rows]
    assert archived == ["yes, with other cells"] * 4 + ["no"] * 2
    ids = sorted(path.name for path in settings.archive_dir.iterdir() if path.is_dir())
    shown = [row[head.index("run  ") :].split()[0] for row in rows]
    assert shown == ids


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


def test_a_duration_is_told_as_people_say_it_and_no_name_can_steer_a_terminal() -> None:
    for ended, words in {
        "2026-11-23 10:15:00.173": "0.1 s",
        "2026-11-23 10:16:39.000": "98.9 s",
        "2026-11-23 10:17:00.123": "2.0 minutes",
        "2026-11-23 10:14:59.123": "-1.0 s",  # the clock was set back
    }.items():
        assert f"  {words}  " in aligned(runs_table([entry(ended_at=ended)])).splitlines()[1]
    for hostile in ("\x1b[2J", "a\nb", "\r", "\u202e", "\udc80", "<b>", "\x07"):
        lines = aligned(runs_table([entry(notebook=hostile, user=hostile, host=hostile, env=hostile)])).splitlines()
        assert len(lines) == 2
        assert lines[1].isprintable()


def test_a_run_is_told_with_its_time_its_verdict_and_who_ran_it(settings: Settings) -> None:
    folder = run_at(settings, "20261001T120000")
    (run,) = read_archive(settings.archive_dir)
    assert run.run_id == folder.name
    assert run.started_at == datetime(2026, 10, 1, 12, tzinfo=UTC)
    assert (run.notebook, run.label, run.verdict, run.sealed) == ("validate", "validate", "pass", run.record)
    assert run.seconds is not None
    assert run.seconds >= 0
    assert " on " in run.who
    assert run.size == IDENTITY["size"]
    assert {name: run.found(name) for name in FACTS} == FACTS


def test_of_an_altered_run_no_fact_is_told_though_each_hash_is_right(settings: Settings) -> None:
    """A record that was not archived can be made anew by anybody, with the right hash."""
    folder = start(settings)
    seal(folder, settings)
    (one,) = read_archive(settings.archive_dir)
    assert (one.verdict, one.sealed) == ("pass", one.record), "the control"
    begun, record = (folder / STARTED).read_bytes(), (folder / RECORD).read_bytes()
    (folder / STARTED).write_bytes(sealed({**unsealed(begun), "user": "mallory"}))
    (one,) = read_archive(settings.archive_dir)
    assert (one.verdict, one.sealed, one.size, one.found("sizes")) == ("altered", None, None, {})
    (folder / STARTED).write_bytes(begun)
    for facts in ({"limits_ms": {"x": ["p99", "20"]}}, {"machine": "fast"}):  # of others see test_hostile_archive
        (folder / RECORD).write_bytes(sealed({**unsealed(record), "facts": facts}))
        assert [one.verdict for one in read_archive(settings.archive_dir)] == ["altered"], facts


def test_a_name_without_a_time_is_no_run_and_of_two_databases_each_label_says_which(
    settings: Settings, tmp_path: Path
) -> None:
    other = resolve("development", db_path=tmp_path / "other.db", archive_dir=settings.archive_dir)
    run_at(settings, "20261001T120000")
    run_at(other, "20261001T130000")
    for run_id in ("99991231T235959999Z-abcdef", "00010101T000000000Z-abcdef", "20261331T120000000Z-abcdef"):
        (settings.archive_dir / run_id).mkdir()
    one, two = read_archive(settings.archive_dir)
    assert one.notebook == two.notebook == "validate"
    assert one.label == f"validate of {one.database}"
    assert two.label.endswith("other.db")


async def test_what_explain_and_benchmark_found_out_comes_back_as_it_was(database: Settings) -> None:
    plans = await nb.explain_queries(database)
    result = await nb.run_benchmark(database, rows=100, repetitions=299)
    run_at(database, "20261001T120000", "explain", facts=plans.to_record())
    run_at(database, "20261001T130000", "benchmark", facts=result.to_record())
    explained, measured = read_archive(database.archive_dir)
    assert set(explained.found("plans")) == set(plans.trees)
    assert "idx_audit_task" in str(explained.found("plans")["audit_of_task"])
    limits = measured.found("limits_ms")
    assert limits == {name: [f"p{level * 100:g}", limit] for name, (level, limit) in result.limits.items()}
    frame = result.to_frame().set_index("measurement")
    for name, (level, _) in limits.items():
        assert measured.found("percentiles_ms")[name][level][1] == pytest.approx(
            frame.loc[name, f"{level} ms"], rel=0.01
        )
    assert measured.found("machine")["rows"] == 100
