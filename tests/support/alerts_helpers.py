"""What test_alerts and other tests share."""

import shutil
import subprocess
from pathlib import Path

from patience import HANGING_S


def promtool(*arguments: str | Path, given: str = "") -> str:
    tool = shutil.which("promtool")
    assert tool, "promtool is missing: apt-get install prometheus"
    done = subprocess.run(
        [tool, *arguments], input=given, capture_output=True, text=True, check=False, timeout=HANGING_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
