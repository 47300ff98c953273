"""Rules for the sources: no test is timed, what is written for people is only shown, and each public name is there."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import abathur_nb

TESTS = Path(__file__).parents[1]
LIMITS = {"run", "communicate", "wait", "wait_for", "timeout", "join", "get", "poll", "select", "urlopen", "settimeout"}
LIMITS |= {"check_output", "check_call", "call", "get_iopub_msg", "get_msg", "result"}


def limits_of(source: str) -> Iterator[ast.Call]:
    """Yield the calls that wait, within a number of seconds that is there: none but 0, and what is cancelled."""
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        given = [k.value for k in call.keywords if k.arg == "timeout"]
        given += call.args[-1:] if name in ("timeout", "join", "poll", "wait_for", "select", "settimeout") else []
        numbers = [value.value for value in given if isinstance(value, ast.Constant)]
        if name in LIMITS and any(isinstance(number, int | float) and number >= 1 for number in numbers):
            yield call


def test_no_number_of_seconds_limits_a_wait_but_the_one_that_ends_what_hangs() -> None:
    sources = {path: path.read_text(encoding="utf-8") for path in TESTS.rglob("*.py") if path.name != "bench.py"}
    found = [f"{path.name}:{call.lineno}" for path, source in sources.items() for call in limits_of(source)]
    assert found == []


ROOT = Path(abathur_nb.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "report.py")  # which shows them
TEXTS = {"observed", "expected", "remedy", "evidence"}
# Where a text may stand: in another one, or handed on to what shows or raises it.
_SHOWN = (
    *(ast.FormattedValue, ast.Call, ast.keyword, ast.Tuple, ast.List, ast.Dict, ast.Starred, ast.BoolOp, ast.IfExp),
    *(ast.BinOp, ast.Assign, ast.ListComp, ast.GeneratorExp),
)
_SHOWN_TITLES = (ast.FormattedValue, ast.Call, ast.keyword, ast.Tuple, ast.List, ast.GeneratorExp, ast.ListComp)
_READING = {"search", "match", "fullmatch", "findall", "split", "sub", "len", "any", "all", "sorted", "filter"}


def read_back(tree: ast.AST) -> Iterator[str]:
    """Yield each place where a check's title is compared, or one of its texts is used other than to show it."""
    for parent in ast.walk(tree):
        for node in ast.iter_child_nodes(parent):
            if not (name := _read(node)):
                continue
            allowed = _SHOWN if name in TEXTS else _SHOWN_TITLES
            if not isinstance(parent, allowed) or (isinstance(parent, ast.Call) and _reads(parent, node)):
                yield ast.unparse(parent)


def _read(node: ast.AST) -> str:
    """Return which text of a check an expression reads: an attribute, or a key of a record; empty for none."""
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        of, name = ast.unparse(node.value), node.attr
    elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and isinstance(node.ctx, ast.Load):
        of, name = ast.unparse(node.value), str(node.slice.value)
    else:
        return ""
    is_check = of.rpartition(".")[2] in ("c", "check", "checks[0]", "checks[-1]", "failed", "fault")
    return name if name in TEXTS or (name == "name" and is_check) else ""


def _reads(call: ast.Call, node: ast.AST) -> bool:
    called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return called in _READING or (called == "get" and node is call.args[0])


def test_no_module_reads_back_what_a_check_says_to_people_and_ids_are_in_snake_case() -> None:
    trees = {path.relative_to(ROOT): ast.parse(path.read_text()) for path in MODULES}
    assert [f"{path}: {found}" for path, tree in trees.items() for found in read_back(tree)] == []
    for tree in trees.values():
        constants = {ast.unparse(one.targets[0]): one.value for one in tree.body if isinstance(one, ast.Assign)}
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args):
            if ast.unparse(call.func) in ("Check", "Check.that", "run_check"):
                given = constants.get(ast.unparse(call.args[0]), call.args[0])
                if isinstance(given, ast.Constant):
                    assert re.fullmatch(r"[a-z0-9_]+", str(given.value)), ast.unparse(call)


def test_a_type_checker_sees_the_names_that_are_imported_on_first_use() -> None:
    tree = ast.parse(Path(abathur_nb.__file__).read_text(encoding="utf-8"))
    (checked,) = (node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name))
    imports = [node for node in checked.body if isinstance(node, ast.ImportFrom)]
    seen = {(node.module, alias.name, alias.asname) for node in imports for alias in node.names}
    homes = {(f"abathur_nb.{module}", name, name) for name, module in abathur_nb._HOMES.items()}
    assert seen == homes | {("abathur_nb", "charts", "charts")}
    assert all(hasattr(abathur_nb, name) for name in (*abathur_nb.__all__, "__version__"))
    assert not hasattr(abathur_nb, "validate")
    assert dir(abathur_nb.charts) == abathur_nb.charts.__all__
