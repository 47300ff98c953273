"""Copying an archive, run by run, to where objects are never changed afterwards; and bringing such a copy back."""

import argparse
import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from shlex import quote

from abathur_nb.errors import ConfigurationError, RefusedError
from abathur_nb.evidence.canonical import sha256
from abathur_nb.evidence.ledger import LEDGER, RUN_ID, parse
from abathur_nb.evidence.reading import chosen_archive, run_ids
from abathur_nb.evidence.record import STARTED
from abathur_nb.evidence.stores import LINE, Store, open_store
from abathur_nb.evidence.verify import verify_archive
from abathur_nb.files import open_regular, read_regular
from abathur_nb.text import counted, shown, some

_NAMED = 5  # objects that an error names
_NOT_COPIED = ("last_line", "nothing_else")  # what verify may find wrong with what stays behind


def copy_archive(archive: Path, url: str) -> dict[str, list[str]]:
    """Copy the runs of an archive's ledger to a directory or a URL of fsspec; return what was ``copied`` and ``left``.

    Of each run its files first and its line of the ledger last: cut short, the copy is a shorter archive, and the
    next one goes on from there. What is there already is compared, and never changed. ``left`` are the runs that
    have no line. Raises RefusedError, before anything is written, where the copy holds anything else than the
    archive, or ``verify`` finds fault with what is to be copied. The archive stays as it is.
    """
    store = open_store(url)
    if Path(store.where).is_absolute() and Path(store.where, "x").resolve().is_relative_to(archive.resolve()):
        raise RefusedError(f"{store.where} lies in the archive itself", "name another directory")
    if faults := [one for one in verify_archive(archive).checks if one.failed and one.id not in _NOT_COPIED]:
        raise RefusedError(
            f"{archive} is not as it was written: {faults[0].name}: {faults[0].observed}. Nothing was copied",
            f"python -m abathur_nb verify {quote(str(archive))}",
        )
    content = _ledger(archive)
    wanted = dict(_objects(archive, content))
    found = store.found()
    if odd := sorted(
        name for name in found if not LINE.fullmatch(name) and not RUN_ID.fullmatch(name.partition("/")[0])
    ):
        raise RefusedError(
            f"{store.where} holds what is not a copy of an archive, such as {shown(odd[0])}. Nothing was copied",
            "name an empty place, or that of an earlier copy",
        )
    unlike = [name for name in wanted if name in found and not _is_same(store, name, found[name], wanted[name])]
    unlike += sorted(name for name in found if LINE.fullmatch(name) and name not in wanted)
    if unlike:
        raise RefusedError(
            f"{store.where} holds what the archive {archive} does not: {some(unlike, _NAMED)}. Nothing was copied",
            "find out which of the two was altered, with verify; copy an archive of another database elsewhere",
        )
    added = [name for name in wanted if name not in found]
    for name in added:
        _add(store, name, wanted[name]())
    return {"copied": added, "left": sorted(run_ids(archive) - parse(content).runs.keys())}


def _add(store: Store, name: str, content: bytes) -> None:
    try:
        store.add(name, content)
    except RefusedError:
        # Another one copies too; or an answer was lost, and the request, sent again, met what it had made.
        with suppress(RefusedError):
            if store.read(name) == content:
                return
        raise


def _ledger(archive: Path) -> bytes:
    """Return the bytes of the ledger's whole lines; raise RefusedError if they can't be read."""
    try:
        content = read_regular(archive / LEDGER)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise RefusedError(f"the ledger {archive / LEDGER} cannot be read: {error.strerror}") from None
    return content[: content.rfind(b"\n") + 1]


def _objects(archive: Path, ledger: bytes) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield the name of each object that a copy has, in the order in which they are made, and what reads it."""
    for line, piece in zip(parse(ledger).lines, ledger.split(b"\n"), strict=False):
        files = line.data.get("files", {})
        for name in sorted(files, key=lambda name: (name != STARTED, name)):  # no record stands without it
            path = archive / line.data["run_id"] / name
            yield f"{line.data['run_id']}/{name}", partial(_read, path, files[name])
        yield f"ledger/{line.number:08}.jsonl", partial(bytes, piece + b"\n")


def _read(path: Path, digest: str) -> bytes:
    try:
        with open_regular(path) as file:  # however large
            content = file.read()
    except OSError as error:
        raise RefusedError(f"{path} cannot be read: {error.strerror}") from None
    if sha256(content) != digest:  # since it was verified
        archive = quote(str(path.parent.parent))
        remedy = f"python -m abathur_nb verify {quote(str(archive))}"
        raise RefusedError(f"{path} is not the file that the ledger names", remedy)
    return content


def _is_same(store: Store, name: str, md5: str, read: Callable[[], bytes]) -> bool:
    content = read()
    # MD5 is enough to tell what another archive or an accident put there; verify asks for the SHA-256.
    if md5 == hashlib.md5(content, usedforsecurity=False).hexdigest():
        return True
    return store.read(name) == content


def command(arguments: argparse.Namespace) -> int:
    """Copy the archive that is meant, and say what was copied and what was not."""
    archive = chosen_archive(arguments)
    if isinstance(archive, str):
        raise ConfigurationError(f"--archive: expected a directory, found {shown(archive)}: no copy is made of a copy")
    done: Mapping[str, list[str]] = copy_archive(archive, arguments.url)
    runs = sum(bool(LINE.fullmatch(name)) for name in done["copied"])
    objects = counted(len(done["copied"]), "object")
    sys.stdout.write(f"copied {counted(runs, 'line')} of the ledger, {objects} in all, to {arguments.url}\n")
    if left := done["left"]:
        sys.stdout.write(f"not copied, without a line in the ledger and no evidence: {', '.join(left)}\n")
    return 0
