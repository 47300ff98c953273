"""Settings: the environments as frozen data, and the one way to resolve them."""

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_type_hints

from abathur_nb.errors import ConfigurationError
from abathur_nb.wording import did_you_mean, printable, shown, versions

__all__ = ["ENVIRONMENTS", "Settings", "resolve"]

Severity = Literal["warn", "fail", "refuse"]


def _setting(default: Any, meaning: str, **limits: float) -> Any:
    """Return a field of Settings with what it means and the limits that pydantic holds it to."""
    return field(default=default, metadata={"meaning": meaning, "limits": limits})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Hold what one run works with: paths, limits, policy. Frozen; made by ``resolve``.

    The defaults are the strict ones, which an environment of one's own gets too; development loosens them.
    ``origins`` names, for each setting, where its value came from.
    """

    env: str
    db_path: Path = _setting(None, "the database")
    backup_dir: Path = _setting(None, "where backups go")
    archive_dir: Path = _setting(None, "where records of runs go")
    # Limits
    session_p99_ms: float = _setting(10, "session retrieval, p99 (ms)", gt=0)
    memory_p99_ms: float = _setting(20, "memory retrieval, p99 (ms)", gt=0)
    concurrent_reads_s: float = _setting(1, "50 concurrent reads together (s)", gt=0)
    min_free_mb: int = _setting(500, "less free disk fails (MB)", ge=0)
    recommended_free_mb: int = _setting(10_000, "less free disk warns (MB)", ge=0)
    max_wal_mb: int = _setting(256, "a larger write-ahead log warns (MB)", gt=0)
    busy_timeout_ms: int = _setting(5000, "wait for a lock (ms)", ge=0, le=600_000)
    readers: int = _setting(2, "connections that serve reads", ge=1, le=32)
    # NORMAL is the seed's choice; it never corrupts, but a power cut can take the last acknowledged commits.
    synchronous: Literal["NORMAL", "FULL"] = _setting("NORMAL", "durability of a commit")
    service_account: str = _setting("abathur", "who is to own the directories; empty: who runs it")
    # Policy: what a hazard gets
    require_safe_wal: bool = _setting(False, "fail on a SQLite that has the WAL-reset race")
    on_tmpfs: Severity = _setting("warn", "a database in memory, gone at the next boot")
    on_overlay: Severity = _setting("warn", "a layered or user-space file system")
    on_shared_directory: Severity = _setting("refuse", "others own or may write to the directory")
    relative_paths: bool = _setting(False, "accept a path relative to the working directory")
    origins: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    def _repr_html_(self) -> str:
        # What differs from run to run stands open, the rest is folded away.
        names = {"env": "the environment", **_SETTABLE}
        chosen = [n for n in names if n == "env" or n in _PATHS or self.origins.get(n, "default") != "default"]
        rest = [n for n in names if n not in chosen]
        folded = f"<details><summary>{len(rest)} more, by default</summary>{self._table(rest, names)}</details>"
        return f"<p>{escape(versions())}</p>{self._table(chosen, names)}{folded if rest else ''}"

    def _table(self, names: Iterable[str], meanings: Mapping[str, str]) -> str:
        cell = "<td style='text-align:left;overflow-wrap:anywhere'>"
        rows = (
            (name, printable(str(getattr(self, name))), meanings[name], self.origins.get(name, "default"))
            for name in names
        )
        body = "".join(f"<tr>{''.join(f'{cell}{escape(text)}</td>' for text in row)}</tr>" for row in rows)
        head = "".join(f"<th style='text-align:left'>{h}</th>" for h in ("setting", "value", "meaning", "from"))
        return f"<table style='table-layout:auto'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def __str__(self) -> str:
        lines = [f"{name} = {getattr(self, name)} ({self.origins.get(name, 'default')})" for name in _SETTABLE]
        return "\n".join((versions(), f"env = {self.env}", *lines))


ENVIRONMENTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        # One's own machine: everything beside the data, hazards warn.
        "development": {
            "db_path": "~/abathur_data/abathur.db",
            "service_account": "",
            "on_shared_directory": "fail",
            "relative_paths": True,
        },
        # The rehearsal: production's rules on a database that may be lost.
        "staging": {"db_path": "/var/lib/abathur-staging/abathur.db"},
        # The real thing: a database in memory is refused, backups lie apart from the data.
        "production": {
            "db_path": "/var/lib/abathur/abathur.db",
            "backup_dir": "/backups",
            "on_tmpfs": "refuse",
        },
    }
)

_PATHS = ("db_path", "backup_dir", "archive_dir")
_BESIDE_THE_DATA = {"backup_dir": "backups", "archive_dir": "runs"}
_SETTABLE = {setting.name: setting.metadata["meaning"] for setting in fields(Settings) if setting.metadata}
_CONFIG = "~/.config/abathur/abathur.toml"
_NAME_MAX, _PATH_MAX = 255, 4095  # bytes; Linux's NAME_MAX and PATH_MAX less its NUL


def resolve(
    env: str = "development",
    *,
    db_path: str | os.PathLike[str] | None = None,
    backup_dir: str | os.PathLike[str] | None = None,
    archive_dir: str | os.PathLike[str] | None = None,
) -> Settings:
    """Settle which settings hold for ``env``. Reads the settings file; touches nothing else.

    Strongest first: the arguments, ``ABATHUR_…`` variables, the file named by ``ABATHUR_CONFIG`` (or else
    ``~/.config/abathur/abathur.toml``), the environment's defaults. Raises ConfigurationError with every fault.
    """
    faults: list[str] = []
    environments = _read_environments(faults)
    known = {**dict.fromkeys(ENVIRONMENTS), **environments}
    if not isinstance(env, str):
        faults.append(f"env: expected one of the names {', '.join(known)}, found {shown(env)} ({type(env).__name__})")
    elif env not in known:
        faults.append(f"env: expected one of {', '.join(known)}, found {shown(env)}{did_you_mean(env, known)}")

    # Each layer overwrites the one before it; a value stands beside the name of its source.
    layers: dict[str, tuple[object, str]] = {}
    if isinstance(env, str):
        layers |= {k: (v, "default") for k, v in ENVIRONMENTS.get(env, {}).items()}
        file_values, source = environments.get(env, ({}, ""))
        layers |= {k: (v, source) for k, v in file_values.items()}
    layers |= _environment_variables(faults)
    arguments = {"db_path": db_path, "backup_dir": backup_dir, "archive_dir": archive_dir}
    layers |= {k: (v, "argument") for k, v in arguments.items() if v is not None}

    relative_paths = layers.get("relative_paths", (False,))[0] is True
    values: dict[str, object] = {k: v for k, (v, _) in layers.items()}
    origins = {k: source for k, (_, source) in layers.items()}
    for name in _PATHS:
        if name in values:
            values[name] = _path(name, values[name], origins[name], relative_paths, faults)
    data = values.get("db_path")
    if data is None and "db_path" not in layers and not faults:
        faults.append(f"db_path: environment {env!r} names none; add it to its table in the settings file")
    for name, folder in _BESIDE_THE_DATA.items():
        # A default backup directory belongs to the default database only.
        if name not in values or (origins[name] == "default" != origins.get("db_path")):
            values[name] = data.parent / folder if isinstance(data, Path) else Path(folder)
            origins[name] = "beside the data"
    checked = _checked({k: v for k, v in values.items() if k not in _PATHS}, origins, faults)
    if faults:
        raise ConfigurationError(faults)
    return Settings(env=env, **{k: values[k] for k in _PATHS}, **checked, origins=MappingProxyType(origins))  # type: ignore[arg-type]


def _checked(values: dict[str, object], origins: Mapping[str, str], faults: list[str]) -> dict[str, Any]:
    """Return the values as their settings' types, or add what is wrong with them to ``faults``."""
    # Imported here: pydantic takes longer to import than the rest of the package.
    from pydantic import ConfigDict, Field, ValidationError, create_model

    types = get_type_hints(Settings)
    for name, value in values.items():
        if isinstance(value, bool) and types[name] is not bool:  # pydantic would take True for 1
            faults.append(f"{name} (from {origins[name]}): expected no truth value, found {value}")
    make_model: Any = create_model  # its overloads do not take a dict of fields
    model = make_model(
        "Values",
        __config__=ConfigDict(extra="forbid", allow_inf_nan=False),
        **{
            setting.name: (types[setting.name], Field(setting.default, **setting.metadata["limits"]))
            for setting in fields(Settings)
            if setting.name in values
        },
    )
    try:
        return dict(model(**values))
    except ValidationError as error:
        for fault in error.errors():
            name = str(fault["loc"][0])
            faults.append(f"{name} (from {origins[name]}): {fault['msg']}, found {shown(fault['input'])}")
    return {}


