"""The guard lets nothing run but what a notebook declares: swept in a shell of this process, proven in real kernels."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cells import NOTEBOOKS, cells_of, fresh, run_cells
from damage import untouched
from IPython.core.interactiveshell import ExecutionResult, InteractiveShell
from notebook_runs_helpers import papermill as run_papermill
from papermill.cli import _resolve_type

from abathur_nb.config.parameters import guard
from abathur_nb.config.settings import Settings

CODE = "open('canary', 'w').close()"
INIT = NOTEBOOKS / "init.ipynb"
NAME = "expected `name = value`, each name of A-Z, a-z, 0-9 and _"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Be in a directory in which a canary would be seen, and see that there is none, and no database either."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    yield here
    assert not (here / "canary").exists(), "code of a parameter has run"
    assert list(home.glob("abathur_data*")) == []


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every environment in a directory of the test's own: in a shell its cells really run."""
    monkeypatch.setenv("ABATHUR_DB_PATH", str(tmp_path / "elsewhere" / "abathur.db"))


def rejected(result: ExecutionResult) -> str:
    """Return why nothing of a cell ran, empty where it ran."""
    assert result.error_in_exec is None, "it ran, and failed"
    return str(result.error_before_exec or "")


# Each is code under its disguise; whatever papermill makes of it, nothing of it may run, nor any later cell.
# fmt: off
NAMES = [
    # more statements
    f"x=1;{CODE};y", f"env = 'x';{CODE};env", f"x\n{CODE}\ny", f"x=1\r{CODE}\ry", f"env=1\n\n\n{CODE}\nenv",
    f"x=1\x0c\n{CODE}\nx", f"import os as env;{CODE};x", "from os import system as env\nx", f"del env\n{CODE}\nx",
    f"assert {CODE}\nx", "raise SystemExit(0)\nx", "exit()\nenv", "quit\nenv", f"await {CODE}\nenv",
    f"if {CODE}: pass\nx", f"for env in [{CODE}]: pass\nx", "with open('canary', 'w') as env: pass\nx",
    f"try: {CODE}\nexcept: pass\nx", f"@{CODE}\ndef env(): pass\nx", f"def env(x={CODE}): pass\nx",
    f"class env({CODE}): pass\nx", f"lambda: {CODE}\nx", f"match {CODE}:\n  case _: pass\nx", "'a text'\nenv",
    # values that are more than literals
    f"env = {CODE}\nenv", f"env = f'{{{CODE}}}'\nenv", f"env = [{CODE} for _ in [1]]\nenv", f"env = ({CODE},)\nenv",
    f"env = {{1: {CODE}}}\nenv", f"env = (z := {CODE})\nenv", f"(env := {CODE})\nenv", f"env = lambda: {CODE}\nenv",
    f"env = 'a' if {CODE} else 'b'\nenv", f"env = 1 + {CODE}\nenv", "env = env\nenv", "env = b'x'\nenv",
    # annotations, which run
    f"x: {CODE}", f"env: {CODE}", f"env: (z := {CODE})", "env: __import__('os').system('touch canary')", "env: str",
    f"(env): {CODE}",
    # targets that run, or that reach into something
    "nb.resolve", "nb.guard", "nb.resolve.__kwdefaults__", "nb.Settings.__init__", "env.x", f"env[{CODE}]",
    f"[env][{CODE}]", f"{{1: env}}[{CODE}]", f"{CODE}.x", "globals()['env']", "get_ipython().ast_transformers[:]",
    f"env[{CODE}:]", "*env,", "(env, db_path)", "[env, db_path]", "()", "env = db_path", "env or", "env +=", "env :",
    # IPython's own syntax
    "%sx touch canary\nenv", "!touch canary\nenv", "!!touch canary\nenv", "x = !touch canary\nenv",
    "env = !touch canary\nenv", "env = %sx touch canary\nenv", "%%bash\ntouch canary\nenv", "%run canary.py\nenv",
    "%env PATH=x\nenv", "%reset -f\nenv", "env??\nenv", "%", "/open canary w\nenv", ",open canary w\nenv",
    ";open canary w\nenv", ">>> env", "In [1]: env", "...: env",
    # names of other things
    "nb", "settings", "print", "exit", "__builtins__", "_", "In", "None", "if", "__debug__", "PAPERMILL_OUTPUT",
    "papermill_input_path", "ENV", "env_", "1env", "env-x", "env x",
    # comments, quotes and continuations
    "#", "env #", "env = 'production' #", "env = 'production'; #", "env = 'x' \\\n#", "env = \\\n", "'''", 'env = """',
    "env = (\n'x')\nenv", "env = 'a'\nenv", "env = 'x' ;env", " env", "\tenv", "env ", "env\t", "(env)",
    # letters that look or count as others
    "ｅｎｖ", "𝐞𝐧𝐯", "еnv", "env\u200b", "\ufeffenv", "e\u0301nv", "env\u2028", "env\x0b", "env\x85", "\u202eenv",
    # and nothing at all
    "", " ", "\n", "\x00", "env\x00", "\x1b[31menv", "=", ";", "💥", "x" * 100_000, "a." * 100 + "b", "(" * 300,
]
# fmt: on
PAIRS = (  # disguises of two names
    ("env = '''", f"'''; {CODE}; env"),
    ("env = (", f"{CODE}); env"),
    ("env = [0,\\\n", f"{CODE}]\nenv"),
    ("env", "ｅｎｖ"),
    ("if 1:\n    env", f"    {CODE}\nenv"),
    ("ｅｎｖ", "env"),
    ("env", f"env = 'x'; {CODE}; env"),
)  # fmt: skip
RAW = (  # cells that papermill itself would not make
    f"env: {CODE} = 'x'", f"env[{CODE}] = 1", "env = !touch canary", f"env = 1 = 2; {CODE}", f"def env(x={CODE}): pass",
    f"env: 'str' = 'x'; dry_run = ({CODE},)", "get_ipython().ast_transformers.clear(); env = 1",
    "env = " + "[" * 300 + "]" * 300, "env = " + "-" * 200 + "1", "env = " + "9" * 5000,
)  # fmt: skip


