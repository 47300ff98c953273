"""The command line: ``python -m abathur_nb COMMAND``; a thin shell over ``evidence`` and ``operate``."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from abathur_nb.errors import AbathurError, ConfigurationError
from abathur_nb.wording import printable, without_url_secrets

# Each command's module has add_arguments(parser) and command(arguments) -> exit code. Only the one asked for is
# imported: a run shall start at once.
_COMMANDS = {
    "run": (
        "evidence.runner",
        "run notebooks in order, each with a record and an archived copy; stop at the first that fails",
    ),
    "archive": ("evidence.archive", "archive a notebook that plain papermill, or JupyterLab, has executed"),
    "runs": ("evidence.listing", "list the runs of an archive: when, what, verdict, duration, who"),
    "verify": ("evidence.verify", "recompute every hash, link and signature of an archive; offline"),
    "diff": ("evidence.difference", "say what changed in meaning between two runs"),
    "copy": ("evidence.copying", "copy an archive, run by run, to another directory or to object storage"),
    "metrics": ("operate.exposition", "measure a database and write that as Prometheus' textfile collector reads it"),
    "alerts": ("operate.alerts", "print the alert rules for Prometheus"),
}
_ABOUT = "Run the runbook's notebooks, keep and check the records of their runs, and measure a database."
_REFUSED = 2  # as argparse exits for wrong arguments
_INTERRUPTED = 5


class _Parser(argparse.ArgumentParser):
    """Show no secret of a URL where an argument is wrong: argparse repeats it."""

    def error(self, message: str) -> NoReturn:
        super().error(without_url_secrets(printable(message)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; what a user can cause is told in a line each on stderr."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _Parser(prog="python -m abathur_nb", description=_ABOUT, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    code = 1
    try:
        for name, (module, words) in _COMMANDS.items():
            command = commands.add_parser(
                name, help=words, description=f"{words[0].upper()}{words[1:]}.", allow_abbrev=False
            )
            if given[:1] == [name]:
                import_module(f"abathur_nb.{module}").add_arguments(command)
        parsed = parser.parse_args(given)
        code = int(import_module(f"abathur_nb.{_COMMANDS[parsed.command][0]}").command(parsed))
        sys.stdout.flush()
        return code
    except AbathurError as error:
        from abathur_nb.evidence.privacy import masked

        faults = error.faults if isinstance(error, ConfigurationError) else (str(error),)
        sys.stderr.write("".join(f"abathur_nb {given[0]}: {printable(masked(fault))}\n" for fault in faults))
        return _REFUSED
    except OSError as error:
        # Else Python would try once more to write when it exits, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # whoever read it has left
            return code
        from abathur_nb.causes import os_cause

        told = os_cause(error, Path()) if error.filename else f"standard output could not be written: {error.strerror}"
        sys.stderr.write(f"abathur_nb {given[0]}: {told}\n")
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED


if __name__ == "__main__":
    for name in ("stdin", "stdout", "stderr"):  # a job's may be closed, and Python then has none
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: PTH123, SIM115
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr] # a terminal may know ASCII only
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: a run shall say that it was interrupted
    sys.exit(main())
