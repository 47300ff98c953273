"""What settings are read from: the settings file, the environment variables, and paths as text."""

import os
import re
import stat
import tomllib
from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path

from abathur_nb.files import is_scratch_name, open_regular
from abathur_nb.wording import did_you_mean, is_printable, printable, shown, without_url_secrets

__all__ = ["absolute_path", "environment_variables", "read_environments"]

_CONFIG = "~/.config/abathur/abathur.toml"
_TRUTHS = {"true": True, "false": False}
# Bytes. Linux takes names of 255 and SQLite paths of 512: less `-journal`, a NUL and a scratch directory's name.
_NAME_MAX, _PATH_MAX = 247, 475
_FILE_MAX = 65_536  # bytes; a settings file has a few hundred


def read_environments(settable: Collection[str], faults: list[str]) -> dict[str, tuple[dict[str, object], str]]:
    """Return the tables ``[environments.NAME]`` of the settings file, each with the file's name. Read-only."""
    named = os.environ.get("ABATHUR_CONFIG")
    path = Path(os.path.expanduser(_CONFIG if named is None else named))
    where = f"settings file {without_url_secrets(printable(str(path)))}"
    if named is None and not (_has_home() and path.exists()):  # never one found in the working directory
        return {}
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > _FILE_MAX:
            raise ValueError(f"expected a regular file of at most {_FILE_MAX:,} bytes")
        with open_regular(path, follow=True) as file:
            content = tomllib.loads(file.read().decode())
    except FileNotFoundError:
        faults.append(f"{where}: named by ABATHUR_CONFIG, but there is none")
        return {}
    except (OSError, ValueError, RecursionError) as error:  # a TOML or a Unicode fault is a ValueError
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
        unknown = [key for key in table if key not in settable]
        faults += [
            f"{where}: [environments.{name}] has no setting {shown(k)}{did_you_mean(k, settable)}" for k in unknown
        ]
        environments[name] = ({key: value for key, value in table.items() if key in settable}, where)
    return environments


def environment_variables(
    settable: Collection[str], truths: Collection[str], faults: list[str]
) -> dict[str, tuple[object, str]]:
    """Return the settings given as ``ABATHUR_…``; a near miss of one is a fault, other programs' names are not.

    ``true`` and ``false`` are read for those named in ``truths``; all else stays text, for the caller to judge.
    """
    found: dict[str, tuple[object, str]] = {}
    names = {f"ABATHUR_{name.upper()}": name for name in settable}
    for variable, value in os.environ.items():
        if variable in names:
            name = names[variable]
            # A variable is always text, and a truth value in the file never: only here text can become one.
            found[name] = (_TRUTHS.get(value.lower(), value) if name in truths else value, variable)
        elif variable.startswith("ABATHUR_") and (near := get_close_matches(variable, names, 1, 0.9)):
            faults.append(f"{printable(variable)}: no such setting; did you mean {near[0]}?")
    return found


def _has_home() -> bool:
    """Tell whether `~` stands for an absolute path: in a container a user may have no entry, or an empty HOME."""
    return os.environ.get("HOME") != "" and os.path.isabs(os.path.expanduser("~"))


def absolute_path(name: str, value: object, source: str, relative_paths: bool, faults: list[str]) -> Path | None:
    """Return ``value`` as an absolute path without looking at the disk, or add what is wrong with it to ``faults``."""
    if not isinstance(value, str | os.PathLike) or not isinstance(text := os.fspath(value), str):
        faults.append(f"{name} (from {source}): expected a path as text, found {shown(value)} ({type(value).__name__})")
        return None
    expected = ""
    if not text:
        expected = "a path (leave it out, or None, for the default)"
    elif not is_printable(text):
        expected = "a path of printable characters"
    elif text == ":memory:" or text.startswith("file:"):
        expected = "a path of a file, no in-memory database and no SQLite URI"
    elif re.match(r"[A-Za-z][\w+.:-]+:/", text):  # development would take it for a relative path
        expected = "a path, not a URL"
    elif text.startswith("~") and text != "~" and not text.startswith("~/"):
        expected = "an absolute path (`~` stands for your own home only)"
    elif text.startswith("~") and not _has_home():
        expected = "an absolute path, since HOME names no home for `~`"
    elif not os.path.isabs(os.path.expanduser(text)) and not relative_paths:
        expected = "an absolute path"
    else:
        try:
            # abspath keeps two leading slashes, which in a URI would begin a host's name.
            path = "/" + os.path.abspath(os.path.expanduser(text)).lstrip("/")
        except OSError:
            faults.append(f"{name} (from {source}): expected an absolute path, since the working directory is gone")
            return None
        names = path.split("/")
        if any(map(is_scratch_name, names)):  # the next sweep beside it would remove it
            expected = "a path outside of the scratch directories (.abathur-…), which are removed again"
        elif len(os.fsencode(path)) > _PATH_MAX or any(len(os.fsencode(part)) > _NAME_MAX for part in names):
            expected = f"a path of at most {_PATH_MAX} bytes, {_NAME_MAX} for each name"
        else:
            return Path(path)
    faults.append(f"{name} (from {source}): expected {expected}, found {shown(text)}")
    return None
