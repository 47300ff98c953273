"""The values of a run as they are given to the runner: text, read by the declared types without any guessing."""

import argparse
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from abathur_nb.errors import ConfigurationError
from abathur_nb.evidence.source import Source, read_file
from abathur_nb.parameters import Parameter
from abathur_nb.wording import did_you_mean, is_printable, printable, shown

if TYPE_CHECKING:
    import yaml

__all__ = ["Given", "faults_of_names", "read_given", "read_seconds", "values_for"]

_LONGEST = 65_536  # bytes of a file of parameters
_BOM = "\ufeff"
_TRUTHS = {"True": True, "False": False}
_YAML_TRUTHS = {"true": True, "false": False}
_YAML_NULLS = ("null", "Null", "NULL", "~", "")
_KINDS = {"SequenceStartEvent": "a list", "MappingStartEvent": "a mapping", "AliasEvent": "an alias"}
_WHOLE = re.compile(r"0|-?[1-9][0-9]*")
_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Given:
    """Hold one value that was given: its name, its text, where it came from.

    ``form`` tells an argument of the command line from the plain and the quoted scalars of YAML.
    """

    name: str
    text: str
    origin: str
    form: Literal["argument", "plain", "quoted"] = "argument"

    def fault(self, expected: str) -> ConfigurationError:
        """Return the error that names this value and what was expected instead."""
        return ConfigurationError(
            f"{printable(self.name)} (from {self.origin}): expected {expected}, found {shown(self.text)}"
        )


def read_given(arguments: argparse.Namespace, faults: list[str]) -> list[Given]:
    """Return every value that was given, or add what is wrong with the form of it to ``faults``. Reads the files."""
    given = [Given("env", env, "--env") for env in arguments.env]
    given += [Given(name, text, "-p") for name, text in arguments.parameters]
    texts = list[tuple[str, str]]()
    for name in arguments.files:
        origin = f"-f {printable(name)}"
        try:
            texts.append((origin, _decoded(origin, read_file(origin, Path(name), _LONGEST))))
        except ConfigurationError as error:
            faults += error.faults
    for origin, text in texts:
        try:
            if text.startswith(_BOM):
                raise ConfigurationError(f"{origin}: expected UTF-8 without a byte order mark")
            given += _from_yaml(origin, text)
        except ConfigurationError as error:
            faults += error.faults
    origins: dict[str, list[str]] = {}
    for value in given:
        origins.setdefault(value.name, []).append(value.origin)
    faults += [f"{printable(n)}: given twice (from {', '.join(o)})" for n, o in origins.items() if len(o) > 1]
    if "env" not in origins:
        faults.append("env: expected --env ENV, the environment to run in, found none")
    return given


def _decoded(origin: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{origin}: expected UTF-8, found another encoding at byte {error.start}") from None


def _from_yaml(origin: str, text: str) -> list[Given]:
    # Imported here: most runs need none of it.
    import yaml

    try:
        return [
            Given(key.value, value.value, origin, "plain" if value.style is None else "quoted")
            for key, value in _pairs(yaml.parse(text, Loader=yaml.BaseLoader))
        ]
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise ConfigurationError(f"{origin}: broken YAML: {printable(problem)[:300]}") from None
    except ValueError as error:
        raise ConfigurationError(f"{origin}: expected a mapping NAME: VALUE, found {error}") from None


def _pairs(events: Iterator["yaml.Event"]) -> Iterator[tuple["yaml.ScalarEvent", "yaml.ScalarEvent"]]:
    """Yield the names and values of a document that is one mapping of scalars; raise ValueError for anything else.

    Read from the parser's events: nothing is constructed, no type is guessed and no alias followed.
    """
    import yaml

    _, document, mapping = next(events), next(events), next(events, None)
    if not isinstance(document, yaml.DocumentStartEvent) or not isinstance(mapping, yaml.MappingStartEvent):
        raise ValueError("no mapping" if isinstance(document, yaml.DocumentStartEvent) else "nothing")  # noqa: TRY004
    if mapping.tag or mapping.anchor:
        raise ValueError("a tag or an anchor")
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        yield _scalar(event), _scalar(next(events))
    next(events)
    if not isinstance(next(events), yaml.StreamEndEvent):
        raise ValueError("more than one document")  # noqa: TRY004


def _scalar(event: "yaml.Event") -> "yaml.ScalarEvent":
    import yaml

    if not isinstance(event, yaml.ScalarEvent):
        raise ValueError(f"{_KINDS.get(type(event).__name__, 'something else')} in it")  # noqa: TRY004 - every fault of a text is one kind
    if event.tag or event.anchor:
        raise ValueError(f"a tag or an anchor at {shown(event.value)}")
    return event


def faults_of_names(given: Sequence[Given], sources: Sequence[Source]) -> list[str]:
    """Return a fault for each name that none of the notebooks declares."""
    declared = list(dict.fromkeys(name for source in sources for name in source.declared))
    return [
        f"parameter {shown(value.name)} (from {value.origin}) is not declared ({', '.join(declared)})"
        f"{did_you_mean(value.name, declared)}"
        for value in given
        # Which archive keeps a run depends on the environment, whether the notebook asks for it or not.
        if value.name not in declared and value.origin != "--env"
    ]


def values_for(declared: Mapping[str, Parameter], given: Collection[Given], faults: list[str]) -> dict[str, object]:
    """Return the given values of those parameters that are declared, or add what is wrong with them to ``faults``."""
    values: dict[str, object] = {}
    for one in given:
        if one.name not in declared:
            continue
        try:
            values[one.name] = _value(declared[one.name], one)
        except ConfigurationError as error:
            faults += error.faults
            continue
        if fault := declared[one.name].fault(values[one.name]):
            faults.append(fault)
    return values


def _value(parameter: Parameter, given: Given) -> object:
    text, optional = given.text, parameter.default is None
    is_null = given.form == "plain" and text in _YAML_NULLS
    if optional and (is_null or (text == "None" and given.form != "quoted")):
        return None
    if is_null:
        raise given.fault(f"{parameter.type.__name__}, and no null")
    if parameter.type is str:
        if not is_printable(text):
            raise given.fault("printable characters")
        return text
    if given.form == "quoted":
        raise given.fault(f"{parameter.type.__name__} without quotation marks")
    if parameter.type is bool:
        truths = _TRUTHS | (_YAML_TRUTHS if given.form == "plain" else {})
        if text not in truths:
            raise given.fault("True or False")
        return truths[text]
    if parameter.type is int:
        if not _WHOLE.fullmatch(text) or len(text) > 100:
            raise given.fault("a whole number in plain digits")
        return int(text)
    if not _DECIMAL.fullmatch(text):
        raise given.fault("a number in plain digits, with a decimal point if need be")
    return float(text)


def read_seconds(name: str, text: str | None, faults: list[str]) -> float | None:
    """Return a number of seconds, None if none was given, or add what is wrong with it to ``faults``."""
    if text is None:
        return None
    if not _DECIMAL.fullmatch(text) or not 0 < float(text) < float("inf"):
        faults.append(f"{name}: expected a number of seconds above 0, found {shown(text)}")
        return None
    return float(text)
