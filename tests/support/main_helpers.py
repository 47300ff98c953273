"""The commands that tests start: this package's own, promtool; and what the metrics command printed."""

import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

from patience import HANGING_S
from prometheus_client.parser import text_string_to_metric_families

from abathur_nb.cli import main
from abathur_nb.config.settings import Settings


def command(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as an operator does, with these variables too."""
    line, environment = [sys.executable, "-m", "abathur_nb", *arguments], {**os.environ, **env}
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=HANGING_S, check=False)


def called(*arguments: str) -> tuple[int, str, str]:
    """Call the command line in this process; return its exit code and what it printed."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        code = main(arguments)
    return code, out.getvalue(), err.getvalue()


def promtool(*arguments: str | Path, given: str = "") -> str:
    done = subprocess.run(
        ["promtool", *arguments], input=given, capture_output=True, text=True, check=False, timeout=HANGING_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def metrics(settings: Settings, *arguments: str, code: int = 0) -> str:
    done = command("metrics", "--db-path", str(settings.db_path), *arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def parsed(text: str) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            of = ", ".join(v for k, v in sample.labels.items() if k not in ("env", "database"))
            found.setdefault(sample.name, {})[of] = sample.value
    return found
