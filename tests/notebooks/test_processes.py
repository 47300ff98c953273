"""A forked child sees nothing of another and dies with its client; where none can be forked, a new process starts."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from patience import HANGING_S

from abathur_nb.runner import processes
from abathur_nb.runner.processes import ForkServer, fork_server, start

TIMEIT = ("timeit:main", ["-n1", "-r1"])  # a function of the standard library that executes its last argument
MARK = "a mark that no other process has"


def run(source: str, server: ForkServer | None, **environment: str) -> tuple[int | None, list[str]]:
    """Execute some code in a process of its own; return its exit code, and the lines that it wrote."""
    function, options = TIMEIT
    with tempfile.TemporaryFile() as file:
        output = {"output": file.fileno(), "errors": file.fileno()}
        child = start(function, [*options, f"import os, sys\n{source}"], environment, **output, server=server)
        code = child.wait(HANGING_S)
        file.seek(0)
        return code, file.read().decode().splitlines()


@pytest.mark.parametrize("forked", [False, True])
@pytest.mark.parametrize(
    ("source", "code"), [("", 0), ("os._exit(7)", 7), ("os.kill(os.getpid(), 15)", -15), ("1 / 0", 1)]
)
def test_a_child_tells_how_it_ended(source: str, code: int, forked: bool) -> None:
    assert run(f"print('said', flush=True)\n{source}", fork_server() if forked else None)[0] == code


def test_a_child_has_what_its_client_has_and_leaves_nothing_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = (
        "import time, random, numpy; print(os.getcwd(), os.environ.get('LEFT'), getattr(os, 'left', None), time.tzname)"
        "\nprint(oct(os.umask(0)), len(os.listdir('/proc/self/fd')), os.getsid(0) == os.getpid(), sys.stdin.read())"
        "\nprint(random.random(), numpy.random.random())\nos.environ['LEFT'] = os.left = 'left'; os.chdir('/')"
        "\nkept = open('/dev/null'); os.dup2(kept.fileno(), 77); random.seed(1); numpy.random.seed(1)"
    )
    server = fork_server()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    former = os.umask(0o027)
    try:
        seen = [run(look, server)[1] for _ in range(2)]
    finally:
        os.umask(former)
    first, second = seen
    assert first[0] == second[0] == f"{tmp_path} None None ('JST', 'JST')"
    assert first[1] == second[1] == "0o27 5 True "  # the standard three, the connection, the directory that is listed
    assert not set(first[2].split()) & set(second[2].split())


def gone(pid: int) -> bool:
    """Wait until a process of somebody else has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    ended = processes.Child(pid, descriptor, lambda: 0).wait(HANGING_S) == 0
    os.close(descriptor)
    return ended


@pytest.mark.parametrize("whom", ["client", "server"])
def test_what_a_child_has_started_is_gone_with_its_client_or_its_server(whom: str) -> None:
    program = (
        "import os\nfrom abathur_nb.runner.processes import fork_server, start\n"
        "child = start('timeit:main', ['-n1', '-r1', 'import os, time\\nif not os.fork(): time.sleep(600)\\n"
        "print(os.getpid(), os.getppid(), flush=True); time.sleep(600)'], {}, "
        "output=1, errors=2, server=fork_server())\n"
        "print(child.wait())\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout
        child, server = map(int, client.stdout.readline().split())
        group = [int(path.parts[2]) for path in Path("/proc").glob("[0-9]*/stat") if in_session(path, child)]
        assert len(group) == 2, "the child, and what it has forked"
        os.kill({"client": client.pid, "server": server}[whom], signal.SIGKILL)
        assert all(map(gone, (server, child)))
        assert client.wait(HANGING_S) == (-signal.SIGKILL if whom == "client" else 0)
        if whom == "client":
            assert all(map(gone, group))
        else:
            assert client.stdout.readline() == "-9\n"
            for pid in group[1:]:
                os.kill(pid, signal.SIGKILL)


def in_session(path: Path, session: int) -> bool:
    try:
        return int(path.read_text().rpartition(")")[2].split()[3]) == session
    except OSError:
        return False


def test_a_server_that_died_or_whose_package_has_changed_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    def its_pid(server: ForkServer) -> int:
        return int(run("print(os.getppid())", server)[1][0])

    first = fork_server()
    pid = its_pid(first)
    assert fork_server() is first
    monkeypatch.setattr(processes, "stamp", lambda: (("template.ipynb", 1, 2),))
    second = fork_server()
    assert its_pid(second) != pid
    os.kill(its_pid(second), signal.SIGKILL)
    while second.serves():
        time.sleep(0)
    assert run("print('forked anew')", fork_server())[1][0] == "forked anew"


@pytest.mark.parametrize("why", ["threads", "variable", "ended"])
def test_where_none_can_be_forked_a_new_process_starts_and_that_is_logged(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sitecustomize = "import threading, time\nthreading.Thread(target=time.sleep, args=[600], daemon=True).start()"
    (tmp_path / "sitecustomize.py").write_text(sitecustomize)
    if why == "threads":
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    server = ForkServer()
    if why == "variable":
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    if why == "ended":
        os.kill(int(run("print(os.getppid())", server)[1][0]), signal.SIGKILL)
    assert run(f"print(os.getppid() == {os.getpid()})", server)[1][0] == "True"
    said = {"threads": "the fork server has 2 threads", "variable": "a variable PYTHON…", "ended": "has ended"}[why]
    assert said in caplog.text


@pytest.fixture
def _provisioned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_DEFAULT_PROVISIONER_NAME", "abathur")


def executed(*cells: str, **options: Any) -> list[str]:
    """Execute some cells as nbclient does by itself; return what each printed."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, **options).execute()
    return ["".join(output.get("text", "") for output in cell.outputs) for cell in notebook.cells]


@pytest.mark.usefixtures("_provisioned")
def test_nbclient_takes_forked_kernels_which_end_as_others_do() -> None:
    server = int(run("print(os.getppid())", fork_server())[1][0])
    forked = Path(f"/proc/{server}/task/{server}/children")
    before = forked.read_text()  # a process may wait for a further database of another test
    parent = "import os, sys\nprint(os.getppid(), getattr(sys, 'left', None))\nsys.left = 1"
    assert [executed(parent) for _ in range(2)] == [[f"{server} None\n"]] * 2
    with pytest.raises(DeadKernelError):
        executed("import os\nos.kill(os.getpid(), 9)")
    with pytest.raises(CellTimeoutError):
        executed("import time\ntime.sleep(600)", timeout=1)
    assert executed("print('the next')") == ["the next\n"]
    assert forked.read_text() == before, "no kernel is left"


def test_a_process_ends_though_a_child_that_holds_its_server_still_waits() -> None:
    program = (
        "import os\nfrom abathur_nb.runner.processes import fork_server, start\ngiven, kept = os.pipe()\n"
        "child = start('timeit:main', ['-n1', '-r1', 'import sys; sys.stdin.read()'], {}, output=1, errors=2, "
        "given=given, server=fork_server())\nprint(child.pid, flush=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=HANGING_S, check=True
    )
    assert gone(int(done.stdout))
