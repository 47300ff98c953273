"""The parameters of a notebook: what it declares, what a value must be, and the guard that checks what is injected."""

import ast
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from keyword import iskeyword
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from abathur_nb.errors import ConfigurationError
from abathur_nb.report import Check
from abathur_nb.text import did_you_mean, is_printable, shown, url_fault

FORM = '"Ada Lovelace, 2026-11-20"'
_LONGEST = 200  # characters
_ANSWER = re.compile(r"(?P<person>[^,\s](?:.*\S)?)\s*,\s*(?P<day>[0-9]{4}-[0-9]{2}-[0-9]{2})")


def said(question: str, answer: str | None, *, check_id: str = "said") -> Check:
    """Record who answers for something that no program can find out: ``answer`` names the person and the day.

    The check is ``skip``, whatever is said: a statement is not proof. None says that nobody answers for it. Raises
    ConfigurationError, telling the form, for anything else.
    """
    expected = "a person who answers for it, and the day on which they said so"
    if answer is None:
        return Check(check_id, "skip", expected, "nobody has said so", f"name them: {FORM}", name=question)
    if fault := said_fault(question, answer):
        raise ConfigurationError(fault)
    person, day = _parts(answer)
    return Check(check_id, "skip", expected, f"said by {person} on {day}", name=question)


def said_fault(name: str, answer: object) -> str:
    """Say what is wrong with an answer, or return an empty text. Read-only."""
    try:
        _, day = _parts(answer)
    except (ValueError, TypeError):
        return f"{name}: expected a person's name and a date, as in {FORM}, found {shown(answer)}"
    # Of here and of UTC the later: who is east of Greenwich may have written the date of a day that UTC has not yet.
    today = max(datetime.now(UTC).date(), datetime.now().astimezone().date())
    return f"{name}: expected a date of today or before, as in {FORM}, found {day}" if day > today else ""


def _parts(answer: object) -> tuple[str, date]:
    """Return the name and the date; raise ValueError or TypeError if the text is not of that form."""
    if not isinstance(answer, str):
        raise TypeError
    match = _ANSWER.fullmatch(answer.strip())
    if not match or not is_printable(answer) or len(answer) > _LONGEST or not re.search(r"[^\W\d_]", match["person"]):
        raise ValueError
    return match["person"], date.fromisoformat(match["day"])


# Whole numbers that a parameter of this name may have, in a notebook and in the verb that takes it.
RANGES: Mapping[str, tuple[int, int]] = {
    "keep_days": (1, 3650),
    "limit": (1, 1000),
    "repetitions": (1, 100_000),
    "rows": (1, 10_000_000),
}
_SAID = (
    "alerts_configured",
    "runbooks_accessible",
    "team_trained",
    "tests_passing",
)  # a person's answer, by name and date

# What papermill adds by itself with --inject-paths.
_PAPERMILL_NAMES = ("PAPERMILL_INPUT_PATH", "PAPERMILL_OUTPUT_PATH")
_TYPES = {"str": str, "bool": bool, "int": int, "float": float}


@dataclass(frozen=True, slots=True)
class Parameter:
    """Hold one declared parameter: its name, the type its values must have, its default."""

    name: str
    type: type
    default: object

    def fault(self, value: object) -> str:
        """Say what is wrong with ``value``, or return an empty text."""
        if value is None and self.default is None:
            return ""
        # bool is a subclass of int, and a whole number will do for a float: neither the other way round.
        accepted = isinstance(value, (int, float) if self.type is float else self.type)
        if not accepted or (isinstance(value, bool) and self.type is not bool):
            wanted = "True or False" if self.type is bool else self.type.__name__
            return f"{self.name}: expected {wanted}, found {shown(value)} ({type(value).__name__})"
        if isinstance(value, float) and not math.isfinite(value):
            return f"{self.name}: expected a finite number, found {shown(value)}"
        if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
            return f"{self.name}: expected text that can be written down, found {shown(value)}"
        if isinstance(value, str) and (fault := url_fault(self.name, value)):
            return fault
        if self.name in RANGES and isinstance(value, int):
            return _range_fault(self.name, value)
        if self.name in _SAID:
            return said_fault(self.name, value)
        return ""


def _range_fault(name: str, value: int) -> str:
    low, high = RANGES[name]
    return "" if low <= value <= high else f"{name}: expected a whole number in {low}..{high}, found {shown(value)}"


def check_ranges(**values: object) -> None:
    """Raise ConfigurationError naming every value outside the range of its name."""
    faults = [
        _range_fault(name, value)
        if isinstance(value, int) and not isinstance(value, bool)
        else f"{name}: expected a whole number, found {shown(value)} ({type(value).__name__})"
        for name, value in values.items()
    ]
    if any(faults):
        raise ConfigurationError([fault for fault in faults if fault])


