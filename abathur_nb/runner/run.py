"""The runner: notebooks run in order, each checked before a kernel starts, limited in time, recorded, archived."""

import argparse
import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

from abathur_nb.config.parameters import Parameter
from abathur_nb.config.settings import Settings, resolve
from abathur_nb.errors import ConfigurationError
from abathur_nb.evidence.archive import lapses
from abathur_nb.evidence.keys import signer
from abathur_nb.evidence.notebook import Source, prepared, read_file, read_source
from abathur_nb.evidence.privacy import masked, secret_values
from abathur_nb.evidence.record import EXIT_CODES, new_run_id, refused_before
from abathur_nb.runner.conclusion import Job, Outcome, begin, conclude, environment
from abathur_nb.runner.execution import Around, Stop, execute, signals_noted
from abathur_nb.text import did_you_mean, is_printable, printable, shown

if TYPE_CHECKING:
    import yaml


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


if TYPE_CHECKING:
    from nbclient import NotebookClient


_OUTPUT_S = 60  # for the outputs of a cell that is done to come in
_PATHS = ("db_path", "backup_dir", "archive_dir")
_LONGEST_REASON = 300  # characters, in a line of a log


def command(arguments: argparse.Namespace) -> int:
    """Run the notebooks in order, stop at the first that fails, and return its exit code.

    Raises ConfigurationError with every fault of the arguments, before anything is begun.
    """
    faults: list[str] = []
    timeout = read_seconds("--timeout", arguments.timeout, faults)
    cell_timeout = read_seconds("--cell-timeout", arguments.cell_timeout, faults)
    work = _checked(arguments, faults)
    with signals_noted() as stop:
        for source, values, settings in work:
            if stop.signals:
                _say(f"{source.name} of {settings.env}: not begun, because a signal asked to stop")
                return EXIT_CODES["interrupted"]
            if forbidden := refused_before(settings, source.name):
                for check in forbidden:
                    _say(f"{source.name} of {settings.env}: {check.observed}: {check.remedy}", aside=True)
                return EXIT_CODES["refused"]
            outcome = _run(source, values, settings, (timeout, cell_timeout), stop, not arguments.no_html)
            if outcome.code:
                return outcome.code
    return 0


def _checked(arguments: argparse.Namespace, faults: list[str]) -> list[tuple[Source, dict[str, object], Settings]]:
    """Return each notebook with its given values and its settings; raise ConfigurationError with every fault."""
    sources = []
    for name in arguments.notebooks:
        try:
            sources.append(read_source(name))
        except ConfigurationError as error:
            faults += error.faults
    given = read_given(arguments, faults)
    if len(sources) == len(arguments.notebooks):  # else nobody knows what the others would have declared
        faults += faults_of_names(given, sources)
    work = []
    for source in sources:
        values = values_for(source.declared, given, faults)
        try:
            work.append((source, values, _settings(values, given)))
        except ConfigurationError as error:
            faults += error.faults
    try:
        os.getcwd()  # noqa: PTH109 - the kernel starts there
    except OSError as error:
        faults.append(f"the working directory cannot be used: {error.strerror}")
    if faults:
        raise ConfigurationError(list(dict.fromkeys(faults)))
    return work


def _settings(values: dict[str, object], given: Sequence[Given]) -> Settings:
    """Return the settings that hold for a notebook with these values; raise ConfigurationError if they can't."""
    # Where a notebook declares no environment, it is given to the runner all the same.
    env: Any = values.get("env", next((one.text for one in given if one.name == "env"), "development"))
    paths: dict[str, Any] = {name: values[name] for name in _PATHS if name in values}
    settings = resolve(env, **paths)
    signer(settings)
    secret_values(settings)
    return settings


def _run(
    source: Source,
    values: dict[str, object],
    settings: Settings,
    limits: tuple[float | None, float | None],
    stop: Stop,
    html: bool,
) -> Outcome:
    effective = {name: parameter.default for name, parameter in source.declared.items()} | values
    job = Job(source.name, source.template, settings, effective, new_run_id(), source.records)
    if lapses(settings):
        _say(f"{job.name} of {settings.env}: this run will not be signed, as earlier ones are: set signing_key")
    begun = begin(job)
    _say(f"{job.name} of {settings.env}: run {job.run_id} begins")
    since = monotonic()
    template = {"name": source.template[0], "sha256": source.template[1]}
    executed: list[Any] = []

    def make_client() -> "NotebookClient":
        import nbformat
        from nbclient import NotebookClient

        executed.append(nbformat.from_dict(prepared(source, values, run_id=job.run_id, template=template)))
        return NotebookClient(
            executed[0], force_raise_errors=True, iopub_timeout=_OUTPUT_S, raise_on_iopub_timeout=True
        )

    with _progress(job.name, len(source.notebook["cells"]) + bool(values)) as around:
        ending = execute(
            make_client,
            environment=environment(job),
            timeout=limits[0],
            cell_timeout=limits[1],
            stop=stop,
            around=around,
        )
    notebook = executed[0] if executed else prepared(source, values, run_id=job.run_id, template=template)
    outcome = conclude(job, ending, notebook, begun=begun, html=html, as_template=True)
    reason = masked(outcome.message, settings).partition("\n")[0].rstrip(".")
    reason = reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}…"
    words = [f"{outcome.verdict.upper()} in {monotonic() - since:.1f} s", reason, f"{outcome.archived or ''}"]
    _say(f"{job.name} of {settings.env}: {': '.join(filter(None, words))}")
    return outcome


@contextmanager
def _progress(name: str, cells: int) -> Iterator[Around | None]:
    """Show on a terminal how many cells are done."""
    if not sys.stderr.isatty():
        yield None
        return
    # Imported here: a log has no use for it.
    from tqdm import tqdm

    with tqdm(total=cells, desc=name, unit="cell", leave=False) as bar:

        @contextmanager
        def around(_cell: Any, _index: int) -> Iterator[None]:
            yield
            bar.update()

        yield around


def _say(line: str, *, aside: bool = False) -> None:
    """Print a line for a log; who reads it may have left, which must not end a run."""
    stream = sys.stderr if aside else sys.stdout
    try:
        stream.write(printable(f"abathur_nb run: {line}") + "\n")
        stream.flush()
    except OSError:
        # Else Python tries once more when it exits, and exits with another code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