def test_a_name_that_is_not_declared_is_refused_and_nothing_runs(long_lived: InteractiveShell, folder: Path) -> None:
    guard_cell, parameters, settings, *_ = cells_of(INIT, {})
    injected = [cells_of(INIT, {name: "production"})[2] for name in NAMES]
    injected += [cells_of(INIT, dict.fromkeys(names, "production"))[2] for names in PAIRS]
    injected += [f"# Parameters\n{cell}\n" for cell in RAW]
    for cell in injected:
        shell = fresh(long_lived)
        assert not rejected(shell.run_cell(guard_cell))
        assert not rejected(shell.run_cell(parameters))
        names = set(shell.user_ns)
        assert rejected(shell.run_cell(cell)), cell
        for behind in (settings, CODE):  # as a runner that goes on after errors would
            assert rejected(shell.run_cell(behind)).startswith("the injected parameters were refused"), cell
        assert (shell.user_ns["env"], set(shell.user_ns)) == ("development", names), cell
        assert list(folder.iterdir()) == [], cell
    # Corrected, it runs.
    assert not rejected(shell.run_cell("# Parameters\nenv = 'production'\n"))
    assert not rejected(shell.run_cell("seen = env"))
    assert shell.user_ns["seen"] == "production"


def test_enough_of_these_names_are_deadly(folder: Path) -> None:
    """Without the guard they would have run: else the sweep proves nothing."""
    program = """
import json, os, sys
from IPython.core.interactiveshell import InteractiveShell
shell, deadly = InteractiveShell.instance(), 0
for cell in json.load(sys.stdin):
    shell.user_ns.update(env='x', db_path=None)
    shell.run_cell(cell)
    if os.path.exists('canary'):
        os.remove('canary')
        deadly += 1
sys.stderr.write(f'deadly: {deadly}')
"""
    cells = [cells_of(INIT, {name: "production"})[2] for name in NAMES if "canary" in name]
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, input=json.dumps(cells), capture_output=True, text=True, cwd=folder, check=True)
    assert int(done.stderr.rpartition("deadly: ")[2]) >= 35