def declared_parameters(source: str) -> dict[str, Parameter]:
    """Return what the source of a ``parameters`` cell declares: literal assignments, each with its type.

    The type is the annotation's (``"Optional[str]"`` is a str that may be None), else the default's.
    Raises ConfigurationError where there is anything but literal assignments, or a default of another type.
    """
    parameters = {}
    for name, value, annotation in literal_assignments(ast.parse(source)):
        kind = type(value) if annotation is None and value is not None else None
        # A name, or a quoted type: neither runs anything when the cell does.
        if isinstance(annotation, ast.Name):
            kind = _TYPES.get(annotation.id)
        elif isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            kind = _TYPES.get(annotation.value.removeprefix("Optional[").removesuffix("]"))
        if kind is None:
            raise ConfigurationError(
                f"parameter {name}: expected a type such as {name}: str or {name}: 'Optional[str]'"
            )
        parameters[name] = Parameter(name, kind, value)
    # Whoever edits the cell by hand may well write "false" where False is meant.
    if faults := [fault for parameter in parameters.values() if (fault := parameter.fault(parameter.default))]:
        raise ConfigurationError(faults)
    return parameters


def check_parameters(declared: Mapping[str, Parameter], given: Mapping[str, object]) -> list[str]:
    """Return every fault of the ``given`` values: names that are not declared, types, ranges."""
    faults = []
    for name, value in given.items():
        if name in declared:
            faults.append(declared[name].fault(value))
        elif name not in _PAPERMILL_NAMES or not isinstance(value, str):
            names = ", ".join(declared)
            faults.append(f"parameter {shown(name)} is not declared ({names}){did_you_mean(name, declared)}")
    return [fault for fault in faults if fault]


def literal_assignments(tree: ast.Module) -> Iterator[tuple[str, Any, ast.expr | None]]:
    """Yield (name, value, annotation) of each statement; raise ConfigurationError for any other statement."""
    for statement in tree.body:
        annotation: ast.expr | None = None
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                pass
            case ast.AnnAssign(
                target=ast.Name(id=name), annotation=ast.expr() as annotation, value=ast.expr() as value
            ):
                pass
            case _:
                raise _not_literal(statement)
        try:
            literal = ast.literal_eval(value)
        except (ValueError, TypeError, MemoryError, RecursionError):
            raise _not_literal(statement) from None
        yield name, literal, annotation


def _not_literal(statement: ast.stmt) -> ConfigurationError:
    return ConfigurationError(f"expected `name = literal value`, found {shown(ast.unparse(statement))}")


if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


_INJECTED = "# Parameters\n"  # how papermill begins the cell that it injects
_STAGING = "scheduler_staging_area"  # where jupyter-scheduler runs a copy
_GUARD_CELL = "import abathur_nb as nb\n\nnb.guard()"  # of every notebook


def guard() -> None:
    """Vet the ``parameters`` cell, which comes next, and what papermill injects after it, before either runs.

    papermill pastes parameter *names* into code unescaped, so what it injects must be refused before it runs.
    Of a refused cell nothing runs, and no later cell does until the fault is repaired. Outside IPython: no effect.
    """
    try:
        from IPython.core.getipython import get_ipython
    except ImportError:
        return
    shell: InteractiveShell | None = get_ipython()  # type: ignore[no-untyped-call,unused-ignore]
    if shell is None:
        return
    for earlier in [t for t in shell.ast_transformers if isinstance(t, _Guard)]:
        earlier.remove()
    _Guard(shell)


def effective_parameters() -> dict[str, object]:
    """Return what the notebook's declared parameters hold now; papermill itself records only what it injects.

    Empty where no guard has vetted a parameters cell. Read-only.
    """
    return {name: _Guard.namespace.get(name) for name in _Guard.declared}


def _odd_lines(source: str, tree: ast.Module) -> list[str]:
    """Return a fault for each line of an injected cell that is not one ``name = value``, as papermill writes it.

    A name with a comment, a semicolon or a look-alike letter in it (Python takes ｅｎｖ for env) makes such a line.
    """
    written = {
        (statement.lineno, f"{statement.targets[0].id} = ", statement.end_col_offset)
        for statement in tree.body
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
    }
    lines = dict(enumerate(source.splitlines()[1:], 2))
    odd = [
        line
        for number, line in lines.items()
        if (number, f"{line.partition(' = ')[0]} = ", len(line.encode())) not in written
    ]
    faults = [f"a parameter's name is a-z, 0-9 and _, and its value all that follows: found {shown(n)}" for n in odd]
    names = [start for _, start, _ in written]
    return faults or [f"{start}…: given twice" for start in dict.fromkeys(names) if names.count(start) > 1]


