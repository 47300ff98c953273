"""Alerts in a real Prometheus: what goes wrong with a database fires there, and resolves once it is repaired.

The metrics go the way that they go on a host: ``python -m abathur_nb metrics`` writes a file, the node exporter's
textfile collector serves it, Prometheus scrapes that and evaluates what ``alerts`` prints, and tells an Alertmanager,
which stands here. The control is a file that nobody writes anew.
"""

import asyncio
import json
import os
import queue
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import yaml
from patience import HANGING_S
from servers import free_ports

import abathur_nb as nb
from abathur_nb.config.settings import Settings, resolve
from abathur_nb.measure.alerts import alerts_of, prometheus_rules
from abathur_nb.measure.snapshot import take_snapshot
from faults.experiments import BrokenHarnessError, Result

_TELLS_WITHIN = HANGING_S  # for an alert to fire or to resolve
_POLL = 0.2  # seconds
_MAX_WAL_MB = 1


def _grow_wal(settings: Settings) -> None:
    with closing(sqlite3.connect(settings.db_path, isolation_level=None)) as conn:
        conn.execute("PRAGMA wal_autocheckpoint = 0")
        for _ in range(3 * _MAX_WAL_MB):
            values = "(metric_name, metric_value, labels) VALUES ('m', 1, json_object('x', hex(zeroblob(500000))))"
            conn.execute(f"INSERT INTO metrics {values}")
        # The last connection to close would empty the log: as a killed process does, this one never closes.
        shutil.copy(f"{settings.db_path}-wal", f"{settings.db_path}.log")
    os.rename(f"{settings.db_path}.log", f"{settings.db_path}-wal")  # noqa: PTH104


def _empty_wal(settings: Settings) -> None:
    with closing(sqlite3.connect(settings.db_path)) as conn:
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _validate(settings: Settings) -> None:
    nb.start_run(settings, "validate").seal(asyncio.run(nb.validate_database(settings)))


def _back_up(settings: Settings) -> None:
    asyncio.run(nb.backup_database(settings)).raise_for_failures()


def _away(settings: Settings) -> Path:
    return settings.db_path.with_name("away.db")


# By alert what brings it about and what repairs that, in this order: the database comes back before all else.
_TROUBLES: dict[str, tuple[Callable[[Settings], object], Callable[[Settings], object]]] = {
    "AbathurDatabaseUnreadable": (lambda s: s.db_path.rename(_away(s)), lambda s: _away(s).rename(s.db_path)),
    "AbathurWalLarge": (_grow_wal, _empty_wal),
    "AbathurBackupOld": (lambda s: shutil.rmtree(s.backup_dir), _back_up),
    "AbathurValidationOld": (lambda s: shutil.rmtree(s.archive_dir), _validate),
}


def alerts(folder: Path, _every: int, _seed: int) -> Result:
    """Bring about every trouble at once, then repair all; count the alerts that fire and then are over."""
    started = time.monotonic()
    result = Result("troubles that a Prometheus on loopback tells of, and then that they are over")
    names = list(_TROUBLES)
    settings = resolve("development", db_path=folder / "data" / "abathur.db")
    settings = replace(settings, max_wal_mb=_MAX_WAL_MB)
    asyncio.run(nb.initialize_database(settings)).raise_for_failures()
    for settle in (_back_up, _validate):
        settle(settings)
    with _prometheus(settings, folder) as host:
        host.measure()
        host.scrape_once()
        if host.firing:
            raise BrokenHarnessError(f"of a healthy database it tells {', '.join(sorted(host.firing))}")
        for make, _ in reversed(_TROUBLES.values()):
            make(settings)
        host.scrape_once()  # of the file that is as it was
        result.control, result.control_damaged = len(names), len(set(names) - host.firing)
        result.injected, result.struck = len(names), len(set(names) & _fires(settings))
        host.measure()
        fired = host.wait_for(lambda: host.firing >= set(names)) & set(names)
        for _, repair in _TROUBLES.values():
            repair(settings)
        host.measure()
        left = host.wait_for(lambda: not host.firing & set(names))
    result.survived = len(fired - left)
    result.harms += [f"{name}: it never fired" for name in names if name not in fired]
    result.harms += [f"{name}: it never resolved" for name in names if name in left]
    result.seconds = time.monotonic() - started
    return result


def _fires(settings: Settings) -> set[str]:
    snapshot, _ = asyncio.run(take_snapshot(settings))
    return {check.evidence[0].partition(",")[0] for check in alerts_of(snapshot, settings) if check.status != "pass"}


