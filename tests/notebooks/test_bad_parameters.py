"""What an operator, or somebody worse, may give a notebook: refused in one line, and nothing of it runs.

Most rows run in a shell of this process, with the cells that papermill makes of the real notebooks; then some of them
again through papermill itself, for proof.
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import nbformat
import papermill
import pytest
from damage import fingerprint
from IPython.core.interactiveshell import InteractiveShell
from notebook_runs_helpers import NOTEBOOKS, Run, cells_behind, in_kernel
from notebook_runs_helpers import papermill as run_papermill
from papermill.cli import _resolve_type
from papermill.exceptions import PapermillExecutionError
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from traitlets.config import Config

from abathur_nb.config.settings import Settings
from abathur_nb.errors import ConfigurationError

CODE = "open('canary', 'w').close()"
INIT, PREFLIGHT, BENCHMARK = (NOTEBOOKS / f"{name}.ipynb" for name in ("init", "preflight", "benchmark"))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Be in a directory in which a canary would be seen, and see that there is none."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    yield here
    assert not (here / "canary").exists(), "code of a parameter has run"


@pytest.fixture(scope="module")
def long_lived() -> Iterator[InteractiveShell]:
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    yield shell
    shell.restore_sys_module_state()
    InteractiveShell.clear_instance()


@pytest.fixture
def shell(long_lived: InteractiveShell) -> InteractiveShell:
    """Return a shell that has run nothing yet."""
    for transformer in list(long_lived.ast_transformers):
        cast("Any", transformer).remove()  # a guard that an earlier test left waiting
    long_lived.reset(new_session=False)
    return long_lived


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every environment in a directory of the test's own: in a shell its cells really run."""
    monkeypatch.setenv("ABATHUR_DB_PATH", str(tmp_path / "elsewhere" / "abathur.db"))


@dataclass(frozen=True)
class Outcome:
    """Say where a notebook stopped: the error, and whether it came before the cell ran."""

    error: BaseException | None
    before: bool
    cell: str

    @property
    def line(self) -> str:
        """The one line that a notebook would show."""
        assert isinstance(self.error, ConfigurationError), self.error
        (line,) = self.error._render_traceback_()
        assert len(line.splitlines()) == 1, line
        assert line.isprintable()
        return line


def cells_of(source: Path, parameters: Mapping[str, Any]) -> list[str]:
    """Return the code cells that papermill would run, the injected one in its place."""
    notebook = load_notebook_node(str(source))
    made = parameterize_notebook(notebook, parameters) if parameters else notebook
    return [cell.source for cell in made.cells if cell.cell_type == "code"]


def run_like_papermill(shell: InteractiveShell, source: Path, parameters: Mapping[str, Any]) -> Outcome:
    """Run the notebook's cells up to the first error."""
    for cell in cells_of(source, parameters):
        done = shell.run_cell(cell)
        if not done.success:
            return Outcome(done.error_before_exec or done.error_in_exec, done.error_before_exec is not None, cell)
    return Outcome(None, False, "")


def assert_that_nothing_runs_behind(shell: InteractiveShell, source: Path, parameters: Mapping[str, Any]) -> None:
    """Run the rest too, as a runner that goes on after errors would: every cell is refused."""
    cells = cells_of(source, parameters)
    injected = next(n for n, cell in enumerate(cells) if cell.startswith("# Parameters"))
    namespace = set(shell.user_ns)
    for cell in [*cells[injected + 1 :], CODE]:
        done = shell.run_cell(cell)
        assert str(done.error_before_exec).startswith("the injected parameters were refused"), cell
    assert set(shell.user_ns) == namespace


# --- names

