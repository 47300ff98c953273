"""The parameters of a notebook: declarations, given values, and the guard of injected cells."""

import argparse
import ast
import math
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from keyword import iskeyword
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from abathur_nb.config.settings import read_file
from abathur_nb.errors import ConfigurationError
from abathur_nb.report import Check
from abathur_nb.text import did_you_mean, is_printable, printable, shown, url_fault

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

FORM = '"Ada Lovelace, 2026-11-20"'
_LONGEST = 200  # characters
_ANSWER = re.compile(r"[^,\s](?:.*\S)?\s*,\s*(?P<day>[0-9]{4}-[0-9]{2}-[0-9]{2})")
# The range of a whole number by the name of its parameter, in notebooks and functions.
RANGES: Mapping[str, tuple[int, int]] = {
    "at_once": (1, 64),
    "keep_days": (1, 3650),
    **dict.fromkeys(("keep_last", "keep_daily", "keep_weekly", "keep_monthly"), (0, 10_000)),
    "limit": (1, 1000),
    "most_failures": (0, 1_000_000),
    "repetitions": (1, 100_000),
    "rows": (1, 10_000_000),
    "timeout_s": (1, 86_400),
}
# The parameters that hold a person's answer.
_SAID = ("alerts_configured", "runbooks_accessible", "team_trained", "tests_passing")
_PAPERMILL_NAMES = ("PAPERMILL_INPUT_PATH", "PAPERMILL_OUTPUT_PATH")  # added by --inject-paths
_TYPES = {"str": str, "bool": bool, "int": int, "float": float}


def said(question: str, answer: str | None, *, check_id: str = "said") -> Check:
    """Return a check that records who confirmed, and on which day, a fact that no program can check.

    Its status is always ``skip``, because a statement is not a proof. ``answer`` has the form "Ada Lovelace,
    2026-11-20", or is None if nobody answers. Raises ConfigurationError for anything else.
    """
    expected = "a person who confirms it, and the day"
    if answer is None:
        return Check(check_id, "skip", expected, "nobody confirmed it", f"name a person and day: {FORM}", name=question)
    if fault := said_fault(question, answer):
        raise ConfigurationError(fault)
    person, _, day = answer.rpartition(",")
    return Check(check_id, "skip", expected, f"said by {person.strip()} on {day.strip()}", name=question)


def said_fault(name: str, answer: object) -> str:
    """Return the fault of an answer, or an empty text."""
    match = _ANSWER.fullmatch(answer.strip()) if isinstance(answer, str) and len(answer) <= _LONGEST else None
    try:
        if not match or not is_printable(match.string) or not re.search(r"[^\W\d_]", match.string):
            raise ValueError
        day = date.fromisoformat(match["day"])
    except ValueError:
        return f"{name}: expected a person's name and a date, as in {FORM}, found {shown(answer)}"
    today = (datetime.now(UTC) + timedelta(hours=14)).date()  # in the easternmost time zone
    return f"{name}: expected a date of today or before, as in {FORM}, found {day}" if day > today else ""


# --- what a notebook declares


@dataclass(frozen=True, slots=True)
class Parameter:
    """Hold one declared parameter: its name, the type of its values, its default."""

    name: str
    type: type
    default: object

    def fault(self, value: object) -> str:
        """Return the fault of a value, or an empty text."""
        if value is None and self.default is None:
            return ""
        # A whole number may stand for a float; a bool must not stand for a number.
        accepted = isinstance(value, (int, float) if self.type is float else self.type)
        if not accepted or (isinstance(value, bool) and self.type is not bool):
            wanted = "True or False" if self.type is bool else self.type.__name__
            return f"{self.name}: expected {wanted}, found {shown(value)} ({type(value).__name__})"
        if isinstance(value, float) and not math.isfinite(value):
            return f"{self.name}: expected a finite number, found {shown(value)}"
        if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
            return f"{self.name}: expected text without lone surrogates, found {shown(value)}"
        if isinstance(value, str) and (fault := url_fault(self.name, value)):
            return fault
        low, high = RANGES.get(self.name, (-math.inf, math.inf))
        if isinstance(value, int) and not low <= value <= high:
            return f"{self.name}: expected a whole number in {low}..{high}, found {shown(value)}"
        return said_fault(self.name, value) if self.name in _SAID else ""


