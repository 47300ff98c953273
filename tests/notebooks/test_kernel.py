"""A kernel is this Python's own, over sockets that nobody else reaches, and does not outlive its parent."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from patience import HANGING_S
from running import kernels_in, names_in, sockets, wait_for_death

from abathur_nb.files import sweep
from abathur_nb.runner.execution import ready, running_kernel

__all__ = ["sockets"]  # a fixture


async def test_it_answers_and_is_gone_at_the_end(sockets: Path) -> None:
    async with running_kernel({"ABATHUR_TRIAL": "1"}) as kernel:
        with kernel.connected() as client:
            told = await asyncio.wait_for(ready(client), HANGING_S)
        assert told["language_info"]["name"] == "python"
        assert Path(f"/proc/{kernel.process.pid}/exe").samefile(sys.executable)
        assert b"ABATHUR_TRIAL=1\0" in Path(f"/proc/{kernel.process.pid}/environ").read_bytes()
        assert kernels_in(sockets) == [kernel.process.pid]
        (place,) = sockets.iterdir()
        assert place.stat().st_mode & 0o777 == 0o700
    assert kernel.died.result() == -signal.SIGKILL
    assert kernels_in(sockets) == []
    assert names_in(sockets) == []


async def test_nothing_of_the_working_directory_nor_of_the_user_s_startup_runs_in_it(
    sockets: Path,  # noqa: ARG001
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    canary = home / "canary"
    startup = home / ".ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    modules = [tmp_path / f"{name}.py" for name in ("ctypes", "ipykernel", "faulthandler", "json")]
    for path in (*modules, startup / "00.py", home / "startup.py"):
        path.write_text(f"open({str(canary)!r}, 'w').close()")
    monkeypatch.setenv("PYTHONSTARTUP", str(home / "startup.py"))
    monkeypatch.chdir(tmp_path)
    async with running_kernel({}) as kernel:
        with kernel.connected() as client:
            await asyncio.wait_for(ready(client), HANGING_S)
    assert not canary.exists()


@pytest.fixture
def parent(sockets: Path) -> Iterator["subprocess.Popen[str]"]:  # noqa: ARG001
    """Start a process that starts a kernel, prints its process id once it answers, and waits."""
    program = (
        "import asyncio\n"
        "from abathur_nb.runner.execution import ready, running_kernel\n"
        "async def main():\n"
        "    async with running_kernel({}) as kernel:\n"
        "        with kernel.connected() as client:\n"
        "            await ready(client)\n"
        "            client.execute('sum(range(10**13))')\n"
        "            await client.iopub_channel.get_msg()\n"
        "            print(kernel.process.pid, flush=True)\n"
        "            await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def test_it_dies_with_its_parent_though_it_is_busy_in_c(parent: "subprocess.Popen[str]", sockets: Path) -> None:
    assert parent.stdout is not None
    kernel = int(parent.stdout.readline())
    parent.kill()
    parent.wait()  # its threads end one by one, and the last one gives up the lock
    wait_for_death(kernel)
    (place,) = sockets.iterdir()
    assert sweep(sockets) == [place.name], "what it leaves is swept before the next starts"


async def test_what_it_has_started_is_gone_though_it_died_first(sockets: Path) -> None:  # noqa: ARG001
    program = "import os, signal, time\nif os.fork() == 0:\n    print(os.getpid(), flush=True); time.sleep(600)\n"
    async with running_kernel({}) as kernel:
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
