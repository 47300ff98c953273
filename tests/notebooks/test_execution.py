"""However an execution ends, it says how and where, keeps what was shown, and leaves no kernel of this very Python."""

import asyncio
import os
import re
import signal
import sys
import threading
from pathlib import Path
from textwrap import indent
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from patience import HANGING_S, ever_longer
from running import Fifo, kernels_in, names_in

from abathur_nb.runner.execution import Ending, Stop, execute, ready, running_kernel, signals_noted
from abathur_nb.runner.processes import ForkServer, fork_server


@pytest.fixture(autouse=True)
def no_kernel_is_left(sockets: Path) -> Path:
    return sockets


def notebook_of(*cells: str) -> Any:
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])


_servers: list[ForkServer] = []


@pytest.fixture(autouse=True, params=["new", "forked"])
def kernels(request: pytest.FixtureRequest) -> None:
    """Run each test twice: each kernel is a new process, or forked."""
    _servers[:] = [fork_server()] if request.param == "forked" else []


def executed(*cells: str, **options: Any) -> tuple[Ending, Any]:
    """Execute some cells; return how it ended, and the notebook."""
    notebook = notebook_of(*cells)
    options = {"environment": {}, "server": next(iter(_servers), None), **options}
    return execute(lambda: NotebookClient(notebook), **options), notebook


def texts(notebook: Any) -> list[str]:
    return [output.get("text", "") for cell in notebook.cells for output in cell.outputs]


def test_the_cells_run_in_order_and_show_what_they_show() -> None:
    ending, notebook = executed("x = 1", "x += 1\nprint(x)", "import asyncio\nawait asyncio.sleep(0)\nx")
    assert ending == Ending("completed")
    assert [cell.execution_count for cell in notebook.cells] == [1, 2, 3]
    assert texts(notebook) == ["2\n", ""]
    assert notebook.cells[2].outputs[0].data["text/plain"] == "2"
    assert notebook.metadata.language_info.name == "python"


@pytest.mark.parametrize(
    ("cell", "name", "message"),
    [
        ("raise KeyError('a\\x1bb')", "KeyError", r"'a\x1bb'"),
        ("exit()", "SystemExit", "the cell asked the kernel to exit"),
    ],
)
def test_a_cell_that_raises_or_asks_its_kernel_to_exit_ends_it_there(cell: str, name: str, message: str) -> None:
    ending, notebook = executed("1", f"print('before')\n{cell}", "2")
    assert ending == Ending("raised", 1, name, message)
    assert texts(notebook)[1] == "before\n"
    assert notebook.cells[2].execution_count is None


def test_no_tag_of_a_cell_keeps_it_from_running_or_hides_its_error() -> None:
    notebook = notebook_of("print('ran')", "1 / 0", "2")
    notebook.cells[0].metadata.tags = ["skip-execution"]
    notebook.cells[1].metadata.tags = ["raises-exception"]
    ending = execute(lambda: NotebookClient(notebook), environment={})
    assert (ending.how, ending.cell, ending.name) == ("raised", 1, "ZeroDivisionError")
    assert texts(notebook)[0] == "ran\n"


LONG = "x" * 3000
DEATHS = {
    "exit": ("print('last')", "os._exit(7)", r"the kernel exited with code 7: last\Z"),
    "a torn line": (f"print('{LONG}\\nthe cause\\n\\nhalf a li', end='')", "os._exit(7)", r".* code 7: the cause\Z"),
    "standard error": ("os.write(2, b'from C\\xff\\n')", "os._exit(7)", r".* code 7: from C\ufffd\Z"),
    "killed": ("print('last', file=sys.stderr)", "os.kill(os.getpid(), 9)", r".* killed by SIGKILL: last\Z"),
    "aborted": ("os.write(2, b'malloc(): corrupted\\n')", "os.abort()", r".* SIGABRT: malloc\(\): corrupted\Z"),
}


