"""Call a function in a process of its own, which a fork server forks, or in a new process of Python.

The fork server is one process with one thread that has imported what a run needs. Each of its children has its own
session, environment, working directory, memory and open files, and sees nothing of another child.
"""

import atexit
import ctypes
import gc
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from socket import AF_UNIX, SOCK_SEQPACKET, recv_fds, send_fds, socket, socketpair
from threading import Lock
from typing import Any, NoReturn
from weakref import finalize

from abathur_nb.config.notebooks import NOTEBOOKS
from abathur_nb.store.sql import DATA

# What the runner, a kernel and most notebooks import. A child imports for itself what is missing here.
_PRELOADED = (
    *("abathur_nb.runner.command", "abathur_nb.evidence.page"),
    *(f"abathur_nb.runbook.{name}" for name in NOTEBOOKS if name != "fleet"),
    *("IPython.core.completerlib", "IPython.extensions.storemagic", "ipykernel.debugger", "ipykernel.kernelapp"),
    *("jupyter_client.asynchronous.client", "nbclient", "nh3", "tornado.platform.asyncio", "tqdm", "zmq.asyncio"),
)
DRAWING = ("abathur_nb.charts", "matplotlib.backends.backend_agg")  # needed by notebooks with a picture
KERNEL = "abathur_nb.runner.processes:kernel"
# An option of the kernel: it does not watch its parent by a thread, which a cell busy in C code blocks.
UNWATCHED = "--IPKernelApp.parent_handle=1"
_PROGRAM = "from abathur_nb.runner import processes; processes.{}()"
_LONGEST = 2**20  # bytes of a message; Linux allows a fifth of it by default
_FORK, _END = b" ", b"."  # the messages that ask for a child and for the end; any other names modules
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
_PARENT = "ABATHUR_PARENT"  # environment variable of a new process: its parent
# A notebook shows what it draws with pyplot; numpy starts no thread.
_OF_SERVER = {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "OPENBLAS_NUM_THREADS": "1",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}


class CannotForkError(Exception):
    """Say why no child could be forked."""


