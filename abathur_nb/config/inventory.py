"""The inventory of a fleet: which databases are on which host."""

import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from abathur_nb.config.settings import read_file
from abathur_nb.errors import ConfigurationError
from abathur_nb.text import did_you_mean, printable, shown

_MOST = 16 * 2**20  # bytes
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
_KEYS = ("env", "databases")


@dataclass(frozen=True, slots=True)
class Host:
    """Hold a table ``[hosts.NAME]``: its environment, and the paths and globs of its databases."""

    name: str
    env: str
    databases: tuple[str, ...]


def read_inventory(path: str | os.PathLike[str], only: str = "") -> list[Host]:
    """Return the hosts of an inventory, of which ``only`` may be the beginning of some: ``HOST`` or ``HOST:/PATH``.

    Read-only; no database is accessed. Raises ConfigurationError with every fault.
    """
    where = f"inventory {printable(str(path))}"
    content = read_file(where, Path(os.path.expanduser(path)), _MOST)
    try:
        tables = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:  # errors of TOML and Unicode are ValueErrors
        raise ConfigurationError(f"{where}: expected TOML in UTF-8, found: {error}") from None
    given, hosts = tables.pop("hosts", None), list[Host]()
    expected = f"{where}: expected a table [hosts.NAME] for each host, found"
    faults = [f"{expected} {shown(key)}" for key in tables]
    if not isinstance(given, dict) or not given:
        faults.append(f"{expected} {'none' if given in (None, {}) else shown(given)}")
        given = {}
    for name, table in given.items():
        if not _HOST.fullmatch(name) or not isinstance(table, dict):
            faults.append(f"{expected} {shown(name)}")
            continue
        if found := _faults(table):
            faults += [f"{where}: [hosts.{name}]: {fault}" for fault in found]
        else:
            hosts.append(Host(name, table["env"], tuple(map(os.path.normpath, table["databases"]))))
    chosen = [host for host in hosts if f"{host.name}:".startswith(only) or only.startswith(f"{host.name}:")]
    if not faults and not chosen:
        near = did_you_mean(only.partition(":")[0], [host.name for host in hosts])
        faults.append(f"only: expected the beginning of HOST or HOST:/PATH, found {shown(only)}{near}")
    if faults:
        raise ConfigurationError(faults)
    return chosen


def _faults(table: dict[str, object]) -> list[str]:
    """Return the faults of one host's table."""
    faults = [f"unknown key {shown(key)}{did_you_mean(key, _KEYS)}" for key in table if key not in _KEYS]
    env, paths = table.get("env"), table.get("databases")
    if not isinstance(env, str):
        faults.append(f"env: expected the name of an environment, found {shown(env)}")
    if not isinstance(paths, list) or not paths or not all(isinstance(one, str) for one in paths):
        return [*faults, f"databases: expected a list of paths and globs, found {shown(paths)}"]
    faults += [f"databases: expected an absolute path, found {shown(one)}" for one in paths if one[:1] != "/"]
    plain = [os.path.normpath(one) for one in paths]
    return faults + [f"databases: {shown(one)} is named twice" for one in {*plain} if plain.count(one) > 1]