@pytest.mark.parametrize(("write", "die", "message"), DEATHS.values(), ids=DEATHS)
def test_a_kernel_that_dies_ends_it_with_its_last_whole_line_and_what_it_had_shown_is_kept(
    write: str, die: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # by which ipykernel knows pytest, and leaves what C writes alone
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    class Client(NotebookClient):
        def output(self, *arguments: Any) -> Any:
            shown = super().output(*arguments)
            if fifo.exists():  # what a kernel has only printed may die with it
                fifo.write_text("arrived")
                fifo.unlink()
            return shown

    notebook = notebook_of("x = 1", f"import os, sys\n{write}\nopen({str(fifo)!r}).read()\n{die}", "2")
    ending = execute(lambda: Client(notebook), environment={})
    assert (ending.how, ending.cell, ending.name) == ("died", 1, "DeadKernelError")
    assert re.match(message, ending.message, re.DOTALL), ending.message
    assert len(texts(notebook)) == 1


def test_what_a_cell_prints_is_whole_though_it_is_a_flood_and_a_message_is_cut() -> None:
    ending, notebook = executed("for n in range(20_000): print(n, 'x' * 100)", "raise ValueError('x' * 10_000_000)")
    lines = "".join(texts(notebook)).splitlines()
    assert [int(line.split()[0]) for line in lines] == list(range(20_000))
    assert (ending.name, len(ending.message)) == ("ValueError", 2000)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"timeout": 60, "cell_timeout": 0.5}, "the cell took longer than {:g} s"),
        ({"timeout": 2, "cell_timeout": 60}, "the run took longer than its limit of {:g} s"),
    ],
)
def test_a_limit_ends_it_and_the_cell_may_clean_up(limits: dict[str, float], message: str) -> None:
    cells = ("1", "import time\ntry: time.sleep(600)\nfinally: print('cleaned up')", "2")
    for shortest in ever_longer(min(limits.values())):
        factor = shortest / min(limits.values())
        ending, notebook = executed(*cells, **{name: limit * factor for name, limit in limits.items()})
        if ending.cell == 1:
            break
    assert ending == Ending("timeout", 1, "TimeoutError", message.format(shortest))
    assert "cleaned up\n" in texts(notebook)
    assert notebook.cells[2].execution_count is None


def test_a_limit_or_a_stop_may_be_over_before_the_first_cell() -> None:
    ending, notebook = executed("1", timeout=1e-9)
    assert (ending.how, ending.cell, notebook.cells[0].execution_count) == ("timeout", None, None)
    ending, notebook = executed("1", start_timeout=1e-9)
    assert ending == Ending("timeout", None, "TimeoutError", "the kernel did not start within 1e-09 s")
    stop = Stop()
    stop.signals.append(signal.SIGTERM)
    ending, notebook = executed("1", stop=stop)
    assert ending == Ending("interrupted", None, "KeyboardInterrupt", "the runner was sent SIGTERM")
    assert notebook.cells[0].execution_count is None


def test_a_signal_ends_it_and_the_cell_may_clean_up(tmp_path: Path) -> None:
    fifo = Fifo(tmp_path / "fifo")

    def send() -> None:
        fifo.wait()
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send)
    sender.start()
    cell = f"import time\ntry:\n{indent(fifo.cell, '    ')}\n    time.sleep(600)\nfinally: print('cleaned up')"
    with signals_noted() as stop:
        ending, notebook = executed("1", cell, "2", stop=stop)
    sender.join()
    assert ending == Ending("interrupted", 1, "KeyboardInterrupt", "the runner was sent SIGTERM")
    assert "cleaned up\n" in texts(notebook)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "the handlers of before are back"


def test_a_signal_that_this_process_ignores_is_still_ignored() -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup has it
    try:
        with signals_noted() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.signals == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGHUP, former)


async def test_it_answers_and_is_gone_at_the_end(sockets: Path) -> None:
    async with running_kernel({}, next(iter(_servers), None)) as kernel:
        with kernel.connected() as client:
            told = await asyncio.wait_for(ready(client), HANGING_S)
        assert told["language_info"]["name"] == "python"
        assert Path(f"/proc/{kernel.process.pid}/exe").samefile(sys.executable)
        assert kernels_in(sockets) == [kernel.process.pid]
        (place,) = sockets.iterdir()
        assert place.stat().st_mode & 0o777 == 0o700
    assert kernel.process.returncode == -signal.SIGKILL
    assert (kernels_in(sockets), names_in(sockets)) == ([], [])


def test_no_file_of_its_directory_or_startup_runs(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = home / "canary"
    startup = home / ".ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    modules = [tmp_path / f"{name}.py" for name in ("ctypes", "ipykernel", "faulthandler", "json")]
    for path in (*modules, startup / "00.py", home / "startup.py"):
        path.write_text(f"open({str(canary)!r}, 'w').close()")
    monkeypatch.setenv("PYTHONSTARTUP", str(home / "startup.py"))
    monkeypatch.chdir(tmp_path)
    assert executed("1")[0] == Ending("completed")
    assert not canary.exists()


async def test_what_it_has_started_is_gone_though_it_died_first() -> None:
    program = "import os, signal, time\nif os.fork() == 0:\n    print(os.getpid(), flush=True); time.sleep(600)\n"
    async with running_kernel({}, next(iter(_servers), None)) as kernel:
        with kernel.connected() as client:
            await ready(client)
            client.execute(program + "time.sleep(0)")
            while (content := (await client.get_iopub_msg(timeout=HANGING_S))["content"]).get("name") != "stdout":
                pass
            child = int(content["text"])
            client.execute("os.kill(os.getpid(), 9)")
            await kernel.died
    async with asyncio.timeout(HANGING_S):
        while Path(f"/proc/{child}").exists():  # noqa: ASYNC110 - the end of another's child is no event here
            await asyncio.sleep(0)


def test_the_kernel_is_gone_whatever_is_raised_in_between(sockets: Path) -> None:
    def fail() -> Any:
        while not kernels_in(sockets):  # the control: it has none before its program is loaded
            pass
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(fail, environment={})
