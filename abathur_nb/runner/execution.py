"""Execute a notebook cell by cell, within time limits, in a kernel that never outlives its parent."""

import asyncio
import json
import os
import secrets
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from queue import Empty
from threading import current_thread, main_thread
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from abathur_nb.evidence.run import LONGEST_MESSAGE
from abathur_nb.files import in_words, scratch_directory, sweep
from abathur_nb.runner.processes import KERNEL, UNWATCHED, Child, ForkServer, start
from abathur_nb.text import printable

if TYPE_CHECKING:
    from nbclient import NotebookClient

START_S = 60  # for a kernel to start, by default
_SUBSCRIBED_S = 0.2  # for a first published message to arrive
_GRACE_S = 5  # for an interrupted cell to clean up and seal its run
_DRAIN_S = 0.5  # for the last messages of a dead kernel to be read
_LONGEST_PARENT = 70  # bytes; a socket's path may have 107 (unix(7))
_LAST_WORDS = 1000  # characters of a line that a kernel wrote before it died
_OUTPUT_S = 60  # for the outputs of a finished cell to arrive
_OPTIONS = (UNWATCHED, "--HistoryManager.hist_file=:memory:", "--IPKernelApp.exec_PYTHONSTARTUP=False")
_SIGNALS = {one.value: one.name for one in signal.Signals}  # most real-time signals have no name

How = Literal["completed", "raised", "died", "timeout", "interrupted"]


# --- the kernel


@dataclass(frozen=True, slots=True)
class Kernel:
    """Hold a kernel's process, a task that ends when the process dies, and the directory of its sockets."""

    process: Child
    died: "asyncio.Task[object]"
    folder: Path

    def last_words(self, shown: str = "") -> str:
        """Return how the kernel died, and the last whole line of ``shown`` (its cell's output) and of its log."""
        code = self.process.returncode or 0
        how = f"was killed by {_SIGNALS.get(-code, f'signal {-code}')}" if code < 0 else f"exited with code {code}"
        written = (self.folder / "log").read_text(errors="replace")
        return ": ".join(dict.fromkeys(filter(None, (f"the kernel {how}", _last_line(shown), _last_line(written)))))

    @contextmanager
    def connected(self) -> Iterator[Any]:
        """Connect to the kernel, and close every socket at the end."""
        import zmq
        import zmq.asyncio
        from jupyter_client.asynchronous.client import AsyncKernelClient

        context = zmq.asyncio.Context()
        context.setsockopt(zmq.RECONNECT_IVL, 10)  # milliseconds: the kernel may not have created its sockets yet
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
async def running_kernel(environment: Mapping[str, str], server: ForkServer | None = None) -> AsyncIterator[Kernel]:
    """Start a kernel in the working directory, and kill it at the end; raise OSError if none can be started.

    ``environment`` is added to this process's environment, ``server`` forks the kernel. The kernel's sockets are in a
    directory of mode 0700.
    """
    given = Path(tempfile.gettempdir())
    parent = given if len(os.fsencode(given)) <= _LONGEST_PARENT else Path("/tmp")  # noqa: S108 - 0700, a random name
    sweep(parent)
    with scratch_directory(parent, "kernel") as folder:
        ports = {f"{name}_port": n for n, name in enumerate(("shell", "iopub", "stdin", "hb", "control"), 1)}
        where = {"transport": "ipc", "ip": str(folder / "k"), "key": secrets.token_hex(), **ports}
        connection = folder / "connection.json"
        connection.write_text(json.dumps({**where, "signature_scheme": "hmac-sha256"}))
        with (folder / "log").open("wb") as log:
            # A new IPython profile: the user's startup files are not part of the notebook.
            its_own = {"IPYTHONDIR": str(folder), **environment}
            output = {"output": log.fileno(), "errors": log.fileno()}
            process = start(KERNEL, ["-f", str(connection), *_OPTIONS], its_own, **output, server=server)
        kernel = Kernel(process, asyncio.create_task(_end_of(process)), folder)
        try:
            yield kernel
        finally:
            process.send_signal(signal.SIGKILL)  # even if it is dead: processes that it started are in its group
            await kernel.died


