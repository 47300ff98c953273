"""No test is timed: the one limit that ends what hangs is named, and no other number of seconds stands in a test."""

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]
LIMITS = {"run", "communicate", "wait", "wait_for", "timeout", "join", "get", "poll", "select", "urlopen", "settimeout"}
LIMITS |= {"check_output", "check_call", "call", "execute_live", "get_iopub_msg", "get_msg", "result"}


def limits_of(source: str) -> Iterator[ast.Call]:
    """Yield the calls that wait, within a number of seconds that is there: none but 0, and what is cancelled."""
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        given = [k.value for k in call.keywords if k.arg == "timeout"]
        given += call.args[-1:] if name in ("timeout", "join", "poll", "wait_for", "select", "settimeout") else []
        numbers = [value.value for value in given if isinstance(value, ast.Constant)]
        if name in LIMITS and any(isinstance(number, int | float) and number >= 1 for number in numbers):
            yield call


def test_no_number_of_seconds_limits_a_wait() -> None:
    sources = {path: path.read_text(encoding="utf-8") for path in TESTS.rglob("*.py") if path.name != "bench.py"}
    found = [f"{path.name}:{call.lineno}" for path, source in sources.items() for call in limits_of(source)]
    assert found == []


def test_a_literal_limit_of_time_would_be_found() -> None:
    assert len([*limits_of("subprocess.run(x, timeout=60); asyncio.timeout(5); t.join(5); p.wait(timeout=9.5)")]) == 4
    assert not [*limits_of("run(x, timeout=HANGING_S); wait_for(x, 0.05); ','.join(x); select([], [], [], 0)")]