REFUSED: tuple[tuple[str, dict[str, Any], str], ...] = (  # test_parameters has each kind of fault
    ("init", {"enviroment": "x"}, "parameter 'enviroment' is not declared (env, db_path, dry_run); did you mean env?"),
    ("init", {"env": {"a": {CODE: [CODE]}}}, "env: expected str, found {'a': "),
    ("init", {"env": float("nan")}, "found \"env = float('nan')\""),
    ("init", {"env": 10**400}, "env: expected str, found 1000"),
    ("init", {"env": _resolve_type("2026_11")}, "env: expected str, found 202611 (int)"),
    ("init", {"env": 7, "dry_run": "no"}, "env: expected str, found 7 (int); dry_run: expected True or False"),
    *(("benchmark", {"rows": _resolve_type(text)}, "rows") for text in ("1e999", "nan", "0x10", "1.0", "abc", "")),
    ("benchmark", {"repetitions": 2**63}, "repetitions: expected a whole number in 1..100000, found 9223"),
)


def test_a_value_of_another_type_or_range_is_refused_by_name_before_anything_runs(long_lived: InteractiveShell) -> None:
    for notebook, given, told in REFUSED:
        stopped = run_cells(fresh(long_lived), notebook, **given)
        assert stopped.before, given
        assert told in stopped.line
        assert stopped.line.endswith("nothing of this cell was run")
        assert rejected(long_lived.run_cell(CODE)).startswith("the injected parameters were refused")


HOSTILE = (
    *("'); " + CODE + " #", '"); ' + CODE + " #", "\\'; " + CODE, '\\"; ' + CODE, f"production\n{CODE}\n"),
    *(f"'''\n{CODE}\n'''", f'"""\n{CODE}\n"""', f"production\r{CODE}", f"{{{CODE}}}", f"{{env}}{CODE}", "%s%d%n"),
    *("$(touch canary)", "`touch canary`", "; touch canary", "<script>alert(1)</script>", "\\N{BULLET}\\x41\\u0041\\"),
    *("\\", "../../etc", "production\n", "production\x00", "\x1b[2J", "\u202eproduction", "ｐroduction", "x" * 100_000),
)


def test_a_hostile_value_is_text_and_its_environment_is_unknown(long_lived: InteractiveShell) -> None:
    for value in HOSTILE:
        stopped = run_cells(fresh(long_lived), "init", env=value)
        assert long_lived.user_ns["env"] == value, "papermill escapes values, and they arrive as they are"
        assert stopped.cell.startswith("settings = nb.resolve(")
        assert "Error: env: expected one of development, staging, production, found " in stopped.line
        assert len(stopped.line) < 400
    line = run_cells(fresh(long_lived), "init", env="prod", db_path=":memory:").line
    assert "did you mean production?; db_path (from argument): expected " in line, "each fault is named"


@pytest.mark.usefixtures("elsewhere")
def test_what_is_declared_or_papermills_own_passes_and_the_guard_is_gone(long_lived: InteractiveShell) -> None:
    paths = {"PAPERMILL_INPUT_PATH": "/a.ipynb", "PAPERMILL_OUTPUT_PATH": "s3://b/é.ipynb"}
    for given in ({}, {"db_path": None}, {**paths, "env": "staging"}):
        shell = fresh(long_lived)
        assert all(shell.run_cell(cell).success for cell in cells_of(INIT, given)[: 3 + bool(given)])
        assert shell.user_ns["settings"].env == given.get("env", "development")
        assert shell.ast_transformers == []
    shell = fresh(long_lived)
    for cell in (*cells_of(INIT, {})[:2], "TITLE = 'our nightly check'\nTOLERANCE = 0.05"):
        assert not rejected(shell.run_cell(cell)), "a cell of constants is the notebook's own"


