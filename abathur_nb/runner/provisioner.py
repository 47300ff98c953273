"""The kernel provisioner ``abathur``: JUPYTER_DEFAULT_PROVISIONER_NAME=abathur forks the kernels of a process.

nbclient, papermill and JupyterLab take it alike. The first kernel of a process takes as long as without it.
"""

import sys
from pathlib import Path
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from abathur_nb.runner.processes import KERNEL, UNWATCHED, CannotForkError, fork_server

_LAUNCHED = [sys.executable, "-m", "ipykernel_launcher"]


class ForkProvisioner(LocalProvisioner):
    """Fork each kernel of this very Python from one process that has imported it; start all others as usual."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Start a kernel; if it can't be forked, log why and start it as usual."""
        try:
            if cmd[:3] != _LAUNCHED or any(map(kwargs.get, ("independent", "stdout", "stderr"))):
                raise CannotForkError("it is another Python's, outlives its parent, or writes elsewhere")
            arguments, folder = [*cmd[3:], UNWATCHED], kwargs.get("cwd") or ""
            child = fork_server().fork(KERNEL, arguments, kwargs["env"], 1, 2, directory=folder)
        except CannotForkError as error:
            self.log.warning("The kernel is started in a new process: %s", error)
            return await super().launch_kernel(cmd, **kwargs)
        self.process, self.pid, self.pgid = child, child.pid, child.pid  # type: ignore[assignment]
        self.cwd = folder or Path.cwd()
        return self.connection_info
