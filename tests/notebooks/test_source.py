"""A notebook that is given to the runner is one that can be run, or it is refused in a line that says why."""

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from running import GUARD, SOUND, START, write_notebook

from abathur_nb.errors import ConfigurationError
from abathur_nb.evidence.archive import ADDED, prepared, read_source, same_cells
from abathur_nb.evidence.canonical import sha256

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def test_every_shipped_notebook_can_be_run_by_its_name_and_by_its_path() -> None:
    for path in NOTEBOOKS.glob("*.ipynb"):
        by_name = read_source(path.stem)
        assert by_name == read_source(str(path))
        assert by_name.name == path.stem, "its record has the name of the file"
        assert by_name.template == (path.name, sha256(path.read_bytes()))
        assert {"env", "db_path"} <= by_name.declared.keys()


def fault_of(given: str | Path) -> str:
    """Return the one fault of what is given as a notebook."""
    with pytest.raises(ConfigurationError) as caught:
        read_source(str(given))
    (fault,) = caught.value.faults
    assert fault.isprintable()
    return fault


def test_a_notebook_of_ones_own_is_named_by_the_run_that_it_starts(tmp_path: Path) -> None:
    assert read_source(str(write_notebook(tmp_path / "mine.ipynb", *SOUND))).name == "validate"
    assert "nb.start_run(settings, " in fault_of(write_notebook(tmp_path / "plain one.ipynb", "1"))
    named = write_notebook(tmp_path / "b.ipynb", START.replace('"validate"', "notebook='my own'"))
    assert read_source(str(named)).name == "my own"


@pytest.mark.parametrize(
    "cell",
    [
        'nb.start_run(settings=settings, notebook="mine")',
        'nb.start_run(notebook="mine", settings=settings)',
        'start_run(nb.resolve(env, db_path=db_path), "mine")',
        "%%time\nfiles = !ls\nif files:\n    %pwd\nrun = nb.start_run(\n    settings,\n    'mine',\n)",
        "import re\nre.compile('\\d')\nrun = nb.start_run(settings, 'mine')",
        "text = '\\nnb.start_run(settings, \"other\")'",
        'nb.start_run(settings, "other")\n\0 = %"""',
        "text = " + '"""\nnb.start_run(settings, "other")"""',
        'nb.start_run(settings, "other"',
        'nb.start_run(settings, "other\\nabathur_nb run: init of production: PASS")',
    ],
)
def test_the_name_of_a_run_is_found_as_python_reads_it(cell: str, tmp_path: Path) -> None:
    source = write_notebook(tmp_path / "a.ipynb", cell)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if "mine" in cell:
            assert read_source(str(source)).name == "mine"
        else:
            assert "nb.start_run(settings, " in fault_of(source)


def test_a_name_or_path_of_no_notebook_is_refused_without_a_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.ipynb")
    for given, told in {
        "validat": "did you mean validate?",
        "validate.ipynb": "did you mean validate?",
        "": "notebook '': expected one of ",
        "../validate": "notebook ../validate: cannot be read: No such file or directory",
        "/": "notebook /: cannot be read: not a regular file",
        "/dev/zero": "notebook /dev/zero: cannot be read: not a regular file",
        str(tmp_path / "x.ipynb"): "not a regular file",
        "./a\0b.ipynb": r"notebook ./a\x00b.ipynb: cannot be read: ",
        "./\udc80.ipynb": r"notebook ./\udc80.ipynb: cannot be read: ",
    }.items():
        assert told in fault_of(given)


