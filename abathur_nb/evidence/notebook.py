"""A notebook as it is given to the runner: read, found to be one that can be run, and made ready with its values."""

import ast
import json
import re
import warnings
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abathur_nb.config.parameters import Parameter, declared_parameters, literal_assignments
from abathur_nb.errors import ConfigurationError
from abathur_nb.evidence.canonical import sha256
from abathur_nb.files import open_regular
from abathur_nb.store.sql import DATA
from abathur_nb.text import did_you_mean, printable, shown

ADDED = "abathur-verdict"  # the tag of the cells that the runner adds when a run has not passed
_INJECTED, _PARAMETERS = "injected-parameters", "parameters"
# Tags of cells that whoever executes a notebook adds to it; papermill marks so the cell that raised.
_REMARKS = {ADDED, "papermill-error-cell-tag"}
LONGEST = 16 * 1024 * 1024  # bytes of a notebook
_STARTS = re.compile(r"(?m)^[^#\n]*\bstart_run\(\s*[\w.]+\s*,\s*(?:notebook\s*=\s*)?([\"'])(?P<name>[^\"'\n]+)\1")
_GUARDS = re.compile(r"(?:\w+\.)?guard\(\)\s*(?:#.*)?")


@dataclass(frozen=True, slots=True)
class Source:
    """Hold a notebook that can be run: what its runs are called, what it declares, its cells.

    ``template`` is the file's name and the SHA-256 of its bytes. ``records`` tells whether it starts its record
    itself; for one that does not the runner does.
    """

    name: str
    template: tuple[str, str]
    notebook: Mapping[str, Any]
    declared: Mapping[str, Parameter]
    records: bool


def read_source(given: str) -> Source:
    """Read a notebook by its shipped name or by its path. Read-only.

    Raises ConfigurationError where it is none of format 4, has not exactly one ``parameters`` cell with the guard
    before it, or declares anything but literals.
    """
    is_path = "/" in given or given.endswith(".ipynb")
    shipped = sorted(path.stem for path in (DATA / "notebooks").glob("*.ipynb"))
    if not is_path and given not in shipped:
        wanted = f"expected one of {', '.join(shipped)}, or a path that ends in .ipynb"
        raise ConfigurationError(f"notebook {shown(given)}: {wanted}{did_you_mean(given, shipped)}")
    path = Path(given) if is_path else DATA / "notebooks" / f"{given}.ipynb"
    where = f"notebook {printable(given)}"
    content = read_file(where, path, LONGEST)
    notebook = read_notebook(where, content, check=is_path)
    try:
        declared = declared_in(notebook)
    except ConfigurationError as error:
        raise ConfigurationError([f"{where}: {fault}" for fault in error.faults]) from None
    name = recorded_as(notebook)
    template = printable(path.name), sha256(content)
    return Source(name or printable(path.stem), template, notebook, declared, records=bool(name))


def declared_in(notebook: Mapping[str, Any]) -> dict[str, Parameter]:
    """Return what a notebook declares; raise ConfigurationError unless the guard stands before one parameters cell."""
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
    """Return the name under which a notebook starts its record, an empty text if it does not do so itself."""
    started = _STARTS.search("\n".join(cell["source"] for cell in _code(notebook)))
    return started["name"] if started else ""


def _code(notebook: Mapping[str, Any]) -> list[Any]:
    return [cell for cell in cells_of(notebook) if cell["cell_type"] == "code"]


def read_file(where: str, path: Path, most: int) -> bytes:
    """Return the content of a small regular file; raise ConfigurationError if it is none. Never waits, as at a FIFO."""
    try:
        with open_regular(path, follow=True) as file:
            content = file.read(most + 1)
    except (OSError, ValueError) as error:  # a NUL in a path is a ValueError
        raise ConfigurationError(f"{where}: cannot be read: {getattr(error, 'strerror', error)}") from None
    if len(content) > most:
        raise ConfigurationError(f"{where}: expected at most {most:,} bytes, found more")
    return content