# Each is code under its disguise. Whatever papermill makes of it, nothing of it may run, and no later cell either.
# fmt: off
NAMES = [
    # more statements
    f"x=1;{CODE};y", f"env = 'x';{CODE};env", f"x\n{CODE}\ny", f"x=1\r{CODE}\ry", f"env=1\n\n\n{CODE}\nenv",
    f"x=1\x0c\n{CODE}\nx", f"import os as env;{CODE};x", "from os import system as env\nx", f"del env\n{CODE}\nx",
    f"assert {CODE}\nx", "raise SystemExit(0)\nx", "exit()\nenv", "quit\nenv", f"await {CODE}\nenv",
    f"if {CODE}: pass\nx", f"for env in [{CODE}]: pass\nx", "with open('canary', 'w') as env: pass\nx",
    f"try: {CODE}\nexcept: pass\nx", f"@{CODE}\ndef env(): pass\nx", f"def env(x={CODE}): pass\nx",
    f"class env({CODE}): pass\nx", f"lambda: {CODE}\nx", f"match {CODE}:\n  case _: pass\nx", "global env\nx",
    "pass\nenv", "...\nenv", "'a text'\nenv",
    # values that are more than literals
    f"env = {CODE}\nenv", f"env = f'{{{CODE}}}'\nenv", f"env = [{CODE} for _ in [1]]\nenv", f"env = ({CODE},)\nenv",
    f"env = {{1: {CODE}}}\nenv", f"env = (z := {CODE})\nenv", f"(env := {CODE})\nenv", f"env = lambda: {CODE}\nenv",
    f"env = 'a' if {CODE} else 'b'\nenv", f"env = 1 + {CODE}\nenv", "env = __builtins__\nenv", "env = env\nenv",
    "env = set()\nenv", "env = b'x'\nenv", "env = 1 + 2j\nenv", "env = {1, 2}\nenv",
    # annotations, which run
    f"x: {CODE}", f"env: {CODE}", f"env: (z := {CODE})", "env: __import__('os').system('touch canary')", "env: str",
    f"(env): {CODE}",
    # targets that run, or that reach into something
    "nb.resolve", "nb.guard", "nb.resolve.__kwdefaults__", "nb.Settings.__init__", "env.x", f"env[{CODE}]",
    f"[env][{CODE}]", f"{{1: env}}[{CODE}]", f"{CODE}.x", "globals()['env']", "get_ipython().ast_transformers",
    "get_ipython().ast_transformers[:]", f"env[{CODE}:]", "*env,", "*env, db_path", "env, db_path", "(env, db_path)",
    "[env, db_path]", "[]", "()", "env = db_path", "db_path = env", "env +", "env or", "env +=", "env :", "env |=",
    "not env", "-env",
    # IPython's own syntax
    "%sx touch canary\nenv", "!touch canary\nenv", "!!touch canary\nenv", "x = !touch canary\nenv",
    "env = !touch canary\nenv", "env = %sx touch canary\nenv", "%%bash\ntouch canary\nenv", "%run canary.py\nenv",
    "%env PATH=x\nenv", "%autocall 2\nenv", "%reset -f\nenv", "env?\nenv", "?env\nenv", "env??\nenv", "%",
    "/open canary w\nenv", ",open canary w\nenv", ";open canary w\nenv", ">>> env", "In [1]: env", "...: env",
    "%lsmagic\nenv",
    # names of other things
    "nb", "settings", "report", "preflight", "print", "open", "exit", "__builtins__", "__name__", "__file__", "_",
    "__", "In", "Out", "get_ipython", "True", "None", "if", "class", "__debug__", "PAPERMILL_OUTPUT",
    "papermill_input_path", "self", "Env", "ENV", "env_", "env1", "1env", "env-x", "env x",
    # comments, quotes and continuations
    "# env", "#", "env #", "env = 'production' #", "env = 'production'; #", "env = 'x' \\\n#", "env = \\\n", "'''",
    '"""', 'env = """', "env = '''\n", "env = (\n'x')\nenv", "env = 'a'\nenv", "env='production';db_path",
    "env = 'x' ;env", " env", "\tenv", "env ", "env\t", "(env)", "env = 'production'\n# nothing\nenv",
    # letters that look or count as others
    "ｅｎｖ", "𝐞𝐧𝐯", "𝓮nv", "еnv", "env\u200b", "\ufeffenv", "e\u0301nv", "ℯnv", "env\u2028", "env\x0b", "env\x85",
    "\u202eenv", "envª",
    # and nothing at all
    "", " ", "\n", "\x00", "env\x00", "\x1b[31menv", "=", "==", ";", ":", "💥", "x" * 100_000, "a." * 100 + "b",
    "(" * 300 + ")" * 300,
]
# fmt: on


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_name_that_is_not_declared_to_the_letter_is_refused_and_nothing_runs_any_more(
    name: str, shell: InteractiveShell, home: Path
) -> None:
    stopped = run_like_papermill(shell, INIT, {name: "production"})
    assert stopped.before, "the cell ran"
    assert stopped.cell.startswith("# Parameters")
    # What Python cannot even read as a program, IPython refuses by itself.
    if not isinstance(stopped.error, SyntaxError | ValueError) or isinstance(stopped.error, ConfigurationError):
        assert stopped.line.endswith("nothing of this cell was run")
    assert shell.user_ns["env"] == "development"
    assert_that_nothing_runs_behind(shell, INIT, {name: "production"})
    assert list(home.glob("abathur_data*")) == []


