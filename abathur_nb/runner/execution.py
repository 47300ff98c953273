"""The execution of a notebook, cell by cell, within limits of time, in a kernel that never outlives its parent."""

import asyncio
import json
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from abathur_nb.files import at, in_words, scratch_directory, sweep
from abathur_nb.text import printable

if TYPE_CHECKING:
    from jupyter_client.asynchronous.client import AsyncKernelClient
    from nbclient import NotebookClient

START_S = 60  # for a kernel to start
_SUBSCRIBED_S = 0.2  # until what a kernel publishes is missed
_GRACE_S = 5  # for a cell that is interrupted to clean up and seal its run
_DRAIN_S = 0.5  # for what a dead kernel has sent to be read
_LONGEST_PARENT = 70  # bytes; a socket's path may have 107 (unix(7))
_LONGEST_MESSAGE = 2000  # characters
_LAST_WORDS = 1000  # characters of what a kernel wrote before it died
_READ = 65_536  # bytes of its log, from the end
_OPTIONS = ("--HistoryManager.hist_file=:memory:", "--IPKernelApp.exec_PYTHONSTARTUP=False")
_SIGNALS = {one.value: one.name for one in signal.Signals}  # but for most of the real-time ones
_CRASHED = "Fatal Python error"  # how that begins which Python itself says of a crash

# What the kernel's process runs. PR_SET_PDEATHSIG (prctl(2)): ipykernel itself looks for its parent in a thread, which
# a cell that is busy in C never lets run. The parent may be dead before the call. ipykernel takes standard error for
# itself, where what a crash says would be lost; of that, other threads would hide the one that crashed.
_PROGRAM = """\
import ctypes, faulthandler, os, signal
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(os.environ["JPY_PARENT_PID"]): os._exit(1)
faulthandler.enable(os.fdopen(os.dup(2), "w"), all_threads=False)
from ipykernel.kernelapp import launch_new_instance
launch_new_instance()
"""

How = Literal["completed", "raised", "died", "timeout", "interrupted"]
Around = Callable[[Any, int], AbstractContextManager[object]]


# --- the kernel


@dataclass(frozen=True, slots=True)
class Kernel:
    """Hold a kernel's process, a task that is done when it is dead, and the directory of its sockets."""

    process: asyncio.subprocess.Process
    died: "asyncio.Task[int]"
    folder: Path

    def send(self, number: int) -> None:
        """Send a signal to the kernel, if it lives, and to what it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def last_words(self, shown: str = "") -> str:
        """Return how the kernel died, the last whole line that it wrote, and of a crash what Python says.

        ``shown`` is what its cell has shown, which need not be in its log.
        """
        code = self.process.returncode or 0
        how = f"was killed by {_SIGNALS.get(-code, f'signal {-code}')}" if code < 0 else f"exited with code {code}"
        with (self.folder / "log").open("rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - _READ))
            written, marker, crash = log.read().decode(errors="replace").partition(_CRASHED)
        head, newline, rest = f"{marker}{crash[:_LAST_WORDS]}".strip().partition("\n")
        words = dict.fromkeys(filter(None, (f"the kernel {how}", head, _last_line(shown), _last_line(written))))
        return ": ".join(words) + newline + rest

    @contextmanager
    def connected(self) -> Iterator["AsyncKernelClient"]:
        """Connect to the kernel; at the end no socket is left open."""
        import zmq
        import zmq.asyncio
        from jupyter_client.asynchronous.client import AsyncKernelClient

        context = zmq.asyncio.Context()
        context.setsockopt(zmq.RECONNECT_IVL, 10)  # milliseconds: the kernel has yet to make its sockets
        client = AsyncKernelClient(context=context)
        client.load_connection_file(str(self.folder / "connection.json"))
        client.start_channels(stdin=False, hb=False, control=False)
        client.allow_stdin = False
        try:
            yield client
        finally:
            client.stop_channels()
            context.destroy(linger=0)


@asynccontextmanager
async def running_kernel(environment: Mapping[str, str]) -> AsyncIterator[Kernel]:
    """Start a kernel in the working directory, and kill it at the end; raise OSError where none can be started.

    ``environment`` is added to this process's own. The kernel's sockets are in a directory of mode 0700.
    """
    given = Path(tempfile.gettempdir())
    parent = given if len(os.fsencode(given)) <= _LONGEST_PARENT else Path("/tmp")  # noqa: S108 - 0700, a random name
    sweep(parent)
    with scratch_directory(parent, "kernel") as folder:
        ports = {f"{name}_port": n for n, name in enumerate(("shell", "iopub", "stdin", "hb", "control"), 1)}
        where = {"transport": "ipc", "ip": str(folder / "k"), "key": secrets.token_hex(), **ports}
        connection = folder / "connection.json"
        with at(connection):
            connection.write_text(json.dumps({**where, "signature_scheme": "hmac-sha256"}))
        with (folder / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-c", _PROGRAM, "-f", connection, *_OPTIONS),
                # A profile of its own: what a user's own runs at the start of a kernel is not part of the notebook.
                env={**os.environ, "IPYTHONDIR": str(folder), **environment, "JPY_PARENT_PID": str(os.getpid())},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C at the terminal is meant for this process
            )
        kernel = Kernel(process, asyncio.create_task(process.wait()), folder)
        try:
            yield kernel
        finally:
            kernel.send(signal.SIGKILL)  # also when the kernel itself is dead: what it has started is of its group
            await kernel.died


async def ready(client: "AsyncKernelClient") -> Any:
    """Wait until a kernel answers and what it publishes arrives; return what it says of itself."""
    kernel: Any = client
    while True:
        asked = kernel.kernel_info()
        with suppress(Empty):
            while (reply := await kernel.shell_channel.get_msg(timeout=START_S))["parent_header"]["msg_id"] != asked:
                pass
            # A subscription may come later than a request, and what was published before it is lost.
            await kernel.iopub_channel.get_msg(timeout=_SUBSCRIBED_S)
            return reply["content"]


def _last_line(text: str) -> str:
    """Return the last whole line that is not blank, or what is torn off where there is no other."""
    whole, _, torn = text.rpartition("\n")
    return next((line.strip()[:_LAST_WORDS] for line in (*whole.splitlines()[::-1], torn) if line.strip()), "")


# --- what stops it


class Stop:
    """Note the ``signals`` that ask this process to stop, and tell the execution under way, if there is one."""

    def __init__(self) -> None:
        self.signals: list[int] = []
        self.tell: Callable[[], object] | None = None

    def note(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal. The second one, where no execution is there to end, raises KeyboardInterrupt."""
        self.signals.append(number)
        if self.tell is not None:
            self.tell()
        elif len(self.signals) > 1:
            raise KeyboardInterrupt


