"""What test_main and other tests share."""

import os
import subprocess
import sys

from patience import HANGING_S


def command(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as an operator does, with these variables too."""
    line, environment = [sys.executable, "-m", "abathur_nb", *arguments], {**os.environ, **env}
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=HANGING_S, check=False)