@pytest.mark.parametrize(
    "names",
    [
        ("env = '''", f"'''; {CODE}; env"),
        ("env = (", f"{CODE}); env"),
        ("env = [0,\\\n", f"{CODE}]\nenv"),
        ("if 1:\n  env", f"  {CODE}\nenv"),
        ("env", "ｅｎｖ"),
        ("ｅｎｖ", "env"),
        ("env", f"env = 'x'; {CODE}; env"),
    ],
    ids=range(7),
)
def test_a_disguise_of_two_names_is_refused_too(names: tuple[str, str], shell: InteractiveShell) -> None:
    parameters = dict.fromkeys(names, "production")
    stopped = run_like_papermill(shell, INIT, parameters)
    assert stopped.before
    assert_that_nothing_runs_behind(shell, INIT, parameters)


def test_enough_of_these_names_are_deadly(folder: Path) -> None:
    """Without the guard they would have run: else the rows above prove nothing."""
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
    done = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(cells), capture_output=True, text=True, cwd=folder, check=True
    )
    deadly = int(done.stderr.rpartition("deadly: ")[2])
    assert deadly >= 35, deadly


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("enviroment", "env"),
        ("envv", "env"),
        ("ENV", "env"),
        ("db-path", ""),
        ("dbpath", "db_path"),
        ("db_pth", "db_path"),
        ("dryrun", "dry_run"),
        ("confirm", ""),
        ("repetitions", ""),
    ],
)
def test_an_unknown_name_is_refused_with_a_suggestion(name: str, suggested: str, shell: InteractiveShell) -> None:
    stopped = run_like_papermill(shell, INIT, {name: "x"})
    assert stopped.before
    if name.isidentifier():
        assert f"parameter '{name}' is not declared (env, db_path, dry_run)" in stopped.line
    assert not suggested or f"did you mean {suggested}?" in stopped.line


# --- values


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"env": None}, "env: expected str, found None (NoneType)"),
        ({"env": ["production"]}, "env: expected str, found ['production'] (list)"),
        ({"env": {"a": 1}}, "env: expected str, found {'a': 1} (dict)"),
        ({"env": {"a": {CODE: [CODE]}}}, "env: expected str, found {'a': "),
        ({"env": float("nan")}, "found \"env = float('nan')\""),
        ({"env": float("-inf")}, "found \"env = float('-inf')\""),
        ({"env": 10**400}, "env: expected str, found 1000"),
        ({"env": True}, "env: expected str, found True (bool)"),
        ({"db_path": 7}, "db_path: expected str, found 7 (int)"),
        ({"db_path": []}, "db_path: expected str, found [] (list)"),
        ({"dry_run": "false"}, "dry_run: expected True or False, found 'false' (str)"),
        ({"dry_run": "False"}, "dry_run: expected True or False"),
        ({"dry_run": ""}, "dry_run: expected True or False, found '' (str)"),
        ({"dry_run": 0}, "dry_run: expected True or False, found 0 (int)"),
        ({"dry_run": 1}, "dry_run: expected True or False, found 1 (int)"),
        ({"dry_run": None}, "dry_run: expected True or False, found None (NoneType)"),
        ({"dry_run": _resolve_type("false")}, "dry_run: expected True or False, found 'false' (str)"),
        ({"dry_run": _resolve_type("yes")}, "dry_run: expected True or False, found 'yes' (str)"),
        ({"env": _resolve_type("2026_11")}, "env: expected str, found 202611 (int)"),
        ({"db_path": _resolve_type("1e3")}, "db_path: expected str, found 1000.0 (float)"),
        (
            {"env": 7, "dry_run": "no", "enviroment": "x"},
            "env: expected str, found 7 (int); dry_run: expected True or False",
        ),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(
    parameters: dict[str, Any], told: str, shell: InteractiveShell
) -> None:
    stopped = run_like_papermill(shell, INIT, parameters)
    assert stopped.before
    assert told in stopped.line
    assert_that_nothing_runs_behind(shell, INIT, parameters)


