"""Run the command line: ``python -m abathur_nb``."""

import sys

from abathur_nb.cli import script

if __name__ == "__main__":
    sys.exit(script())