@dataclass(slots=True, eq=False)
class Child:
    """Hold a process that leads its own session and is killed when its parent dies; with the methods of a Popen.

    ``descriptor`` is readable once the process has ended.
    """

    pid: int
    descriptor: int
    _finish: Callable[[], int]  # returns the exit code of an ended process, once
    returncode: int | None = None
    stdin = stdout = stderr = None

    def wait(self, timeout: float | None = None) -> int | None:
        """Return the exit code, negative for a signal; None if the process runs longer than ``timeout`` seconds."""
        if self.returncode is None:
            poll = select.poll()
            poll.register(self.descriptor, select.POLLIN)
            if poll.poll(None if timeout is None else timeout * 1000):
                self.returncode = self._finish()
        return self.returncode

    def poll(self) -> int | None:
        """Return the exit code; None if the process has not ended."""
        return self.wait(0)

    def send_signal(self, number: int) -> None:
        """Send a signal to the process and to those that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)


def start(
    function: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    *,
    output: int,
    errors: int,
    given: int | None = None,
    server: "ForkServer | None" = None,
) -> Child:
    """Call ``function``, a text ``module:name``, in a process of its own with ``sys.argv[1:] = arguments``.

    ``given`` is its standard input, by default empty. ``environment`` is added to this process's environment.
    ``server`` forks the process; without a server, or if it can't (which is logged), a new Python is started. Raises
    OSError.
    """
    environment = {**os.environ, **environment}
    if server:
        try:
            return server.fork(function, arguments, environment, output, errors, given=given)
        except CannotForkError as error:
            logging.getLogger(__name__).warning("a new process is started, because none could be forked: %s", error)
    environment[_PARENT] = str(os.getpid())
    process = _python("called", function, *arguments, env=environment, stdin=given, stdout=output, stderr=errors)
    descriptor = os.pidfd_open(process.pid)

    def finish() -> int:
        code = process.wait()
        os.close(descriptor)
        return code

    return Child(process.pid, descriptor, finish)


def _python(entry: str, *arguments: str, stdin: int | None = None, **options: Any) -> "subprocess.Popen[bytes]":
    """Start a new Python that calls a function of this module."""
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-P", "-c", _PROGRAM.format(entry), *arguments],
        stdin=subprocess.DEVNULL if stdin is None else stdin,
        start_new_session=True,  # Ctrl-C at the terminal must reach the parent only
        **options,
    )


def called() -> None:
    """Call the function that the command line of a new process names."""
    _die_with(int(os.environ.pop(_PARENT)))
    sys.argv[:] = sys.argv[1:]
    sys.exit(_call(sys.argv[0]))


def _call(function: str) -> Any:
    module, _, name = function.partition(":")
    return getattr(import_module(module), name)()


def kernel() -> None:
    """Run an ipykernel as `sys.argv` says."""
    from ipykernel.kernelapp import IPKernelApp

    IPKernelApp.launch_instance()
    # It would close the channels while its control thread may still write to them, and then wait for that for seconds.
    atexit.unregister(IPKernelApp.instance().close)


def _die_with(parent: int) -> None:
    """Let Linux kill this process when its parent dies, which may have happened already."""
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


# --- the client of the server


class ForkServer:
    """Start a fork server. It ends, and kills its children, when this object and its children or its process are gone.

    ``control`` is the connection of an existing server, of which this process is a child.
    """

    def __init__(self, control: socket | None = None) -> None:
        self.stamp, self._python = stamp(), _python_settings(os.environ)
        if control:
            self._control = control
            return
        self._control, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
        inherited = {name: value for name, value in os.environ.items() if name != "JPY_PARENT_PID"}
        with theirs:
            number = theirs.fileno()
            process = _python("serve", str(number), env={**inherited, **_OF_SERVER}, pass_fds=[number])
        finalize(self, _end, self._control, process)

    def serves(self) -> bool:
        """Return whether the server lives, and is one of this package and of Python's settings as they are now."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        return not poll.poll(0) and (self.stamp, self._python) == (stamp(), _python_settings(os.environ))

    def preload(self, *modules: str) -> None:
        """Let the server import modules before it forks a further child."""
        with suppress(OSError):  # the next fork says that the server has ended
            self._control.send(" ".join(modules).encode())

    def fork(
        self,
        function: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        output: int,
        errors: int,
        *,
        given: int | None = None,
        directory: str = "",
    ) -> Child:
        """Return a child that calls ``function`` as `start` says, in exactly this ``environment``.

        ``directory`` is its working directory, by default this process's. Raises CannotForkError.
        """
        if _python_settings(environment) != self._python:
            raise CannotForkError("a variable PYTHON… differs from that of the fork server")
        os.umask(umask := os.umask(0))
        request = {
            "function": function,
            "arguments": list(map(str, arguments)),
            "environment": dict(environment),
            "directory": directory or os.getcwd(),  # noqa: PTH109
            "umask": umask,
        }
        told, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
        try:
            with theirs:
                files = [theirs.fileno(), output, errors, self._control.fileno(), given]
                send_fds(self._control, [_FORK], [file for file in files if file is not None])
            told.sendall(json.dumps(request).encode())
            answer = _received(told)
        except OSError as error:
            answer = {"error": f"the fork server has ended: {error.strerror}"}
        if "pid" not in answer:
            told.close()
            raise CannotForkError(answer.get("error", "the fork server has ended"))
        return Child(answer["pid"], told.fileno(), partial(_finish, told, self))


def _end(control: socket, process: "subprocess.Popen[bytes]") -> None:
    with control, suppress(OSError):
        control.send(_END)  # its children may hold copies of this connection
    process.wait()


def _finish(told: socket, _server: ForkServer) -> int:  # a server lives as long as its children
    with told:
        return int(_received(told).get("code", -signal.SIGKILL))  # if the server died, so did its children


def _received(connection: socket) -> dict[str, Any]:
    """Return the next message of a connection, which is JSON; empty at its end."""
    try:
        return dict(json.loads(connection.recv(_LONGEST) or b"{}"))
    except ConnectionError:
        return {}


def _python_settings(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith("PYTHON")}


def stamp() -> tuple[tuple[str, int, int], ...]:
    """Return what identifies the files of the package, its templates and its SQL. Read-only."""
    folders = {Path(__file__).parents[1], DATA / "notebooks", DATA / "sql"}
    files = (path for folder in folders for path in sorted(folder.rglob("*.[pis]*")) if path.suffix != ".pyc")
    return tuple((str(path), (found := path.stat()).st_mtime_ns, found.st_size) for path in files)


