"""Alerts in a real Prometheus: what goes wrong with a database fires there, and resolves once it is repaired.

The metrics go the way that they go on a host: ``python -m abathur_nb metrics`` writes a file, the node exporter's
textfile collector serves it, Prometheus scrapes that and evaluates what ``alerts`` prints. The control is a file that
nobody writes anew.
"""

import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import yaml
from damage import leave_log, run_sql
from patience import HANGING_S
from servers import free_ports, wait_until

import abathur_nb as nb
from abathur_nb.config.settings import Settings, resolve
from abathur_nb.measure.alerts import alerts_of, prometheus_rules
from abathur_nb.measure.snapshot import take_snapshot
from faults.experiments import BrokenHarnessError, Result

_MAX_WAL_MB = 1
_MEGABYTE = """
    INSERT INTO metrics (metric_name, metric_value, labels) VALUES ('m', 1, json_object('x', hex(zeroblob(500000))))
"""


def _validate(settings: Settings) -> None:
    nb.start_run(settings, "validate").seal(asyncio.run(nb.validate_database(settings)))


def _back_up(settings: Settings) -> None:
    asyncio.run(nb.backup_database(settings)).raise_for_failures()


def _away(settings: Settings) -> Path:
    return settings.db_path.with_name("away.db")


# By alert what brings it about and what repairs that, in this order: the database comes back before all else.
_TROUBLES: dict[str, tuple[Callable[[Settings], object], Callable[[Settings], object]]] = {
    "AbathurDatabaseUnreadable": (lambda s: s.db_path.rename(_away(s)), lambda s: _away(s).rename(s.db_path)),
    "AbathurWalLarge": (
        lambda s: leave_log(s.db_path, *[_MEGABYTE] * 3 * _MAX_WAL_MB),
        lambda s: run_sql(s.db_path, "PRAGMA wal_checkpoint(TRUNCATE)"),
    ),
    "AbathurBackupOld": (lambda s: shutil.rmtree(s.backup_dir), _back_up),
    "AbathurValidationOld": (lambda s: shutil.rmtree(s.archive_dir), _validate),
}


def alerts(folder: Path, _every: int, _seed: int) -> Result:
    """Bring about every trouble at once, then repair all; count the alerts that fire and then are over."""
    started = time.monotonic()
    result = Result("troubles that a Prometheus on loopback tells of, and then that they are over")
    names = set(_TROUBLES)
    settings = resolve("development", db_path=folder / "data" / "abathur.db")
    # A busy machine retrieves rows slowly.
    settings = replace(settings, max_wal_mb=_MAX_WAL_MB, session_p99_ms=60_000, memory_p99_ms=60_000)
    asyncio.run(nb.initialize_database(settings)).raise_for_failures()
    for settle in (_back_up, _validate):
        settle(settings)
    with _prometheus(settings, folder) as host:
        host.measure()
        if healthy := host.firing():
            raise BrokenHarnessError(f"of a healthy database it tells {', '.join(sorted(healthy))}")
        for make, _ in reversed(_TROUBLES.values()):
            make(settings)
        result.control, result.control_damaged = len(names), len(names - host.firing())  # of the file as it was
        result.injected, result.struck = len(names), len(names & _fires(settings))
        host.measure()
        fired = host.firing() & names
        for _, repair in _TROUBLES.values():
            repair(settings)
        host.measure()
        left = host.firing() & names
    result.survived = len(fired - left)
    result.harms += [f"{name}: it never fired" for name in names - fired]
    result.harms += [f"{name}: it never resolved" for name in left]
    result.seconds = time.monotonic() - started
    return result


def _fires(settings: Settings) -> set[str]:
    snapshot, _ = asyncio.run(take_snapshot(settings))
    return {check.evidence[0].partition(",")[0] for check in alerts_of(snapshot, settings) if check.status != "pass"}


class _Host:
    def __init__(self, settings: Settings, output: Path, address: str, server: "subprocess.Popen[bytes]") -> None:
        self._settings, self._output, self._address, self._server = settings, output, address, server

    def measure(self) -> None:
        """Write the metrics anew, as cron would have it done."""
        command = [sys.executable, "-m", "abathur_nb", "metrics", "--db-path", str(self._settings.db_path)]
        told = subprocess.run([*command, "--output", self._output], capture_output=True, text=True, check=False)
        if "Traceback" in told.stderr or not self._output.exists():
            raise BrokenHarnessError(told.stderr)

    def firing(self) -> set[str]:
        """Return which alerts fire, once what is in the file now was scraped and the rules were judged after that."""
        now = time.time()

        def is_judged() -> bool:
            scraped = [_moment(target["lastScrape"]) for target in self._ask("targets", "activeTargets")]
            judged = [_moment(group["lastEvaluation"]) for group in self._ask("rules", "groups")]
            return min(judged, default=0) > min(scraped, default=0) > now

        if not wait_until(is_judged, self._server):
            raise BrokenHarnessError("Prometheus has ended")
        found = self._ask("alerts", "alerts")
        return {alert["labels"]["alertname"] for alert in found if alert["state"] == "firing"}

    def _ask(self, what: str, part: str) -> list[dict[str, Any]]:
        with urlopen(f"http://{self._address}/api/v1/{what}", timeout=HANGING_S) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"][part]
        return found


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()  # the year 1 for never


@contextmanager
def _prometheus(settings: Settings, folder: Path) -> Iterator[_Host]:
    """Run a node exporter and a Prometheus on loopback, with the rules of ``settings``."""
    textfiles = folder / "textfile"
    textfiles.mkdir()
    exporter, server = (f"127.0.0.1:{port}" for port in free_ports(2))
    rules = prometheus_rules(settings)
    for rule in rules["groups"][0]["rules"]:
        rule["for"] = "0s"  # how long each waits is none of a server's matters
    (folder / "rules.yml").write_text(yaml.safe_dump(rules))
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(folder / "rules.yml")],
        "scrape_configs": [{"job_name": "node", "static_configs": [{"targets": [exporter]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    collect = ["--collector.disable-defaults", "--collector.textfile", f"--collector.textfile.directory={textfiles}"]
    keep = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb"]
    with (
        _running(exporter, "metrics", "prometheus-node-exporter", *collect),
        _running(server, "-/ready", "prometheus", *keep) as process,
    ):
        yield _Host(settings, textfiles / "abathur.prom", server, process)


@contextmanager
def _running(address: str, page: str, program: str, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a server during the block, which begins once it answers."""
    command = [program, *arguments, f"--web.listen-address={address}"]

    def answers() -> bool:
        with suppress(URLError, ConnectionError), urlopen(f"http://{address}/{page}", timeout=HANGING_S):
            return True
        return False

    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            if not wait_until(answers, process):
                raise BrokenHarnessError(f"{program} does not start")
            yield process
        finally:
            process.terminate()
