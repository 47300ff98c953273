"""A notebook that is given to the runner is one that can be run, or it is refused in a line that says why."""

import json
import os
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


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_shipped_notebook_can_be_run_by_its_name_and_by_its_path(path: Path) -> None:
    by_name, by_path = read_source(path.stem), read_source(str(path))
    assert by_name == by_path
    assert by_name.name == path.stem, "its record has the name of the file"
    assert by_name.template == (path.name, sha256(path.read_bytes()))
    assert by_name.records
    assert {"env", "db_path"} <= by_name.declared.keys()


def test_a_notebook_of_ones_own_is_named_by_the_run_that_it_starts_else_by_its_file(tmp_path: Path) -> None:
    recorded = read_source(str(write_notebook(tmp_path / "mine.ipynb", *SOUND)))
    assert (recorded.name, recorded.records) == ("validate", True)
    plain = read_source(str(write_notebook(tmp_path / "plain one.ipynb", "1")))
    assert (plain.name, plain.records) == ("plain one", False)
    named = read_source(str(write_notebook(tmp_path / "b.ipynb", START.replace('"validate"', "notebook='my own'"))))
    assert (named.name, named.records) == ("my own", True)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("validat", "did you mean validate?"),
        ("", "notebook '': expected one of "),
        ("../validate", "notebook ../validate: cannot be read: No such file or directory"),
        ("missing.ipynb", "notebook missing.ipynb: cannot be read: No such file or directory"),
        ("/", "notebook /: cannot be read: not a regular file"),
        ("/dev/null", "notebook /dev/null: cannot be read: not a regular file"),
        ("/dev/zero", "notebook /dev/zero: cannot be read: not a regular file"),
        ("a\0b.ipynb", r"notebook a\x00b.ipynb: cannot be read: "),
        ("./\udc80.ipynb", r"notebook ./\udc80.ipynb: cannot be read: "),
    ],
)
def test_a_name_or_path_of_no_notebook_is_refused(given: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_source(given)
    (fault,) = caught.value.faults
    assert told in fault
    assert fault.isprintable()


def test_a_fifo_is_refused_without_a_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.ipynb")
    with pytest.raises(ConfigurationError, match="not a regular file"):
        read_source(str(tmp_path / "x.ipynb"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "expected a valid notebook of format 4: Expecting value"),
        (b"\xff", "expected a valid notebook of format 4: 'utf-8' codec can't decode"),
        (b"\xef\xbb\xbf{}", "expected a valid notebook of format 4: "),
        (b"[]", "expected a valid notebook of format 4: "),
        (b"null", "expected a valid notebook of format 4: "),
        (b"{}", "expected a notebook, found no 'nbformat'"),
        (b'{"nbformat": 3, "nbformat_minor": 0, "worksheets": [], "metadata": {}}', "its format is 3, and not 4"),
        (b'{"nbformat": 4, "cells": []}', "expected a"),
        (b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": 5}', "'int' object is not iterable"),
        (b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {"x": NaN}, "cells": []}', "NaN is not JSON"),
        (b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {"x": "\\ud800"}, "cells": []}', "surrogates not allowed"),
        (b"[" * 100_000, "expected a valid notebook of format 4: maximum recursion depth"),
        (
            b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": []}',
            "expected one cell with the tag parameters",
        ),
        (b" " * (16 * 1024 * 1024 + 1), "expected at most 16,777,216 bytes"),
    ],
)
def test_a_file_that_is_no_notebook_of_format_4_is_refused(content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "x.ipynb").write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        read_source(str(tmp_path / "x.ipynb"))
    (fault,) = caught.value.faults
    assert fault.startswith(f"notebook {tmp_path}/x.ipynb: ")
    assert told in fault
    assert fault.isprintable()


def untag(cells: list[Any]) -> None:
    cells[2]["metadata"] = {}


def tag_twice(cells: list[Any]) -> None:
    cells[3]["metadata"] = {"tags": ["parameters"]}


def drop_the_guard(cells: list[Any]) -> None:
    del cells[1]


def guard_in_a_comment(cells: list[Any]) -> None:
    cells[1]["source"] = "import abathur_nb as nb\n# nb.guard()"


def guard_and_more(cells: list[Any]) -> None:
    cells[1]["source"] = f"{GUARD}; 1"


def something_between(cells: list[Any]) -> None:
    cells.insert(2, {**cells[3], "id": "between"})


def guard_behind(cells: list[Any]) -> None:
    cells[1], cells[2] = cells[2], cells[1]


def code_in_the_parameters(cells: list[Any]) -> None:
    cells[2]["source"] = "import os\nenv: str = os.name"


def broken_parameters(cells: list[Any]) -> None:
    cells[2]["source"] = "env = "


def untyped_parameters(cells: list[Any]) -> None:
    cells[2]["source"] = "env = None\nrows: int = 'x'"


def mystery(cells: list[Any]) -> None:
    cells[2]["cell_type"] = "mystery"


def no_id(cells: list[Any]) -> None:
    del cells[3]["id"]


def one_id_twice(cells: list[Any]) -> None:
    cells[3]["id"] = cells[4]["id"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (untag, "expected one cell with the tag parameters, found 0"),
        (tag_twice, "expected one cell with the tag parameters, found 2"),
        (drop_the_guard, "expected a cell that ends in nb.guard() right before the parameters cell"),
        (guard_in_a_comment, "expected a cell that ends in nb.guard()"),
        (guard_and_more, "expected a cell that ends in nb.guard()"),
        (something_between, "expected a cell that ends in nb.guard()"),
        (guard_behind, "expected a cell that ends in nb.guard()"),
        (code_in_the_parameters, "its parameters cell: expected `name = literal value`, found 'import os'"),
        (broken_parameters, "its parameters cell: invalid syntax"),
        (untyped_parameters, "its parameters cell: parameter env: expected a type"),
        (mystery, "expected a valid notebook of format 4: "),
        (no_id, "expected a valid notebook of format 4: Cell is missing an id field"),
        (one_id_twice, "expected a valid notebook of format 4: Non-unique cell id"),
    ],
)
def test_a_notebook_that_the_runner_can_not_vouch_for_is_refused(
    change: Callable[[list[Any]], None], told: str, tmp_path: Path
) -> None:
    path = write_notebook(tmp_path / "mine.ipynb", *SOUND)
    read_source(str(path))
    notebook = json.loads(path.read_text())
    change(notebook["cells"])
    path.write_text(json.dumps(notebook))
    with pytest.raises(ConfigurationError) as caught:
        read_source(str(path))
    (fault,) = caught.value.faults
    assert told in fault
    assert fault.isprintable()


