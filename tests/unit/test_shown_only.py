"""What is written for people is only shown: a program selects a check by its id, and reads its data."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import abathur_nb

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


READ_BACK = (
    'check.name == "file modes"',
    'check["name"] in wanted',
    "{c.name for c in checks}",
    "causes.get(check.name)",
    'check.remedy.startswith("chmod")',
    "if check.observed: pass",
    '"CORRUPT" in check.observed',
    "pattern.match(check.observed)",
    "[line for line in check.evidence]",
    "check.evidence[0]",
)
SHOWN = (
    'f"{check.name}: {check.observed}"',
    '", ".join(check.name for check in checks if check.failed)',
    "RefusedError(error.observed, error.remedy or other)",
    "Check(check.id, check.status, check.expected, name=check.name)",
    'path.name == "abathur.db"',
)


def test_the_sweep_finds_what_is_read_back_and_passes_what_is_shown() -> None:
    assert all(list(read_back(ast.parse(code))) for code in READ_BACK)
    assert not [code for code in SHOWN if list(read_back(ast.parse(code)))]
