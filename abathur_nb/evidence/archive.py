"""The archive of an environment: a folder a run with its record, its executed notebook, its page; and the ledger."""

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import nbformat

from abathur_nb.errors import RefusedError
from abathur_nb.evidence import page, statement
from abathur_nb.evidence.canonical import read_regular, sha256, unsealed, write_durably
from abathur_nb.evidence.ledger import append, locked, require_no_line
from abathur_nb.evidence.privacy import refuse_secrets, tilde
from abathur_nb.evidence.record import RECORD, STARTED
from abathur_nb.scratch import fsync
from abathur_nb.settings import Settings
from abathur_nb.wording import utc_now

__all__ = ["NOTEBOOK", "PAGE", "STATEMENT", "keep"]

NOTEBOOK, PAGE, STATEMENT = "notebook.ipynb", "page.html", "statement.json"


def keep(
    folder: Path, settings: Settings, notebook: Mapping[str, Any], *, html: bool = True, as_template: bool = False
) -> dict[str, Any]:
    """Put an executed notebook beside the sealed record of its run, and close the run with its line in the ledger.

    Writes the notebook and (``html``) its page, the home directory written ``~`` in both, the signed statement, and
    then the line with the hash of each file. Returns the line. ``as_template`` tells whether the cells are known to be
    those of the template whose hash the record has. Raises RefusedError where a file would hold a secret (the run is
    then unsealed: it is no evidence) or the run is in the ledger already.
    """
    archive = folder.parent
    require_no_line(archive, folder.name)
    files = {name: read_regular(folder / name) for name in (STARTED, RECORD)}
    record = unsealed(files[RECORD])
    executed = nbformat.from_dict(tilde(_joined(notebook)))
    # Of a lone surrogate, which has no UTF-8, backslashreplace makes JSON's own \ud800.
    text = json.dumps(executed, indent=1, ensure_ascii=False) + "\n"
    files[NOTEBOOK] = text.encode(errors="backslashreplace")
    if html:
        files[PAGE] = page.render(executed, record, as_template=as_template)
    hashes = {name: sha256(content) for name, content in files.items()}
    files[STATEMENT] = statement.envelope(settings, record, hashes, as_template=as_template)
    try:
        refuse_secrets(settings, files)
    except RefusedError:
        (folder / RECORD).unlink()
        fsync(folder)
        raise
    line = {
        "kind": "run",
        **{name: record[name] for name in ("run_id", "notebook", "env", "verdict", "started_at", "ended_at")},
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
