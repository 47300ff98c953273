"""The PDF of a page: printed by a real browser; and whatever the browser does, the run stays and no process is left."""

import os
import re
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from damage import drop_index
from running import (
    NOTEBOOKS,
    Fifo,
    Ran,
    arguments_of,
    assert_archived,
    ended,
    folder,
    names_in,
    only_run,
    record_of,
    run,
    runner,
    sockets,
    wait_for_death,
)

from abathur_nb.errors import ConfigurationError, RefusedError
from abathur_nb.evidence import pdf
from abathur_nb.evidence.pdf import find_browser, print_page, printer
from abathur_nb.evidence.record import PDF
from abathur_nb.evidence.verify import verify_archive
from abathur_nb.settings import Settings

__all__ = ["folder", "sockets"]  # fixtures

FILES = ["notebook.ipynb", "page.html", "page.pdf", "record.json", "started.json", "statement.json"]
Browser = Callable[[str], Path]


@pytest.fixture
def browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Browser:
    """Return what puts a program in the place of every browser."""

    def put(script: str) -> Path:
        path = tmp_path / "bin" / "chromium"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
        return path

    return put


def none_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))


# --- printing


def test_a_page_is_printed_on_a4() -> None:
    printed = print_page(b"<!DOCTYPE html><title>t</title><style>@page { size: A4 }</style><p>words")
    assert printed.startswith(b"%PDF-")
    (size,) = re.findall(rb"/MediaBox \[([\d. ]+)\]", printed)
    assert [round(float(number)) for number in size.split()] == [0, 0, 595, 842]


def test_nothing_of_this_machine_is_in_it() -> None:
    printed = print_page(b"<!DOCTYPE html><p>words")
    assert str(Path.home()).encode() not in printed
    assert b"abathur-pdf-" not in printed
    assert b"file:" not in printed


def test_without_a_browser_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    none_there(tmp_path, monkeypatch)
    for ask in (find_browser, lambda: print_page(b""), lambda: printer([])):
        with pytest.raises(ConfigurationError, match="found none: sudo apt-get install chromium"):
            ask()


@pytest.mark.parametrize(
    ("script", "reason"),
    {
        "crashes": ("echo one >&2; echo no room >&2; exit 21", "it ended with 21: no room"),
        "is killed": ("kill -9 $$", "it ended with -9: it says nothing"),
        "prints nothing": ("exit 0", "it wrote no PDF: No such file or directory"),
        "prints half": (
            'for a; do case $a in --print-to-pdf=*) printf %%PDF-1.4 > "${a#*=}";; esac; done',
            "what it wrote is no whole PDF",
        ),
    }.values(),
    ids=["crashes", "is killed", "prints nothing", "prints half"],
)
def test_a_browser_that_does_not_print_is_told_of_by_name(script: str, reason: str, browser: Browser) -> None:
    program = browser(script)
    with pytest.raises(RefusedError) as error:
        print_page(b"<p>words")
    assert error.value.observed == f"no PDF, from {program}: {reason}"
    failures: list[str] = []
    assert printer(failures)(b"<p>words") is None
    assert [failure.partition(": open the page")[0] for failure in failures] == [error.value.observed]


def test_a_program_that_does_not_start_is_told_of_by_name(browser: Browser) -> None:
    program = browser("exit 0")
    program.write_bytes(b"\x7fELF no more")
    with pytest.raises(RefusedError, match=r"it does not start: .*Exec format error"):
        print_page(b"<p>words")


def test_a_browser_that_hangs_is_ended_with_all_its_processes(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo = Fifo(tmp_path / "fifo")
    browser(f"sleep 600 &\necho $! > {fifo.path}\nwait")
    monkeypatch.setattr(pdf, "_PRINT_S", 1)
    reader = os.open(fifo.path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(RefusedError, match="it was not done after 1 s, and was ended"):
            print_page(b"<p>words")
        assert select.select([reader], [], [], 0)[0]
        child = int(os.read(reader, 100))
    finally:
        os.close(reader)
    wait_for_death(child)


# --- a run


def printed(settings: Settings, *more: str) -> Ran:
    return run(*arguments_of(settings, "validate"), "--pdf", *more)


def test_a_run_is_archived_with_its_pdf_and_the_ledger_vouches_for_it(database: Settings) -> None:
    done = printed(database)
    entry = only_run(database)
    assert (done.code, done.err) == (0, "")
    assert names_in(entry.folder) == FILES
    assert entry.line is not None
    assert sorted(entry.line.data["files"]) == FILES
    assert_archived(database)
    path = entry.folder / PDF
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(path.read_bytes().replace(b"/Type /Page", b"/Type /Pagf", 1))
    assert f"{entry.run_id}/page.pdf: it is not the file that the ledger names" in str(
        verify_archive(database.archive_dir)
    )


def test_a_run_that_failed_has_its_pdf_too(database: Settings) -> None:
    drop_index(database.db_path)
    assert printed(database).code == 1
    assert names_in(only_run(database).folder) == FILES


def test_a_failing_browser_costs_the_pdf_and_not_the_run(database: Settings, browser: Browser) -> None:
    program = browser("exit 7")
    done = printed(database)
    entry = only_run(database)
    assert done.code == 0
    assert done.err.startswith(f"abathur_nb run: validate of development: no PDF, from {program}: it ended with 7: ")
    assert len(done.err.splitlines()) == 1
    assert names_in(entry.folder) == [name for name in FILES if name != PDF]
    assert record_of(entry)["verdict"] == "pass"
    assert_archived(database)


def test_a_signal_while_it_prints_loses_nothing(database: Settings, browser: Browser, tmp_path: Path) -> None:
    fifo = Fifo(tmp_path / "fifo")
    browser(f"echo $$ > {fifo.path}\nsleep 1\nexit 7")
    with runner(*arguments_of(database, "validate", "explain"), "--pdf") as process:
        fifo.wait()
        process.terminate()
        done = ended(process)
    assert done.code == 5
    assert "explain of development: not begun, because a signal asked to stop" in done.out
    assert record_of(only_run(database))["verdict"] == "pass"
    assert_archived(database)


@pytest.mark.parametrize("more", [(), ("--no-html",)], ids=["no browser", "no page"])
def test_what_cannot_be_printed_is_refused_before_anything_begins(
    more: tuple[str, ...], database: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    none_there(tmp_path, monkeypatch)
    done = printed(database, *more)
    assert (done.code, done.out) == (2, "")
    assert "--pdf: expected a browser that prints in PATH, " in done.err
    assert ("--pdf: expected a page to print, found --no-html" in done.err) == bool(more)
    assert not database.archive_dir.exists()


def test_a_secret_is_found_before_the_page_is_printed(
    database: Settings, browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser(f"touch {tmp_path}/canary")
    monkeypatch.setenv("ABATHUR_SECRETS", "PLANTED")
    monkeypatch.setenv("PLANTED", str(database.db_path))
    assert printed(database).code == 2
    assert not (tmp_path / "canary").exists()


def test_what_plain_papermill_executed_is_printed_when_it_is_archived(database: Settings, tmp_path: Path) -> None:
    out = tmp_path / "out.ipynb"
    execute = [Path(sys.executable).with_name("papermill"), NOTEBOOKS / "validate.ipynb", out]
    subprocess.run([*execute, "-r", "db_path", str(database.db_path)], check=True, capture_output=True)
    command = [sys.executable, "-m", "abathur_nb", "archive", str(out), "--pdf"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stderr == ""
    assert names_in(only_run(database).folder) == FILES
    assert_archived(database)