def test_a_notebook_of_another_language_is_refused(tmp_path: Path) -> None:
    kernel = {"name": "ir", "display_name": "R", "language": "R"}
    path = write_notebook(tmp_path / "mine.ipynb", *SOUND, kernelspec=kernel)
    with pytest.raises(ConfigurationError, match="expected a notebook of Python, found 'R'"):
        read_source(str(path))


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
    ready = prepared(read_source(str(path)), {"env": "production", "db_path": "/a'\"\\b 数.db"}, run_id="1")
    nbformat.validate(nbformat.from_dict(ready))
    assert ready["cells"][3]["metadata"]["tags"] == ["injected-parameters"]
    assert ready["cells"][3]["source"] == "# Parameters\nenv = 'production'\ndb_path = '/a\\'\"\\\\b 数.db'"
    code = [cell for cell in ready["cells"] if cell["cell_type"] == "code"]
    assert {(cell["execution_count"], len(cell["outputs"])) for cell in code} == {(None, 0)}
    assert ready["metadata"]["abathur"] == {
        "parameters": {"env": "production", "db_path": "/a'\"\\b 数.db"},
        "run_id": "1",
    }
    again = prepared(read_source(str(path)), {})
    assert len(again["cells"]) == len(notebook["cells"]), "nothing is injected where nothing is given"


def test_cells_that_were_added_by_who_executed_it_are_none_of_the_template(tmp_path: Path) -> None:
    path = write_notebook(tmp_path / "mine.ipynb", *SOUND)
    template = path.read_bytes()
    executed = prepared(read_source(str(path)), {"env": "x"})
    for tag in (ADDED, "papermill-error-cell-tag"):
        executed["cells"].insert(0, {"cell_type": "markdown", "source": "added", "metadata": {"tags": [tag]}})
    assert same_cells(executed, template)
    executed["cells"][-1]["source"] += " # edited"
    assert not same_cells(executed, template)


@pytest.mark.parametrize("tag", ["abathur-verdict", "papermill-error-cell-tag", "injected-parameters"])
def test_a_code_cell_is_not_hidden_by_the_tag_of_one_that_was_added(tag: str, tmp_path: Path) -> None:
    template = write_notebook(tmp_path / "a.ipynb", *SOUND).read_bytes()
    notebook = nbformat.reads(template, as_version=4)
    forged = nbformat.v4.new_code_cell("nb.validate_database = None", metadata={"tags": [tag]})
    notebook["cells"].insert(3, forged)
    assert not same_cells(notebook, template)
    notebook["cells"][3] |= {"source": "# Parameters\nenv = 'staging'"}
    assert same_cells(notebook, template) is (tag == "injected-parameters"), "a control: literals are what is injected"


@pytest.mark.parametrize(
    ("source", "place", "added"),
    [
        ("# Parameters\nenv = 'staging'", 3, True),
        ("env = 'staging'", 3, True),  # as jupyter-scheduler injects it
        ("env: print('anything') = 'staging'", 3, False),  # which Python would evaluate
        ("env = 'staging'", 4, False),  # once the record has begun it would not be what was recorded
        ("env = 'staging'", 0, False),
        ("nb = None", 3, False),  # no parameter
    ],
)
def test_what_was_injected_is_literals_right_behind_the_parameters(
    source: str, place: int, added: bool, tmp_path: Path
) -> None:
    template = write_notebook(tmp_path / "a.ipynb", *SOUND).read_bytes()
    notebook = nbformat.reads(template, as_version=4)
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["injected-parameters"]})
    notebook["cells"].insert(place, cell)
    assert same_cells(notebook, template) is added


def test_no_second_parameters_cell_makes_another_place_the_one_behind_it(tmp_path: Path) -> None:
    template = write_notebook(tmp_path / "a.ipynb", *SOUND).read_bytes()
    notebook = nbformat.reads(template, as_version=4)
    notebook["cells"][3]["metadata"]["tags"] = ["parameters"]
    notebook["cells"].insert(4, nbformat.v4.new_code_cell("settings = 1", metadata={"tags": ["injected-parameters"]}))
    assert not same_cells(notebook, template)
    del notebook["cells"][4]
    assert not same_cells(notebook, template)


@pytest.mark.parametrize("change", [{"cell_type": "raw"}, {"metadata": {"tags": "injected-parameters"}}])
def test_what_only_looks_injected_is_none(change: dict[str, Any], tmp_path: Path) -> None:
    template = write_notebook(tmp_path / "a.ipynb", *SOUND).read_bytes()
    notebook = nbformat.reads(template, as_version=4)
    cell = nbformat.v4.new_code_cell("env = 'staging'", metadata={"tags": ["injected-parameters"]})
    notebook["cells"].insert(3, {**cell, **change})
    assert not same_cells(notebook, template)
