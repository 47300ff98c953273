"""The guard lets nothing run but what a notebook declares: in a real shell and in a real kernel."""

import ast
import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from IPython.core.interactiveshell import ExecutionResult, InteractiveShell
from nbclient.exceptions import CellExecutionError
from patience import HANGING_S
from running import execute_live
from traitlets.config import Config

from abathur_nb.config.parameters import guard

CELL = """\
# What this run works with
env: "str" = "development"  # the environment
db_path: "Optional[str]" = None  # another database
dry_run = False
repetitions = 1000
"""


@pytest.mark.parametrize(
    "order", ["", "import abathur_nb.config.parameters; ", "from abathur_nb.config.parameters import guard; "]
)
def test_the_public_name_is_the_function_and_not_its_room(order: str) -> None:
    code = f"{order}import abathur_nb as nb; import abathur_nb.config.parameters; nb.guard()"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr == ""


@pytest.fixture
def shell(home: Path) -> Iterator[InteractiveShell]:  # noqa: ARG001 - its profile is made there
    InteractiveShell.clear_instance()
    made = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    made.run_cell("from abathur_nb.config.parameters import guard\nguard()")
    yield made
    made.restore_sys_module_state()
    InteractiveShell.clear_instance()


def rejected(result: ExecutionResult) -> str:
    """Return why nothing of a cell ran, empty where it ran."""
    assert result.error_in_exec is None, "it ran, and failed"
    return str(result.error_before_exec or "")


@pytest.mark.parametrize(
    "injected",
    [
        "",
        '# Parameters\nenv = "production"\ndb_path = "/x"\n',
        '# Parameters\ndb_path = None\nPAPERMILL_INPUT_PATH = "/x"\n',
    ],
)
def test_what_is_declared_passes_and_then_the_guard_is_gone(shell: InteractiveShell, injected: str) -> None:
    assert not rejected(shell.run_cell(CELL))
    if injected:
        assert not rejected(shell.run_cell(injected))
    assert len(shell.ast_transformers) == 1
    assert not rejected(shell.run_cell("import os; here = os.getcwd()"))
    assert shell.ast_transformers == []
    assert shell.user_ns["env"] == ("production" if "production" in injected else "development")


CANARY = "open('canary', 'w').close()"
ATTACKS = [
    f"x=1;{CANARY};y = 1",
    f"env = {CANARY}",
    f"env: {CANARY} = 'x'",
    f"env[{CANARY}] = 1",
    f"env = 'x' if {CANARY} else 'y'",
    f"env = f'{{{CANARY}}}'",
    f"env = [{CANARY} for _ in [1]]",
    "!touch canary #env = 1",
    "env = !touch canary",
    "%sx touch canary #= 1",
    f"import os = 1\n{CANARY}",
    f"env = 1 = 2; {CANARY}",
    f"env = 'production'\n\n{CANARY}",
    f"def env(x={CANARY}): pass",
    f"env: 'str' = 'x'; dry_run = ({CANARY},)",
    "get_ipython().ast_transformers.clear(); env = 1",
    "enviroment = 'production'",
    "dry_run = 'false'",
    "env = " + "[" * 300 + "]" * 300,
    "env = " + "-" * 200 + "1",
    "env = " + "9" * 5000,
]


