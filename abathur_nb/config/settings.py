"""The settings of a run: defaults of the environment, the settings file, environment variables, arguments."""

import os
import platform
import re
import sqlite3
import sys
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import Field, dataclass, field, fields
from difflib import get_close_matches
from html import escape
from math import inf, nan
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args, get_type_hints

from abathur_nb.errors import ConfigurationError
from abathur_nb.files import is_scratch_name, read_regular
from abathur_nb.text import Table, did_you_mean, is_printable, printable, shown, url_fault, user_name, utc_now

_NO_FILE = re.compile(r":memory:$|file:|[A-Za-z][\w+.:-]+:/")
_CONFIG = "~/.config/abathur/abathur.toml"
# Bytes. Linux allows 255 for a name, SQLite 512 for a path; room is left for `-journal` and a scratch directory.
_NAME_MAX, _PATH_MAX = 247, 475
_FILE_MAX = 65_536  # bytes; a settings file has a few hundred


def read_file(where: str, path: Path, most: int) -> bytes:
    """Return the content of a small regular file; raise ConfigurationError for any other. Never waits for a FIFO."""
    try:
        return read_regular(path, most=most, follow=True)
    except (OSError, ValueError) as error:  # a NUL in a path is a ValueError
        raise ConfigurationError(f"{where}: cannot be read: {getattr(error, 'strerror', error)}") from None


Severity = Literal["warn", "fail", "refuse"]


