"""The command line: ``python -m abathur_nb COMMAND``, one parser for all commands."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from abathur_nb.config.notebooks import NOTEBOOKS
from abathur_nb.errors import AbathurError, ConfigurationError
from abathur_nb.evidence.canonical import masked
from abathur_nb.evidence.record import EXIT_CODES, VERDICTS
from abathur_nb.files import os_cause
from abathur_nb.text import did_you_mean, printable, without_url_secrets

_ABOUT = "Run the runbook's notebooks, keep and check the records of their runs, and measure a database."
_CODES = "; ".join(f"{EXIT_CODES[verdict]} {meaning}" for verdict, (_, meaning) in VERDICTS.items())
_OF_RUN = f"Notebooks: {', '.join(NOTEBOOKS)}. Exit codes: {_CODES}"


class _Parser(argparse.ArgumentParser):
    """Report a wrong option with the usage and the hint of its own command, and hide secrets of URLs in the message."""

    hint = ""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        parsed, rest = super().parse_known_args(args, namespace)
        if rest:  # argparse would let the parent parser report it, with the parent's usage
            names = [name[2:] for name in self._option_string_actions if name.startswith("--")]
            near = did_you_mean(rest[0].partition("=")[0].lstrip("-"), names, "--")
            self.error(f"unrecognized arguments: {' '.join(rest)}{near}")
        return parsed, rest

    def error(self, message: str) -> NoReturn:
        super().error(without_url_secrets(printable(message + self.hint)))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; ``parsed.module`` is the module whose ``command()`` runs."""
    parser = _Parser(prog="python -m abathur_nb", description=_ABOUT, allow_abbrev=False)
    parser.hint = "; to run a notebook, use the command run: run validate"
    parser.add_argument("--version", action="version", version=f"abathur_nb {version('abathur_nb')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, module: str, words: str, **more: Any) -> _Parser:
        about = f"{words[0].upper()}{words[1:]}."
        one = commands.add_parser(name, help=words, description=about, allow_abbrev=False, **more)
        one.set_defaults(module=module)
        return one

    words = "run notebooks in order, each with a record and an archived copy; stop at the first that fails"
    run = command("run", "runner.command", words, epilog=_OF_RUN)
    run.hint = "; give a notebook's parameter by name and value: -p repair True"
    add = run.add_argument
    add("notebooks", nargs="+", metavar="NOTEBOOK", help="the name of a shipped notebook, or the path of your own")
    # Lists, because an option given twice is a fault: the last one must not win.
    several: dict[str, Any] = {"action": "append", "default": []}
    add("--env", metavar="ENV", help="development (default), staging, production, or one of your own", **several)
    words = "a parameter of each listed notebook that declares it, with a value of its declared type"
    add("-p", "--parameter", nargs=2, metavar=("NAME", "VALUE"), dest="parameters", help=words, **several)
    words = "a YAML file of parameters, NAME: VALUE, of at most 64 KiB"
    add("-f", "--file", metavar="FILE", dest="files", help=words, **several)
    # A hung run must not block a schedule.
    add("--timeout", default="3600", metavar="SECONDS", help="stop a run after this time; %(default)s by default")
    add("--cell-timeout", metavar="SECONDS", help="stop a run if one of its cells takes longer; no limit by default")
    add("--start-timeout", metavar="SECONDS", help="stop a run if its kernel takes longer to start; 60 by default")
    words = "write an HTML page of each run (the default), only of failures (the default with --each), or never"
    add("--page", choices=("always", "failures", "never"), help=words)
    add("--json", action="store_true", help="print one JSON object for each run, for programs")
    words = "skip what was sealed since then, or in this batch, with the same notebook and parameters"
    add("--since", metavar="MOMENT|ID", help=words)
    words = "do it for each of these databases: paths, globs in quotes, - to read paths from standard input"
    add("--each", nargs="+", metavar="DATABASE", help=words)
    add("--stream", action="store_true", help=argparse.SUPPRESS)  # a process of --each, which is told one by one
    add("--jobs", metavar="N", help="with --each, run so many databases at a time; one for each processor by default")

    archive = command("archive", "evidence.archive", "archive a notebook that papermill or JupyterLab has executed")
    archive.add_argument("notebook", metavar="OUT.ipynb", help="an executed notebook that has sealed its run")

    runs = command("runs", "runbook.index", "list the runs of an archive: when, what, verdict, duration, who")
    runs.add_argument("--json", action="store_true", help="one JSON object a line, for programs")

    verify = command("verify", "evidence.verify", "recompute every hash, link and signature of an archive; offline")
    verify.hint = "; name the directory of the archive, such as ~/abathur_data/runs"
    words = "the directory of an archive, or the URL of a copy, or of a place that holds collected copies"
    verify.add_argument("archive", metavar="ARCHIVE", help=words)
    words = "the directory or URL to which a fleet run has collected archives: look for what it recorded in them"
    verify.add_argument("--collected", metavar="PLACE", default="", help=words)
    words = "a public key to verify signatures with; several may be given"
    verify.add_argument("--key", metavar="PUBLIC.pem", help=words, **several)

    diff = command("diff", "runbook.history", "say what changed in meaning between two runs")
    diff.add_argument("runs", nargs=2, metavar="RUN", help="a run id, or an unambiguous beginning of one")

    page = command("page", "evidence.page", "print the path of a run's page; make it if the run has none")
    page.add_argument("run", metavar="RUN", help="a run id, or an unambiguous beginning of one")
    page.add_argument("--output", metavar="FILE", help="write the page to this new file; RUN.html by default")

    fleet = command("fleet", "measure.hosts", "print the newest fleet run of an archive, or alert rules for Prometheus")
    words = "text (default), json, metrics for Prometheus' textfile collector, or alerts, the rules for them"
    fleet.add_argument("form", nargs="?", choices=("text", "json", "metrics", "alerts"), default="text", help=words)
    fleet.add_argument("--output", metavar="FILE", help="replace this file atomically; else print")

    copy = command("copy", "evidence.verify", "copy an archive, run by run, to another directory or to object storage")
    copy.add_argument("url", metavar="URL", help="a directory, s3://bucket/prefix, or another URL that fsspec knows")
    for one in (runs, diff, page, fleet, copy):
        add = one.add_argument
        add("--env", metavar="ENV", help="the environment of the archive; development by default")
        add("--db-path", metavar="PATH", help="the database of the archive")
        add("--archive", metavar="DIR", help="archive directory or URL; replaces --env and --db-path")

    metrics = command("metrics", "measure.snapshot", "measure a database, for Prometheus' textfile collector")
    metrics.add_argument("--output", metavar="FILE.prom", help="replace this file atomically; else print")
    alerts = command("alerts", "measure.alerts", "print the alert rules for Prometheus")
    for one in (metrics, alerts):
        one.add_argument("--env", metavar="ENV", default="development", help="the environment; development by default")
        one.add_argument("--db-path", metavar="PATH", help="a database of your own")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; each error that a user can cause is one line on stderr."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    code = 1
    try:
        parsed = make_parser().parse_args(given)
        # Imported here, so that a command loads only what it needs.
        code = int(import_module(f"abathur_nb.{parsed.module}").command(parsed))
        sys.stdout.flush()
        return code
    except AbathurError as error:
        faults = error.faults if isinstance(error, ConfigurationError) else (str(error),)
        sys.stderr.write("".join(f"abathur_nb {given[0]}: {printable(masked(fault))}\n" for fault in faults))
        return EXIT_CODES["refused"]
    except OSError as error:
        # Otherwise Python flushes standard output again at exit, and fails again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # the reader has closed the pipe
            return code
        noted = os_cause(error, Path()) if error.filename else f"standard output could not be written: {error.strerror}"
        sys.stderr.write(f"abathur_nb {given[0]}: {noted}\n")
        return 1
    except KeyboardInterrupt:
        return EXIT_CODES["interrupted"]


def script() -> int:
    """Run the command of this process; SIGTERM interrupts it as Ctrl-C does."""
    for name in ("stdout", "stderr"):  # None if the caller has closed it
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr] # a terminal may know ASCII only
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a run records that it was interrupted
    return main()
