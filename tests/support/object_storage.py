"""A real S3 server on this machine."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

from patience import HANGING_S
from servers import free_ports, wait_until

_KEY = {"accessKey": "an-access-key", "secretKey": "planted-s3cret-0815"}
_PARTS = ("master", "volume", "filer", "s3")
_MAKE_BUCKET = """\
import s3fs
system = s3fs.S3FileSystem()
system.mkdir("evidence", exist_ok=True)
system.pipe_file("evidence/ready", b"")
"""


@contextmanager
def running_s3(folder: Path) -> Iterator[dict[str, str]]:
    """Start a SeaweedFS with the bucket ``evidence``; yield the variables that let a client use it.

    It is started once more where another process was the faster one to take a port that was free.
    """
    identity = {"name": "t", "credentials": [_KEY], "actions": ["Admin", "Read", "Write", "List"]}
    config, log = folder / "s3.json", folder / "server.log"
    config.write_text(json.dumps({"identities": [identity]}))
    weed = [str(Path(sys.executable).with_name("weed")), f"-logdir={folder}", "server", f"-dir={folder}"]
    weed += ["-filer", "-s3", "-ip=127.0.0.1", f"-s3.config={config}"]
    weed += ["-volume.max=50", "-master.volumeSizeLimitMB=64", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    names = [f"{part}.port{kind}" for part in _PARTS for kind in ("", ".grpc")]
    for _ in range(3):
        ports = dict(zip(names, free_ports(8), strict=True))
        variables = _variables(ports)
        with log.open("wb") as messages:
            command = [*weed, *(f"-{name}={port}" for name, port in ports.items())]
            process = subprocess.Popen(command, stdout=messages, stderr=messages)
        try:
            answers = wait_until(partial(_answers, variables["AWS_ENDPOINT_URL"]), process)
            if answers and wait_until(partial(_takes_objects, variables), process):
                yield variables
                return
        finally:
            process.kill()
            process.wait()
            for path in (path for port in ports.values() for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock")):  # noqa: S108
                path.unlink()
    raise AssertionError(f"the server ended thrice: {log.read_text(errors='replace')[-2000:]}")


def _variables(ports: dict[str, int]) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3.port']}",
        "AWS_ACCESS_KEY_ID": _KEY["accessKey"],
        "AWS_SECRET_ACCESS_KEY": _KEY["secretKey"],
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }


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