def test_what_jupyter_scheduler_injects_bears_no_mark_and_is_vetted_all_the_same(
    long_lived: InteractiveShell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tmp_path / "scheduler_staging_area" / "job"
    job.mkdir(parents=True)
    monkeypatch.chdir(job)
    attempts = {
        "evn = 'production'": "parameter 'evn' is not declared (env, db_path, dry_run); did you mean env?",
        "dry_run = 'many'": "expected True or False, found 'many'",
        "db_path = 'https://h/x?sign=s3cret'": "db_path: expected a URL without a password",
        "dry_run = not True": "expected `name = literal value`",
        "evn: str = 'production'": NAME,
        "env = 'staging'\nrwos = float('inf')": "expected `name = literal value`",
    }
    for injected, told in attempts.items():
        shell = fresh(long_lived)
        for cell in cells_of(INIT, {})[:2]:
            assert not rejected(shell.run_cell(cell))
        assert told in rejected(shell.run_cell(injected))
        assert rejected(shell.run_cell(CODE)).startswith("the injected parameters were refused")
        assert not rejected(shell.run_cell("env = 'staging'\ndry_run = True"))
        assert not rejected(shell.run_cell("seen = (env, dry_run)\nseen"))
        assert shell.user_ns["seen"] == ("staging", True)


@pytest.mark.usefixtures("elsewhere")
def test_a_mistake_made_by_hand_is_refused_until_it_is_repaired(long_lived: InteractiveShell) -> None:
    guard_cell, parameters, settings, *_ = cells_of(INIT, {})
    mistakes = {
        ("bool = False", 'bool = "false"'): "dry_run: expected True or False, found 'false' (str)",
        ('= "development"', "= 7"): "env: expected str, found 7 (int)",
        ('= "development"', f"= {CODE}"): "expected `name = literal value`",
        ('env: str = "development"', f"{CODE}\nenv: str = 'x'"): "expected `name = literal value`",
        ("env: str =", "env: Path ="): "parameter env: expected a type such as",
        ("bool = False", "bool = = False"): "invalid syntax",
    }
    for (old, new), told in mistakes.items():
        shell = fresh(long_lived)
        assert shell.run_cell(guard_cell).success
        assert old in parameters
        assert told in rejected(shell.run_cell(parameters.replace(old, new)))
        assert "nb.guard() must be the parameters cell" in rejected(shell.run_cell(settings)) or "=" in told
        assert "settings" not in shell.user_ns
        for cell in (parameters, settings):
            assert shell.run_cell(cell).success
    shell = fresh(long_lived)
    other = parameters.replace('"development"', '"production"')
    again = (guard_cell, guard_cell, parameters, settings, guard_cell, other, settings, parameters, other, settings)
    for cell in again:
        assert shell.run_cell(cell).success, cell
    assert shell.user_ns["settings"].env == "production"
    assert shell.ast_transformers == []


def test_any_failure_of_the_guard_itself_also_rejects_the_cell(shell: InteractiveShell) -> None:
    """IPython drops a transformer that raises anything else, and runs the cell."""
    for cell in cells_of(INIT, {})[:2]:
        assert not rejected(shell.run_cell(cell))
    vars(shell.ast_transformers[0])["_declared"] = None
    assert "NoneType" in rejected(shell.run_cell("# Parameters\nenv = 'production'\n"))
    assert len(shell.ast_transformers) == 1
    assert shell.user_ns["env"] == "development"


def test_without_ipython_the_guard_does_nothing_and_its_name_is_that_of_the_function() -> None:
    InteractiveShell.clear_instance()
    guard()
    for order in ("", "import abathur_nb.config.parameters; "):
        code = f"{order}import abathur_nb as nb; import abathur_nb.config.parameters; nb.guard()"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr == ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("-p", f"x=1;{CODE};y", "1"), NAME),
        (("--report-mode", "-p", "dry_run", "false"), "dry_run: expected True or False, found 'false' (str)"),
        (("-y", "!!python/object/apply:os.system ['touch canary']"), ""),  # papermill itself can read nothing
    ],
)
def test_papermill_exits_with_1_saying_why(
    arguments: tuple[str, ...], told: str, database: Settings, tmp_path: Path
) -> None:
    with untouched(database.db_path):
        run = run_papermill(INIT, tmp_path / "out.ipynb", *arguments, env={"ABATHUR_DB_PATH": str(database.db_path)})
    if told:
        run.failed(told)
        assert not database.archive_dir.exists(), "no record"
    else:
        assert (run.code, run.notebook) == (1, None)


def test_an_executed_notebook_is_an_input_as_good_as_the_template(settings: Settings, tmp_path: Path) -> None:
    """Papermill replaces the cell that it injected before; without parameters that cell is vetted and run again."""
    given = ("-r", "db_path", str(settings.db_path), "--inject-paths")
    first = run_papermill(INIT, tmp_path / "1.ipynb", *given).succeeded()
    assert "PAPERMILL_OUTPUT_PATH" in first.cells[2].source
    again = run_papermill(tmp_path / "1.ipynb", tmp_path / "2.ipynb").succeeded()
    assert "already initialized" in again.report
    assert again.cells[2].source == first.cells[2].source
