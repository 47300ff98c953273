"""Verify: a sound archive passes, whatever was done to another is named, and nothing is touched or waited for."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from archives import archive, check, ledger_lines, make_key, notebook, run, seal
from damage import fingerprint
from faults.tampering import TAMPERINGS, Tampering

from abathur_nb.cli import main
from abathur_nb.config.settings import Settings
from abathur_nb.evidence import record
from abathur_nb.evidence.archive import keep
from abathur_nb.evidence.canonical import sealed, sha256, unsealed
from abathur_nb.evidence.ledger import LEDGER, read_ledger
from abathur_nb.evidence.record import NOTEBOOK, STATEMENT
from abathur_nb.evidence.run import write_started
from abathur_nb.evidence.statement import public_keys
from abathur_nb.evidence.verify import verify_archive
from abathur_nb.files import UNFINISHED
from abathur_nb.report import Report


def faults(report: Report) -> list[str]:
    return [told for one in report.checks if one.failed for told in one.evidence or (one.observed,)]


def tree(folder: Path) -> dict[str, object]:
    return {str(path): fingerprint(path) for path in [folder, *folder.rglob("*")]}


def test_a_sound_archive_passes_and_what_is_no_evidence_is_named(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = archive(settings)
    *_, loose, unsealed_run = sorted(path.name for path in folder.iterdir() if path.is_dir())
    report = verify_archive(folder)
    assert report.ok, str(report)
    assert check(report, "ledger").observed == "4 lines, each with the hash of the one before"
    assert check(report, "runs").observed == "4 archived of 6, as they were written"
    told = check(report, "no evidence")
    assert told.status == "warn"
    assert [line.partition(" ")[0] for line in told.evidence] == [loose, unsealed_run]
    assert "sealed as pass, but without a line in the ledger" in told.evidence[0]
    assert "never sealed" in told.evidence[1]
    assert main(["verify", str(folder)]) == 0
    out = capsys.readouterr().out
    assert loose in out
    assert unsealed_run in out
    assert "faults" not in out


def test_it_writes_nothing_and_asks_no_other_host(settings: Settings) -> None:
    folder = archive(settings)
    before = tree(folder)
    program = (
        "import os, sys\n"
        "def watch(event, args):\n"
        "    writes = event == 'open' and (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)\n"
        "    if event.startswith(('socket.connect', 'socket.bind', 'os.rename', 'os.remove', 'os.mkdir')) or writes:\n"
        "        sys.stderr.write(f'{event} {args}')\n"
        "        os._exit(9)\n"
        "import abathur_nb.evidence.verify\n"
        "sys.addaudithook(watch)\n"
        "from abathur_nb.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-B", "-c", program, "verify", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert tree(folder) == before
    writing = program.replace("from abathur_nb.cli", "open(os.devnull, 'w')\nfrom abathur_nb.cli")
    assert subprocess.run([sys.executable, "-c", writing], capture_output=True, check=False).returncode == 9


@pytest.mark.parametrize("tampering", TAMPERINGS.values(), ids=TAMPERINGS)
def test_tampering_is_found_and_named(
    tampering: Callable[[Tampering], object], settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = archive(settings)
    assert verify_archive(folder).ok
    tampering(Tampering(folder, settings, Random(7)))  # noqa: S311 - to be repeatable
    found = faults(verify_archive(folder))
    assert found
    assert main(["verify", str(folder)]) == 1
    assert found[0] in capsys.readouterr().out.splitlines()[2]


def _alter_statement(folder: Path) -> None:
    """Let a statement say something else, and the ledger's last line its hash."""
    content = (folder / STATEMENT).read_bytes()
    (folder / STATEMENT).write_bytes(content.replace(b'"signatures":[]', b'"signatures":[ ]'))
    _rewrite_last(folder)


def _rewrite_last(folder: Path, **changes: Any) -> None:
    *lines, last = ledger_lines(folder.parent)
    data = unsealed(last)
    data["files"] = {name: sha256((folder / name).read_bytes()) for name in data["files"]}
    (folder.parent / LEDGER).write_bytes(b"".join([*lines, sealed(data | changes)]))


