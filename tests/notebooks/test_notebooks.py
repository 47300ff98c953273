"""What every notebook in notebooks/ is before it runs: clean, logic-free, guarded, and all its parameters told."""

import ast
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest
from cells import NOTEBOOKS

import abathur_nb as nb
from abathur_nb.config.notebooks import NOTEBOOKS as KNOWN
from abathur_nb.config.parameters import declared_parameters

PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
README = (NOTEBOOKS.parent / "README.md").read_text(encoding="utf-8")
# All that a cell may be made of: no def, no class, no loop, no condition, no arithmetic, no subscript, no f-string.
LOGIC_FREE = (
    *(ast.Module, ast.Expr, ast.Assign, ast.AnnAssign, ast.Import, ast.alias, ast.Load, ast.Store),
    *(ast.Name, ast.Attribute, ast.Call, ast.keyword, ast.Await, ast.Constant),
)
each_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def code_cells(path: Path) -> list[Any]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


@each_notebook
def test_it_is_valid_and_committed_without_outputs_and_without_the_traces_of_a_run(path: Path) -> None:
    """A missing id would become a random one at each run; one that is not a word of the notebook's was random."""
    found = read(path)
    nbformat.validate(found)
    assert (found.nbformat, found.nbformat_minor) == (4, 5)
    assert (found.metadata.kernelspec.name, found.metadata.kernelspec.language) == ("python3", "python")
    assert set(found.metadata) <= {"kernelspec", "language_info"}
    assert set(found.metadata.language_info) == {"name"}  # no version of whoever saved it
    ids = [cell.get("id") for cell in found.cells]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(rf"{path.stem}-\d\d", found or "") for found in ids), ids
    for cell in found.cells:
        assert set(cell.metadata) <= {"tags"}
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)
    assert path.read_text(encoding="utf-8").endswith("}\n")


@each_notebook
def test_guard_parameters_settings_and_verdict_stand_where_they_must(path: Path) -> None:
    """Papermill records overridden parameters only, and a record must be there before the database is touched."""
    guard, parameters, settings, *others = code_cells(path)
    assert (guard.source, guard.metadata) == ("import abathur_nb as nb\n\nnb.guard()", {})
    assert parameters.metadata.tags == ["parameters"]
    assert all(cell.metadata == {} for cell in others)
    resolved = "settings = nb.resolve(env, db_path=db_path)"
    assert settings.source == f'{resolved}\nrun = nb.start_run(settings, "{path.stem}")\nrun'
    sealed, raised = others[-1].source.splitlines()
    assert re.fullmatch(r"(\w+\.)?\w+\.raise_for_failures\(\)", raised)
    report = raised.removesuffix(".raise_for_failures()")
    assert re.fullmatch(rf"run\.seal\({report.partition('.')[0]}(, \w+)*\)", sealed)
    shown = [cell.source.splitlines()[-1] for cell in code_cells(path)[:-1]]
    assert report in shown, "the report must have been shown above"


@each_notebook
def test_its_parameters_are_those_that_papermill_finds_and_each_says_what_it_means(path: Path) -> None:
    """Without the comment IPython would read a lone ``env: str = …`` as the %env magic."""
    source = code_cells(path)[1].source
    first, *lines = source.splitlines()
    assert first.startswith("# ")
    for line in lines:
        name, _, meaning = line.partition("  # ")
        assert re.fullmatch(r"[a-z_][a-z0-9_]*: \S+ = \S+", name.replace("Optional[str]", "str")), line
        assert len(meaning) > 10, line
        assert name.count("=") == 1, "papermill --help-notebook would not see it"
    declared, inferred = declared_parameters(source), papermill.inspect_notebook(path)
    assert list(declared) == list(inferred)
    for name, parameter in declared.items():
        assert ast.literal_eval(inferred[name]["default"]) == parameter.default
        kind = parameter.type.__name__
        assert inferred[name]["inferred_type_name"] == (f"Optional[{kind}]" if parameter.default is None else kind)
        assert parameter.fault(parameter.default) == ""
        assert f"`{name}`" in README, f"README.md does not tell {name} of {path.name}"
    assert (declared["env"].default, declared["db_path"].default) == ("development", None)
    (table,) = (cell.source for cell in read(path).cells if cell.source.startswith("## Parameters"))
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(declared)


@each_notebook
def test_its_code_cells_hold_no_logic_and_no_text_but_its_name_and_call_what_is_public(path: Path) -> None:
    """No def, class, loop, condition, SQL, shell or magic; SystemExit would stop it, and papermill exit with 0."""
    for cell in code_cells(path):
        assert len(cell.source.splitlines()) <= 14
        for node in ast.walk(ast.parse(cell.source)):
            assert isinstance(node, LOGIC_FREE), f"{path.stem}: {type(node).__name__} in {cell.source!r}"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "nb":
                assert node.attr in nb.__all__
            if isinstance(node, ast.Name):
                assert node.id not in ("exit", "quit", "sys", "os", "get_ipython")
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "tags" not in cell.metadata:
                assert node.value == path.stem


@each_notebook
def test_its_prose_says_what_it_writes_how_to_run_it_and_leads_to_what_is_there(path: Path) -> None:
    cells = read(path).cells
    first = cells[0].source
    assert re.match(r"# \w+: .+\n\n", first), "a title that states a condition"
    assert re.search(r"\*\*(Reads only|Writes( nothing that stays)?|Live rows are read once)", first)
    command = rf"^papermill {path.name} out\.ipynb( -[pr] \S+ \S+){{1,2}}$"
    assert len(re.findall(command, first, re.MULTILINE)) == 1
    assert "\nIf it fails, " in first
    kinds = [cell.cell_type for cell in cells]
    assert 2 / 3 <= kinds.count("markdown") / kinds.count("code") <= 3 / 2
    assert kinds[0] == kinds[-1] == "markdown"
    assert ("markdown", "markdown") not in pairwise(kinds)
    for link in re.findall(r"\]\(([^)]+)\)", "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")):
        assert link.startswith("https://") or (NOTEBOOKS / link).is_file(), link


def test_the_index_and_the_readme_name_each_notebook_once() -> None:
    first = read(NOTEBOOKS / "index.ipynb").cells[0].source
    assert tuple(re.findall(r"^\|.*?\| \[(\w+)\.ipynb\]\(\1\.ipynb\) \|", first, re.MULTILINE)) == (*KNOWN,)[:-1]
    assert {*KNOWN} == {path.stem for path in PATHS}
    assert sorted(re.findall(r"^\| `(\w+)\.ipynb` \|", README, re.MULTILINE)) == sorted(KNOWN)
