"""Each way of dying ends as it must: the exit code, the record, the artifact, the database, and no kernel left."""

import json
import os
import pty
import shlex
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from damage import fingerprint, run_sql, untouched
from mounting import tmpfs
from patience import ever_longer
from running import (
    CHECK,
    KILLED,
    SEAL,
    SOUND,
    START,
    VERDICT,
    Fifo,
    arguments_of,
    artifact_of,
    assert_archived,
    code_cells,
    ended,
    kernels_in,
    names_in,
    only_run,
    record_of,
    run,
    runner,
    wait_for_death,
    write_notebook,
)

from abathur_nb.cli import main
from abathur_nb.config.settings import Settings
from abathur_nb.evidence.record import read_archive
from abathur_nb.evidence.verify import verify_archive
from abathur_nb.files import sweep
from abathur_nb.runbook.index import listed

pytestmark = pytest.mark.usefixtures("folder")

ASLEEP = "import time\ntime.sleep(600)"
# In C and without a release of the interpreter's lock: no thread of the kernel runs, and no signal handler.
BUSY = "sum(range(10**13))"


def mine(*cells: str, **options: Any) -> Path:
    return write_notebook(Path("mine.ipynb"), *cells, **options)


def test_a_run_that_passes_is_recorded_and_archived(database: Settings) -> None:
    with untouched(database.db_path):
        done = run(*arguments_of(database, "validate"))
    entry = only_run(database)
    assert (done.code, done.err) == (0, "")
    assert done.lines[0] == f"abathur_nb run: validate of development: run {entry.run_id} begins"
    assert done.lines[1].startswith("abathur_nb run: validate of development: PASS in ")
    assert done.lines[1].endswith(f": {entry.folder}/page.html")
    assert len(done.lines) == 2
    notebook = artifact_of(entry)
    record = record_of(entry)
    assert (record["verdict"], record["template"]["name"], record["sealed_by"]) == ("pass", "validate.ipynb", None)
    assert record["parameters"] == {"env": "development", "db_path": str(database.db_path)}
    assert all(cell.execution_count for cell in code_cells(notebook))
    told = {"run_id": entry.run_id, "parameters": record["parameters"]}
    assert told.items() <= notebook.metadata.abathur.items()
    (number,) = (n for n, cell in enumerate(notebook.cells) if "injected-parameters" in cell.metadata.get("tags", []))
    assert notebook.cells[number - 1].metadata.tags == ["parameters"]
    assert notebook.cells[number].source == f"# Parameters\nenv = 'development'\ndb_path = '{database.db_path}'"
    assert entry.line is not None
    assert entry.line.data["as_template"] is True
    assert_archived(database)


def test_several_notebooks_run_in_order_and_a_parameter_goes_to_those_that_declare_it(settings: Settings) -> None:
    done = run(*arguments_of(settings, "init", "validate"), "-p", "dry_run", "False", "--page=never")
    assert done.code == 0, done.out
    entries = read_archive(settings.archive_dir)
    assert [record_of(entry)["notebook"] for entry in entries] == ["init", "validate"]
    assert [record_of(entry)["parameters"].get("dry_run") for entry in entries] == [False, None]
    assert done.lines[-1].endswith(f": {entries[-1].folder}/notebook.ipynb")
    assert not (entries[-1].folder / "page.html").exists()
    assert_archived(settings, 2)


