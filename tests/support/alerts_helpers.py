"""What test_alerts and other tests share."""

import subprocess
from pathlib import Path

from patience import HANGING_S


def promtool(*arguments: str | Path, given: str = "") -> str:
    done = subprocess.run(
        ["promtool", *arguments], input=given, capture_output=True, text=True, check=False, timeout=HANGING_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
