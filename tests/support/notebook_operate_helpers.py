"""What test_notebook_operate and other tests share."""

from pathlib import Path

from notebook_runs_helpers import NOTEBOOKS, Run, papermill

from abathur_nb.config.settings import Settings


def execute(name: str, settings: Settings, tmp_path: Path, *arguments: str) -> Run:
    return papermill(
        NOTEBOOKS / f"{name}.ipynb", tmp_path / "out.ipynb", "-r", "db_path", str(settings.db_path), *arguments
    )
