"""What test_main and other tests share."""

import subprocess
import sys

from patience import HANGING_S


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "abathur_nb", *arguments], capture_output=True, text=True, timeout=HANGING_S, check=False
    )
