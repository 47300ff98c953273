"""Read notebook files, prepare them for the runner, and archive an executed notebook with the record of its run."""

import argparse
import ast
import json
import os
import re
import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abathur_nb.config.parameters import INJECTED, INJECTED_TAG, Parameter, declared_parameters, literal_assignments
from abathur_nb.config.settings import Settings, read_file, resolve
from abathur_nb.errors import ConfigurationError, RefusedError
from abathur_nb.evidence.canonical import misfits, refuse_secrets, sha256, tilde, unsealed
from abathur_nb.evidence.ledger import append, require_no_line, run_id
from abathur_nb.evidence.record import IN_LINE, NOTEBOOK, PAGE, RECORD, STARTED, STATEMENT, Record, read_entry, read_run
from abathur_nb.evidence.run import MIME, shipped_notebook
from abathur_nb.evidence.statement import envelope
from abathur_nb.files import fsync, locked, os_cause, read_regular, write_durably
from abathur_nb.store.sql import DATA
from abathur_nb.text import did_you_mean, is_printable, printable, shown, utc_now

ADDED = "abathur-verdict"  # tag of the cell that the runner adds if a run did not pass
_PARAMETERS = "parameters"
# Tags with which papermill and nbclient place the parameters, skip a cell, or ignore its error.
_OBEYED = {_PARAMETERS, "skip-execution", "raises-exception"}
# Tags of cells that the runner and papermill add to an executed notebook.
_REMARKS = {ADDED, "papermill-error-cell-tag"}
_LONGEST = 16 * 1024 * 1024  # bytes of a notebook
_CELL_MAGIC = re.compile(r"\A\s*%%.*")
_GUARDS = re.compile(r"(?:\w+\.)?guard\(\)\s*(?:#.*)?")


@dataclass(frozen=True, slots=True)
class Source:
    """Hold a notebook that the runner can execute.

    ``name`` is the notebook's name in records, ``template`` the file's name and SHA-256.
    """

    name: str
    template: tuple[str, str]
    notebook: Mapping[str, Any]
    declared: Mapping[str, Parameter]


def read_source(given: str) -> Source:
    """Read a notebook by its shipped name or by its path. Read-only.

    Raises ConfigurationError unless it is a Python notebook of format 4 that starts a run and has exactly one
    ``parameters`` cell, which holds only literals and directly follows the guard.
    """
    is_path = "/" in given or (given.endswith(".ipynb") and os.path.lexists(given))
    shipped = sorted(path.stem for path in (DATA / "notebooks").glob("*.ipynb"))
    if not is_path and given not in shipped:
        expected = f"expected one of {', '.join(shipped)}, or the path of an existing .ipynb"
        raise ConfigurationError(f"notebook {shown(given)}: {expected}{did_you_mean(given, shipped)}")
    path = Path(given) if is_path else DATA / "notebooks" / f"{given}.ipynb"
    where = f"notebook {printable(given)}"
    content = read_file(where, path, _LONGEST)
    notebook = read_notebook(where, content, check=is_path)
    about = notebook["metadata"]
    language = about.get("kernelspec", {}).get("language") or about.get("language_info", {}).get("name") or "python"
    if str(language).lower() != "python":
        raise ConfigurationError(f"{where}: expected a Python notebook, found language {shown(language)}")
    try:
        declared = declared_in(notebook)
    except ConfigurationError as error:
        raise ConfigurationError([f"{where}: {fault}" for fault in error.faults]) from None
    if not (name := recorded_as(notebook)):
        raise ConfigurationError(f'{where}: expected a cell with run = nb.start_run(settings, "NAME"), found none')
    return Source(name, (printable(path.name), sha256(content)), notebook, declared)