@pytest.mark.parametrize("injected", ATTACKS, ids=range(len(ATTACKS)))
def test_of_a_refused_cell_nothing_runs_and_no_later_cell_either(
    shell: InteractiveShell, injected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert not rejected(shell.run_cell(CELL))
    before = dict(shell.user_ns)
    assert rejected(shell.run_cell(f"# Parameters\n{injected}\n"))
    assert rejected(shell.run_cell(CANARY)).startswith("the injected parameters were refused")
    assert shell.user_ns["env"] == before["env"]
    assert list(tmp_path.iterdir()) == []
    # Repaired, it runs.
    assert not rejected(shell.run_cell("# Parameters\nenv = 'production'\n"))
    assert not rejected(shell.run_cell("seen = env"))
    assert shell.user_ns["seen"] == "production"


@pytest.fixture
def staged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be where jupyter-scheduler runs a notebook."""
    folder = tmp_path / "scheduler_staging_area" / "job"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)


@pytest.mark.usefixtures("staged")
@pytest.mark.parametrize(
    ("injected", "told"),
    [
        (
            "evn = 'production'",
            "parameter 'evn' is not declared (env, db_path, dry_run, repetitions); did you mean env?",
        ),
        ("repetitions = 'many'", "expected int, found 'many'"),
        (
            "db_path = 'https://h/x?sign=s3cret'",
            "db_path: expected a URL without a password, parameters, a query or a fragment",
        ),
        ("repetitions = 10 * 1000", "expected `name = literal value`"),
        ("evn: str = 'production'", "expected no annotation, found one"),
        ("env = 'staging'\nrwos = float('inf')", "expected `name = literal value`"),
    ],
)
def test_what_jupyter_scheduler_injects_bears_no_mark_and_is_vetted_all_the_same(
    shell: InteractiveShell, injected: str, told: str
) -> None:
    assert not rejected(shell.run_cell(CELL))
    assert told in rejected(shell.run_cell(injected))
    assert rejected(shell.run_cell(CANARY)).startswith("the injected parameters were refused")
    assert not rejected(shell.run_cell("env = 'staging'\nrepetitions = 5"))
    assert not rejected(shell.run_cell("seen = (env, repetitions)\nseen"))
    assert shell.user_ns["seen"] == ("staging", 5)


def test_elsewhere_a_cell_of_constants_is_the_notebooks_own(shell: InteractiveShell) -> None:
    assert not rejected(shell.run_cell(CELL))
    assert not rejected(shell.run_cell("TITLE = 'our nightly check'\nTOLERANCE = 0.05"))
    assert shell.ast_transformers == []


@pytest.mark.parametrize("name", ["class", "None", "import"])
def test_a_keyword_as_name_is_refused_in_the_guards_own_words(shell: InteractiveShell, name: str) -> None:
    """Python itself would call it a syntax error, of a cell that nobody wrote."""
    assert not rejected(shell.run_cell(CELL))
    told = rejected(shell.run_cell(f"# Parameters\n{name} = 1\n"))
    assert told.startswith(f"a parameter's name is a-z, 0-9 and _, no keyword: found '{name} = 1'")


def test_a_parameters_cell_that_is_more_than_literals_is_refused(shell: InteractiveShell, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    assert "expected `name = literal value`" in rejected(shell.run_cell(f"env = 'x'\nopen({str(canary)!r}, 'w')"))
    assert not canary.exists()


def test_a_guard_cell_run_twice_leaves_one_guard(shell: InteractiveShell) -> None:
    shell.run_cell("guard()\nguard()")
    assert len(shell.ast_transformers) == 1


def test_without_ipython_the_guard_does_nothing() -> None:
    InteractiveShell.clear_instance()
    guard()


def test_any_failure_of_the_guard_itself_also_rejects_the_cell(shell: InteractiveShell) -> None:
    """IPython drops a transformer that raises anything else, and runs the cell."""
    assert not rejected(shell.run_cell(CELL))
    vars(shell.ast_transformers[0])["_declared"] = None
    assert "could not vet this cell" in rejected(shell.run_cell("# Parameters\nenv = 'production'\n"))
    assert len(shell.ast_transformers) == 1
    assert shell.user_ns["env"] == "development"


# --- the guard in a kernel


async def run_notebook(folder: Path, injected: str) -> tuple[nbformat.NotebookNode, str]:
    """Run guard, parameters, injected cell and a witness in a kernel; return the notebook and its error."""
    sources = [
        "from abathur_nb.config.parameters import guard\nguard()",
        CELL,
        f"# Parameters\n{injected}",
        "print(env)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    try:
        await execute_live(notebook, resources={"metadata": {"path": str(folder)}}, timeout=HANGING_S)
    except CellExecutionError as error:
        return notebook, str(error)
    return notebook, ""


async def test_a_kernel_refuses_what_a_shell_refuses(tmp_path: Path) -> None:
    good, bad = await asyncio.gather(
        run_notebook(tmp_path, "env = 'production'\n"), run_notebook(tmp_path, f"x=1;{CANARY};y = 1\n")
    )
    assert good[1] == ""
    assert good[0].cells[3].outputs[0].text == "production\n"
    assert "a parameter's name is a-z, 0-9 and _" in bad[1]
    assert bad[0].cells[3].execution_count is None
    shown = [output for output in bad[0].cells[2].outputs if output.output_type == "error"]
    assert len("\n".join(shown[0].traceback).splitlines()) == 1  # one line, no traceback
    assert list(tmp_path.iterdir()) == []


def test_every_attack_is_an_attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row with the canary's statement in it would kill, if it were run: else the rows above prove nothing."""
    monkeypatch.chdir(tmp_path)
    deadly = 0
    for injected in (attack for attack in ATTACKS if CANARY in attack):
        try:
            exec(compile(ast.parse(injected), "attack", "exec"), {"env": {}})  # noqa: S102
        except (SyntaxError, TypeError):
            continue
        canary = tmp_path / "canary"
        deadly += canary.exists()
        canary.unlink(missing_ok=True)
    assert deadly >= 7