@pytest.mark.parametrize("name", ["rows", "repetitions"])
@pytest.mark.parametrize(
    "text",
    ["1e999", "nan", "0x10", "0", "-1", str(10**9), str(2**63), "1.0", "1e3", "abc", "True", "None", "", "٣x", "+-1"],
)
def test_a_number_out_of_its_range_or_no_plain_int_is_refused(name: str, text: str, shell: InteractiveShell) -> None:
    stopped = run_like_papermill(shell, BENCHMARK, {name: _resolve_type(text)})
    assert stopped.before
    assert name in stopped.line
    if text in ("0", "-1", str(10**9), str(2**63)):
        assert (
            f"expected a whole number in 1..{100_000 if name == 'repetitions' else 10_000_000}, found {text}"
            in stopped.line
        )


def test_a_number_given_as_text_is_refused(shell: InteractiveShell) -> None:
    """As ``-r`` gives it."""
    assert (
        "repetitions: expected int, found '1000' (str)"
        in run_like_papermill(shell, BENCHMARK, {"repetitions": "1000"}).line
    )


def test_none_is_let_through_only_where_it_is_the_default(shell: InteractiveShell, settings: Settings) -> None:
    cells = cells_of(BENCHMARK, {"db_path": None, "compare_with": None})[:4]
    assert all(shell.run_cell(cell).success for cell in cells)
    assert shell.user_ns["settings"].db_path != settings.db_path


HOSTILE = [
    "'); " + CODE + " #",
    '"); ' + CODE + " #",
    "\\'; " + CODE,
    '\\"; ' + CODE,
    f"production\n{CODE}\n",
    f"'''\n{CODE}\n'''",
    f'"""\n{CODE}\n"""',
    f"production\r{CODE}",
    f"{{{CODE}}}",
    f"{{env}}{CODE}",
    "%s%d%n",
    "$(touch canary)",
    "`touch canary`",
    "; touch canary",
    "| touch canary",
    "<script>alert(1)</script>",
    "\\N{BULLET}\\x41\\u0041\\",
    "\\",
    "../../etc",
    "production\n",
    "production\x00",
    "\x1b[2J",
    "\u202eproduction",
    "ｐroduction",
    "x" * 100_000,
]


@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_value_is_text_and_its_environment_is_unknown(
    value: str, shell: InteractiveShell, home: Path
) -> None:
    stopped = run_like_papermill(shell, INIT, {"env": value})
    assert shell.user_ns["env"] == value, "papermill escapes values, and they arrive as they are"
    assert stopped.cell.startswith("settings = nb.resolve(")
    assert stopped.line.startswith("ConfigurationError: env: expected one of development, staging, production, found ")
    assert len(stopped.line) < 400
    assert list(home.glob("abathur_data*")) == []


@pytest.mark.parametrize("name", ["env", "db_path"])
def test_a_value_that_no_file_can_hold_is_refused_before_it_runs(
    name: str, shell: InteractiveShell, home: Path
) -> None:
    """Half a surrogate pair can't be written down, and what can't be written down leaves no record."""
    line = run_like_papermill(shell, INIT, {name: "/srv/\udcff.db"}).line
    assert f"{name}: expected text that can be written down, found '/srv/\\udcff.db'" in line
    assert "nothing of this cell was run" in line
    assert list(home.glob("abathur_data*")) == []