def read_notebook(where: str, content: bytes, *, check: bool = True) -> dict[str, Any]:
    """Return a notebook of format 4 as plain data, each source in one piece; raise ConfigurationError if it is none."""
    try:
        notebook = json.loads(content.decode(), parse_constant=_refuse_constant)
        json.dumps(notebook, ensure_ascii=False).encode()  # a lone surrogate could not be written down again
        if notebook["nbformat"] != 4:
            raise ValueError(f"its format is {shown(notebook['nbformat'])}, and not 4")
        if check:
            _validate(notebook)
        for cell in notebook["cells"]:
            cell["source"] = "".join(cell["source"])
        language = notebook["metadata"].get("kernelspec", {}).get("language", "python")
    except KeyError as error:
        raise ConfigurationError(f"{where}: expected a notebook, found no {error}") from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        line = printable(str(error)).partition("\n")[0]
        raise ConfigurationError(f"{where}: expected a valid notebook of format 4: {line}") from None
    if language != "python":
        raise ConfigurationError(f"{where}: expected a notebook of Python, found {shown(language)}")
    return dict(notebook)


def _validate(notebook: Any) -> None:
    import nbformat
    from nbformat.warnings import DuplicateCellId, MissingIDFieldWarning

    try:
        with warnings.catch_warnings():
            for unnamed in (MissingIDFieldWarning, DuplicateCellId):  # repaired in the copy only, at random
                warnings.simplefilter("error", unnamed)
            nbformat.validate(deepcopy(notebook))
    except (nbformat.ValidationError, MissingIDFieldWarning, DuplicateCellId) as error:
        raise ValueError(str(error)) from None


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def cells_of(notebook: Mapping[str, Any]) -> list[Any]:
    """Return the cells of a notebook that are its own: none that papermill, a scheduler or the runner has added."""
    own: list[Any] = []
    declared: set[str] = set()  # by the cell before, if that is the parameters cell
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown" and _REMARKS & {*_tags(cell)}:
            continue
        # Anywhere else, or of another name, it would change what a run does behind the back of its record.
        if declared and cell["cell_type"] == "code" and _INJECTED in _tags(cell):
            given = _assigned(cell["source"], annotated=False)
            if given and all(name in declared or name.startswith("PAPERMILL_") for name in given):
                continue
        own.append(cell)
        declared = _assigned(cell["source"], annotated=True) if _PARAMETERS in _tags(cell) else set()
    return own


def _assigned(source: str, *, annotated: bool) -> set[str]:
    """Return the names to which a cell assigns literals, if it does nothing else: an annotation is evaluated, too."""
    try:
        found = [*literal_assignments(ast.parse(source))]
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # a ConfigurationError is a ValueError
        return set()
    return {name for name, _, _ in found} if annotated or not any(a for _, _, a in found) else set()


def same_cells(notebook: Mapping[str, Any], template: bytes) -> bool:
    """Return whether the cells of an executed notebook are those of a template, to the letter."""
    cells, others = cells_of(notebook), cells_of(read_notebook("the template", template, check=False))
    return [*map(_what_runs, cells)] == [*map(_what_runs, others)]


def _what_runs(cell: Mapping[str, Any]) -> tuple[str, str, bool]:
    return cell["cell_type"], cell["source"], _PARAMETERS in _tags(cell)


def _tags(cell: Mapping[str, Any]) -> Iterable[str]:
    tags = cell["metadata"].get("tags", [])
    return tags if isinstance(tags, list) else ()


def prepared(source: Source, values: Mapping[str, object], **metadata: object) -> dict[str, Any]:
    """Return a notebook ready to be executed: without outputs, the values injected as papermill does it.

    They stand right behind the ``parameters`` cell, in a cell that begins with ``# Parameters``. What this run is
    stands in the metadata under ``abathur``.
    """
    cells: list[dict[str, Any]] = []
    for cell in deepcopy(cells_of(source.notebook)):
        cells.append(cell)
        if cell["cell_type"] != "code":
            continue
        cell |= {"outputs": [], "execution_count": None}
        if _PARAMETERS in _tags(cell) and values:
            lines = ["# Parameters", *(f"{name} = {value!r}" for name, value in values.items())]
            injected = {**cell, "source": "\n".join(lines), "metadata": {"tags": [_INJECTED]}}
            cells.append(injected | cell_id(source.notebook, _INJECTED))
    noted = {**source.notebook["metadata"], "abathur": {"parameters": dict(values), **metadata}}
    return {**source.notebook, "cells": cells, "metadata": noted}


def cell_id(notebook: Mapping[str, Any], name: str) -> dict[str, str]:
    """Return the id of a cell to be added, in a format that has ids, as the item of a cell."""
    return {"id": name} if notebook["nbformat_minor"] >= 5 else {}