DEVELOPMENT = ("--env", "development")
FAULTY: tuple[tuple[str, ...], ...] = (
    ("validate", *DEVELOPMENT, "-p", "enviroment", "production"),
    ("validate", *DEVELOPMENT, "-p", "x=1;open('canary','w').close();y", "1"),
    ("validate", "--env", "'); open('canary','w').close(); ('"),
    ("validate", *DEVELOPMENT, "-f", "missing.yaml"),
    ("validate", *DEVELOPMENT, "-f", "object.yaml"),
    ("validate", *DEVELOPMENT, "--timeout", "0"),
    ("benchmark", *DEVELOPMENT, "-p", "rows", "0"),
    ("init", "validat", *DEVELOPMENT),
    ("init", "no-guard.ipynb", *DEVELOPMENT),
    ("init", *DEVELOPMENT, "-p", "db_path", "file:x?mode=memory"),
    ("--env", "development"),
    ("init", *DEVELOPMENT, "--wat"),
)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run the command line in this process, where it must exit with 2 before a kernel is begun; return what it says."""
    try:
        code = main(["run", *arguments])
    except SystemExit as error:  # argparse's own
        code = int(str(error.code))
    out, err = capsys.readouterr()
    assert (code, out) == (2, ""), err
    assert all(line.isprintable() for line in err.splitlines())
    return err


def test_a_fault_of_the_arguments_is_refused_before_anything_is_begun(
    database: Settings, home: Path, sockets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("object.yaml").write_text("a: !!python/object/apply:os.system ['touch canary']")
    notebook = json.loads(write_notebook(Path("no-guard.ipynb"), *SOUND).read_text())
    del notebook["cells"][1]
    Path("no-guard.ipynb").write_text(json.dumps(notebook))
    before, names = os.stat(sockets).st_mtime_ns, names_in(Path())
    with untouched(database.db_path):
        for given in FAULTY:
            rest = () if "db_path" in given or "--env" not in given else ("-p", "db_path", str(database.db_path))
            told = refused(capsys, *given, *rest)
            assert "abathur_nb" in told.splitlines()[-1]
    assert not database.archive_dir.exists(), "no record"
    assert os.stat(sockets).st_mtime_ns == before, "a kernel was begun"
    assert names_in(Path()) == names
    assert not list(home.glob("abathur*"))
    told = refused(
        capsys,
        *("init", "validat", "--env", "prod", "-p", "dry_run", "yes", "-p", "db_path", "file:x"),
        *("-f", "missing", "--timeout", "-1", "--cell-timeout", "x"),
    )
    for words in ("'validat'", "did you mean validate", "dry_run", "file:x", "-f missing:", "--timeout", "'x'"):
        (_,) = (line for line in told.splitlines() if words in line)  # all at once, a line each
    assert "did you mean production?" in told
    own = write_notebook(Path("own.ipynb"), *SOUND)
    own.write_text(own.read_text().replace("development", "elsewhere"))
    assert "found 'elsewhere'" in refused(capsys, "own.ipynb"), "the environment that the notebook declares"


def test_what_the_path_forbids_leaves_no_record(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, "validate", "-p", "db_path", str(settings.db_path))
    assert "validate of development: " in told
    assert f"no database at {settings.db_path}: {shlex.join(settings.command('init'))}" in told
    done = run(*arguments_of(settings, "preflight"))
    assert (done.code, "PASS in " in done.lines[-1], "this run creates nothing" in done.lines[-1]) == (0, True, True)
    assert fingerprint(settings.db_path.parent) is None
    settings.db_path.parent.mkdir(mode=0o700)
    os.mkfifo(settings.db_path)
    for name in ("preflight", "init", "validate"):
        assert "is not a regular file: db_path: name a regular file" in refused(capsys, *arguments_of(settings, name))
    assert names_in(settings.db_path.parent) == [settings.db_path.name]


def test_a_working_directory_that_is_gone_is_refused(database: Settings, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    with runner(*arguments_of(database, "validate"), cwd=gone, preexec_fn=lambda: os.rmdir(gone)) as process:  # noqa: PTH106
        done = ended(process)
    assert done.code == 2
    assert "the working directory cannot be used: No such file or directory" in done.err


@pytest.mark.parametrize(
    ("name", "spoil", "code", "verdict", "why"),
    [
        ("validate", "DROP INDEX idx_audit_task", 1, "fail", "a check failed, or could not run).** It ended at In ["),
        (
            "init",
            "PRAGMA user_version = 99",
            2,
            "refused",
            "it was refused, and nothing was done).**",
        ),  # found by a look into the database
    ],
)
def test_a_run_that_does_not_pass_is_sealed_so_and_the_next_is_not_begun(
    name: str, spoil: str, code: int, verdict: str, why: str, database: Settings
) -> None:
    run_sql(database.db_path, spoil)
    with untouched(database.db_path):
        done = run(*arguments_of(database, name, "explain"))
    assert done.code == code
    entry = only_run(database)
    record = record_of(entry)
    assert (record["notebook"], record["verdict"]) == (name, verdict)
    statuses = {check["name"]: check["status"] for check in record["reports"][0]["checks"]}
    assert verdict == "refused" or (statuses["indexes"], len(statuses) > 10) == ("fail", True)
    assert done.lines[-1].endswith(f": {entry.folder}/page.html")
    assert verdict != "fail" or "The report says what to do: " in done.lines[-1]
    top = artifact_of(entry).cells[0].source
    assert top.startswith(f"**{verdict.upper()}: this run did not pass ({why}")
    assert entry.run_id in top
    assert_archived(database)


CELLS_THAT_BREAK = {  # test_execution has the other ways of dying
    "raises before the run starts": (("1 / 0", *SOUND), "ZeroDivisionError", "division by zero"),
    "killed, sealed": ((START, CHECK, f"{SEAL}\n{KILLED}"), "DeadKernelError", "was killed by SIGKILL"),
    "never seals": ((START, CHECK), "UnsealedError", "the notebook did not seal its run"),
}


@pytest.mark.parametrize("name", CELLS_THAT_BREAK)
def test_a_cell_that_breaks_the_run_seals_error(name: str, database: Settings) -> None:
    cells, error, message = CELLS_THAT_BREAK[name]
    with untouched(database.db_path):
        done = run(*arguments_of(database, mine(*cells)))
    assert done.code == 3, done.out + done.err
    entry = only_run(database)
    record = record_of(entry)
    assert record["verdict"] == "error"
    assert record["error"]["name"] == error
    assert message in record["error"]["message"]
    artifact = artifact_of(entry)
    assert artifact.cells[0].source.startswith("**ERROR: this run did not pass (a cell raised, ")
    assert error in artifact.cells[0].source
    where = f"In [{record['error']['cell']}]: " if error != "UnsealedError" else ""
    assert f" s: {where}{error}: " in done.lines[-1]
    assert listed(entry)["error"] == record["error"]
    if error != "UnsealedError":
        told = record["error"]["id"], record["error"]["cell"]  # of what the notebook sealed, the second alone
        (cell,) = (cell for cell in code_cells(artifact) if told in ((cell.id, told[1]), (None, cell.execution_count)))
        assert f"It ended at In [{cell.execution_count}].\n" in artifact.cells[0].source
        assert cell.source in cells
        behind = artifact.cells[artifact.cells.index(cell) + 1 :]
        assert not [later for later in behind if later.execution_count or later.outputs], "a cell ran behind it"
    sealed = name == "killed, sealed"
    assert record.get("notebook_verdict") == ("pass" if sealed else None)
    assert bool(record["reports"]) == sealed
    assert_archived(database)


def test_a_cell_that_never_answers_is_out_of_time_and_seals_timeout(database: Settings) -> None:
    notebook = mine(START, CHECK, BUSY, SEAL)
    for seconds in ever_longer(1):
        shutil.rmtree(database.archive_dir, ignore_errors=True)
        done = run(*arguments_of(database, notebook), "--cell-timeout", str(seconds))
        assert done.code == 4, done.out + done.err
        entry = only_run(database)
        record = record_of(entry)
        if record["error"]["cell"] == 6:
            break
    assert (record["verdict"], record["notebook_verdict"], record["reports"]) == ("timeout", None, [])
    assert record["error"]["message"] == f"the cell took longer than {seconds} s"
    artifact = artifact_of(entry)
    assert artifact.cells[0].source.startswith("**TIMEOUT: this run did not pass (it reached its time limit")
    assert_archived(database)


def test_a_signal_seals_interrupted(database: Settings, tmp_path: Path) -> None:
    fifo = Fifo(tmp_path / "fifo")
    with runner(*arguments_of(database, mine(START, CHECK, f"{fifo.cell}\n{BUSY}", SEAL), "validate")) as process:
        kernel = fifo.wait()
        process.send_signal(signal.SIGHUP)
        done = ended(process)
    assert done.code == 5
    entry = only_run(database)
    record = record_of(entry)
    assert record["verdict"] == "interrupted"
    assert artifact_of(entry).cells[0].source.startswith("**INTERRUPTED: this run did not pass (it was interrupted).**")
    # A cell that can still be interrupted seals the run itself.
    assert record["error"]["message"] == ("the runner was sent SIGHUP" if record.get("sealed_by") else "")
    assert not Path(f"/proc/{kernel}").exists()
    assert_archived(database)


def test_ctrl_c_at_a_terminal_seals_interrupted(database: Settings, tmp_path: Path) -> None:
    fifo = Fifo(tmp_path / "fifo")
    terminal, side = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    given = arguments_of(database, mine(START, f"{fifo.cell}\n{ASLEEP}"))
    take = "import fcntl, runpy, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)"
    command = [sys.executable, "-c", f"{take}; runpy.run_module('abathur_nb', {{}}, '__main__')", "run", *given]
    with subprocess.Popen(command, stdin=side, stdout=side, stderr=side, start_new_session=True) as process:
        fifo.wait()
        os.write(terminal, b"\x03")
        assert process.wait(60) == 5
    os.close(side)
    shown = os.read(terminal, 100_000).decode()
    os.close(terminal)
    assert "| 0/6 [" in shown, "progress is shown"
    assert "INTERRUPTED in " in shown
    assert record_of(only_run(database))["verdict"] == "interrupted"
    assert_archived(database)


def test_a_killed_runner_leaves_no_kernel_and_no_evidence(database: Settings, tmp_path: Path, sockets: Path) -> None:
    fifo = Fifo(tmp_path / "fifo")
    with runner(*arguments_of(database, mine(START, f"{fifo.cell}\n{BUSY}", *SOUND[1:]))) as process:
        kernel = fifo.wait()
        assert kernels_in(sockets) == [kernel], "the control: it is found while it lives"
        process.kill()
        wait_for_death(kernel)
        process.communicate()
    entry = only_run(database)
    assert entry.verdict == "unsealed"
    assert names_in(entry.folder) == ["started.json"]
    report = verify_archive(database.archive_dir)
    assert report.ok
    (check,) = (check for check in report.checks if check.name == "no evidence")
    assert entry.run_id in check.observed
    (place,) = sockets.iterdir()
    assert sweep(sockets) == [place.name], "what the kernel leaves is swept before the next starts"


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return an archive on a file system of its own with little room."""
    monkeypatch.setenv("ABATHUR_ARCHIVE_DIR", str(tmp_path / "small" / "runs"))
    with tmpfs(tmp_path / "small", "size=512k") as place:
        yield place