@pytest.mark.parametrize(
    ("value", "suggested"),
    [
        ("", ""),
        ("prod", "production"),
        ("Production", "production"),
        (" production ", "production"),
        ("dev", "development"),
        ("stagign", "staging"),
        ("x", ""),
    ],
)
def test_an_unknown_environment_is_refused_with_the_three_names(
    value: str, suggested: str, shell: InteractiveShell
) -> None:
    line = run_like_papermill(shell, INIT, {"env": value}).line
    assert f"expected one of development, staging, production, found {value!r}" in line
    assert ("did you mean" in line) is bool(suggested)
    assert not suggested or f"did you mean {suggested}?" in line


@pytest.mark.parametrize(
    ("env", "value", "expected"),
    [
        ("development", "", "a path (leave it out, or None, for the default)"),
        ("development", ":memory:", "no in-memory database and no SQLite URI"),
        ("development", "file:x?mode=memory", "no in-memory database and no SQLite URI"),
        ("development", "file:///tmp/x.db", "no in-memory database and no SQLite URI"),
        ("development", "~nobody/x.db", "`~` stands for your own home only"),
        ("development", "/srv/a\x00b.db", "a path of printable characters"),
        ("development", "/srv/a\nb.db", "a path of printable characters"),
        ("development", "/srv/\u202egnp.db", "a path of printable characters"),
        ("development", "/srv/" + "x" * 300, "a path of at most 475 bytes, 247 for each name"),
        ("staging", "x.db", "an absolute path"),
        ("production", "./x.db", "an absolute path"),
        ("production", "../../x.db", "an absolute path"),
        ("production", ":memory:", "no in-memory database and no SQLite URI"),
    ],
)
def test_a_path_that_is_none_is_refused(
    env: str, value: str, expected: str, shell: InteractiveShell, folder: Path
) -> None:
    line = run_like_papermill(shell, INIT, {"env": env, "db_path": value}).line
    assert line.startswith("ConfigurationError: db_path (from argument): expected ")
    assert expected in line
    assert list(folder.iterdir()) == []


def test_every_fault_of_environment_and_path_is_named_at_once(shell: InteractiveShell) -> None:
    line = run_like_papermill(shell, INIT, {"env": "prod", "db_path": ":memory:"}).line
    assert "env: expected one of" in line
    assert "; db_path (from argument): expected" in line


@pytest.mark.parametrize("notebook", [INIT, PREFLIGHT], ids=lambda path: path.stem)
@pytest.mark.parametrize(
    "kind",
    [
        "directory",
        "FIFO",
        "socket",
        "link to a file",
        "dangling link",
        "device",
        "a link above it",
        "stale log",
        "random bytes",
    ],
)
def test_what_must_not_be_touched_is_refused_and_stays(
    kind: str, notebook: Path, shell: InteractiveShell, folder: Path
) -> None:
    place = folder / "place"
    place.mkdir(mode=0o700)
    path, told = place / "x.db", kind
    match kind:
        case "directory":
            path.mkdir()
        case "FIFO":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind("place/x.db")
        case "link to a file":
            path.symlink_to("/etc/passwd")
            told = "symbolic link"
        case "dangling link":
            path.symlink_to(folder / "absent")
            told = "symbolic link"
        case "device":
            path = Path("/dev/null")
        case "a link above it":
            (folder / "link").symlink_to(place)
            path, told = folder / "link" / "x.db", "symbolic link"
        case "stale log":
            Path(f"{path}-wal").write_bytes(b"x" * 100)
            told = "side files of a former one"
        case "random bytes":
            path.write_bytes(os.urandom(5000))
            told = "is not SQLite or is encrypted"
    watched = (path, Path("/etc/passwd"), Path("/dev/null"), Path(f"{path}-wal"))
    before, names = [fingerprint(each) for each in watched], sorted(folder.rglob("*"))
    stopped = run_like_papermill(shell, notebook, {"db_path": str(path)})
    assert ".raise_for_failures()" in stopped.cell
    assert told in str(stopped.error)
    assert [fingerprint(each) for each in watched] == before
    # That it is not SQLite only a look into it tells, which has a record.
    made = sorted((place / "runs").rglob("*")) if kind == "random bytes" else []
    assert [path for path in sorted(folder.rglob("*")) if path not in made and path != place / "runs"] == names
    assert [path.name for path in made if path.is_file()] == (["record.json", "started.json"] if made else [])


