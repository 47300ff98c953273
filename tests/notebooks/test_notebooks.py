"""What every notebook in notebooks/ is before it runs: clean, logic-free, guarded, and all its parameters told."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest
from notebooks_helpers import FOLDER, PATHS, README, read

import abathur_nb as nb
from abathur_nb.config.parameters import declared_parameters

NAMES = ("benchmark", "explain", "init", "preflight", "validate")

# All that a cell may be made of: no def, no class, no loop, no condition, no arithmetic, no subscript, no f-string.
LOGIC_FREE = (
    *(ast.Module, ast.Expr, ast.Assign, ast.AnnAssign, ast.Import, ast.alias, ast.Load, ast.Store),
    *(ast.Name, ast.Attribute, ast.Call, ast.keyword, ast.Await, ast.Constant),
)

each_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[Any]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def parameters_cell(path: Path) -> Any:
    (cell,) = (cell for cell in code_cells(path) if "parameters" in cell.metadata.get("tags", []))
    return cell


def test_the_five_notebooks_are_there() -> None:
    assert set(NAMES) <= {path.stem for path in PATHS}


@each_notebook
def test_it_is_valid_nbformat_45_for_the_kernel_python3(path: Path) -> None:
    found = read(path)
    nbformat.validate(found)
    assert (found.nbformat, found.nbformat_minor) == (4, 5)
    assert found.metadata.kernelspec.name == "python3"
    assert found.metadata.kernelspec.language == "python"


@each_notebook
def test_its_cell_ids_are_its_own_and_say_whose_they_are(path: Path) -> None:
    """A missing id would become a random one at each run; one that is no word of the notebook's was made at random."""
    ids = [cell.get("id") for cell in read(path).cells]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(rf"{path.stem}-\d\d", found or "") for found in ids), ids


@each_notebook
def test_it_is_committed_without_outputs_and_without_the_traces_of_a_run(path: Path) -> None:
    found = read(path)
    assert set(found.metadata) <= {"kernelspec", "language_info"}
    assert set(found.metadata.language_info) == {"name"}  # no version of whoever saved it
    for cell in found.cells:
        assert set(cell.metadata) <= {"tags"}
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)
    assert path.read_text(encoding="utf-8").endswith("}\n")


@each_notebook
def test_its_guard_stands_first_and_then_its_one_parameters_cell(path: Path) -> None:
    guard, parameters, *others = code_cells(path)
    assert guard.source == "import abathur_nb as nb\n\nnb.guard()"
    assert guard.metadata == {}
    assert parameters.metadata.tags == ["parameters"]
    assert all(cell.metadata == {} for cell in others)


@each_notebook
def test_its_parameters_cell_begins_with_a_comment_and_says_what_each_parameter_means(path: Path) -> None:
    """Without the comment IPython would read a lone ``env: str = …`` as the %env magic."""
    first, *lines = parameters_cell(path).source.splitlines()
    assert first.startswith("# ")
    for line in lines:
        name, _, meaning = line.partition("  # ")
        assert re.fullmatch(r"[a-z_][a-z0-9_]*: \S+ = \S+", name.replace("Optional[str]", "str")), line
        assert len(meaning) > 10, line
        assert name.count("=") == 1, "papermill --help-notebook would not see it"


@each_notebook
def test_its_declared_parameters_are_those_that_papermill_finds(path: Path) -> None:
    declared = declared_parameters(parameters_cell(path).source)
    inferred = papermill.inspect_notebook(path)
    assert list(declared) == list(inferred)
    for name, parameter in declared.items():
        assert ast.literal_eval(inferred[name]["default"]) == parameter.default
        optional = parameter.default is None
        assert inferred[name]["inferred_type_name"] == (
            f"Optional[{parameter.type.__name__}]" if optional else parameter.type.__name__
        )
        assert parameter.fault(parameter.default) == ""
    assert {"env", "db_path"} <= set(declared)
    assert (declared["env"].default, declared["db_path"].default) == ("development", None)


@each_notebook
def test_papermill_help_shows_each_parameter_with_its_type_and_default(path: Path) -> None:
    command: list[str | Path] = [Path(sys.executable).with_name("papermill"), "--help-notebook", path]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Can't infer" not in told.stdout
    flat = " ".join(told.stdout.split())
    for name, found in papermill.inspect_notebook(path).items():
        assert f"{name}: {found['inferred_type_name']} (default {found['default']}) {found['help']}" in flat
    assert told.stderr == ""