VALID = b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {%s}, "cells": %s}'
CONTENTS: dict[bytes, str] = {
    b"": "expected a valid notebook of format 4: Expecting value",
    b"\xff": "expected a valid notebook of format 4: 'utf-8' codec can't decode",
    b"[]": "expected a valid notebook of format 4: ",
    b"{}": "expected a notebook, found no key 'nbformat'",
    b'{"nbformat": 3, "nbformat_minor": 0, "worksheets": [], "metadata": {}}': "its format is 3, not 4",
    VALID % (b"", b"5"): "'int' object is not iterable",
    VALID % (b'"x": "\\ud800"', b"[]"): "surrogates not allowed",
    VALID % (b"", b"[]"): "expected one cell with the tag parameters",
    b"[" * 100_000: "expected a valid notebook of format 4: maximum recursion depth",
    b" " * (16 * 1024 * 1024 + 1): "it is larger than 16,777,216 bytes",
}


# What is changed of which cell; its place below those of the template: prose, guard, parameters, three of code.
Cells = list[dict[str, Any]]
CHANGES: tuple[tuple[Callable[[Cells], object], str], ...] = (
    (lambda cells: cells[2].update(metadata={}), "expected one cell with the tag parameters, found 0"),
    (
        lambda cells: cells[3].update(metadata=cells[2]["metadata"]),
        "expected one cell with the tag parameters, found 2",
    ),
    (lambda cells: cells.pop(1), "expected a cell that ends in nb.guard() right before the parameters cell"),
    (lambda cells: cells[1].update(source="import abathur_nb as nb\n# nb.guard()"), "ends in nb.guard()"),
    (lambda cells: cells[1].update(source=f"{GUARD}; 1"), "expected a cell that ends in nb.guard()"),
    (lambda cells: cells.insert(2, {**cells[3], "id": "between"}), "expected a cell that ends in nb.guard()"),
    (lambda cells: cells.insert(1, cells.pop(2)), "expected a cell that ends in nb.guard()"),
    (lambda cells: cells[2].update(source="import os\nenv = 1"), "expected `name = literal value`, found 'import os'"),
    (lambda cells: cells[2].update(source="env = "), "its parameters cell: invalid syntax"),
    (lambda cells: cells[2].update(source="env = None"), "its parameters cell: parameter env: expected a type"),
    (lambda cells: cells[2].update(cell_type="mystery"), "expected a valid notebook of format 4: "),
    (lambda cells: cells[3].pop("id"), "expected a valid notebook of format 4: Cell is missing an id field"),
    (lambda cells: cells[3].update(id=cells[4]["id"]), "expected a valid notebook of format 4: Non-unique cell id"),
)


OTHER_LANGUAGES: dict[str, dict[str, Any]] = {
    "'R'": {"kernelspec": {"name": "ir", "display_name": "R", "language": "R"}},
    "'julia'": {"kernelspec": {"name": "julia-1.9", "display_name": "Julia"}, "language_info": {"name": "julia"}},
    "5": {"kernelspec": {"name": "x", "display_name": "x", "language": 5}},
}
OTHER_PYTHON = {"kernelspec": {"name": "conda-env-x", "display_name": "Python [x]", "language": "Python"}}


def test_a_file_that_is_no_notebook_or_one_that_the_runner_can_not_vouch_for_is_refused(tmp_path: Path) -> None:
    path = write_notebook(tmp_path / "x.ipynb", *SOUND)
    notebook = json.loads(path.read_text())
    for metadata in (notebook["metadata"], {}, OTHER_PYTHON):
        path.write_text(json.dumps({**notebook, "metadata": metadata}))
        read_source(str(path))
    contents = {**CONTENTS}
    for language, metadata in OTHER_LANGUAGES.items():
        told = f"expected a Python notebook, found language {language}"
        contents[json.dumps({**notebook, "metadata": metadata}).encode()] = told
    for change, told in CHANGES:
        notebook = json.loads(write_notebook(path, *SOUND).read_text())
        change(notebook["cells"])
        contents[json.dumps(notebook).encode()] = told
    assert len(contents) == len(CONTENTS) + len(OTHER_LANGUAGES) + len(CHANGES)
    for content, told in contents.items():
        path.write_bytes(content)
        fault = fault_of(path)
        assert fault.startswith(f"notebook {path}: ")
        assert told in fault