def check_ranges(**values: object) -> None:
    """Raise ConfigurationError for each value that is not a whole number in the range of its name."""
    if faults := [fault for name, value in values.items() if (fault := Parameter(name, int, 0).fault(value))]:
        raise ConfigurationError(faults)


def declared_parameters(source: str) -> dict[str, Parameter]:
    """Return the parameters that the source of a ``parameters`` cell declares.

    The type is that of the annotation (``"Optional[str]"`` is a str or None), else that of the default. Raises
    ConfigurationError for anything but literal assignments, and for a default of another type.
    """
    parameters = {}
    for name, value, annotation in literal_assignments(ast.parse(source)):
        kind = type(value) if annotation is None and value is not None else None
        match annotation:  # only a name or a quoted type: no code is run
            case ast.Name(id=word) | ast.Constant(value=str(word)):
                kind = _TYPES.get(word.removeprefix("Optional[").removesuffix("]"))
        if kind is None:
            expected = f"expected a type such as {name}: str or {name}: 'Optional[str]'"
            raise ConfigurationError(f"parameter {name}: {expected}")
        parameters[name] = Parameter(name, kind, value)
    # Somebody may have written "false" for False.
    if faults := [fault for parameter in parameters.values() if (fault := parameter.fault(parameter.default))]:
        raise ConfigurationError(faults)
    return parameters


def check_parameters(declared: Mapping[str, Parameter], given: Mapping[str, object]) -> list[str]:
    """Return the faults of the ``given`` values: undeclared names, types, ranges."""
    of_papermill = {name for name in _PAPERMILL_NAMES if isinstance(given.get(name), str)}
    faults = (
        declared[name].fault(value) if name in declared else _undeclared(shown(name), name, declared)
        for name, value in given.items()
        if name not in of_papermill
    )
    return [fault for fault in faults if fault]


def _undeclared(words: str, name: str, declared: Collection[str]) -> str:
    return f"parameter {words} is not declared ({', '.join(declared)}){did_you_mean(name, declared)}"


def literal_assignments(tree: ast.Module) -> Iterator[tuple[str, Any, ast.expr | None]]:
    """Yield name, value and annotation of each literal assignment; raise ConfigurationError for other statements."""
    for statement in tree.body:
        name, value, annotation = "", None, None
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)]):
                value = statement.value
            case ast.AnnAssign(target=ast.Name(id=name)):
                value, annotation = statement.value, statement.annotation
        try:
            literal = ast.literal_eval(value or "")
        except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
            found = shown(ast.unparse(statement))
            raise ConfigurationError(f"expected `name = literal value`, found {found}") from None
        yield name, literal, annotation


# --- the values given to the runner