@pytest.mark.parametrize(
    ("tamper", "name", "words"),
    [
        (lambda f: (f / NOTEBOOK).write_text("{}"), "runs", f"{NOTEBOOK}: it is not the file that the ledger names"),
        (shutil.rmtree, "runs", "its folder is gone"),
        (lambda f: _rewrite_last(f, verdict="fail"), "runs", f"verdict is not what {LEDGER} says"),
        (_alter_statement, "statements", f"{STATEMENT}: it does not say, in canonical form, "),
        (lambda f: (f / "a\x1b[2J").touch(), "nothing else", r"a\x1b[2J"),
    ],
)
def test_the_fault_is_named_for_what_it_is(
    tamper: Callable[[Path], object], name: str, words: str, settings: Settings
) -> None:
    run(settings)
    folder = run(settings)
    tamper(folder)
    report = verify_archive(settings.archive_dir)
    assert words in check(report, name).observed
    if name != "nothing else":
        assert folder.name in check(report, name).observed or LEDGER in check(report, name).observed
    assert "\x1b" not in str(report)


def test_a_torn_line_is_named_as_torn_and_closed_by_the_next_run(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = archive(settings)
    content = (folder / LEDGER).read_bytes()
    (folder / LEDGER).write_bytes(content + content[:200])
    report = verify_archive(folder)
    assert [one.name for one in report.checks if one.failed] == ["last line"]
    assert check(report, "last line").observed == f"{LEDGER} line 5 is torn: a run died while it wrote it"
    assert "not tampering" in check(report, "last line").remedy
    assert main(["verify", str(folder)]) == 1
    assert "torn" in capsys.readouterr().out.splitlines()[2]
    run(settings)
    report = verify_archive(folder)
    assert report.ok
    assert check(report, "notes").status == "warn"
    assert "line 5 was torn by a crash, and closed" in check(report, "notes").observed


def test_leftovers_of_killed_runs_and_of_jupyterlab_are_notes(settings: Settings) -> None:
    folder = run(settings)
    (folder / f"{UNFINISHED}0123456789ab").write_bytes(b"half")
    (settings.archive_dir / f"{UNFINISHED}ba9876543210").touch()
    (folder / ".ipynb_checkpoints").mkdir()
    report = verify_archive(settings.archive_dir)
    assert report.ok
    assert len(check(report, "notes").evidence) == 3


def test_a_run_that_is_archived_meanwhile_is_no_fault(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    run(settings)

    def meanwhile(archive: Path) -> Any:
        monkeypatch.setattr(record, "read_ledger", read_ledger)
        run(settings)
        return read_ledger(archive)

    monkeypatch.setattr(record, "read_ledger", meanwhile)
    report = verify_archive(settings.archive_dir)
    assert report.ok, str(report)
    assert check(report, "runs").observed == "2 archived of 2, as they were written"


@pytest.mark.needs("openssl")
def test_with_a_key_each_run_since_the_first_signed_one_must_be_signed_whatever_its_id_says(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    public, other = (make_key(tmp_path / name).with_suffix(".pub") for name in ("key.pem", "other.pem"))
    signing = replace(settings, signing_key=str(tmp_path / "key.pem"))
    run(settings)
    run(signing)
    keys = public_keys([str(public)])
    assert check(verify_archive(settings.archive_dir, keys=keys), "signatures").status == "pass"
    assert check(verify_archive(settings.archive_dir), "signatures").status == "warn"
    assert main(["verify", str(settings.archive_dir), "--key", str(public)]) == 0
    assert main(["verify", str(settings.archive_dir), "--key", str(other)]) == 1
    late = write_started(settings, "validate", {}, run_id="20200101T000000000Z-000000")
    seal(late, settings)
    keep(late, settings, notebook("1"))
    assert main(["verify", str(settings.archive_dir), "--key", str(other), "--key", str(public)]) == 1
    assert f"run {late.name} is not signed by a given key" in capsys.readouterr().out
    assert main(["verify", str(settings.archive_dir)]) == 0


def test_wrong_arguments_exit_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    for arguments in (
        [str(tmp_path / "absent")],
        [str(tmp_path / "file")],
        [""],
        [str(tmp_path), "--key", "absent.pem"],
    ):
        assert main(["verify", *arguments]) == 2
        assert capsys.readouterr().err.startswith("abathur_nb verify: ")
    for arguments in ([], [str(tmp_path), "more"], [str(tmp_path), "--unknown"]):
        with pytest.raises(SystemExit) as ended:
            main(["verify", *arguments])
        assert ended.value.code == 2
