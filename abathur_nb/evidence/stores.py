"""Find an archive or its copy, and write and fetch copies in a directory or at a URL."""

import argparse
import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import inf
from pathlib import Path
from shlex import join, quote
from tempfile import TemporaryDirectory
from typing import NamedTuple

from abathur_nb.config.settings import Settings, absolute_path, resolve
from abathur_nb.errors import AbathurError, ConfigurationError, RefusedError
from abathur_nb.evidence.ledger import LEDGER, RUN_ID, Line, checked, parse
from abathur_nb.evidence.record import is_folder
from abathur_nb.files import UNFINISHED, private_directory, read_regular, write_durably
from abathur_nb.text import is_printable, printable, shown, url_fault

LINE = re.compile(r"ledger/\d{8}\.jsonl")  # one object for each line, because objects can't be appended to
# Names of objects that may be fetched: none leads out of the directory.
_SAFE = re.compile(r"(?!\.\.?(?:/|\Z))[\w.-]+(?:/(?!\.\.?\Z)[\w.-]+)?")
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://([^?#\s]*)")
_MD5 = re.compile(r'"([0-9a-f]{32})"')  # S3's ETag of an object that was uploaded in one part
# s3fs tries each request 5 times, and so does botocore below it: a server that never answers would take 6 minutes.
_TRIES_TWICE = ("s3", "s3a")


def chosen_archive(arguments: argparse.Namespace) -> Path | str:
    """Return the archive that the arguments name; raise ConfigurationError if it is missing. Read-only."""
    if arguments.archive is None:
        env = "development" if arguments.env is None else arguments.env
        settings = resolve(env, db_path=arguments.db_path)
        return archive_at("archive_dir", settings.archive_dir, first_run(settings))
    if arguments.env is not None or arguments.db_path is not None:
        raise ConfigurationError("--archive: expected --archive alone, or --env and --db-path without it")
    return archive_at("--archive", arguments.archive)


def archive_at(name: str, value: object, remedy: str = f"name the directory that holds {LEDGER}") -> Path | str:
    """Return the directory that an argument names, or the URL of a copy; the URL is not accessed. Read-only.

    Raises ConfigurationError, which ends with ``remedy``, if the directory is missing.
    """
    if fault := url_fault(name, str(value)):
        raise ConfigurationError(fault)
    if isinstance(value, str) and "://" in value:
        return value
    archive = absolute_path(name, value, "argument", relative=True)
    if not os.path.isdir(archive):
        raise ConfigurationError(f"{name}: expected the directory of an archive, found none at {archive}: {remedy}")
    return archive


def first_run(settings: Settings) -> str:
    """Return the remedy for an environment without an archive."""
    return f"the first recorded run creates it: {join(settings.command('init'))}"


class Store(NamedTuple):
    """Hold the functions that list, read and add the objects of a copy, such as ``RUNID/record.json``.

    ``found`` maps names to MD5s, or empty texts; ``add`` replaces no object. All raise RefusedError.
    """

    where: str
    found: Callable[[], dict[str, str]]
    read: Callable[[str], bytes]
    add: Callable[[str, bytes], None]


def open_store(url: str) -> Store:
    """Return the store at a directory or URL; raise ConfigurationError for other text or a password. Read-only."""
    if fault := url_fault("URL", url):
        raise ConfigurationError(fault)
    match = _URL.fullmatch(url)
    if not is_printable(url) or ("://" in url and not match):
        raise ConfigurationError("URL: expected a directory, or protocol://place/path without ? and #")
    scheme, rest = match.groups() if match else ("file", url)
    if scheme in ("file", "local"):
        return _directory(absolute_path("URL", rest, "argument", relative=match is None))
    return _objects(url, scheme)


@contextmanager
def _refusing(where: str) -> Iterator[None]:
    """Raise any error of a store as a RefusedError of one line."""
    try:
        yield
    except AbathurError:
        raise
    except Exception as error:  # noqa: BLE001 - each kind of store has errors of its own
        reason = printable(str(error).strip().partition("\n")[0])[:300]
        remedy = "check that it exists and may be accessed, then run this again"
        raise RefusedError(f"{where} cannot be used: {type(error).__name__}: {reason}", remedy) from None


def _directory(folder: Path) -> Store:
    @_refusing(str(folder))
    def found() -> dict[str, str]:
        return {
            str(Path(root, name).relative_to(folder)): ""
            for root, _, names in (os.walk(folder, onerror=_raise) if os.path.lexists(folder) else ())
            for name in names
            if not name.startswith(UNFINISHED)
        }

    @_refusing(str(folder))
    def read(name: str) -> bytes:
        return read_regular(folder / name, most=inf)

    @_refusing(str(folder))
    def add(name: str, content: bytes) -> None:
        path = folder / name
        with private_directory(path.parent):
            if os.path.lexists(path):
                raise FileExistsError(f"{path} already exists")
            write_durably(path, content)

    return Store(str(folder), found, read, add)