def declared_in(notebook: Mapping[str, Any]) -> dict[str, Parameter]:
    """Return the declared parameters; raise ConfigurationError unless one parameters cell follows the guard."""
    code = _code(notebook)
    tagged = [number for number, cell in enumerate(code) if _PARAMETERS in _tags(cell)]
    if len(tagged) != 1:
        raise ConfigurationError(f"expected one cell with the tag {_PARAMETERS}, found {len(tagged)}")
    (number,) = tagged
    lines = code[number - 1]["source"].strip().splitlines() if number else []
    if not lines or not _GUARDS.fullmatch(lines[-1]):
        raise ConfigurationError("expected a cell that ends in nb.guard() right before the parameters cell")
    try:
        return declared_parameters(code[number]["source"])
    except (ConfigurationError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigurationError(f"its parameters cell: {printable(str(error))}") from None


def recorded_as(notebook: Mapping[str, Any]) -> str:
    """Return the notebook name that a cell passes to ``start_run``; an empty text if none does."""
    nodes = (node for cell in _code(notebook) for node in ast.walk(_parsed(cell["source"])))
    for call in (node for node in nodes if isinstance(node, ast.Call)):
        if getattr(call.func, "attr", getattr(call.func, "id", "")) == "start_run":
            named = [*call.args[1:2], *(keyword.value for keyword in call.keywords if keyword.arg == "notebook")]
            name = named[0].value if named and isinstance(named[0], ast.Constant) else None
            if isinstance(name, str) and is_printable(name):  # it is shown in a log, on a line
                return name
    return ""


def _parsed(source: str) -> ast.Module:
    """Return the syntax tree of a cell, which may hold IPython magics; an empty tree if the cell is invalid."""
    with warnings.catch_warnings(), suppress(Exception):  # IPython's transformer raises IndexError for some cells
        warnings.simplefilter("ignore")  # an invalid escape in a cell would otherwise warn in the runner's log
        try:
            return ast.parse(source)
        except SyntaxError:
            from IPython.core.inputtransformer2 import TransformerManager

            return ast.parse(TransformerManager().transform_cell(_CELL_MAGIC.sub("", source)))
    return ast.Module([], [])


def _code(notebook: Mapping[str, Any]) -> list[Any]:
    return [cell for cell in cells_of(notebook) if cell["cell_type"] == "code"]


def read_notebook(where: str, content: bytes, *, check: bool = True) -> dict[str, Any]:
    """Return a notebook of format 4 as plain data, each source one string; raise ConfigurationError for others."""
    try:
        notebook = json.loads(content.decode())
        json.dumps(notebook, ensure_ascii=False).encode()  # raises for a lone surrogate, which UTF-8 cannot encode
        if notebook["nbformat"] != 4:
            raise ValueError(f"its format is {shown(notebook['nbformat'])}, not 4")
        if check:
            _validate(notebook)
        for cell in notebook["cells"]:
            cell["source"] = "".join(cell["source"])
        return dict(notebook)
    except KeyError as error:
        raise ConfigurationError(f"{where}: expected a notebook, found no key {error}") from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        line = printable(str(error)).partition("\n")[0]
        raise ConfigurationError(f"{where}: expected a valid notebook of format 4: {line}") from None


def _validate(notebook: Any) -> None:
    import nbformat
    from nbformat.warnings import DuplicateCellId, MissingIDFieldWarning

    try:
        with warnings.catch_warnings():
            for unnamed in (MissingIDFieldWarning, DuplicateCellId):  # nbformat would add random ids
                warnings.simplefilter("error", unnamed)
            nbformat.validate(deepcopy(notebook))
    except (nbformat.ValidationError, MissingIDFieldWarning, DuplicateCellId) as error:
        raise ValueError(str(error)) from None


def cells_of(notebook: Mapping[str, Any]) -> list[Any]:
    """Return the cells of a notebook without those that papermill, a scheduler or the runner has added."""
    own: list[Any] = []
    declared: set[str] = set()  # names in the parameters cell, if the previous cell is one
    for cell in notebook["cells"]:
        tags = _tags(cell)
        if cell["cell_type"] == "markdown" and _REMARKS & tags:
            continue
        # Keep injected cells anywhere else: they could change the run without being recorded.
        if declared and cell["cell_type"] == "code" and INJECTED_TAG in tags:
            given = _assigned(cell["source"], annotated=False)
            if given and all(name in declared or name.startswith("PAPERMILL_") for name in given):
                continue
        own.append(cell)
        declared = _assigned(cell["source"], annotated=True) if _PARAMETERS in tags else set()
    return own


def _assigned(source: str, *, annotated: bool) -> set[str]:
    """Return the names to which a cell assigns literals; none if it holds other code, or a forbidden annotation."""
    try:
        found = [*literal_assignments(ast.parse(source))]
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # a ConfigurationError is a ValueError
        return set()
    return {name for name, _, _ in found} if annotated or not any(a for _, _, a in found) else set()


def same_cells(notebook: Mapping[str, Any], template: bytes) -> bool:
    """Return whether the cells of an executed notebook are exactly those of a template."""
    return _what_runs(notebook) == _what_runs(read_notebook("the template", template, check=False))


def _what_runs(notebook: Mapping[str, Any]) -> list[tuple[str, str, set[str]]]:
    return [(cell["cell_type"], cell["source"], _tags(cell) & _OBEYED) for cell in cells_of(notebook)]


def _tags(cell: Mapping[str, Any]) -> set[str]:
    tags = cell["metadata"].get("tags", [])
    return set(tags) if isinstance(tags, list) else set()


def prepared(source: Source, values: Mapping[str, object]) -> dict[str, Any]:
    """Return a copy of a notebook to execute: no outputs, and the values in a cell after the ``parameters`` cell."""
    cells: list[dict[str, Any]] = []
    for cell in deepcopy(cells_of(source.notebook)):
        cells.append(cell)
        if cell["cell_type"] != "code":
            continue
        cell |= {"outputs": [], "execution_count": None}
        if _PARAMETERS in _tags(cell) and values:
            lines = "\n".join(f"{name} = {value!r}" for name, value in values.items())
            injected = {**cell, "source": f"{INJECTED}{lines}", "metadata": {"tags": [INJECTED_TAG]}}
            cells.append(injected | cell_id(source.notebook, INJECTED_TAG))
    noted = {**source.notebook["metadata"], "abathur": {"parameters": dict(values)}}
    return {**source.notebook, "cells": cells, "metadata": noted}


def cell_id(notebook: Mapping[str, Any], name: str) -> dict[str, str]:
    """Return the ``id`` item of a new cell; empty if the notebook's format has no cell ids."""
    return {"id": name} if notebook["nbformat_minor"] >= 5 else {}


def keep(
    folder: Path, settings: Settings, notebook: Mapping[str, Any], *, html: bool = True, as_template: bool = False
) -> str:
    """Archive an executed notebook beside the sealed record of its run; return the hash of its line in the ledger.

    Writes the notebook and, with ``html``, its page (``~`` replaces the home directory in both), the statement, and
    last the ledger line with all hashes. ``as_template`` says whether the cells are known to equal those of the
    record's template. Raises RefusedError if the ledger already has the run, or if a file would hold a secret; in the
    second case the record is removed, and the run is not evidence.
    """
    import nbformat

    archive = folder.parent
    files = {name: read_regular(folder / name) for name in (STARTED, RECORD)}
    record = read_run(Record, unsealed(files[RECORD]))
    executed = nbformat.from_dict(tilde(_joined(notebook)))
    # A lone surrogate has no UTF-8; backslashreplace writes it as JSON does, \ud800.
    text = json.dumps(executed, indent=1, ensure_ascii=False) + "\n"
    files[NOTEBOOK] = text.encode(errors="backslashreplace")
    if html:
        from abathur_nb.evidence.page import render

        files[PAGE] = render(executed, record, as_template=as_template)
    try:
        refuse_secrets(settings, files)
    except RefusedError:
        require_no_line(archive, folder.name)  # otherwise the record is evidence
        (folder / RECORD).unlink()
        fsync(folder)
        raise
    hashes = {name: sha256(content) for name, content in files.items()}
    files[STATEMENT] = envelope(settings, record, hashes, as_template=as_template)  # its texts were searched
    line = {
        "kind": "run",
        **{name: getattr(record, name) for name in IN_LINE},
        "as_template": as_template,
        "files": hashes | {STATEMENT: sha256(files[STATEMENT])},
        "written_at": utc_now(),
    }
    with locked(archive):
        end = require_no_line(archive, folder.name)
        for name in files.keys() - {STARTED, RECORD}:
            write_durably(folder / name, files[name])
        return append(archive, line, *end)


def _joined(notebook: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a notebook with adjacent stream outputs joined, because a path or a secret may span two."""
    copied = deepcopy(dict(notebook))
    for cell in copied["cells"]:
        outputs: list[Any] = []
        for output in cell.get("outputs", ()):
            if outputs and output["output_type"] == "stream" and outputs[-1].get("name") == output.get("name"):
                outputs[-1]["text"] = "".join([*outputs[-1]["text"], *output["text"]])  # each is a str or a list of str
            else:
                outputs.append(output)
        if "outputs" in cell:
            cell["outputs"] = outputs
    return copied


def archive_notebook(path: Path) -> tuple[Path, bool]:
    """Archive an executed notebook beside its record; return the folder, and whether its cells are the template's.

    Cells added by papermill are not compared. Raises ConfigurationError if the file is not a notebook; RefusedError if
    it holds no record, if its record differs from the archive's, or if the run is already archived.
    """
    where = f"notebook {printable(str(path))}"
    notebook = read_notebook(where, read_file(where, path, _LONGEST))
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    records = [output["data"][MIME] for output in outputs if MIME in output.get("data", ())]
    if len(records) != 1 or not isinstance(records[0], dict):
        remedy = "only an executed notebook that sealed its run can be archived"
        raise RefusedError(f"{where}: expected the record of one run in its outputs, found {len(records)}", remedy)
    shape = {"run_id": run_id, "settings": {"env": str, "db_path": str, "archive_dir": str}}
    if faults := misfits(records[0], shape):
        raise RefusedError(f"{where}: its record does not name its run and archive: {'; '.join(faults)}")
    name, said = records[0]["run_id"], records[0]["settings"]
    settings = resolve(said["env"], db_path=said["db_path"], archive_dir=said["archive_dir"])
    archive = settings.archive_dir
    entry = read_entry(archive, name, None)
    record = entry.record
    # Compare the file, not a Record: a record of an earlier format has other keys.
    if record is None or unsealed(read_regular(entry.folder / RECORD)) != records[0]:
        why = "; ".join(entry.faults) or ("" if record else "no record is sealed")
        differs = f"the notebook's record differs from {RECORD} of run {name} in {archive}"
        raise RefusedError(f"{where}: {differs}{why and f': {why}'}")
    if record.verdict == "pass" and any(output["output_type"] == "error" for output in outputs):
        raise RefusedError(f"{where}: its record says pass, but one of its cells raised", "run all its cells again")
    template = shipped_notebook(record.notebook) or b""
    as_template = sha256(template) == record.template["sha256"] and same_cells(notebook, template)
    try:
        keep(entry.folder, settings, notebook, as_template=as_template)
    except OSError as error:
        cause = os_cause(error, archive)
        raise RefusedError(f"{where}: it cannot be archived in {archive}: {cause.observed}", cause.remedy) from None
    return entry.folder, as_template


def command(arguments: argparse.Namespace) -> int:
    """Archive an executed notebook and say where; return 0."""
    folder, as_template = archive_notebook(Path(arguments.notebook))
    cells = "those of the template" if as_template else "not known to be those of the template"
    sys.stdout.write(printable(f"abathur_nb archive: {folder / PAGE}; the cells are {cells}") + "\n")
    return 0