class _Host:
    """Hold the servers of one host, and what its Prometheus has told so far: which alerts are ``firing``."""

    def __init__(self, settings: Settings, output: Path, address: str) -> None:
        self.firing: set[str] = set()
        self.told: queue.Queue[list[dict[str, Any]]] = queue.Queue()
        self._settings, self._output, self._address = settings, output, address

    def measure(self) -> None:
        """Write the metrics anew, as cron would have it done."""
        command = [sys.executable, "-m", "abathur_nb", "metrics", "--db-path", str(self._settings.db_path)]
        told = subprocess.run([*command, "--output", self._output], capture_output=True, text=True, check=False)
        if "Traceback" in told.stderr or not self._output.exists():
            raise BrokenHarnessError(told.stderr)

    def scrape_once(self) -> None:
        """Wait until what is in the file now was scraped, and the rules were judged after that."""
        now = time.time()
        deadline = time.monotonic() + HANGING_S
        while time.monotonic() < deadline:
            groups = _ask(f"http://{self._address}/api/v1/rules")["data"]["groups"]
            scrapes = _ask(f"http://{self._address}/api/v1/targets")["data"]["activeTargets"]
            scraped = min((_moment(target["lastScrape"]) for target in scrapes), default=0)
            judged = min((_moment(group["lastEvaluation"]) for group in groups), default=0)
            self._hear(_POLL)
            if judged > scraped > now:
                return
        raise BrokenHarnessError("Prometheus scraped nothing")

    def wait_for(self, holds: Callable[[], bool]) -> set[str]:
        """Return the alerts that fire once ``holds``, or once patience is at its end."""
        deadline = time.monotonic() + _TELLS_WITHIN
        while not holds() and time.monotonic() < deadline:
            self._hear(deadline - time.monotonic())
        return set(self.firing)

    def _hear(self, seconds: float) -> None:
        try:
            alerts = self.told.get(timeout=max(seconds, 0))
        except queue.Empty:
            return
        for alert in alerts:
            over = _moment(alert["endsAt"]) <= time.time()
            (self.firing.discard if over else self.firing.add)(alert["labels"]["alertname"])


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()  # the year 1 for never


@contextmanager
def _prometheus(settings: Settings, folder: Path) -> Iterator[_Host]:
    """Run a node exporter and a Prometheus on loopback, with the rules of ``settings``, and hear what it tells."""
    textfiles = folder / "textfile"
    textfiles.mkdir()
    exporter, server = (f"127.0.0.1:{port}" for port in free_ports(2))
    host = _Host(settings, textfiles / "abathur.prom", server)

    class Alertmanager(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            host.told.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Alertmanager) as manager:
        Thread(target=manager.serve_forever, daemon=True).start()
        rules = prometheus_rules(settings)
        for rule in rules["groups"][0]["rules"]:
            rule["for"] = "0s"  # how long each waits is none of a server's matters
        (folder / "rules.yml").write_text(yaml.safe_dump(rules))
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(folder / "rules.yml")],
            "alerting": {"alertmanagers": [_static(f"127.0.0.1:{manager.server_address[1]}")]},
            "scrape_configs": [{"job_name": "node", **_static(exporter)}],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        collect = [
            "--collector.disable-defaults",
            "--collector.textfile",
            f"--collector.textfile.directory={textfiles}",
        ]
        keep = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb"]
        with (
            _running("prometheus-node-exporter", *collect, f"--web.listen-address={exporter}"),
            _running("prometheus", *keep, f"--web.listen-address={server}"),
        ):
            for address in (f"http://{exporter}/metrics", f"http://{server}/-/ready"):
                _ready(address)
            yield host
        manager.shutdown()


def _static(address: str) -> dict[str, Any]:
    return {"static_configs": [{"targets": [address]}]}


@contextmanager
def _running(program: str, *arguments: str) -> Iterator[None]:
    with subprocess.Popen([program, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


def _ready(address: str) -> None:
    deadline = time.monotonic() + HANGING_S
    while True:
        try:
            with urlopen(address, timeout=HANGING_S):  # noqa: S310 - on loopback
                return
        except (URLError, ConnectionError) as error:
            if time.monotonic() > deadline:
                raise BrokenHarnessError(f"{address} does not answer: {error}") from None


def _ask(address: str) -> Any:
    with urlopen(address, timeout=HANGING_S) as answer:  # noqa: S310 - on loopback
        return json.load(answer)