def _raise(error: OSError) -> None:
    raise error


def _objects(url: str, scheme: str) -> Store:
    try:
        from fsspec.core import url_to_fs
        from fsspec.registry import get_filesystem_class

        get_filesystem_class(scheme)
    except (ImportError, ValueError) as error:
        words = f"found {shown(url)}: {'; '.join(str(error).splitlines())}; for s3: pip install 'abathur_nb[s3]'"
        raise ConfigurationError(f"URL: expected a directory or a protocol of fsspec, {words}") from None
    with _refusing(url):
        system, root = url_to_fs(url)
    if scheme in _TRIES_TWICE:
        system.retries = 1

    @_refusing(url)
    def found() -> dict[str, str]:
        system.invalidate_cache()
        objects: dict[str, str] = {}
        for path, about in system.find(root, detail=True).items():
            name = path.removeprefix(root).strip("/")
            # A store may list the root itself as a directory.
            if name and about.get("type") != "directory":
                match = _MD5.fullmatch(str(about.get("ETag", "")))
                objects[name] = match[1] if match else ""
        return objects

    @_refusing(url)
    def read(name: str) -> bytes:
        return bytes(system.cat_file(f"{root}/{name}"))

    @_refusing(url)
    def add(name: str, content: bytes) -> None:
        try:
            system.pipe_file(f"{root}/{name}", content, mode="create")
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            system.pipe_file(f"{root}/{name}", content)  # this store has no mode that protects existing objects

    return Store(url, found, read, add)


@contextmanager
def fetched(url: str) -> Iterator[Path]:
    """Fetch a copy as an archive into a temporary directory, which is removed at the end.

    Objects that do not belong to it are fetched too, so that ``verify`` names them. Raises RefusedError if
    there is no copy.
    """
    store = open_store(url)
    names = store.found()
    lines = sorted(name for name in names if LINE.fullmatch(name))
    odd = [name for name in names if not _SAFE.fullmatch(name) or name == LEDGER]
    if not lines or odd:
        found = f"an object named {shown(odd[0])}" if odd else "no line of a ledger"
        raise RefusedError(
            f"{store.where} is not a copy of an archive: {found}", "name the URL to which the archive was copied"
        )
    with TemporaryDirectory(prefix="abathur-copy-") as folder:  # 0700
        archive = Path(folder)
        ledger = b"".join(map(store.read, lines))
        runs = parse(ledger).runs
        for name in sorted(names.keys() - {*lines}):
            run_id = name.partition("/")[0]
            if run_id in runs or not RUN_ID.fullmatch(run_id):  # a run without a line is still being copied
                (archive / name).parent.mkdir(exist_ok=True)
                (archive / name).write_bytes(store.read(name))
        (archive / LEDGER).write_bytes(ledger)
        yield archive


def copy_lines(url: str) -> Iterator[Line]:
    """Yield the lines of the ledger of a copy as `newest_lines` does; none if there is no copy. Read-only."""
    store = open_store(f"{url}/ledger")
    pieces = (store.read(name)[:-1] for name in sorted(store.found(), reverse=True))
    return checked(pieces, store.where, f"python -m abathur_nb verify {quote(url)}")


def copies_in(place: Path | str) -> Sequence[Path | str]:
    """Return the copies ``NAME`` or ``HOST/NAME`` in a directory or URL; none if it is an archive itself. Read-only."""
    if isinstance(place, Path):
        is_one = any(os.path.lexists(place / name) for name in (LEDGER, "ledger"))
        return [] if is_one else sorted(path.parent for depth in ("*", "*/*") for path in place.glob(f"{depth}/ledger"))
    names = {name.rpartition("/ledger/")[0] for name in open_store(place).found() if LINE.search(name)}
    return [] if "" in names else [f"{place.rstrip('/')}/{name}" for name in sorted(names)]


def local(archive: Path | str) -> AbstractContextManager[Path]:
    """Return a context manager for the directory of an archive; a copy or a URL is `fetched`. Read-only."""
    # A copy has a folder ledger, with a file for each line.
    if isinstance(archive, Path) and (not is_folder(archive / "ledger") or os.path.lexists(archive / LEDGER)):
        return nullcontext(archive)
    return fetched(str(archive))
