"""A scheduler and workers of Dask as processes of their own, with TLS and a certification authority of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from patience import HANGING_S

_PREFIX = "DASK_DISTRIBUTED__COMM__"


def certificates(folder: Path) -> dict[str, str]:
    """Write a CA and a certificate that it has signed; return the variables that let Dask demand and use them."""
    folder.mkdir()
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("ca", "one")}
    names = {name: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in keys}
    now = datetime.now(UTC)
    for name, key in keys.items():
        builder = x509.CertificateBuilder(names["ca"], names[name], key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        builder = builder.add_extension(x509.BasicConstraints(ca=name == "ca", path_length=None), critical=True)
        pem = builder.sign(keys["ca"], hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        (folder / f"{name}.pem").write_bytes(pem)
        plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (folder / f"{name}.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, *plain))
    files = {f"{_PREFIX}TLS__{one}__{kind}": str(folder / f"one.{end}") for one in ("SCHEDULER", "WORKER", "CLIENT")
             for kind, end in (("CERT", "pem"), ("KEY", "key"))}  # fmt: skip
    return {f"{_PREFIX}REQUIRE_ENCRYPTION": "true", f"{_PREFIX}TLS__CA_FILE": str(folder / "ca.pem"), **files}


class Cluster:
    """Hold a scheduler, and start workers for it."""

    def __init__(self, folder: Path, variables: dict[str, str]) -> None:
        self.folder, self.file = folder, folder / "scheduler.json"
        self._variables = {**os.environ, **variables}
        self._processes: list[subprocess.Popen[bytes]] = []
        protocol = "tls" if variables else "tcp"
        self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--protocol", protocol, "--no-dashboard")
        self.scheduler = self._processes[0]
        while not self.file.exists() or not self.file.read_text().endswith("}"):
            assert self.scheduler.poll() is None
        self.address: str = json.loads(self.file.read_text())["address"]

    def worker(self, host: str, **variables: str) -> "subprocess.Popen[bytes]":
        """Start the worker of a host, as the printed unit of systemd does."""
        self._variables |= variables
        more = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--name", host, "--resources", f"host:{host}=1")
        return self._start("worker", *more, "--local-directory", str(self.folder))

    def _start(self, what: str, *options: str) -> "subprocess.Popen[bytes]":
        dask = str(Path(sys.executable).with_name("dask"))
        command = [dask, what, "--scheduler-file", str(self.file), *options]
        with (self.folder / f"{what}-{len(self._processes)}.log").open("wb") as log:
            self._processes.append(subprocess.Popen(command, env=self._variables, stdout=log, stderr=log))
        return self._processes[-1]

    def end(self) -> None:
        """Kill all processes."""
        for process in self._processes:
            process.kill()
            process.wait(HANGING_S)


@contextmanager
def cluster(folder: Path, variables: dict[str, str]) -> Iterator[Cluster]:
    """Start a scheduler; kill it and its workers at the end."""
    folder.mkdir()
    started = Cluster(folder, variables)
    try:
        yield started
    finally:
        started.end()
