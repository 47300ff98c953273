"""A real S3 server on this machine, and a wire to it that can be cut."""

import json
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

from patience import HANGING_S
from servers import free_ports, wait_until

__all__ = ["Wire", "running_s3", "wire_to"]

_KEY = {"accessKey": "an-access-key", "secretKey": "planted-s3cret-0815"}
_PARTS = ("master", "volume", "filer", "s3")
_MAKE_BUCKET = """\
import s3fs
system = s3fs.S3FileSystem()
system.mkdir("evidence", exist_ok=True)
system.pipe_file("evidence/ready", b"")
"""
_RESET = struct.pack("ii", 1, 0)  # close at once and send RST, as a machine that is gone (socket(7), SO_LINGER)


@contextmanager
def running_s3(folder: Path) -> Iterator[dict[str, str]]:
    """Start a SeaweedFS with the bucket ``evidence``; yield the variables that let a client use it."""
    process, ports = _started(folder)
    try:
        yield _variables(ports)
    finally:
        _end(process, ports)


def _started(folder: Path) -> "tuple[subprocess.Popen[bytes], dict[str, int]]":
    """Start the server; once more where another process was the faster one to take a port that was free."""
    identity = {"name": "t", "credentials": [_KEY], "actions": ["Admin", "Read", "Write", "List"]}
    config, log = folder / "s3.json", folder / "server.log"
    config.write_text(json.dumps({"identities": [identity]}))
    weed = [str(Path(sys.executable).with_name("weed")), f"-logdir={folder}", "server", f"-dir={folder}"]
    weed += ["-filer", "-s3", "-ip=127.0.0.1", f"-s3.config={config}"]
    weed += ["-volume.max=50", "-master.volumeSizeLimitMB=64", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    names = [f"{part}.port{kind}" for part in _PARTS for kind in ("", ".grpc")]
    for _ in range(3):
        ports = dict(zip(names, free_ports(8), strict=True))
        with log.open("wb") as messages:
            command = [*weed, *(f"-{name}={port}" for name, port in ports.items())]
            process = subprocess.Popen(command, stdout=messages, stderr=messages)
        with ExitStack() as ending:
            ending.callback(_end, process, ports)
            if _comes_up(process, _variables(ports)):
                ending.pop_all()
                return process, ports
    raise AssertionError(f"the server ended thrice: {log.read_text(errors='replace')[-2000:]}")


def _comes_up(process: "subprocess.Popen[bytes]", variables: dict[str, str]) -> bool:
    """Wait until the server takes objects; return False if it ends instead."""
    return wait_until(lambda: _answers(variables["AWS_ENDPOINT_URL"]), process) and wait_until(
        lambda: _takes_objects(variables), process
    )


def _variables(ports: dict[str, int]) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3.port']}",
        "AWS_ACCESS_KEY_ID": _KEY["accessKey"],
        "AWS_SECRET_ACCESS_KEY": _KEY["secretKey"],
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }


def _end(process: "subprocess.Popen[bytes]", ports: dict[str, int]) -> None:
    process.kill()
    process.wait()
    for path in (path for port in ports.values() for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock")):  # noqa: S108
        path.unlink()


def _answers(url: str) -> bool:
    try:
        urlopen(url, timeout=HANGING_S).close()  # noqa: S310
    except HTTPError as error:
        return error.code == 403
    except OSError:
        return False
    return True


def _takes_objects(variables: dict[str, str]) -> bool:
    done = subprocess.run(
        [sys.executable, "-c", _MAKE_BUCKET], env={**os.environ, **variables}, check=False, capture_output=True
    )
    return done.returncode == 0


class Wire:
    """Hold what passes between clients and a server; it is cut, for all of them, once ``left`` bytes have passed."""

    def __init__(self, url: str, left: int) -> None:
        self.left = left
        self._server = urlsplit(url)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def serve(self) -> None:
        """Accept clients until the wire is closed."""
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def close(self) -> None:
        """Accept no further client."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _pass_on(self, client: socket.socket) -> None:
        server = socket.create_connection((self._server.hostname or "", self._server.port or 0))
        others = {client: server, server: client}
        with client, server, suppress(OSError):
            while True:
                for one in select.select([*others], [], [])[0]:
                    content = one.recv(min(65536, self.left) or 1)
                    if not content:
                        return
                    self.left -= min(self.left, len(content))
                    if not self.left:
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                        return
                    others[one].sendall(content)


@contextmanager
def wire_to(url: str, left: int) -> Iterator[Wire]:
    """Lay a wire to a server that is cut after so many bytes, either way, and stays cut."""
    wire = Wire(url, left)
    thread = threading.Thread(target=wire.serve)
    thread.start()
    try:
        yield wire
    finally:
        wire.close()
        thread.join()
