"""What test_past and other tests share."""

from pathlib import Path
from typing import Any

import archives

from abathur_nb.config.settings import Settings
from abathur_nb.evidence.archive import keep
from abathur_nb.evidence.record import Verdict
from abathur_nb.evidence.run import write_started


def run_at(
    settings: Settings, moment: str, name: str = "validate", verdict: Verdict | None = "pass", **more: Any
) -> Path:
    """Make a run that began at ``20261001T120000``: archived, or unsealed if its verdict is None."""
    parameters = {"env": settings.env}
    folder = write_started(settings, name, parameters, run_id=f"{moment}000Z-{len(moment + name):06x}")
    if verdict:
        archives.seal(folder, settings, verdict, **more)
        keep(folder, settings, archives.notebook(name), html=False)
    return folder
