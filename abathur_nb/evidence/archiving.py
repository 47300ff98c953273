"""Archive a notebook that plain papermill, or JupyterLab, has executed: its record is sealed, it is not yet kept."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from abathur_nb.errors import RefusedError
from abathur_nb.evidence.archive import PAGE, keep
from abathur_nb.evidence.canonical import sha256
from abathur_nb.evidence.identity import shipped_notebook
from abathur_nb.evidence.ledger import RUN_ID, require_no_line
from abathur_nb.evidence.reading import read_entry
from abathur_nb.evidence.run import MIME
from abathur_nb.evidence.source import LONGEST, read_file, read_notebook, same_cells
from abathur_nb.settings import Settings, resolve
from abathur_nb.wording import printable, shown

__all__ = ["add_arguments", "archive_notebook", "command"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``archive`` takes."""
    parser.add_argument("notebook", metavar="OUT.ipynb", help="a notebook that was executed, and that sealed its run")


def command(arguments: argparse.Namespace) -> int:
    """Archive an executed notebook and say where; return 0."""
    folder, as_template = archive_notebook(Path(arguments.notebook))
    cells = "as the template's" if as_template else "not known to be those of the template"
    sys.stdout.write(printable(f"abathur_nb archive: {folder / PAGE}; the cells are {cells}") + "\n")
    return 0


def archive_notebook(path: Path) -> tuple[Path, bool]:
    """Archive an executed notebook beside its record; return the folder, and whether its cells are the template's.

    What papermill adds to a template does not count as another cell. Raises ConfigurationError for what is no
    notebook, RefusedError where it holds no record, or another one than the archive has, or is archived already.
    """
    where = f"notebook {printable(str(path))}"
    notebook = read_notebook(where, read_file(where, path, LONGEST))
    shown_record = _record_in(where, notebook)
    settings = _settings(where, shown_record)
    archive, run_id = settings.archive_dir, str(shown_record.get("run_id"))
    if not RUN_ID.fullmatch(run_id):
        raise RefusedError(f"{where}: its record names no run: {shown(run_id)}")
    require_no_line(archive, run_id)
    entry = read_entry(archive, run_id, None)
    if entry.record != shown_record:
        found = "; ".join(entry.faults) or ("another one" if entry.record else "none that is sealed")
        raise RefusedError(
            f"{where}: expected the record of run {run_id} in {archive} to be the one that it shows, found {found}"
        )
    raised = any(output["output_type"] == "error" for cell in notebook["cells"] for output in cell.get("outputs", ()))
    if entry.record["verdict"] == "pass" and raised:
        raise RefusedError(f"{where}: its record says pass, but one of its cells raised", "run it again, whole")
    shipped = shipped_notebook(entry.record["notebook"])
    recorded = entry.record["template"].get("sha256")
    as_template = shipped is not None and sha256(shipped) == recorded and same_cells(notebook, shipped)
    try:
        keep(entry.folder, settings, notebook, as_template=as_template)
    except OSError as error:
        raise RefusedError(f"{where}: it cannot be archived in {archive}: {error.strerror}") from None
    return entry.folder, as_template


def _record_in(where: str, notebook: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the record that a notebook shows; raise RefusedError if it shows none, or several."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ()) if "data" in output]
    found = [output["data"][MIME] for output in outputs if MIME in output["data"]]
    if len(found) != 1 or not isinstance(found[0], dict):
        remedy = "only a notebook that was executed, and that sealed its run, can be archived"
        raise RefusedError(f"{where}: expected the record of one run in its outputs, found {len(found)}", remedy)
    return found[0]


def _settings(where: str, record: Mapping[str, Any]) -> Settings:
    settings = record.get("settings")
    names = ("env", "db_path", "archive_dir")
    if not isinstance(settings, dict) or not all(isinstance(settings.get(name), str) for name in names):
        raise RefusedError(f"{where}: its record does not say which archive it is of")
    return resolve(settings["env"], db_path=settings["db_path"], archive_dir=settings["archive_dir"])