def test_a_disk_that_is_full_breaks_the_run_and_nothing_is_torn(database: Settings, small: Path) -> None:
    fill = f"from pathlib import Path\ntry: Path('{small}/filler').write_bytes(bytes(2**20))\nexcept OSError: pass"
    with untouched(database.db_path):
        done = run(*arguments_of(database, mine(START, CHECK, fill, SEAL, VERDICT)))
    assert done.code == 3
    assert "no evidence" in done.lines[-1]
    assert "is full" in done.lines[-1]
    (entry,) = read_archive(small / "runs")
    assert (entry.faults, entry.verdict, names_in(entry.folder)) == ((), "unsealed", ["started.json"])
    (small / "filler").unlink()
    assert run(*arguments_of(database, "validate")).code == 0
    assert verify_archive(small / "runs").ok


def test_a_disk_that_is_full_from_the_start_refuses_the_run(database: Settings, small: Path) -> None:
    (small / "runs").mkdir(mode=0o700)
    with suppress(OSError):
        (small / "filler").write_bytes(bytes(2**20))
    with untouched(database.db_path):
        done = run(*arguments_of(database, "validate"))
    assert done.code == 2
    assert "cannot be written" in done.out + done.err
    assert names_in(small / "runs") == [], "no record, and no folder of one"