async def _end_of(process: Child) -> None:
    """Wait until a process has ended."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(process.descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(process.descriptor)
    process.wait()


async def ready(client: Any) -> Any:
    """Wait until a kernel answers and its published messages arrive; return its kernel info."""
    while True:
        asked = client.kernel_info()
        with suppress(Empty):
            while (reply := await client.shell_channel.get_msg(timeout=START_S))["parent_header"]["msg_id"] != asked:
                pass
            # A subscription may reach the kernel after the request; what was published before it is lost.
            await client.iopub_channel.get_msg(timeout=_SUBSCRIBED_S)
            return reply["content"]


def _last_line(text: str) -> str:
    """Return the last line that is not blank; an unfinished one only if there is no other."""
    lines = (text.rpartition("\n")[0] or text).strip().splitlines() or [""]
    return lines[-1].strip()[:_LAST_WORDS]


# --- signals


@dataclass(slots=True)
class Stop:
    """Record the ``signals`` that ask this process to stop; ``tell`` notifies what is ``running``, or the execution."""

    signals: list[int] = field(default_factory=list)
    running: set[Child] = field(default_factory=set)  # the processes of a batch
    tell: Callable[[], object] = bool  # does nothing while no notebook is executed

    def note(self, number: int, _frame: FrameType | None) -> None:
        """Record a signal, and notify the execution."""
        self.signals.append(number)
        self.tell()


@contextmanager
def signals_noted() -> Iterator[Stop]:
    """Record SIGINT, SIGTERM and SIGHUP during the block, unless they are ignored or this is not the main thread."""
    stop = Stop()
    known = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if current_thread() is main_thread() else ()
    former = {n: signal.signal(n, stop.note) for n in known if signal.getsignal(n) is not signal.SIG_IGN}
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


# --- the execution


@dataclass(frozen=True, slots=True)
class Ending:
    """Hold how an execution ended, the index of the cell at which it ended early, if any, and the error."""

    how: How
    cell: int | None = None
    name: str = ""
    message: str = ""


class _Ended(Exception):  # noqa: N818 - an end, and not always an error
    """End an execution: its arguments are ``how``, ``name`` and ``message`` of an Ending."""


def execute(
    make_client: Callable[[], "NotebookClient"],
    *,
    environment: Mapping[str, str],
    timeout: float | None = None,
    cell_timeout: float | None = None,
    start_timeout: float | None = None,
    stop: Stop | None = None,
    server: ForkServer | None = None,
) -> Ending:
    """Execute the notebook of a client in place, in a new kernel, and return how it ended.

    ``make_client`` is called while the kernel starts. The limits are in seconds; a cell that exceeds one, or that a
    signal stops, has 5 s to clean up. The kernel is dead when this returns, and dies with this process.
    """
    limits = (timeout or inf, cell_timeout or inf, start_timeout or START_S)
    execution = _Execution(make_client, stop or Stop(), *limits, server)
    try:
        asyncio.run(execution.run(environment))
        return Ending("completed")
    except _Ended as end:
        how, name, message = end.args
    except Exception as error:  # noqa: BLE001 - such as no room for sockets, or a message that nbclient rejects
        how, name = "died", type(error).__name__
        message = f"the execution could not continue: {in_words(error, Path(tempfile.gettempdir()))}"
    return Ending(how, execution.at, name, printable(message)[:LONGEST_MESSAGE])


@dataclass
class _Execution:
    """Run all cells; end early at a stop signal, at a limit, or if the kernel dies."""

    make_client: Callable[[], "NotebookClient"]
    stop: Stop
    timeout: float
    cell_timeout: float
    start_timeout: float
    server: ForkServer | None
    at: int | None = None  # index of the current cell

    async def run(self, environment: Mapping[str, str]) -> None:
        """Run every cell in a new kernel; raise _Ended if that ends early."""
        loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[_Ended] = loop.create_future()  # done once the execution has to end early
        late = f"the run took longer than its limit of {self.timeout:g} s"
        loop.call_later(self.timeout, self._end, "timeout", "TimeoutError", late)
        self.stop.tell = lambda: loop.call_soon_threadsafe(self._interrupt)
        if self.stop.signals:
            self._interrupt()
        try:
            async with running_kernel(environment, self.server) as self._kernel:
                client: Any = self.make_client()
                self._client = client
                client.iopub_timeout, client.raise_on_iopub_timeout = _OUTPUT_S, True
                # Skip no cell (in nbformat, no tag is a comma), and let none fail unseen.
                client.skip_cells_with_tag, client.force_raise_errors = ",", True
                with self._kernel.connected() as client.kc:
                    await self._run_cells(client)
                if self._kernel.died.done():
                    raise self._death()
        finally:
            self.stop.tell = bool

    async def _run_cells(self, client: Any) -> None:
        from nbclient.exceptions import CellControlSignal

        late = f"the kernel did not start within {self.start_timeout:g} s"
        told = await self._until(ready(client.kc), self.start_timeout, late)
        client.nb.metadata["language_info"] = told["language_info"]
        late = f"the cell took longer than {self.cell_timeout:g} s"
        try:
            for self.at, cell in enumerate(client.nb.cells):
                await self._until(_run_cell(client, cell, self.at), self.cell_timeout, late)
        except CellControlSignal as error:  # the cell raised, or its outputs did not arrive
            name = getattr(error, "ename", type(error).__name__)
            raise _Ended("raised", name, getattr(error, "evalue", str(error))) from None
        client.set_widgets_metadata()

    async def _until(self, work: Coroutine[Any, Any, Any], limit: float, too_long: str) -> Any:
        """Return the result of ``work``; raise _Ended if the kernel dies, or at a limit or a stop signal."""
        task, died = asyncio.create_task(work), self._kernel.died
        try:
            if self._ended.done():
                raise self._ended.result()
            await asyncio.wait({task, self._ended, died}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if not died.done():
                if task.done():
                    return task.result()
                self._kernel.process.send_signal(signal.SIGINT)
                self._client.kc.kernel_info()  # wakes a kernel that waits in its event loop: a signal alone does not
                await asyncio.wait({task, died}, timeout=_GRACE_S, return_when=asyncio.FIRST_COMPLETED)
                self._end("timeout", "TimeoutError", too_long)
            elif not self._ended.done():
                await asyncio.wait({task}, timeout=_DRAIN_S)
                self._end(*self._death().args)
            raise self._ended.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _end(self, *how_name_message: str) -> None:
        if not self._ended.done():
            self._ended.set_result(_Ended(*how_name_message))

    def _interrupt(self) -> None:
        names = ", ".join(_SIGNALS[number] for number in self.stop.signals)
        self._end("interrupted", "KeyboardInterrupt", f"the runner was sent {names}")

    def _death(self) -> _Ended:
        outputs = () if self.at is None else self._client.nb.cells[self.at].get("outputs", ())
        shown = "".join(output["text"] for output in outputs if output["output_type"] == "stream")
        return _Ended("died", "DeadKernelError", self._kernel.last_words(shown))


async def _run_cell(client: "NotebookClient", cell: Any, index: int) -> None:
    def refuse_exit(*, execute_reply: Any, **_: Any) -> None:
        # If a cell calls exit(), the kernel answers "ok" and asks its client to shut it down.
        if any(payload.get("source") == "ask_exit" for payload in execute_reply["content"].get("payload", ())):
            raise _Ended("raised", "SystemExit", "the cell asked the kernel to exit")

    client.on_cell_executed = refuse_exit
    number = client.code_cells_executed + 1
    try:
        await client.async_execute_cell(cell, index, execution_count=number)
    finally:
        # A kernel that died may not have reported that it had begun the cell.
        if cell.get("execution_count", 0) is None and cell.source.strip():
            cell.execution_count = number
