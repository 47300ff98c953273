"""A kernel of this interpreter's own: over sockets in a private directory, and never alive without its parent."""

import asyncio
import json
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Any

from abathur_nb.files import at, scratch_directory, sweep

if TYPE_CHECKING:
    from jupyter_client.asynchronous.client import AsyncKernelClient

__all__ = ["START_S", "Kernel", "ready", "running_kernel"]

START_S = 60  # for a kernel to start
_SUBSCRIBED_S = 0.2  # until what a kernel publishes is missed
_LONGEST_PARENT = 70  # bytes; a socket's path may have 107 (unix(7))
_OPTIONS = ("--HistoryManager.hist_file=:memory:", "--IPKernelApp.exec_PYTHONSTARTUP=False")
_LAST_WORDS = 1000  # characters of what a kernel wrote before it died
_READ = 65_536  # bytes of its log, from the end
_SIGNALS = {one.value: one.name for one in signal.Signals}  # but for most of the real-time ones
_CRASHED = "Fatal Python error"  # how that begins which Python itself says of it

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


@dataclass(frozen=True, slots=True)
class Kernel:
    """Hold a kernel's process, a task that is done when it is dead, and the directory of its sockets."""

    process: asyncio.subprocess.Process
    died: "asyncio.Task[int]"
    folder: Path

    def send(self, number: int) -> None:
        """Send a signal to the kernel and to what it has started, if it lives."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def last_words(self, shown: str = "") -> str:
        """Say how the kernel died, the last whole line that it wrote, and of a crash what Python says.

        ``shown`` is what its cell has shown, which need not be in its log.
        """
        code = self.process.returncode or 0
        how = f"was killed by {_SIGNALS.get(-code, f'signal {-code}')}" if code < 0 else f"exited with code {code}"
        with (self.folder / "log").open("rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - _READ))
            written, marker, crash = log.read().decode(errors="replace").partition(_CRASHED)
        head, newline, rest = f"{marker}{crash[:_LAST_WORDS]}".strip().partition("\n")
        told = dict.fromkeys(filter(None, (f"the kernel {how}", head, _last_line(shown), _last_line(written))))
        return ": ".join(told) + newline + rest

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

    ``environment`` is added to this process's own.
    """
    with _private_directory() as folder:
        ports = {f"{name}_port": n for n, name in enumerate(("shell", "iopub", "stdin", "hb", "control"), 1)}
        where = {"transport": "ipc", "ip": str(folder / "k"), "key": secrets.token_hex(), **ports}
        connection = folder / "connection.json"
        with at(connection):
            connection.write_text(json.dumps({**where, "signature_scheme": "hmac-sha256"}))
        with (folder / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-c", _PROGRAM, "-f", connection, *_OPTIONS),
                # A profile of its own: what a user's own runs at the start of a kernel is none of the notebook.
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
            # Also when the kernel itself is dead: what it has started is of its group.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
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


@contextmanager
def _private_directory() -> Iterator[Path]:
    """Make a directory for the sockets of one kernel, 0700, where their paths are short enough."""
    given = Path(tempfile.gettempdir())
    parent = given if len(os.fsencode(given)) <= _LONGEST_PARENT else Path("/tmp")  # noqa: S108 - 0700, a random name
    sweep(parent)
    with scratch_directory(parent, "kernel") as folder:
        yield folder