def _read_environments(faults: list[str]) -> dict[str, tuple[dict[str, object], str]]:
    """Return the tables ``[environments.NAME]`` of the settings file, each with the file's name."""
    named = os.environ.get("ABATHUR_CONFIG")
    path = Path(os.path.expanduser(named or _CONFIG))
    where = f"settings file {printable(str(path))}"
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if named is not None:
            faults.append(f"{where}: named by ABATHUR_CONFIG, but there is none")
        return {}
    except (OSError, ValueError) as error:  # a TOML or a Unicode fault is a ValueError
        faults.append(f"{where}: cannot be read: {printable(str(error))}")
        return {}
    tables = content.pop("environments", {})
    faults += [f"{where}: expected tables [environments.NAME], found {shown(key)}" for key in content]
    if not isinstance(tables, dict):
        faults.append(f"{where}: expected tables [environments.NAME], found environments = {shown(tables)}")
        return {}
    environments = {}
    for name, table in tables.items():
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", name) or not isinstance(table, dict):
            faults.append(f"{where}: expected a table [environments.NAME] (a-z, 0-9, _ and -), found {shown(name)}")
            continue
        unknown = [key for key in table if key not in _SETTABLE]
        faults += [
            f"{where}: [environments.{name}] has no setting {shown(k)}{did_you_mean(k, _SETTABLE)}" for k in unknown
        ]
        environments[name] = ({key: value for key, value in table.items() if key in _SETTABLE}, where)
    return environments


