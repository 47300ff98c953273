"""The archive of an environment: a folder a run with its record, its executed notebook, its page; and the ledger."""

import argparse
import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import nbformat

from abathur_nb.config.settings import Settings, resolve
from abathur_nb.errors import RefusedError
from abathur_nb.evidence import page, statement
from abathur_nb.evidence.canonical import sha256, unsealed
from abathur_nb.evidence.ledger import RUN_ID, append, require_no_line
from abathur_nb.evidence.notebook import LONGEST, read_file, read_notebook, same_cells
from abathur_nb.evidence.privacy import refuse_secrets, tilde
from abathur_nb.evidence.reading import IN_LINE, read_entry, run_ids
from abathur_nb.evidence.record import NOTEBOOK, PAGE, RECORD, STARTED, STATEMENT, Record, read_run, shipped_notebook
from abathur_nb.evidence.run import MIME
from abathur_nb.files import fsync, locked, os_cause, read_regular, write_durably
from abathur_nb.text import printable, shown, utc_now


def keep(
    folder: Path,
    settings: Settings,
    notebook: Mapping[str, Any],
    *,
    html: bool = True,
    as_template: bool = False,
) -> dict[str, Any]:
    """Put an executed notebook beside the sealed record of its run, and close the run with its line in the ledger.

    Writes the notebook and (``html``) its page, the home directory written ``~`` in both, the signed statement, and
    then the line with the hash of each file. Returns the line. ``as_template`` tells whether the cells are known to be
    those of the template whose hash the record has. Raises RefusedError where a file would hold a secret (the run is
    then unsealed: it is not evidence) or the run is in the ledger already.
    """
    archive = folder.parent
    require_no_line(archive, folder.name)
    files = {name: read_regular(folder / name) for name in (STARTED, RECORD)}
    record = read_run(Record, unsealed(files[RECORD]))
    executed = nbformat.from_dict(tilde(_joined(notebook)))
    # Of a lone surrogate, which has no UTF-8, backslashreplace makes JSON's own \ud800.
    text = json.dumps(executed, indent=1, ensure_ascii=False) + "\n"
    files[NOTEBOOK] = text.encode(errors="backslashreplace")
    if html:
        files[PAGE] = page.render(executed, record, as_template=as_template)
    try:
        refuse_secrets(settings, files)
        hashes = {name: sha256(content) for name, content in files.items()}
        files[STATEMENT] = statement.envelope(settings, record, hashes, as_template=as_template)
        refuse_secrets(settings, {STATEMENT: files[STATEMENT]})
    except RefusedError:
        (folder / RECORD).unlink()
        fsync(folder)
        raise
    line = {
        "kind": "run",
        **{name: getattr(record, name) for name in IN_LINE},
        "as_template": as_template,
        "files": hashes | {STATEMENT: sha256(files[STATEMENT])},
        "written_at": utc_now(),
    }
    with locked(archive):
        require_no_line(archive, folder.name)  # nobody has archived it meanwhile: his files stay as the line says
        for name in (NOTEBOOK, PAGE, STATEMENT):
            if name in files:
                write_durably(folder / name, files[name])
        append(archive, line)
    return line


def lapses(settings: Settings) -> bool:
    """Return whether a run without a key would follow a signed one: ``verify --key`` fails from then on. Read-only."""
    if settings.signing_key:
        return False
    archive = settings.archive_dir
    try:
        for run_id in sorted(run_ids(archive), reverse=True):
            with suppress(FileNotFoundError):  # it was never sealed
                return statement.is_signed(read_regular(archive / run_id / STATEMENT))
    except (OSError, ValueError, RefusedError):
        pass  # verify says what is wrong with it
    return False


def _joined(notebook: Mapping[str, Any]) -> dict[str, Any]:
    """Return a notebook whose streams are each in one piece: a home, or a secret, may be split over two."""
    copied = deepcopy(dict(notebook))
    for cell in copied["cells"]:
        outputs: list[Any] = []
        for output in cell.get("outputs", ()):
            if outputs and output["output_type"] == "stream" and outputs[-1].get("name") == output.get("name"):
                outputs[-1]["text"] = _text(outputs[-1]) + _text(output)
            else:
                outputs.append(output)
        if "outputs" in cell:
            cell["outputs"] = outputs
    return copied


def _text(stream: Mapping[str, Any]) -> str:
    return "".join(stream["text"])  # a list of lines, or a text


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
    record = entry.record
    # As it was written: a record of an earlier format has other keys.
    if record is None or unsealed(read_regular(entry.folder / RECORD)) != shown_record:
        found = "; ".join(entry.faults) or ("another one" if record else "none that is sealed")
        raise RefusedError(
            f"{where}: expected the record of run {run_id} in {archive} to be the one that it shows, found {found}"
        )
    raised = any(output["output_type"] == "error" for cell in notebook["cells"] for output in cell.get("outputs", ()))
    if record.verdict == "pass" and raised:
        raise RefusedError(f"{where}: its record says pass, but one of its cells raised", "run it again, whole")
    shipped = shipped_notebook(record.notebook)
    recorded = record.template["sha256"]
    as_template = shipped is not None and sha256(shipped) == recorded and same_cells(notebook, shipped)
    try:
        keep(entry.folder, settings, notebook, as_template=as_template)
    except OSError as error:
        cause = os_cause(error, archive)
        raise RefusedError(f"{where}: it cannot be archived in {archive}: {cause.observed}", cause.remedy) from None
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


def command(arguments: argparse.Namespace) -> int:
    """Archive an executed notebook and say where; return 0."""
    folder, as_template = archive_notebook(Path(arguments.notebook))
    cells = "as the template's" if as_template else "not known to be those of the template"
    sys.stdout.write(printable(f"abathur_nb archive: {folder / PAGE}; the cells are {cells}") + "\n")
    return 0