@each_notebook
def test_its_table_of_parameters_is_the_parameters_cell_in_words(path: Path) -> None:
    (table,) = (cell.source for cell in read(path).cells if cell.source.startswith("## Parameters"))
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(declared_parameters(parameters_cell(path).source))


@each_notebook
def test_its_code_cells_hold_no_logic(path: Path) -> None:
    """No def, class, loop, condition, SQL, shell or magic: those would not even be of the kinds of syntax listed."""
    for cell in code_cells(path):
        assert len(cell.source.splitlines()) <= 10
        for node in ast.walk(ast.parse(cell.source)):
            assert isinstance(node, LOGIC_FREE), f"{path.stem}: {type(node).__name__} in {cell.source!r}"


def names_of(cell: Any) -> Iterator[str]:
    for node in ast.walk(ast.parse(cell.source)):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@each_notebook
def test_its_cells_hold_no_text_but_its_own_name_and_never_exit(path: Path) -> None:
    """SystemExit would stop the run, and papermill would exit with 0; SQL in a cell would be a constant."""
    for cell in code_cells(path):
        assert not {"exit", "quit", "sys", "os", "get_ipython"} & set(names_of(cell))
        if "parameters" not in cell.metadata.get("tags", []):
            assert {
                node.value
                for node in ast.walk(ast.parse(cell.source))
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
            } <= {path.stem}


@each_notebook
def test_its_run_is_recorded_and_its_settings_are_shown_right_after_its_parameters(path: Path) -> None:
    """Papermill records overridden parameters only, and a record must be there before the database is touched."""
    settings = "settings = nb.resolve(env, db_path=db_path)"
    assert code_cells(path)[2].source == f'{settings}\nrun = nb.start_run(settings, "{path.stem}")\nrun'


@each_notebook
def test_its_last_code_cell_seals_the_record_and_raises_if_anything_failed(path: Path) -> None:
    *_, shown, last = code_cells(path)
    sealed, raised = last.source.splitlines()
    assert re.fullmatch(r"(\w+\.)?\w+\.raise_for_failures\(\)", raised)
    report = raised.removesuffix(".raise_for_failures()")
    assert re.fullmatch(rf"run\.seal\({report.partition('.')[0]}(, \w+)*\)", sealed)
    before = [cell.source.splitlines()[-1] for cell in code_cells(path)[:-1]]
    assert report in before, "the report must have been shown above"
    assert shown is not last


@each_notebook
def test_its_title_says_what_it_writes_and_how_to_run_it(path: Path) -> None:
    found = read(path).cells[0]
    assert found.cell_type == "markdown"
    assert re.match(r"# \w+: .+\n\n", found.source), "a title that states a condition"
    assert re.search(r"\*\*(Reads only|Writes( nothing that stays)?|Live rows are read once)", found.source)
    command = rf"^papermill {path.name} out\.ipynb( -[pr] \S+ \S+){{1,2}}$"
    assert len(re.findall(command, found.source, re.MULTILINE)) == 1
    assert "\nIf it fails, " in found.source


@each_notebook
def test_each_heading_stands_above_code_and_prose_is_about_as_much_as_code(path: Path) -> None:
    cells = read(path).cells
    kinds = [cell.cell_type for cell in cells]
    assert 2 / 3 <= kinds.count("markdown") / kinds.count("code") <= 3 / 2
    assert kinds[0] == kinds[-1] == "markdown"
    assert ("markdown", "markdown") not in pairwise(kinds)
    assert all(re.match(r"#{1,2} ", c.source) or c.source.strip() for c in cells)


@each_notebook
def test_what_it_calls_is_public(path: Path) -> None:
    for cell in code_cells(path):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "nb":
                assert node.attr in nb.__all__


@each_notebook
def test_its_links_lead_to_notebooks_beside_it(path: Path) -> None:
    prose = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    for link in re.findall(r"\]\(([^)]+)\)", prose):
        assert link.startswith("https://") or (FOLDER / link).is_file(), link


@each_notebook
def test_the_readme_names_it_and_each_of_its_parameters(path: Path) -> None:
    text = README.read_text(encoding="utf-8")
    assert path.name in text
    for name in declared_parameters(parameters_cell(path).source):
        assert f"`{name}`" in text, f"README.md does not tell {name} of {path.name}"