def _environment_variables(faults: list[str]) -> dict[str, tuple[object, str]]:
    """Return the settings given as ``ABATHUR_…``; a near miss of one is a fault, other programs' names are not."""
    found: dict[str, tuple[object, str]] = {}
    names = {f"ABATHUR_{name.upper()}": name for name in _SETTABLE}
    for variable, value in os.environ.items():
        if variable in names:
            # Text for a bool is read here, so that every layer below holds a bool as a bool.
            truth = {"true": True, "false": False}.get(value.lower(), value)
            found[names[variable]] = (truth, variable)
        elif variable.startswith("ABATHUR_") and (near := get_close_matches(variable, names, 1, 0.9)):
            faults.append(f"{printable(variable)}: no such setting; did you mean {near[0]}?")
    return found


def _path(name: str, value: object, source: str, relative_paths: bool, faults: list[str]) -> Path | None:
    """Return ``value`` as an absolute path without looking at the disk, or add what is wrong with it to ``faults``."""
    if not isinstance(value, str | os.PathLike) or not isinstance(text := os.fspath(value), str):
        faults.append(f"{name} (from {source}): expected a path as text, found {shown(value)} ({type(value).__name__})")
        return None
    expected = ""
    if not text:
        expected = "a path (leave it out, or None, for the default)"
    elif not text.isprintable():
        expected = "a path of printable characters"
    elif text == ":memory:" or text.startswith("file:"):
        expected = "a path of a file, no in-memory database and no SQLite URI"
    elif text.startswith("~") and text != "~" and not text.startswith("~/"):
        expected = "an absolute path (`~` stands for your own home only)"
    elif not os.path.isabs(os.path.expanduser(text)) and not relative_paths:
        expected = "an absolute path"
    else:
        path = os.path.abspath(os.path.expanduser(text))
        if all(len(os.fsencode(part)) <= _NAME_MAX for part in path.split("/")) and len(os.fsencode(path)) <= _PATH_MAX:
            return Path(path)
        expected = f"a path of at most {_PATH_MAX} bytes, {_NAME_MAX} for each name"
    faults.append(f"{name} (from {source}): expected {expected}, found {shown(text)}")
    return None
