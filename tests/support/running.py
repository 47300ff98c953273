"""Notebooks of one's own, the runner as a process, and what is left of its kernels. For the tests of the runner."""

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from patience import HANGING_S

from abathur_nb.config.settings import Settings
from abathur_nb.evidence.record import Entry, read_archive
from abathur_nb.evidence.verify import verify_archive

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
GUARD = "import abathur_nb as nb\n\nnb.guard()"
PARAMETERS = '# The defaults\nenv: str = "development"\ndb_path: "Optional[str]" = None\n{more}'
START = 'settings = nb.resolve(env, db_path=db_path)\nrun = nb.start_run(settings, "validate")\nrun'
CHECK = "report = await nb.validate_database(settings)\nreport"
SEAL = "run.seal(report)"
VERDICT = "report.raise_for_failures()"
KILLED = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
SOUND = (START, CHECK, SEAL, VERDICT)


def write_notebook(path: Path, *cells: str, more: str = "", **metadata: Any) -> Path:
    """Write a notebook of one's own: the guard, the parameters, then these code cells."""
    sources = [GUARD, PARAMETERS.format(more=more), *cells]
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": KERNEL, **metadata})
    notebook.cells = [nbformat.v4.new_markdown_cell("# Mine"), *map(nbformat.v4.new_code_cell, sources)]
    notebook.cells[2].metadata["tags"] = ["parameters"]
    nbformat.write(notebook, path)
    return path


@dataclass(frozen=True)
class Ran:
    """Hold what a process of the runner left: its exit code, what it printed."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """What it printed for a log."""
        return self.out.splitlines()


def arguments_of(settings: Settings, *notebooks: str | Path) -> list[str]:
    return [*map(str, notebooks), "--env", settings.env, "-p", "db_path", str(settings.db_path)]


@contextmanager
def runner(*arguments: str | Path, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start the runner as an operator does, and see that its process is gone at the end."""
    command = [sys.executable, "-m", "abathur_nb", "run", *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str]) -> Ran:
    """Wait for the runner; no bare traceback of its own may be among what it printed."""
    out, err = process.communicate(timeout=HANGING_S)
    assert "Traceback" not in out + err, err
    return Ran(process.returncode, out, err)


def run(*arguments: str | Path, **options: Any) -> Ran:
    with runner(*arguments, **options) as process:
        return ended(process)


class Fifo:
    """Let a cell say that it has come to a certain point, and the test wait for that."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path

    @property
    def cell(self) -> str:
        """The line of a cell that says it, with the process id of its kernel."""
        return f"import os\nwith open({str(self.path)!r}, 'w') as fifo: fifo.write(str(os.getpid()))"

    def wait(self) -> int:
        """Wait until a cell has come there; return the process id of its kernel."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            assert select.select([descriptor], [], [], HANGING_S)[0], "no cell came there"
            return int(os.read(descriptor, 100))
        finally:
            os.close(descriptor)


def wait_for_death(pid: int) -> None:
    """Wait until a process is gone that need not be a child of this one."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], HANGING_S)[0], f"process {pid} lives"
    finally:
        os.close(descriptor)


def kernels_in(folder: Path) -> list[int]:
    """Return the kernels whose log is somewhere in a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/fd/1"):
        with suppress(OSError):  # gone meanwhile, or in another container
            if str(path.readlink()).startswith(f"{folder}/.abathur-kernel-"):
                found.append(int(path.parts[2]))
    return found


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def only_run(settings: Settings) -> Entry:
    """Return the one run of an archive, which must be as it was written."""
    (entry,) = read_archive(settings.archive_dir)
    assert entry.faults == ()
    return entry


def record_of(entry: Entry) -> dict[str, Any]:
    assert entry.record is not None, "unsealed"
    return entry.record.to_dict()


def artifact_of(entry: Entry) -> Any:
    """Return the archived notebook, which must be whole and valid, the page beside it too."""
    content = (entry.folder / "notebook.ipynb").read_bytes()
    notebook = nbformat.from_dict(json.loads(content))
    nbformat.validate(notebook)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert (entry.folder / "page.html").read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert not list(entry.folder.glob(".*"))
    return notebook


def assert_archived(settings: Settings, count: int = 1) -> None:
    """Assert that an archive is sound and has evidence of so many runs, and of no other."""
    report = verify_archive(settings.archive_dir)
    assert report.ok, str(report)
    assert "no evidence" not in [check.name for check in report.checks], str(report)
    assert len(read_archive(settings.archive_dir)) == count


def code_cells(notebook: Any) -> Sequence[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]