# --- what passes


@pytest.mark.usefixtures("elsewhere")
def test_what_papermill_adds_by_itself_is_let_through(shell: InteractiveShell) -> None:
    given = {"PAPERMILL_INPUT_PATH": "/a.ipynb", "PAPERMILL_OUTPUT_PATH": "s3://b/é.ipynb", "env": "staging"}
    assert all(shell.run_cell(cell).success for cell in cells_of(INIT, given)[:4])
    assert shell.user_ns["settings"].env == "staging"
    assert shell.ast_transformers == []


def test_without_any_parameter_the_defaults_hold_and_the_guard_is_gone(shell: InteractiveShell) -> None:
    assert all(shell.run_cell(cell).success for cell in cells_of(INIT, {})[:3])
    assert shell.user_ns["settings"].env == "development"
    assert shell.ast_transformers == []


# --- by hand, as in JupyterLab


def edited(old: str, new: str) -> str:
    cell = cells_of(INIT, {})[1]
    assert old in cell
    return cell.replace(old, new)


@pytest.mark.usefixtures("elsewhere")
def test_a_value_written_by_hand_holds(shell: InteractiveShell) -> None:
    guard, _, settings, *_ = cells_of(INIT, {})
    for cell in (guard, edited('"development"', '"staging"'), settings):
        assert shell.run_cell(cell).success
    assert shell.user_ns["settings"].env == "staging"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("bool = False", 'bool = "false"', "dry_run: expected True or False, found 'false' (str)"),
        ("bool = False", "bool = 0", "dry_run: expected True or False, found 0 (int)"),
        ('= "development"', "= 7", "env: expected str, found 7 (int)"),
        ('= "development"', f"= {CODE}", "expected `name = literal value`"),
        ('env: str = "development"', f"{CODE}\nenv: str = 'x'", "expected `name = literal value`"),
        ("env: str =", "env: Path =", "parameter env: expected a type such as"),
    ],
)
def test_a_mistake_made_by_hand_is_refused_until_it_is_repaired(
    old: str, new: str, told: str, shell: InteractiveShell
) -> None:
    guard, parameters, settings, *_ = cells_of(INIT, {})
    assert shell.run_cell(guard).success
    refused = shell.run_cell(edited(old, new))
    assert told in str(refused.error_before_exec)
    behind = shell.run_cell(settings)
    assert "the cell after nb.guard() is the parameters cell" in str(behind.error_before_exec)
    assert shell.run_cell(parameters).success
    assert shell.run_cell(settings).success


def test_a_parameters_cell_with_a_slip_in_its_syntax_holds_up_all_the_others(shell: InteractiveShell) -> None:
    guard, parameters, settings, *_ = cells_of(INIT, {})
    assert shell.run_cell(guard).success
    assert isinstance(shell.run_cell(edited("bool = False", "bool = = False")).error_before_exec, SyntaxError)
    assert not shell.run_cell(settings).success
    assert "settings" not in shell.user_ns
    assert shell.run_cell(parameters).success
    assert shell.run_cell(settings).success


def test_the_guard_cell_may_be_run_twice_and_again_at_the_end(shell: InteractiveShell) -> None:
    guard, parameters, settings, *_ = cells_of(INIT, {})
    for cell in (guard, guard, parameters, settings, guard, guard, parameters, settings, settings):
        assert shell.run_cell(cell).success, cell
    assert shell.ast_transformers == []


@pytest.mark.usefixtures("elsewhere")
def test_the_parameters_cell_may_be_run_again_once_the_guard_is_gone(shell: InteractiveShell) -> None:
    guard, parameters, settings, *_ = cells_of(INIT, {})
    for cell in (guard, parameters, settings, edited('"development"', '"production"'), settings):
        assert shell.run_cell(cell).success, cell
    assert shell.user_ns["settings"].env == "production"