def _is_scheduled(tree: ast.Module) -> bool:
    """Return whether jupyter-scheduler injected this: nothing but assignments, in the directory where it runs."""
    try:
        parts = os.getcwd().split("/")  # noqa: PTH109
    except OSError:
        return False
    assigns = all(isinstance(statement, ast.Assign | ast.AnnAssign) for statement in tree.body)
    return _STAGING in parts and bool(tree.body) and assigns


def _refuse_odd_names(lines: list[str]) -> list[str]:
    """Raise ConfigurationError if the text of an injected cell holds a line that is not ``name = …``, of no keyword.

    An IPython input transformer, which is asked before anything is parsed: a name of thousands of dots exhausts the
    parser, and a kernel that fails so never answers.
    """
    if lines[:1] == [_INJECTED]:
        names = [re.match(r"([A-Za-z_][A-Za-z0-9_]*) = \S", line) for line in lines[1:]]
        odd = [line for line, name in zip(lines[1:], names, strict=True) if not name or iskeyword(name[1])]
        if odd:
            raise ConfigurationError(
                [f"a parameter's name is a-z, 0-9 and _, no keyword: found {shown(line.rstrip())}" for line in odd]
                + ["nothing of this cell was run"]
            )
    return lines


class _Guard(ast.NodeTransformer):
    """Reject what is not a list of declared literals before it runs: an IPython AST transformer, gone when done.

    It lets through the parameters cell, then injected cells without fault, then any other cell, which ends it.
    ``declared`` is what the last one found declared, ``namespace`` where the values are.
    """

    declared: ClassVar[Mapping[str, Parameter]] = {}
    namespace: ClassVar[Mapping[str, object]] = {}

    def __init__(self, shell: "InteractiveShell") -> None:
        self._shell = shell
        self._source = ""
        self._fresh = False
        self._declared: dict[str, Parameter] = {}
        self._refused = False
        # The transformer is given a tree without comments; papermill's mark is one, so the text is kept as well.
        shell.events.register("pre_run_cell", self._remember)
        shell.input_transformers_cleanup.append(_refuse_odd_names)
        shell.ast_transformers.append(self)

    def _remember(self, info: "_CellInfo") -> None:
        self._source, self._fresh = info.raw_cell, True
        # Refused until it is vetted, so that one with a syntax error, which never comes to `visit`, is refused too.
        self._refused = self._refused or self._injected

    @property
    def _injected(self) -> bool:
        return self._source.startswith(_INJECTED)

    def visit(self, tree: Any) -> Any:
        """Let ``tree`` through, or raise InputRejected: IPython drops a transformer that raises anything else."""
        from IPython.core.error import InputRejected

        class RejectedParametersError(ConfigurationError, InputRejected):
            """Tell IPython to run nothing of this cell, and the operator why."""

        if not self._fresh:  # a silent cell, such as an extension of JupyterLab sends: no cell of the notebook
            return tree
        self._fresh = False
        try:
            self._vet(tree)
        except ConfigurationError as error:
            raise RejectedParametersError([*error.faults, "nothing of this cell was run"]) from None
        except BaseException as error:  # noqa: BLE001 - whatever goes wrong in here, the cell must not run
            raise RejectedParametersError(
                f"the guard could not vet this cell: {type(error).__name__}: {error}"
            ) from None
        return tree

    def _vet(self, tree: ast.Module) -> None:
        if self._source.strip() == _GUARD_CELL:  # run again by hand: it makes a new guard, which begins anew
            self.remove()
        elif self._injected:
            self._check(tree)
            if faults := _odd_lines(self._source, tree):
                raise ConfigurationError(faults)
            self._refused = False
        elif not self._declared:
            try:
                self._declared = declared_parameters(self._source)
            except ConfigurationError as error:
                raise ConfigurationError(["the cell after nb.guard() is the parameters cell", *error.faults]) from None
            _Guard.declared, _Guard.namespace = self._declared, self._shell.user_ns
        elif _is_scheduled(tree):  # papermill's mark is not on it
            self._refused = True
            self._check(tree)
            self._refused = False
        elif self._refused:
            raise ConfigurationError("the injected parameters were refused: correct them and run again")
        else:
            self.remove()

    def _check(self, tree: ast.Module) -> None:
        """Raise ConfigurationError unless a cell gives declared parameters literal values of their types."""
        given = {}
        for name, value, annotation in literal_assignments(tree):
            if annotation is not None:  # running the cell would evaluate it
                raise ConfigurationError(f"parameter {shown(name)}: expected no annotation, found one")
            given[name] = value
        if faults := check_parameters(self._declared, given):
            raise ConfigurationError(faults)

    def remove(self) -> None:
        self._shell.ast_transformers.remove(self)
        self._shell.input_transformers_cleanup.remove(_refuse_odd_names)
        self._shell.events.unregister("pre_run_cell", self._remember)


class _CellInfo(Protocol):
    raw_cell: str