_LARGEST = 65_536  # bytes of a file of parameters
_YAML_TEXT = "tag:yaml.org,2002:str"
_YAML_NULLS = ("null", "Null", "NULL", "~", "")
_FORMS = {  # by type: the only spelling of a value, and its words
    bool: (re.compile("True|False"), "True or False"),
    int: (re.compile("0|-?[1-9][0-9]{0,99}"), "a whole number in plain digits"),
    float: (re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?"), "a number in plain digits"),
}


@dataclass(frozen=True, slots=True)
class Given:
    """Hold one given value: its name, its text, its source.

    ``form``: an argument of the command line, or a plain or quoted scalar of YAML.
    """

    name: str
    text: str
    origin: str
    form: Literal["argument", "plain", "quoted"] = "argument"


def read_given(arguments: argparse.Namespace, faults: list[str]) -> list[Given]:
    """Return the given values; add faults of the files, and names given twice, to ``faults``. Read-only."""
    given = [Given("env", env, "--env") for env in arguments.env]
    given += [Given(name, text, "-p") for name, text in arguments.parameters]
    for name in arguments.files:
        try:
            given += _from_yaml(f"-f {printable(name)}", Path(name))
        except ConfigurationError as error:
            faults += error.faults
    origins: dict[str, list[str]] = {}
    for value in given:
        origins.setdefault(value.name, []).append(value.origin)
    faults += [f"{printable(n)}: given twice (from {', '.join(o)})" for n, o in origins.items() if len(o) > 1]
    return given


def _from_yaml(origin: str, path: Path) -> list[Given]:
    """Return the scalars of one YAML mapping as text; YAML guesses no types."""
    import yaml  # imported late, because few runs need it

    try:
        text = read_file(origin, path, _LARGEST).decode()
        root = yaml.compose(text, Loader=yaml.BaseLoader)
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        found = printable(" ".join(str(error).split()))[:300]
        raise ConfigurationError(f"{origin}: expected YAML in UTF-8, found: {found}") from None
    if text.startswith("\ufeff"):
        raise ConfigurationError(f"{origin}: expected UTF-8 without a byte order mark")
    pairs = root.value if isinstance(root, yaml.MappingNode) else None
    nodes = [node for pair in pairs or [] for node in pair]
    if pairs is None or not all(isinstance(node, yaml.ScalarNode) and node.tag == _YAML_TEXT for node in nodes):
        raise ConfigurationError(f"{origin}: expected one mapping NAME: VALUE, without lists, mappings or tags in it")
    return [Given(key.value, value.value, origin, "plain" if value.style is None else "quoted") for key, value in pairs]


def faults_of_names(given: Collection[Given], declared: Collection[str]) -> list[str]:
    """Return a fault for each name that no notebook declares."""
    return [
        _undeclared(f"{shown(value.name)} (from {value.origin})", value.name, declared)
        for value in given
        # --env selects the archive of the run, even if the notebook does not declare it.
        if value.name not in declared and value.origin != "--env"
    ]


def values_for(declared: Mapping[str, Parameter], given: Collection[Given], faults: list[str]) -> dict[str, object]:
    """Return the given values of the declared parameters, and add their faults to ``faults``."""
    values: dict[str, object] = {}
    for one in given:
        try:
            if one.name in declared:
                values[one.name] = _value(declared[one.name], one)
        except ValueError as error:
            faults.append(f"{printable(one.name)} (from {one.origin}): expected {error}, found {shown(one.text)}")
    faults += filter(None, (declared[name].fault(value) for name, value in values.items()))
    return values


def _value(parameter: Parameter, given: Given) -> object:
    """Return a value in its declared type; raise ValueError, which names what was expected."""
    text, kind = given.text, parameter.type
    is_null = given.form == "plain" and text in _YAML_NULLS
    if parameter.default is None and (is_null or (text == "None" and given.form != "quoted")):
        return None
    if is_null:
        raise ValueError(f"{kind.__name__}, not null")
    if kind is str:
        if not is_printable(text):
            raise ValueError("printable characters")
        return text
    if given.form == "quoted":
        raise ValueError(f"{kind.__name__} without quotation marks")
    if kind is bool and given.form == "plain":
        text = text.capitalize()  # YAML writes true, Python writes True
    pattern, expected = _FORMS[kind]
    if not pattern.fullmatch(text):
        raise ValueError(expected)
    return text == "True" if kind is bool else kind(text)


# --- the guard

INJECTED, INJECTED_TAG = "# Parameters\n", "injected-parameters"  # first line and tag of papermill's cell
_LINE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*) = (\S.*)\n?")  # each other line
_NOTHING_RAN = "nothing of this cell was run"
_STAGING = "scheduler_staging_area"  # the directory of jupyter-scheduler's copies
_GUARD_CELL = "import abathur_nb as nb\n\nnb.guard()"  # in every notebook
# The parameters that the guard of this process has vetted last; `start_run` records their values.
_vetted: dict[str, Parameter] = {}


def guard() -> None:
    """Check the next cell, ``parameters``, and the cell that papermill injects, before they run.

    papermill pastes the *names* of parameters into code unescaped, so a faulty cell must be refused before it runs.
    Later cells are refused too until the fault is corrected. Outside IPython it has no effect.
    """
    shell = notebook_shell()
    if shell is None:
        return
    for earlier in [t for t in shell.ast_transformers if isinstance(t, _Guard)]:
        earlier.remove()
    _Guard(shell)


def effective_parameters() -> dict[str, object]:
    """Return the present values of the declared parameters; papermill records only those that it injects.

    Empty if no guard has vetted a parameters cell. Read-only.
    """
    shell = notebook_shell()
    return {name: shell.user_ns.get(name) for name in _vetted} if shell else {}


def notebook_shell() -> "InteractiveShell | None":
    """Return the IPython shell of this process, or None."""
    ipython = sys.modules.get("IPython")  # a kernel has imported it
    return ipython.get_ipython() if ipython else None