_lock = Lock()
_servers: list[ForkServer] = []  # at most one: that of this process


def fork_server() -> ForkServer:
    """Return the fork server of this process; start one if there is none, or if it no longer `serves`."""
    with _lock:
        if not _servers or not _servers[0].serves():
            _servers[:] = [ForkServer()]
        return _servers[0]


def is_forked() -> bool:
    """Return whether this process has a fork server, as a child of one has."""
    return bool(_servers)


# --- the server


@dataclass(frozen=True, slots=True)
class _Forked:
    """Hold a child: its pidfd is readable once it has ended, its connection once its client is gone."""

    pid: int
    pidfd: int
    told: socket

    @property
    def descriptors(self) -> set[int]:
        return {self.pidfd, self.told.fileno()}

    def kill(self) -> int:
        """Kill the child and what it has started, and return its exit code."""
        for kill in (os.killpg, os.kill):  # it may not lead a group yet; until it is reaped, its number is its own
            with suppress(ProcessLookupError):
                kill(self.pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def serve() -> None:
    """Import what a run needs, then fork a child for each request until no client is left."""
    control, server = socket(fileno=int(sys.argv[1])), os.getpid()
    _preload(_PRELOADED)
    children: list[_Forked] = []
    while True:
        poll = select.poll()
        for descriptor in {control.fileno()}.union(*(child.descriptors for child in children)):
            poll.register(descriptor, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll()}
        for child in [child for child in children if ready & child.descriptors]:
            code = child.kill()
            os.close(child.pidfd)
            with child.told, suppress(OSError):
                child.told.sendall(b'{"code": %d}' % code)
            children.remove(child)
        if control.fileno() not in ready:
            continue
        message, given, *_ = recv_fds(control, _LONGEST, 5)
        if message in (b"", _END):
            for child in children:
                child.kill()
            return
        if message != _FORK:
            _preload(message.decode().split())
            continue
        told, request = socket(fileno=given[0]), dict[str, Any]()
        try:
            request = _received(told)
            if (threads := len(os.listdir("/proc/self/task"))) != 1:  # noqa: PTH208
                raise OSError(f"the fork server has {threads} threads")
            pid = os.fork()
        except OSError as error:
            with told:
                told.sendall(json.dumps({"error": str(error)}).encode())
        else:
            if not pid:
                for connection in (control, *(child.told for child in children)):
                    connection.close()
                for child in children:
                    os.close(child.pidfd)
                _become(request, server, told, *given[1:])
            children.append(_Forked(pid, os.pidfd_open(pid), told))
        for descriptor in given[1:]:
            os.close(descriptor)


def _preload(modules: Iterable[str]) -> None:
    for name in modules:
        with suppress(ImportError):  # the child that needs it says so
            import_module(name)
    gc.freeze()  # else the collector copies each page of memory that it looks at


def _become(
    request: Mapping[str, Any],
    server: int,
    told: socket,
    output: int,
    errors: int,
    control: int,
    given: int | None = None,
) -> NoReturn:
    """Take on what the request gives this child, and call its function."""
    _die_with(server)
    os.setsid()
    with told:  # only now can it be sent a signal
        told.sendall(b'{"pid": %d}' % os.getpid())
    for number, descriptor in enumerate((given, output, errors)):
        if descriptor is not None:
            os.dup2(descriptor, number)
            os.close(descriptor)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        # The server's may have been files, and a pipe can't be told its position.
        made = open(number, mode, closefd=False, errors="backslashreplace", buffering=1)  # noqa: SIM115
        setattr(sys, name, made)
        setattr(sys, f"__{name}__", made)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.umask(request["umask"])
    os.chdir(request["directory"])
    time.tzset()
    if random := sys.modules.get("numpy.random"):  # Python's own begins anew by itself
        random.seed()
    _servers[:] = [ForkServer(socket(fileno=control))]
    sys.argv[:] = [request["function"], *request["arguments"]]
    code = _call(request["function"])
    atexit._run_exitfuncs()  # noqa: SLF001 - Python itself would also free all that the server had imported, in 50 ms
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)