def _setting(default: Any, meaning: str, *, secret: bool = False, least: float = -inf, most: float = inf) -> Any:
    """Return a field of Settings with its meaning, the range of a number, and whether it is a secret."""
    metadata = {"meaning": meaning, "secret": secret, "least": least, "most": most}
    return field(default=default, metadata=metadata, repr=not secret)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Hold the settings of one run: paths, limits, policy. Frozen; made by ``resolve``.

    The strict defaults apply to an environment of your own too; development loosens them. ``origins`` names
    the source of each value.
    """

    env: str
    db_path: Path = _setting(None, "the database")
    backup_dir: Path = _setting(None, "where backups go")
    archive_dir: Path = _setting(None, "where records of runs go")
    # Limits
    session_p99_ms: float = _setting(10, "session retrieval, p99 (ms)", least=0.001)
    memory_p99_ms: float = _setting(20, "memory retrieval, p99 (ms)", least=0.001)
    concurrent_reads_s: float = _setting(1, "50 concurrent reads together (s)", least=0.001)
    min_free_mb: int = _setting(500, "free disk below which a check fails (MB)", least=0)
    recommended_free_mb: int = _setting(10_000, "free disk below which a check warns (MB)", least=0)
    max_wal_mb: int = _setting(256, "warn if the write-ahead log is larger (MB)", least=1)
    disk_full_days: float = _setting(30, "alert if the disk will be full sooner (days)", least=0.001)
    backup_max_age_hours: float = _setting(26, "alert if the last proven backup is older (hours)", least=0.001)
    validation_max_age_days: float = _setting(7, "alert if the last passed validation is older (days)", least=0.001)
    metrics_max_age_minutes: float = _setting(60, "alert if the metrics are older (minutes)", least=0.001)
    busy_timeout_ms: int = _setting(5000, "wait for a lock (ms)", least=0, most=600_000)
    readers: int = _setting(2, "connections that serve reads", least=1, most=32)
    # NORMAL never corrupts the database, but a power cut can lose the last acknowledged commits.
    synchronous: Literal["NORMAL", "FULL"] = _setting("NORMAL", "durability of a commit")
    service_account: str = _setting("abathur", "account that must own the directories; empty: the current account")
    # Evidence
    signing_key: str = _setting("", "PEM file of the ed25519 key that signs each run; empty: unsigned")
    signing_key_passphrase: str = _setting("", "passphrase of the signing key's file", secret=True)
    secrets: str = _setting("AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN", "variables whose values must not be archived")
    # Policy: how a hazard is judged
    require_safe_wal: bool = _setting(False, "fail on a SQLite that has the WAL-reset race")
    on_tmpfs: Severity = _setting("warn", "a database in memory, gone at the next boot")
    on_overlay: Severity = _setting("warn", "a layered or user-space file system")
    on_host_share: Severity = _setting("refuse", "a share of the host: virtiofs or 9p")
    on_shared_directory: Severity = _setting("refuse", "a directory that others own or may write to")
    confirm_changes: bool = _setting(True, "a replacement or repair needs the hash of its plan")
    alerts_fail: bool = _setting(True, "a critical alert fails the run; otherwise it warns")
    relative_paths: bool = _setting(False, "accept a path relative to the working directory")
    origins: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    def _repr_html_(self) -> str:
        meanings, values = {"env": "the environment", **_SETTABLE}, self.shown()
        rows = [(name, values[name], meaning, self.origins.get(name, "default")) for name, meaning in meanings.items()]
        opened = [row for row in rows if row[0] in ("env", *_PATHS) or row[-1] != "default"]
        folded = [row for row in rows if row not in opened]
        table = Table(("setting", "value", "meaning", "from"), (*opened, *folded), "", opened=len(opened))
        return f"<p>{escape(_versions())}</p>{table.to_html()}"

    @property
    def is_default_path(self) -> bool:
        """Return whether ``db_path`` is the default of the environment."""
        return self.origins.get("db_path", "default") == "default"

    def command(self, notebook: str) -> list[str]:
        """Return the words of a command that runs ``notebook`` for this database from any directory."""
        words = [sys.executable, "-m", "abathur_nb", "run", notebook, "--env", self.env]
        return words if self.is_default_path else [*words, "-p", "db_path", str(self.db_path)]

    def shown(self) -> dict[str, str]:
        """Return every setting as text, secrets masked."""
        values = {name: printable(str(getattr(self, name))) for name in ("env", *_SETTABLE)}
        return values | {name: "•••" for name in SECRET_SETTINGS if values[name]}

    def __str__(self) -> str:
        lines = [f"{name} = {value} ({self.origins.get(name, 'default')})" for name, value in self.shown().items()]
        return "\n".join((_versions(), *lines))


ENVIRONMENTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        # Your own machine: everything is beside the data, and most hazards only warn.
        "development": {
            "db_path": "~/abathur_data/abathur.db",
            "service_account": "",
            "on_host_share": "warn",
            "on_shared_directory": "fail",
            "confirm_changes": False,
            "alerts_fail": False,
            "relative_paths": True,
        },
        # A rehearsal: strict rules, without confirmation, on a database that may be lost.
        "staging": {"db_path": "/var/lib/abathur-staging/abathur.db", "confirm_changes": False},
        # A database in memory is refused, backups lie apart from the data.
        "production": {
            "db_path": "/var/lib/abathur/abathur.db",
            "backup_dir": "/backups",
            "on_tmpfs": "refuse",
        },
    }
)

_PATHS = ("db_path", "backup_dir", "archive_dir")
_BESIDE_THE_DATA = {"backup_dir": "backups", "archive_dir": "runs"}
_TYPES = get_type_hints(Settings)
_SETTABLE = {setting.name: setting.metadata["meaning"] for setting in fields(Settings) if setting.metadata}
SECRET_SETTINGS = tuple(setting.name for setting in fields(Settings) if setting.metadata.get("secret"))
_Layer = dict[str, tuple[object, str]]  # setting: (value, its source)


def environment_names() -> tuple[str, ...]:
    """Return the names of the environments; those of the settings file come last. Read-only.

    ``resolve`` reports the faults of the file.
    """
    return tuple({**ENVIRONMENTS, **_read_environments([])})


def resolve(
    env: str = "development",
    *,
    db_path: str | os.PathLike[str] | None = None,
    backup_dir: str | os.PathLike[str] | None = None,
    archive_dir: str | os.PathLike[str] | None = None,
) -> Settings:
    """Return the settings of ``env``. Read-only; reads the settings file.

    Strongest first: the arguments, ``ABATHUR_…`` variables, the file named by ``ABATHUR_CONFIG`` (or else
    ``~/.config/abathur/abathur.toml``), the environment's defaults. Raises ConfigurationError with every fault.
    """
    faults: list[str] = []
    environments = _read_environments(faults)
    known = {**ENVIRONMENTS, **environments}
    name, kind = (env, "") if isinstance(env, str) else ("", f" ({type(env).__name__})")
    if name not in known and (environments or not faults):  # an unreadable settings file may define the name
        words = f"{shown(env)}{kind}{did_you_mean(name, known)}"
        faults.append(f"env: expected one of {', '.join(known)}, found {words}")
    # Each layer overwrites the one before it.
    layers: _Layer = {key: (value, "default") for key, value in ENVIRONMENTS.get(name, {}).items()}
    layers |= environments.get(name, {})
    layers |= _variables(faults)
    arguments = {"db_path": db_path, "backup_dir": backup_dir, "archive_dir": archive_dir}
    layers |= {name: (value, "argument") for name, value in arguments.items() if value is not None}

    values: dict[str, Any] = {name: value for name, (value, _) in layers.items()}
    origins = {name: source for name, (_, source) in layers.items()}
    # If relative_paths is neither true nor false, only that is reported, and no relative path.
    relative = values.get("relative_paths", False) is not False
    for setting in (setting for setting in fields(Settings) if setting.name in values):
        try:
            values[setting.name] = _read(setting, values[setting.name], origins[setting.name], relative)
        except ConfigurationError as error:
            faults += error.faults
    if "db_path" not in values and not faults:
        faults.append(f"db_path: environment {env!r} has no db_path; add it to its table in the settings file")
    if faults:
        raise ConfigurationError(faults)
    for name, folder in _BESIDE_THE_DATA.items():
        # The default backup directory is for the default database only.
        if name not in values or (origins[name] == "default" != origins["db_path"]):
            values[name], origins[name] = values["db_path"].parent / folder, "beside the data"
    origins["env"] = "default" if env == "development" else "argument"
    return Settings(env=env, **values, origins=MappingProxyType(origins))


def _read_environments(faults: list[str]) -> dict[str, _Layer]:
    """Return the tables ``[environments.NAME]`` of the settings file. Read-only."""
    named = os.environ.get("ABATHUR_CONFIG")
    path = Path(os.path.expanduser(_CONFIG if named is None else named))
    where = f"settings file {printable(str(path))}"
    if named is None and not (_has_home() and os.path.lexists(path)):  # a file in the working directory is never read
        return {}
    try:
        tables = tomllib.loads(read_file(where, path, _FILE_MAX).decode())
    except (ValueError, RecursionError) as error:  # errors of TOML and Unicode are ValueErrors
        faults += error.faults if isinstance(error, ConfigurationError) else [f"{where}: cannot be read: {error}"]
        return {}
    expected, environments = f"{where}: expected a table [environments.NAME] (a-z, 0-9, _ and -), found ", {}
    given = tables.pop("environments", {})
    faults += [f"{expected}{shown(key)}" for key in tables]
    if not isinstance(given, dict):
        faults.append(f"{expected}environments = {shown(given)}")
        return {}
    for name, table in given.items():
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", name) or not isinstance(table, dict):
            faults.append(f"{expected}{shown(name)}")
            continue
        for key in table.keys() - _SETTABLE.keys():
            faults.append(f"{where}: [environments.{name}] has no setting {shown(key)}{did_you_mean(key, _SETTABLE)}")
        environments[name] = {key: (value, where) for key, value in table.items() if key in _SETTABLE}
    return environments


def _variables(faults: list[str]) -> _Layer:
    """Return the settings of the variables ``ABATHUR_…``; a similar name is a fault."""
    found: _Layer = {}
    names = {f"ABATHUR_{name.upper()}": name for name in _SETTABLE}
    for variable, value in os.environ.items():
        if name := names.get(variable):
            # A variable is always text: only here may text stand for true or false.
            truth = {"true": True, "false": False}.get(value.lower(), value)
            found[name] = (truth if _TYPES[name] is bool else value, variable)
        elif variable.startswith("ABATHUR_") and (near := get_close_matches(variable, names, 1, 0.9)):
            faults.append(f"{printable(variable)}: no such setting; did you mean {near[0]}?")
    return found


def _has_home() -> bool:
    """Return whether `~` is an absolute path: in a container HOME may be empty, or the user unknown."""
    return os.environ.get("HOME") != "" and os.path.isabs(os.path.expanduser("~"))


def absolute_path(name: str, value: object, source: str, *, relative: bool) -> Path:
    """Return ``value`` as an absolute path without reading the disk. Raises ConfigurationError."""
    where = f"{name} (from {source}): expected"
    if not isinstance(value, str | os.PathLike) or not isinstance(text := os.fspath(value), str):
        raise ConfigurationError(f"{where} a path as text, found {shown(value)} ({type(value).__name__})")
    try:
        # abspath keeps two leading slashes, which begin a host name in a URI.
        path = "/" + os.path.abspath(os.path.expanduser(text)).lstrip("/")
    except OSError:  # the working directory is gone
        path = ""
    names = path.split("/")
    sizes = [len(part.encode(errors="replace")) for part in (path, *names)]
    home = not text.startswith("~") or (text[1:2] in ("", "/") and _has_home())
    rules = {
        "a path (leave it out, or None, for the default)": bool(text),
        "a path of printable characters": is_printable(text),
        "a path of a file, not an in-memory database or a URL": not _NO_FILE.match(text),
        "an absolute path (`~` needs a HOME that is one; `~USER` is not read)": home,
        "an absolute path": text[:1] in ("/", "~") or (relative and bool(path)),
        # A clean-up of scratch files would remove the file.
        "a path outside of the scratch directories (.abathur-…)": not any(map(is_scratch_name, names)),
        f"a path of at most {_PATH_MAX} bytes, {_NAME_MAX} for each name": sizes[0] <= _PATH_MAX
        and max(sizes[1:]) <= _NAME_MAX,
    }
    if expected := next((words for words, holds in rules.items() if not holds), ""):
        raise ConfigurationError(f"{where} {expected}, found {shown(text)}")
    return Path(path)


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def _read(setting: Field[Any], value: object, source: str, relative: bool) -> Any:
    """Return a value in the type of its setting; a variable is text. Raises ConfigurationError."""
    kind, where = _TYPES[setting.name], f"{setting.name} (from {source})"
    least, most, secret = (setting.metadata[name] for name in ("least", "most", "secret"))
    if kind is Path:
        return absolute_path(setting.name, value, source, relative=relative)
    if kind in (int, float):
        with suppress(ValueError, OverflowError):
            number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else nan
            if least <= number <= most and number < inf and (kind is float or number.is_integer()):
                return kind(number)
    elif isinstance(value, kind) if kind in (bool, str) else value in get_args(kind):
        if isinstance(value, str) and not secret and (fault := url_fault(where, value)):
            raise ConfigurationError(fault)
        return value
    words = _KINDS.get(kind) or f"one of {', '.join(get_args(kind))}"
    words += f" of at least {least:g}" if least > -inf else ""
    words += f" and at most {most:g}" if most < inf else ""
    raise ConfigurationError(f"{where}: expected {words}, found {'a secret' if secret else shown(value)}")


def _versions() -> str:
    """Return versions, user, host and time, for the record."""
    from importlib.metadata import version  # imported late, because it is slow

    packages = ", ".join(f"{name} {version(name)}" for name in ("abathur_nb", "aiosqlite"))
    runtime = f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
    return f"{packages}, {runtime} · {user_name(os.geteuid())} on {platform.node()} · {utc_now()} UTC"
