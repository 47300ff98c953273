"""The parameters of a notebook: what it declares, and what a given value must be."""

import ast
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from abathur_nb.attestation import said_fault
from abathur_nb.errors import ConfigurationError
from abathur_nb.wording import did_you_mean, shown, url_fault

__all__ = [
    "RANGES",
    "Parameter",
    "check_parameters",
    "check_ranges",
    "declared_parameters",
    "literal_assignments",
]

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
