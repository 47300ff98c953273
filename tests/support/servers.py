"""What the tests need to start a server on this machine: ports that are free, and to wait until it answers."""

import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

from patience import HANGING_S


def free_ports(number: int) -> list[int]:
    """Return so many ports of loopback that are free at this moment; another process may be faster to take one."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def wait_until(holds: Callable[[], bool], process: "subprocess.Popen[bytes]") -> bool:
    """Wait until something holds, which no server tells of; return False if the process ends instead."""
    deadline = time.monotonic() + HANGING_S
    while not holds():
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline, "the server does not answer"
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
    return True
