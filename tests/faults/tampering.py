"""Sweeps over an archive: any byte flipped, and what else is done to evidence; ``verify`` must find each."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

from archives import archive as make_archive
from archives import run as make_run

from abathur_nb.config.settings import Settings, resolve
from abathur_nb.evidence.canonical import sealed, sha256, unsealed
from abathur_nb.evidence.ledger import LEDGER
from abathur_nb.evidence.record import NOTEBOOK, PAGE, RECORD, STARTED, STATEMENT, Record, read_run
from abathur_nb.evidence.statement import envelope
from abathur_nb.evidence.verify import verify_archive
from faults.experiments import BrokenHarnessError, Experiment, Outcome, settings_of
from faults.spoiling import cut, flip, lengthen, link, pipe

_FILES = (STARTED, RECORD, NOTEBOOK, PAGE, STATEMENT)


@dataclass(frozen=True, slots=True)
class Tampering:
    """Hold an archive that is tampered with, and what chooses where."""

    archive: Path
    settings: Settings
    random: Random

    def runs(self) -> list[Path]:
        """Return the folders of the archived runs, in a random order."""
        folders = sorted(path.parent for path in self.archive.glob(f"*/{STATEMENT}"))
        return self.random.sample(folders, len(folders))

    def file(self) -> Path:
        """Choose a file."""
        return self.random.choice(_files(self.archive))

    def edit(self, change: Callable[[list[bytes]], object]) -> None:
        """Change the lines of the ledger."""
        lines = (self.archive / LEDGER).read_bytes().splitlines(keepends=True)
        change(lines)
        (self.archive / LEDGER).write_bytes(b"".join(lines))


def _files(archive: Path) -> list[Path]:
    return sorted(path for path in archive.rglob("*") if path.is_file())


def _take_line(made: Tampering) -> None:
    made.edit(lambda lines: lines.pop(made.random.randrange(len(lines))))


def _take_run_and_line(made: Tampering) -> None:
    """Take away what names a run, but for the chain."""
    folder = made.runs()[0]
    shutil.rmtree(folder)
    made.edit(lambda lines: lines.remove(next(line for line in lines if folder.name.encode() in line)))


def _swap_lines(made: Tampering) -> None:
    def swap(lines: list[bytes]) -> None:
        one, other = made.random.sample(range(len(lines)), 2)
        lines[one], lines[other] = lines[other], lines[one]

    made.edit(swap)


def _swap(made: Tampering, name: str = "") -> None:
    """Let two runs, or their files of a name, change places."""
    one, other = (folder / name for folder in made.runs()[:2])
    aside = one.rename(made.archive / ".aside")
    other.rename(one)
    aside.rename(other)


def _change_number(made: Tampering) -> None:
    path = made.runs()[0] / RECORD
    record = unsealed(path.read_bytes())
    record["facts"]["rows"]["tasks"] += 1
    path.write_bytes(sealed(record))


def _change_verdict(made: Tampering) -> None:
    """Rewrite everything that names a run consistently, but for the chain behind it."""
    folder = made.runs()[0]
    record = {**unsealed((folder / RECORD).read_bytes()), "verdict": "interrupted"}
    (folder / RECORD).write_bytes(sealed(record))
    hashes = {name: sha256((folder / name).read_bytes()) for name in (STARTED, RECORD, NOTEBOOK, PAGE)}
    (folder / STATEMENT).write_bytes(envelope(made.settings, read_run(Record, record), hashes))
    hashes[STATEMENT] = sha256((folder / STATEMENT).read_bytes())

    def change(lines: list[bytes]) -> None:
        (number,) = (n for n, line in enumerate(lines) if unsealed(line)["run_id"] == folder.name)
        _rewrite(lines, number, verdict="interrupted", files=hashes)

    made.edit(change)


def _rewrite(lines: list[bytes], number: int, **facts: object) -> None:
    lines[number] = sealed({**unsealed(lines[number]), **facts})


def _change_form(made: Tampering) -> None:
    path = made.runs()[0] / made.random.choice((STARTED, RECORD, STATEMENT))
    path.write_text(json.dumps(json.loads(path.read_bytes()), indent=1))


def _add_page(made: Tampering) -> None:
    """Let a run that was never sealed look like one."""
    (folder,) = (path.parent for path in made.archive.glob(f"*/{STARTED}") if not path.with_name(RECORD).exists())
    shutil.copy(made.runs()[0] / PAGE, folder)


def _replay(made: Tampering) -> None:
    """Append the first run of another archive, which began behind no line either."""
    folder = make_run(resolve("staging", db_path=made.archive.parent / "other" / "abathur.db"))
    (line,) = (folder.parent / LEDGER).read_bytes().splitlines(keepends=True)
    shutil.move(folder, made.archive)
    made.edit(lambda lines: lines.append(sealed({**unsealed(line), "previous": sha256(lines[-1])})))


_Deed = Callable[[Tampering], object]
_FLIP: dict[str, _Deed] = {"flip": lambda made: flip(made.file(), made.random)}
TAMPERINGS: dict[str, _Deed] = {
    "cut a file": lambda made: cut(made.file(), made.random),
    "lengthen a file": lambda made: lengthen(made.file(), made.random),
    "take a file": lambda made: (made.runs()[0] / made.random.choice(_FILES)).unlink(),
    "take the ledger": lambda made: (made.archive / LEDGER).unlink(),
    "take a run": lambda made: shutil.rmtree(made.runs()[0]),
    "take a line": _take_line,
    "take a run and its line": _take_run_and_line,
    "swap lines": _swap_lines,
    "swap files": lambda made: _swap(made, made.random.choice(_FILES)),
    "swap runs": _swap,
    "change a number": _change_number,
    "change a verdict": _change_verdict,
    "change a line": lambda made: made.edit(
        lambda lines: _rewrite(lines, made.random.randrange(len(lines)), env="production")
    ),
    "change the form": _change_form,
    "link a file": lambda made: link(made.runs()[0] / made.random.choice(_FILES), made.random),
    "a pipe for a file": lambda made: pipe(made.file(), made.random),
    "add a file": lambda made: (made.random.choice((made.archive, *made.runs())) / "notes.txt").write_text("well"),
    "add a page": _add_page,
    "replay a run": _replay,
    "copy a run": lambda made: shutil.copytree(made.runs()[0], made.archive / "20261123T101500123Z-9f3ac1"),
}


def _by_names_and_sizes(archive: Path, sound: Path) -> bool:
    """Find what changes a name or a size: the control of the flips."""
    listed = [{path.relative_to(folder): path.stat().st_size for path in _files(folder)} for folder in (archive, sound)]
    return listed[0] != listed[1]


def _by_own_hashes(archive: Path, _: Path) -> bool:
    """Find a record that does not hold its own hash, as where no ledger names it: the control of the rest."""
    try:
        for path in archive.glob(f"*/{RECORD}"):
            unsealed(path.read_bytes() if path.is_file() else b"")
    except ValueError:
        return True
    return False


def flips(name: str, every: int, seed: int, folder: Path) -> list[Experiment]:
    """Return the experiments: each flips a byte of an archive; by names and sizes the control finds none."""
    return _plan(name, _FLIP, range(seed % every, 1000, every), seed, folder)


def tamperings(name: str, every: int, seed: int, folder: Path) -> list[Experiment]:
    """Return the experiments: each does something else to an archive; the control knows no ledger."""
    return _plan(name, TAMPERINGS, range(seed % every, 20, every), seed, folder)


def _plan(name: str, deeds: dict[str, _Deed], rounds: range, seed: int, folder: Path) -> list[Experiment]:
    settings = settings_of(folder / name / "data" / "abathur.db")
    sound = make_archive(settings)
    if not verify_archive(sound).ok:
        raise BrokenHarnessError("verify fails an archive that nobody has tampered with")
    return [partial(_tamper, name, settings.db_path, sound, f"{seed}-{n}", what) for n in rounds for what in deeds]


def _tamper(name: str, db: Path, sound: Path, seed: str, what: str, folder: Path) -> Outcome:
    copy = folder / "tampered" / "runs"
    shutil.copytree(sound, copy)
    (_FLIP | TAMPERINGS)[what](Tampering(copy, settings_of(db), Random(f"{seed}-{what}")))  # noqa: S311 - to be repeatable
    if name == "sound":
        found = not verify_archive(copy).ok
    else:
        found = (_by_names_and_sizes if what in _FLIP else _by_own_hashes)(copy, sound)
    return Outcome(1, int(_content(copy) != _content(sound)), "" if found else f"not found: {what}, seed {seed}")


def _content(archive: Path) -> dict[Path, tuple[bool, bytes]]:
    found = (path for path in archive.rglob("*") if not path.is_dir())
    return {
        path.relative_to(archive): (path.is_symlink(), path.read_bytes() if path.is_file() else b"") for path in found
    }
