"""Reading an archive: each run for what it is, one by the beginning of its id, and which archive is meant."""

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from archives import GREEN, archive, ledger_lines, record_with, run, seal, start

from abathur_nb.cli import make_parser
from abathur_nb.config.settings import Settings
from abathur_nb.errors import ConfigurationError
from abathur_nb.evidence.canonical import sealed, unsealed
from abathur_nb.evidence.ledger import LEDGER
from abathur_nb.evidence.record import RECORD, STARTED, find_run, read_archive, run_ids
from abathur_nb.evidence.stores import chosen_archive


def parsed(*arguments: str) -> argparse.Namespace:
    return make_parser().parse_args(["runs", *arguments])


# --- the runs


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
    (_flip(RECORD), f"{RECORD}: its hash is not the one that it names"),
    (_flip(STARTED), f"{STARTED}: its hash is not the one that it names"),
    (_replace_record, f"{RECORD}: it is of run "),
    (_rewrite(STARTED, user="mallory"), f"{RECORD}: it does not belong to this {STARTED}"),
    (_rewrite(RECORD, user="mallory"), f"{RECORD}: user is not what {STARTED} says"),
    (_rewrite(RECORD, format=3), f"{RECORD}: its format is 3, known is 2"),
    (_rewrite(RECORD, verdict="splendid"), f"{RECORD}: not a record of a run: verdict: expected one of "),
    (lambda folder: (folder / RECORD).write_bytes(b""), f"{RECORD}: it is not canonical JSON"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
def test_a_run_that_is_not_as_it_was_written_is_altered_and_has_no_other_verdict(
    damage: Callable[[Path], object], words: str, settings: Settings
) -> None:
    """Where no ledger names its hashes; with a ledger every byte is compared."""
    run(settings)
    folder = start(settings)
    seal(folder, settings)
    assert find_run(settings.archive_dir, folder.name).verdict == "pass"
    damage(folder)
    entry = find_run(settings.archive_dir, folder.name)
    assert entry.verdict == "altered"
    assert entry.faults[0].startswith(f"{folder.name}/{words}")


@pytest.mark.parametrize("name", [STARTED, RECORD])
def test_of_an_archived_run_any_change_is_one_even_with_its_own_hash_recomputed(name: str, settings: Settings) -> None:
    folder = run(settings)
    _rewrite(name, user="mallory")(folder)
    (entry,) = read_archive(settings.archive_dir)
    assert entry.verdict == "altered"
    assert entry.faults == (f"{folder.name}/{name}: it is not the file that the ledger names",)


@pytest.mark.parametrize(
    ("check", "check_id"),
    [
        ({"name": "what it is called today", "id": "tables"}, "tables"),
        ({"name": "free disk"}, "free_disk"),
        ({"name": "SQLite's JSON functions"}, "sqlite_json_functions"),
        ({"name": "50 concurrent reads"}, "50_concurrent_reads"),
    ],
)
def test_a_check_of_an_old_record_has_the_id_of_its_title(check: dict[str, str], check_id: str) -> None:
    told = {"expected": "", "observed": "", "remedy": "", "status": "pass", "evidence": [], **check}
    record = record_with(format=1, reports=[{**GREEN.to_dict(), "checks": [told]}])
    assert [check.id for check in record.checks] == [check_id]


# --- one of them


def test_a_unique_beginning_names_a_run(settings: Settings) -> None:
    folder = archive(settings)
    wanted = max(run_ids(folder))
    assert find_run(folder, wanted).run_id == wanted
    others = run_ids(folder) - {wanted}
    short = next(wanted[:n] for n in range(1, 27) if not any(other.startswith(wanted[:n]) for other in others))
    assert find_run(folder, short).run_id == wanted


@pytest.mark.parametrize("beginning", ["", "2", "x", "../", "\0", "20261123T101500123Z-9f3ac1x", "*"])
def test_what_names_no_run_or_several_is_refused_and_names_those(beginning: str, settings: Settings) -> None:
    folder = archive(settings)
    with pytest.raises(ConfigurationError, match="expected the beginning of one run id, found") as caught:
        find_run(folder, beginning)
    several = [run_id for run_id in sorted(run_ids(folder)) if beginning == "2"]
    assert ("none" in str(caught.value)) is (not several)
    assert all(run_id in str(caught.value) for run_id in several[:5])
    assert ("and 1 more" in str(caught.value)) is bool(several)


# --- which archive


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


def test_a_line_that_says_another_verdict_than_the_record_makes_it_altered(settings: Settings) -> None:
    folder = run(settings)
    (line,) = ledger_lines(settings.archive_dir)
    (settings.archive_dir / LEDGER).write_bytes(sealed({**unsealed(line), "verdict": "fail", "env": "production"}))
    (entry,) = read_archive(settings.archive_dir)
    assert entry.faults == (f"{folder.name}/{RECORD}: env, verdict is not what {LEDGER} says",)
    assert entry.verdict == "altered"