# --- through papermill itself, for proof

NAME = "a parameter's name is a-z, 0-9 and _"
PROOFS: dict[str, tuple[Path, tuple[str, ...], str]] = {
    "code in a name, -p": (INIT, ("-p", f"x=1;{CODE};y", "1"), NAME),
    "code in a name, -r": (INIT, ("-r", f"env: {CODE}", "x"), NAME),
    "code in a name, -y": (INIT, ("-y", "{\"x\\nopen('canary', 'w').close()\\ny\": 1}"), NAME),
    "code in a name, -f": (INIT, ("-f", "names.yaml"), NAME),
    "code in a name, -b": (INIT, ("-b", "eyJ4PTE7b3BlbignY2FuYXJ5JywgJ3cnKTt5IjogMX0="), NAME),
    "a magic in a name": (INIT, ("-p", "!touch canary\nenv", "x"), NAME),
    "a name that exhausts the parser": (INIT, ("-p", "a." * 5000 + "b", "1"), NAME),
    "a keyword as name": (INIT, ("-p", "class", "1"), f"{NAME}, no keyword: found 'class = 1'"),
    "a look-alike name": (INIT, ("-p", "ｅｎｖ", "staging"), NAME),
    "a mistyped name": (
        INIT,
        ("-p", "enviroment", "production"),
        "parameter 'enviroment' is not declared (env, db_path, dry_run); did you mean env?",
    ),
    "no bool": (INIT, ("-p", "dry_run", "false"), "dry_run: expected True or False, found 'false' (str)"),
    "no environment": (INIT, ("-r", "env", "Production"), "did you mean production?"),
    "an infinite number": (BENCHMARK, ("-p", "repetitions", "1e999"), "repetitions = float('inf')"),
    "a number out of range": (BENCHMARK, ("-p", "rows", "0"), "rows: expected a whole number in 1..10000000, found 0"),
    "NUL in a path": (INIT, ("-y", 'db_path: "/srv/a\\0b"'), "a path of printable characters, found '/srv/a\\x00b'"),
    "report mode": (INIT, ("--report-mode", "-p", "envv", "x"), "'envv' is not declared"),
    "injected paths": (INIT, ("--inject-paths", "-p", "envv", "x"), "'envv' is not declared"),
    "another language's comment": (INIT, ("-l", "matlab", "-p", f"x;{CODE};y", "1"), ""),
}

# What papermill itself cannot read; no notebook is run.
UNREADABLE: dict[str, tuple[str, ...]] = {
    "-y not a mapping": ("-y", "- a"),
    "-y broken": ("-y", "{a: ["),
    "-y that makes objects": ("-y", "!!python/object/apply:os.system ['touch canary']"),
    "-f missing": ("-f", "absent.yaml"),
    "-f a directory": ("-f", "."),
    "-f not UTF-8": ("-f", "latin.yaml"),
    "a path not in UTF-8": ("-r", "db_path", os.fsdecode(b"/srv/\xff.db")),  # no notebook can record it
}


@dataclass(frozen=True)
class Proofs:
    """Hold what the runs of all proofs left, and the directory in which a canary would stand."""

    runs: Mapping[str, Run]
    folder: Path
    home: Path
    database: Path
    before: object


@pytest.fixture(scope="module")
def proofs(tmp_path_factory: pytest.TempPathFactory) -> Proofs:
    """Run papermill for each row, two at a time."""
    from abathur_nb import initialize_database, resolve

    base = tmp_path_factory.mktemp("proofs")
    folder, home = base / "here", base / "home"
    folder.mkdir()
    (folder / "names.yaml").write_text(f'"x=1;{CODE};y": 1\n')
    (folder / "latin.yaml").write_bytes(b"env: caf\xe9\n")
    database = home / "abathur_data" / "abathur.db"
    asyncio.run(initialize_database(resolve(db_path=database))).raise_for_failures()
    before = fingerprint(database)
    env = {"HOME": str(home), "MPLCONFIGDIR": str(tmp_path_factory.getbasetemp() / "matplotlib")}

    def run(label: str) -> Run:
        source, arguments = (PROOFS[label][0], PROOFS[label][1]) if label in PROOFS else (INIT, UNREADABLE[label])
        output = base / f"{label}.ipynb"
        return run_papermill(source, output, *arguments, cwd=folder, env=env)

    with ThreadPoolExecutor(2) as pool:
        labels = [*PROOFS, *UNREADABLE]
        return Proofs(dict(zip(labels, pool.map(run, labels), strict=True)), folder, home, database, before)


