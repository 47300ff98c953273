"""The metrics of a database for Prometheus, as the textfile collector of its node exporter reads them."""

import argparse
import asyncio
import os
import sys
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from abathur_nb.causes import os_cause
from abathur_nb.errors import ConfigurationError
from abathur_nb.files import write_durably
from abathur_nb.operate.gauges import GAUGES, Snapshot
from abathur_nb.operate.snapshot import take_snapshot
from abathur_nb.settings import resolve
from abathur_nb.wording import printable, shown

__all__ = ["command", "registry_of"]


def registry_of(snapshot: Snapshot) -> CollectorRegistry:
    """Return what was measured as Prometheus has it: the environment and the database are labels of each sample."""
    registry = CollectorRegistry()
    gauges: dict[str, Gauge] = {}
    for sample in snapshot.samples:
        labels = {**snapshot.place, **sample.labels}
        if sample.name not in gauges:
            gauges[sample.name] = Gauge(sample.name, GAUGES[sample.name], tuple(labels), registry=registry)
        gauges[sample.name].labels(**labels).set(sample.value)
    return registry


def command(arguments: argparse.Namespace) -> int:
    """Measure the database and write what was measured; return 1 if it could not be read, which is written too."""
    settings = resolve(arguments.env, db_path=arguments.db_path)
    output = None if arguments.output is None else _output(arguments.output)
    snapshot, report = asyncio.run(take_snapshot(settings))
    if output is None:
        sys.stdout.write(generate_latest(registry_of(snapshot)).decode())
    else:
        try:
            write_durably(output, generate_latest(registry_of(snapshot)), mode=0o644)  # the collector is another user
        except OSError as error:
            cause = os_cause(error, output)
            raise ConfigurationError(f"--output: {shown(arguments.output)}: {cause}") from None
    for check in (check for check in report.checks if check.failed):
        sys.stderr.write(f"abathur_nb metrics: {check.observed}: {check.remedy}\n")
    return int(not report.ok)


def _output(name: str) -> Path:
    """Return the file that is to be replaced; raise ConfigurationError for one that the collector would not read."""
    path = Path(os.path.abspath(os.path.expanduser(name)))
    fault = ""
    if path.suffix != ".prom":
        fault = "the collector reads files that end with .prom"
    elif not os.access(f"{path.parent}/.", os.W_OK | os.X_OK):
        fault = f"{path.parent} is no directory that this user may write to"
    elif os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
        fault = "it is not a regular file"
    if fault:
        raise ConfigurationError(f"--output: {shown(name)}: {printable(fault)}")
    return path