@pytest.mark.parametrize("minor", [4, 5])
def test_a_prepared_notebook_is_valid_and_holds_the_values_and_no_outputs(minor: int, tmp_path: Path) -> None:
    path = write_notebook(tmp_path / "mine.ipynb", *SOUND)
    notebook = json.loads(path.read_text())
    notebook["nbformat_minor"] = minor
    for cell in notebook["cells"]:
        assert isinstance(cell["source"], list), "as papermill and JupyterLab write it"
        if minor == 4:
            del cell["id"]
        if cell["cell_type"] == "code":
            cell |= {"execution_count": 7, "outputs": [{"output_type": "stream", "name": "stdout", "text": ["x"]}]}
    path.write_text(json.dumps(notebook))
    given = {"env": "production", "db_path": "/a'\"\\b 数.db"}
    ready = prepared(read_source(str(path)), given)
    nbformat.validate(nbformat.from_dict(ready))
    assert ready["cells"][3]["metadata"]["tags"] == ["injected-parameters"]
    assert ready["cells"][3]["source"] == "# Parameters\nenv = 'production'\ndb_path = '/a\\'\"\\\\b 数.db'"
    code = [cell for cell in ready["cells"] if cell["cell_type"] == "code"]
    assert {(cell["execution_count"], len(cell["outputs"])) for cell in code} == {(None, 0)}
    assert ready["metadata"]["abathur"] == {"parameters": given}
    again = prepared(read_source(str(path)), {})
    assert len(again["cells"]) == len(notebook["cells"]), "nothing is injected where nothing is given"


def test_cells_that_were_added_by_who_executed_it_are_none_of_the_template(tmp_path: Path) -> None:
    path = write_notebook(tmp_path / "mine.ipynb", *SOUND)
    template = path.read_bytes()
    executed = prepared(read_source(str(path)), {"env": "x"})
    for tag in (ADDED, "papermill-error-cell-tag"):
        executed["cells"].insert(0, {"cell_type": "markdown", "source": "added", "metadata": {"tags": [tag]}})
    assert same_cells(executed, template)
    for tag in ("skip-execution", "raises-exception"):  # by which papermill skips it, or goes on after its error
        executed["cells"][-1]["metadata"]["tags"] = [tag]
        assert not same_cells(executed, template)
    executed["cells"][-1]["metadata"]["tags"] = ["remove-input"]  # which hides it on a page
    assert same_cells(executed, template)
    executed["cells"][-1]["source"] += " # edited"
    assert not same_cells(executed, template)


INJECTED = {"tags": ["injected-parameters"]}


@pytest.mark.parametrize(
    ("source", "place", "more", "added"),
    [
        ("# Parameters\nenv = 'staging'", 3, {}, True),
        ("env = 'staging'", 3, {}, True),  # as jupyter-scheduler injects it
        ("env: print('anything') = 'staging'", 3, {}, False),  # which Python would evaluate
        ("env = 'staging'", 4, {}, False),  # once the record has begun it would not be what was recorded
        ("env = 'staging'", 0, {}, False),
        ("env = 'staging'", 3, {"cell_type": "raw"}, False),
        ("env = 'staging'", 3, {"metadata": {"tags": "injected-parameters"}}, False),
        ("nb = None", 3, {}, False),  # not a parameter
        ("nb.validate_database = None", 3, {}, False),
        ("nb.validate_database = None", 3, {"metadata": {"tags": ["abathur-verdict"]}}, False),
        ("nb.validate_database = None", 3, {"metadata": {"tags": ["papermill-error-cell-tag"]}}, False),
    ],
)
def test_only_literals_are_injected(source: str, place: int, more: dict[str, Any], added: bool, tmp_path: Path) -> None:
    template = write_notebook(tmp_path / "a.ipynb", *SOUND).read_bytes()
    notebook = nbformat.reads(template, as_version=4)
    notebook["cells"].insert(place, {**nbformat.v4.new_code_cell(source, metadata=INJECTED), **more})
    assert same_cells(notebook, template) is added