@pytest.mark.xdist_group("proofs")
@pytest.mark.parametrize("label", PROOFS)
def test_papermill_exits_with_1_and_the_notebook_says_in_one_line_why(label: str, proofs: Proofs) -> None:
    run = proofs.runs[label]
    if label == "another language's comment":
        assert run.code == 1, "the injected cell is no Python at all"
        return
    run.failed(PROOFS[label][2])


@pytest.mark.xdist_group("proofs")
@pytest.mark.parametrize("label", UNREADABLE)
def test_what_papermill_cannot_read_starts_nothing(label: str, proofs: Proofs) -> None:
    run = proofs.runs[label]
    assert run.code == 1
    assert run.notebook is None


def test_no_canary_stands_after_all_these_runs_and_the_database_is_untouched(proofs: Proofs) -> None:
    assert {path.name for path in proofs.folder.iterdir()} == {"names.yaml", "latin.yaml"}
    assert fingerprint(proofs.database) == proofs.before
    assert {path.name for path in proofs.home.iterdir() if not path.name.startswith(".")} == {"abathur_data"}


def test_a_dictionary_with_code_in_a_name_is_refused_through_the_python_api(
    tmp_path: Path, folder: Path, home: Path
) -> None:
    with pytest.raises(PapermillExecutionError, match="nothing of this cell was run") as caught:
        papermill.execute_notebook(INIT, tmp_path / "out.ipynb", {f"x=1;{CODE};y": 1}, progress_bar=False, cwd=folder)
    assert caught.value.ename == "ConfigurationError"
    assert caught.value.traceback == [f"ConfigurationError: {caught.value.evalue}"]
    assert list(home.glob("abathur_data*")) == []


async def test_a_runner_that_goes_on_after_errors_runs_nothing_behind_a_refused_cell(
    folder: Path, tmp_path: Path, home: Path
) -> None:
    prepared = parameterize_notebook(load_notebook_node(str(INIT)), {f"env = 'x';{CODE};env": "y"})
    source = tmp_path / "prepared.ipynb"
    nbformat.write(prepared, source)
    run = await in_kernel(source, folder, allow_errors=True)
    refused = next(cell for cell in run.cells if cell.source.startswith("# Parameters"))
    assert [output.ename for output in refused.outputs] == ["RejectedParametersError"]
    behind = cells_behind(run.cells, refused)
    assert len(behind) == len(run.cells) - 3
    for cell in behind:
        (output,) = cell.outputs
        assert output.evalue.startswith("the injected parameters were refused: correct them and run again")
    assert list(home.glob("abathur_data*")) == []


def test_an_executed_notebook_is_an_input_as_good_as_the_template(
    settings: Settings, tmp_path: Path, folder: Path
) -> None:
    """Papermill replaces the cell that it injected before; without parameters that cell is vetted and run again."""
    first = run_papermill(
        INIT, tmp_path / "1.ipynb", "-r", "db_path", str(settings.db_path), "--inject-paths"
    ).succeeded()
    assert "PAPERMILL_OUTPUT_PATH" in first.cells[2].source
    again = run_papermill(tmp_path / "1.ipynb", tmp_path / "2.ipynb").succeeded()
    assert "already initialized" in again.report
    assert again.cells[2].source == first.cells[2].source
    refused = run_papermill(tmp_path / "2.ipynb", tmp_path / "3.ipynb", "-p", f"x=1;{CODE};y", "1")
    refused.failed(NAME)
    # What was refused is refused again.
    run_papermill(tmp_path / "3.ipynb", tmp_path / "4.ipynb").failed(NAME)
    assert list(folder.iterdir()) == []
