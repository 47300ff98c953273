"""The execution of a notebook, cell by cell, within limits of time, until its end or whatever ends it.

nbclient runs the cells. Starting, watching and ending the kernel is done here: nbclient waits 0.2 s longer than a
kernel takes to start, asks only once a second whether it lives, and papermill's way to shut one down stalls 3.5 s in
one run of nine.
"""

import asyncio
import signal
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from abathur_nb.causes import in_words
from abathur_nb.evidence.kernel import START_S, Kernel, ready, running_kernel
from abathur_nb.wording import printable

if TYPE_CHECKING:
    from jupyter_client.asynchronous.client import AsyncKernelClient
    from nbclient import NotebookClient

__all__ = ["Around", "Ending", "Stop", "execute", "signals_noted"]

How = Literal["completed", "raised", "died", "timeout", "interrupted"]
Around = Callable[[Any, int], AbstractContextManager[object]]
_GRACE_S = 5  # for a cell that is interrupted to clean up and seal its run
_DRAIN_S = 0.5  # for what a dead kernel has sent to be read
_LONGEST_MESSAGE = 2000  # characters


@dataclass(frozen=True, slots=True)
class Ending:
    """Say how an execution ended: by itself or not, at which cell (its index, None if at none), with which error."""

    how: How
    cell: int | None = None
    name: str = ""
    message: str = ""


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
    guarded = _Execution(stop or Stop(), timeout)
    return asyncio.run(guarded.run(make_client, environment, cell_timeout, around or (lambda *_: nullcontext())))


class _Ended(Exception):  # noqa: N818 - an end, and not always an error
    def __init__(self, how: How, name: str, message: str) -> None:
        self.how, self.name, self.message = how, name, message
        super().__init__(message)


class _Execution:
    """Hold what may end an execution before its last cell: a stop, a deadline, the death of the kernel."""

    def __init__(self, stop: Stop, timeout: float | None) -> None:
        self._stop = stop
        self._deadline = monotonic() + timeout if timeout else None
        self._too_long = f"the run took longer than its limit of {timeout or 0:g} s"
        self._asked = asyncio.Event()
        self._kernel: Kernel
        self._client: AsyncKernelClient | None = None
        self._cell: Any = None

    async def run(
        self,
        make_client: Callable[[], "NotebookClient"],
        environment: Mapping[str, str],
        cell_timeout: float | None,
        around: Around,
    ) -> Ending:
        loop = asyncio.get_running_loop()
        self._stop.tell = lambda: loop.call_soon_threadsafe(self._tell)
        if self._stop.signals:
            self._asked.set()
        at: int | None = None
        try:
            async with running_kernel(environment) as self._kernel:
                client = make_client()
                from nbclient.exceptions import CellControlSignal

                try:
                    with self._kernel.connected() as self._client:
                        client.kc = self._client
                        told = await self._until(partial(ready, client.kc), START_S, "the kernel did not start in time")
                        client.nb.metadata["language_info"] = told["language_info"]
                        too_long = f"the cell took longer than {cell_timeout or 0:g} s"
                        for at, cell in enumerate(client.nb.cells):
                            self._cell = cell
                            with around(cell, at):
                                await self._until(partial(_run_cell, client, cell, at), cell_timeout, too_long)
                        client.set_widgets_metadata()
                except CellControlSignal as error:  # the cell raised, or its outputs never came
                    name = getattr(error, "ename", type(error).__name__)
                    raise _Ended("raised", name, getattr(error, "evalue", str(error))) from None
                if self._kernel.died.done():
                    raise self._death()
        except _Ended as end:
            return Ending(end.how, at, end.name, printable(end.message)[:_LONGEST_MESSAGE])
        except Exception as error:  # noqa: BLE001 - no room for sockets, or a cell sent what nbclient can't take
            message = printable(f"it could not be executed further: {in_words(error, Path(tempfile.gettempdir()))}")
            return Ending("died", at, type(error).__name__, message[:_LONGEST_MESSAGE])
        finally:
            self._stop.tell = None
        return Ending("completed")

    def _tell(self) -> None:
        kernel: Kernel | None = getattr(self, "_kernel", None)
        if self._asked.is_set() and kernel:  # whoever asks for the second time won't wait
            kernel.send(signal.SIGKILL)
        self._asked.set()

    async def _until(self, work: Callable[[], Coroutine[Any, Any, Any]], limit: float | None, too_long: str) -> Any:
        """Return what ``work`` does, or raise _Ended once the kernel dies, a limit is reached or a stop asked for."""
        if self._asked.is_set():
            raise self._stopped()
        left = self._deadline - monotonic() if self._deadline else None
        limits = [seconds for seconds in (limit, left) if seconds is not None]
        died = self._kernel.died
        task, asked = asyncio.create_task(work()), asyncio.create_task(self._asked.wait())
        try:
            await asyncio.wait(
                {task, asked, died}, timeout=min(limits, default=None), return_when=asyncio.FIRST_COMPLETED
            )
            if died.done():
                await asyncio.wait({task}, timeout=_DRAIN_S)
                raise self._stopped() if asked.done() else self._death()
            if task.done():
                return task.result()
            self._kernel.send(signal.SIGINT)
            if self._client:
                self._client.kernel_info()  # a signal alone does not wake the loop of a kernel that awaits something
            await asyncio.wait({task, died}, timeout=_GRACE_S, return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                raise self._stopped()
            whole = left is not None and left == min(limits)
            raise _Ended("timeout", "TimeoutError", self._too_long if whole else too_long)
        finally:
            for unfinished in (task, asked):
                unfinished.cancel()
            await asyncio.gather(task, asked, return_exceptions=True)

    def _stopped(self) -> _Ended:
        names = ", ".join(signal.Signals(number).name for number in self._stop.signals)
        return _Ended("interrupted", "KeyboardInterrupt", f"the runner was sent {names}")

    def _death(self) -> _Ended:
        outputs = self._cell.get("outputs", ()) if self._cell else ()
        shown = "".join(output["text"] for output in outputs if output["output_type"] == "stream")
        return _Ended("died", "DeadKernelError", self._kernel.last_words(shown))


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
        # A kernel that dies has not said which cell it had begun.
        if cell.get("execution_count", 0) is None and cell.source.strip():
            cell.execution_count = number