@contextmanager
def signals_noted() -> Iterator[Stop]:
    """Have SIGINT, SIGTERM and SIGHUP noted during the block, those that this process does not ignore."""
    stop = Stop()
    wanted = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    former = {number: signal.signal(number, stop.note) for number in wanted}
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


# --- the execution


@dataclass(frozen=True, slots=True)
class Ending:
    """Say how an execution ended: by itself or not, at which cell (its index, None if at none), with which error."""

    how: How
    cell: int | None = None
    name: str = ""
    message: str = ""


class _Ended(Exception):  # noqa: N818 - an end, and not always an error
    def __init__(self, how: How, name: str, message: str) -> None:
        self.how, self.name, self.message = how, name, message
        super().__init__(message)


def execute(
    make_client: Callable[[], "NotebookClient"],
    *,
    environment: Mapping[str, str],
    timeout: float | None = None,
    cell_timeout: float | None = None,
    stop: Stop | None = None,
    around: Around | None = None,
) -> Ending:
    """Execute the notebook of a client that has no kernel, in place, and say how that ended.

    ``make_client`` is called while the kernel starts. The limits are in seconds; a cell that exceeds one, or that a
    signal stops, has 5 s to clean up. ``around`` makes a context for each cell. The kernel is gone when this returns,
    and when this process is gone.
    """
    execution = _Execution(stop or Stop(), timeout, cell_timeout, around or (lambda *_: nullcontext()))
    try:
        asyncio.run(execution.run(make_client, environment))
    except _Ended as end:
        return Ending(end.how, execution.at, end.name, printable(end.message)[:_LONGEST_MESSAGE])
    except Exception as error:  # noqa: BLE001 - no room for sockets, or a cell sent what nbclient can't take
        message = printable(f"it could not be executed further: {in_words(error, Path(tempfile.gettempdir()))}")
        return Ending("died", execution.at, type(error).__name__, message[:_LONGEST_MESSAGE])
    return Ending("completed")


