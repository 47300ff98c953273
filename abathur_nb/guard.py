"""The guard of a notebook: it vets what papermill or a scheduler injects before any of it runs."""

import ast
import os
import re
from collections.abc import Mapping
from keyword import iskeyword
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from abathur_nb.errors import ConfigurationError
from abathur_nb.parameters import Parameter, check_parameters, declared_parameters, literal_assignments
from abathur_nb.wording import shown

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["effective_parameters", "guard"]

_INJECTED = "# Parameters\n"  # how papermill begins the cell that it injects
_STAGING = "scheduler_staging_area"  # where jupyter-scheduler runs a copy
_GUARD_CELL = "import abathur_nb as nb\n\nnb.guard()"  # of every notebook


def guard() -> None:
    """Vet the ``parameters`` cell, which comes next, and what papermill injects after it, before either runs.

    papermill pastes parameter *names* into code unescaped, so what it injects must be refused before it runs.
    Of a refused cell nothing runs, and no later cell does until the fault is mended. Outside IPython: no effect.
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
    """Tell whether this is what jupyter-scheduler injects: nothing but assignments, in the directory where it runs."""
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
    """Reject what is no list of declared literals before it runs: an IPython AST transformer, gone when done.

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