def _injected_faults(lines: Iterable[str], declared: Mapping[str, Parameter]) -> list[str]:
    """Return the faults of an injected cell: each line must give a declared parameter a literal of its type.

    papermill writes ``name = literal``; a name with a comment, a semicolon or a look-alike letter (Python reads ｅｎｖ
    as env) does not match that form.
    """
    given: dict[str, object] = {}
    faults = list[str]()
    for line in lines:
        match = _LINE.fullmatch(line)
        if not match or iskeyword(match[1]):
            faults.append(f"expected `name = value`, each name of A-Z, a-z, 0-9 and _, found {shown(line.rstrip())}")
            continue
        if match[1] in given:
            faults.append(f"{match[1]}: given twice")
        try:
            value = ast.parse(match[2], mode="eval").body
            if value.end_col_offset != len(match[2].encode()):  # a comment follows
                raise ValueError
            given[match[1]] = ast.literal_eval(value)
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
            faults.append(f"expected `name = literal value`, found {shown(line.rstrip())}")
    return faults + check_parameters(declared, given)


def _is_scheduled(tree: ast.Module) -> bool:
    """Return whether jupyter-scheduler injected a cell: only assignments, run in the scheduler's directory."""
    if not tree.body or not all(isinstance(statement, ast.Assign | ast.AnnAssign) for statement in tree.body):
        return False
    return _STAGING in Path.cwd().parts


class _Guard:
    """Reject a faulty parameters cell or injected cell before it runs, by two transformers of IPython.

    They accept the parameters cell, then valid injected cells; the first other cell removes them.
    """

    def __init__(self, shell: "InteractiveShell") -> None:
        self._shell = shell
        self._source = ""
        self._declared: dict[str, Parameter] = {}
        self._refused = False
        # The text is kept, because the tree has no comments and papermill's mark is a comment.
        shell.events.register("pre_run_cell", self._remember)
        shell.input_transformers_cleanup.insert(0, self._read)  # before IPython strips prompts
        shell.ast_transformers.append(self)  # type: ignore[arg-type] # IPython asks for `visit` alone

    def _remember(self, info: Any) -> None:
        self._source = info.raw_cell

    def _read(self, lines: list[str]) -> list[str]:
        # Before IPython parses it: a name with thousands of dots exhausts the parser, and the kernel never answers.
        if lines[:1] == [INJECTED]:
            self._check(lines[1:])
        return lines

    def _check(self, lines: Iterable[str]) -> None:
        """Raise ConfigurationError for the faults of an injected cell; IPython then runs nothing of it."""
        self._refused = True
        if faults := _injected_faults(lines, self._declared):
            raise ConfigurationError([*faults, _NOTHING_RAN])
        self._refused = False

    def visit(self, tree: Any) -> Any:
        """Return ``tree``, or raise InputRejected: IPython drops a transformer that raises anything else."""
        from IPython.core.error import InputRejected

        class RejectedParametersError(ConfigurationError, InputRejected):
            """Keep IPython from running the cell, and tell the operator why."""

        source, self._source = self._source, ""
        # JupyterLab's extensions send silent cells, which are not the notebook's; `_read` has checked an injected cell.
        if not source or source.startswith(INJECTED):
            return tree
        try:
            self._vet(source, tree)
        except ConfigurationError as error:
            raise RejectedParametersError(error.faults) from None
        except BaseException as error:  # noqa: BLE001 - after any error the cell must not run
            words = f"the guard could not vet this cell: {type(error).__name__}: {error}"
            raise RejectedParametersError([words, _NOTHING_RAN]) from None
        return tree

    def _vet(self, source: str, tree: ast.Module) -> None:
        if source.strip() == _GUARD_CELL:  # run again by hand: it makes a new guard
            self.remove()
        elif not self._declared:
            try:
                self._declared = declared_parameters(source)
            except ConfigurationError as error:
                first = "the cell after nb.guard() must be the parameters cell"
                raise ConfigurationError([first, *error.faults, _NOTHING_RAN]) from None
            _vetted.clear()
            _vetted.update(self._declared)
        elif _is_scheduled(tree):  # it lacks papermill's mark
            self._check(source.splitlines())
        elif self._refused:
            raise ConfigurationError("the injected parameters were refused: correct them and run again")
        else:
            self.remove()

    def remove(self) -> None:
        self._shell.ast_transformers.remove(self)  # type: ignore[arg-type]
        self._shell.input_transformers_cleanup.remove(self._read)
        self._shell.events.unregister("pre_run_cell", self._remember)