class _Execution:
    """Hold what may end an execution before its last cell: a stop, a deadline, the death of the kernel."""

    def __init__(self, stop: Stop, timeout: float | None, cell_timeout: float | None, around: Around) -> None:
        self.at: int | None = None  # the cell under way
        self._stop, self._asked, self._around = stop, asyncio.Event(), around
        self._timeout, self._cell_timeout = timeout, cell_timeout
        self._deadline = monotonic() + timeout if timeout else None
        self._kernel: Kernel | None = None
        self._client: Any = None  # nbclient's

    async def run(self, make_client: Callable[[], "NotebookClient"], environment: Mapping[str, str]) -> None:
        loop = asyncio.get_running_loop()
        self._stop.tell = lambda: loop.call_soon_threadsafe(self._tell)
        if self._stop.signals:
            self._asked.set()
        try:
            async with running_kernel(environment) as self._kernel:
                client = self._client = make_client()
                from nbclient.exceptions import CellControlSignal

                try:
                    with self._kernel.connected() as client.kc:
                        late = "the kernel did not start in time"
                        words = await self._until(partial(ready, client.kc), START_S, late)
                        client.nb.metadata["language_info"] = words["language_info"]
                        late = f"the cell took longer than {self._cell_timeout or 0:g} s"
                        for self.at, cell in enumerate(client.nb.cells):
                            with self._around(cell, self.at):
                                await self._until(partial(_run_cell, client, cell, self.at), self._cell_timeout, late)
                        client.set_widgets_metadata()
                except CellControlSignal as error:  # the cell raised, or its outputs never came
                    name = getattr(error, "ename", type(error).__name__)
                    raise _Ended("raised", name, getattr(error, "evalue", str(error))) from None
                if self._kernel.died.done():
                    raise self._death(self._kernel)
        finally:
            self._stop.tell = None

    def _tell(self) -> None:
        if self._asked.is_set() and self._kernel:  # whoever asks for the second time won't wait
            self._kernel.send(signal.SIGKILL)
        self._asked.set()

    async def _until(self, work: Callable[[], Coroutine[Any, Any, Any]], limit: float | None, too_long: str) -> Any:
        """Return what ``work`` does, or raise _Ended once the kernel dies, a limit is reached or a stop asked for."""
        assert self._kernel  # noqa: S101 - for the type checker
        if self._asked.is_set():
            raise self._stopped()
        left = self._deadline - monotonic() if self._deadline else None
        least = min((seconds for seconds in (limit, left) if seconds is not None), default=None)
        died = self._kernel.died
        task, asked = asyncio.create_task(work()), asyncio.create_task(self._asked.wait())
        try:
            await asyncio.wait({task, asked, died}, timeout=least, return_when=asyncio.FIRST_COMPLETED)
            if died.done():
                await asyncio.wait({task}, timeout=_DRAIN_S)
                raise self._stopped() if asked.done() else self._death(self._kernel)
            if task.done():
                return task.result()
            self._kernel.send(signal.SIGINT)
            self._client.kc.kernel_info()  # a signal alone does not wake the loop of a kernel that awaits something
            await asyncio.wait({task, died}, timeout=_GRACE_S, return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                raise self._stopped()
            if left is not None and left == least:
                too_long = f"the run took longer than its limit of {self._timeout:g} s"
            raise _Ended("timeout", "TimeoutError", too_long)
        finally:
            for unfinished in (task, asked):
                unfinished.cancel()
            await asyncio.gather(task, asked, return_exceptions=True)

    def _stopped(self) -> _Ended:
        names = ", ".join(signal.Signals(number).name for number in self._stop.signals)
        return _Ended("interrupted", "KeyboardInterrupt", f"the runner was sent {names}")

    def _death(self, kernel: Kernel) -> _Ended:
        outputs = () if self.at is None else self._client.nb.cells[self.at].get("outputs", ())
        shown = "".join(output["text"] for output in outputs if output["output_type"] == "stream")
        return _Ended("died", "DeadKernelError", kernel.last_words(shown))


async def _run_cell(client: "NotebookClient", cell: Any, index: int) -> None:
    def refuse_exit(*, execute_reply: Any, **_: Any) -> None:
        # exit() in a cell is answered with "ok", and with the wish that whoever executes it ends the kernel.
        if any(payload.get("source") == "ask_exit" for payload in execute_reply["content"].get("payload", ())):
            raise _Ended("raised", "SystemExit", "the cell asked the kernel to exit")

    client.on_cell_executed = refuse_exit
    number = client.code_cells_executed + 1
    try:
        await client.async_execute_cell(cell, index, execution_count=number)
    finally:
        # A kernel that dies has not reported which cell it had begun.
        if cell.get("execution_count", 0) is None and cell.source.strip():
            cell.execution_count = number
