"""Reading an archive: each run for what it is; one bad file or line costs that one only, and is named."""

import argparse
import asyncio
import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import archives
import pytest
from archives import FACTS, GREEN, IDENTITY, archive, record_with, run, run_at, seal, start
from hostile import BYTES, PLACES, reshaped

import abathur_nb as nb
from abathur_nb.cli import main, make_parser
from abathur_nb.config.settings import Settings, resolve
from abathur_nb.errors import ConfigurationError
from abathur_nb.evidence.canonical import canonical, sealed, sha256, unsealed
from abathur_nb.evidence.ledger import FIRST, LEDGER
from abathur_nb.evidence.record import RECORD, STARTED, Entry, find_run, read_archive, run_ids
from abathur_nb.evidence.stores import chosen_archive
from abathur_nb.evidence.verify import verify_archive
from abathur_nb.measure.snapshot import _last_validation
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
    (lambda folder: (folder / STARTED).unlink(), f"{STARTED}: it is missing"),
    (_flip(RECORD), f"{RECORD}: its hash does not match its content"),
    (_flip(STARTED), f"{STARTED}: its hash does not match its content"),
    (_replace_record, f"{RECORD}: it belongs to run "),
    (_rewrite(STARTED, user="mallory"), f"{RECORD}: it does not belong to this {STARTED}"),
    (_rewrite(RECORD, user="mallory"), f"{RECORD}: user differs from {STARTED}"),
    (_rewrite(RECORD, format=3), f"{RECORD}: its format is 3, the newest known is 2"),
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


def test_the_archive_is_that_of_environment_or_database(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = archive(settings)
    assert chosen_archive(parsed("--db-path", str(settings.db_path))) == folder
    assert chosen_archive(parsed("--archive", str(folder))) == folder
    monkeypatch.setenv("ABATHUR_ARCHIVE_DIR", str(folder))
    assert chosen_archive(parsed()) == folder
    assert chosen_archive(parsed("--env", "production")) == folder


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "the first recorded run creates it"),
        (("--env", "prod"), "did you mean production"),
        (("--env", ""), "expected one of development, staging, production"),
        (("--db-path", ""), "db_path"),
        (("--archive", ""), "--archive (from argument): expected a path"),
        (("--archive", "a\0b"), "printable characters"),
        (("--archive", "absent"), "expected the directory of an archive, found none"),
        (("--archive", ".", "--env", "production"), "expected --archive alone, or --env and --db-path without it"),
        (("--archive", ".", "--db-path", "x"), "expected --archive alone"),
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
    assert archived == ["yes, cells differ from the template"] * 4 + ["no"] * 2
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


def test_a_name_without_a_time_is_no_run_and_each_label_names_its_database(settings: Settings, tmp_path: Path) -> None:
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
    assert set(explained.found("plans")) == set(plans.lines)
    assert "idx_audit_task" in str(explained.found("plans")["audit_of_task"])
    limits = measured.found("limits_ms")
    assert limits == {name: [f"p{level * 100:g}", limit] for name, (level, limit) in result.limits.items()}
    frame = result.to_frame().set_index("measurement")
    for name, (level, _) in limits.items():
        assert measured.found("percentiles_ms")[name][level][1] == pytest.approx(
            frame.loc[name, f"{level} ms"], rel=0.01
        )
    assert measured.found("machine")["rows"] == 100


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
    for arguments in (["runs"], ["runs", "--json"], ["diff", runs[0], runs[2]]):
        assert main([*arguments, *where]) == 0
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


def test_a_line_that_is_none_of_ours_costs_its_run_only(database: Settings, runs: list[str], capsys: Any) -> None:
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