def test_two_runs_at_once_are_two_records_in_one_chain(database: Settings, tmp_path: Path) -> None:
    first, second = Fifo(tmp_path / "first"), Fifo(tmp_path / "second")
    one, other = (
        runner(*arguments_of(database, write_notebook(Path(f"{fifo.path.name}.ipynb"), START, fifo.cell, *SOUND[1:])))
        for fifo in (first, second)
    )
    with untouched(database.db_path), one as first_process, other as second_process:
        kernels = {first.wait(), second.wait()}
        codes = [ended(first_process).code, ended(second_process).code]
    assert (codes, len(kernels)) == ([0, 0], 2)
    for entry in read_archive(database.archive_dir):
        assert record_of(entry)["verdict"] == "pass"
        artifact_of(entry)
    assert_archived(database, 2)


def tcp_sockets(pid: int) -> list[str]:
    """Return the state of each TCP socket of a process: field 3 of its table, with the inode as field 9 (proc(5))."""
    lines = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    inodes = {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}  # noqa: PTH115 - it is no path
    return [fields[3] for fields in lines if f"socket:[{fields[9]}]" in inodes]


def test_runner_and_kernel_talk_over_private_sockets(database: Settings, tmp_path: Path, sockets: Path) -> None:
    fifo = Fifo(tmp_path / "fifo")
    with runner(*arguments_of(database, mine(START, f"{fifo.cell}\n{ASLEEP}"))) as process:
        kernel = fifo.wait()
        assert only_run(database).verdict == "unsealed"
        (place,) = sockets.iterdir()
        # Of the runner none, of the kernel the one that takes what its own forks print, with a password.
        assert tcp_sockets(process.pid) == []
        assert tcp_sockets(kernel) in ([], ["0A"])
        assert len(list(place.glob("k-*"))) == 5
        process.terminate()
        assert ended(process).code == 5
    assert_archived(database)


def test_a_secret_is_refused_or_leaves_no_artifact(database: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret-1234")
    given = ("-p", "token", "planted-secret-1234")
    done = run(*arguments_of(database, mine(*SOUND, more='token: str = ""\n')), *given)
    assert (done.code, "planted-secret" in done.out + done.err) == (2, False)
    assert not database.archive_dir.exists()
    show = "import os\nprint(os.environ['AWS_SECRET_ACCESS_KEY'])"
    done = run(*arguments_of(database, mine(START, show, *SOUND[1:])))
    assert (done.code, "planted-secret" in done.out + done.err) == (3, False)
    entry = only_run(database)
    assert (entry.verdict, names_in(entry.folder)) == ("unsealed", ["started.json"])
