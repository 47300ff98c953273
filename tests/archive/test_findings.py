"""What is wrong with an archive, by the place and the time of its runs, and by what stands beside them."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from archives import check, ledger_lines, make_key, notebook, run, seal, start

from abathur_nb.config.settings import Settings, resolve
from abathur_nb.evidence import run as run_module
from abathur_nb.evidence.archive import keep
from abathur_nb.evidence.canonical import sealed, unsealed
from abathur_nb.evidence.ledger import LEDGER, append
from abathur_nb.evidence.record import PAGE
from abathur_nb.evidence.run import write_started
from abathur_nb.evidence.statement import public_keys
from abathur_nb.evidence.verify import verify_archive
from abathur_nb.files import locked
from abathur_nb.report import Report


@pytest.fixture
def signing(settings: Settings, tmp_path: Path) -> Settings:
    make_key(tmp_path / "key.pem")
    return replace(settings, signing_key=str(tmp_path / "key.pem"))


def verified(settings: Settings) -> Report:
    key = Path(settings.signing_key).with_suffix(".pub")
    return verify_archive(settings.archive_dir, keys=public_keys([str(key)]))


def replay(folder: Path, settings: Settings) -> None:
    """Put a run of another archive behind the last line, as whoever lacks the key can."""
    (line,) = (line for line in ledger_lines(folder.parent) if folder.name.encode() in line)
    shutil.copytree(folder, settings.archive_dir / folder.name)
    with locked(settings.archive_dir):
        append(settings.archive_dir, {**unsealed(line), "written_at": "2099-01-01 00:00:00.000"})


# --- whose place it is


def test_the_first_run_of_another_archive_that_began_later_is_found(
    signing: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signed with the same key, and behind no line, as the first run of this one."""
    run(signing)
    assert verified(signing).ok
    with monkeypatch.context() as patched:
        patched.setattr(run_module, "utc_now", lambda: "2099-01-01 00:00:00.000")
        replay(run(replace(signing, archive_dir=tmp_path / "other")), signing)
    told = check(verified(signing), "order")
    assert told.status == "fail"
    assert f"does not know {LEDGER} line 1, which was written before" in told.observed


def test_the_first_run_of_another_archive_that_began_earlier_is_found(signing: Settings, tmp_path: Path) -> None:
    other = resolve("staging", db_path=tmp_path / "staging" / "abathur.db")
    folder = run(replace(other, signing_key=signing.signing_key))
    run(signing)
    run(signing)
    replay(folder, signing)
    told = check(verified(signing), "order")
    assert told.status == "fail"
    assert f"{folder.name}: it began in staging {other.archive_dir} on " in told.observed


def test_runs_that_began_at_once_behind_no_line_are_in_their_place(signing: Settings) -> None:
    folders = [start(signing) for _ in range(3)]
    for folder in reversed(folders):
        seal(folder, signing)

        keep(folder, signing, notebook("1"))
    report = verified(signing)
    assert report.ok, str(report)
    assert "notes" not in [one.name for one in report.checks]


def test_an_unsigned_run_behind_a_signed_one_is_found_whatever_its_id_says(
    settings: Settings, signing: Settings
) -> None:
    run(signing)
    folder = write_started(settings, "validate", {}, run_id="20200101T000000000Z-000000")
    seal(folder, settings)

    keep(folder, settings, notebook("1"))
    told = check(verified(signing), "signatures")
    assert told.status == "fail"
    assert "run 20200101T000000000Z-000000 is not signed by a given key" in told.observed


# --- times


def rewrite_last(archive: Path, **changes: str) -> None:
    *lines, last = ledger_lines(archive)
    (archive / LEDGER).write_bytes(b"".join([*lines, sealed({**unsealed(last), **changes})]))


@pytest.mark.parametrize("written", ["2020-01-01 00:00:00.000", "yesterday"])
def test_a_line_that_was_written_before_the_one_before_it_is_noted(written: str, settings: Settings) -> None:
    """And no fault: the clock may have been set back."""
    run(settings)
    run(settings)
    rewrite_last(settings.archive_dir, written_at=written)
    report = verify_archive(settings.archive_dir)
    assert report.ok
    assert f"{LEDGER} line 2 says {written}, and " in check(report, "notes").observed


# --- what stands beside a run


def test_of_an_unsealed_run_nothing_but_its_start_is_expected(settings: Settings) -> None:
    run(settings)
    folder = start(settings)
    (folder / PAGE).write_text("all is well")
    told = check(verify_archive(settings.archive_dir), "nothing else")
    assert (told.status, told.observed) == ("fail", f"'{folder.name}/{PAGE}'")
