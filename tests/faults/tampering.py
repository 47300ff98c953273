"""Sweeps over an archive: any byte flipped, and what else is done to evidence; ``verify`` must find each."""

import json
import shutil
from collections.abc import Callable, Sequence
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

    def run(self) -> Path:
        """Choose the folder of an archived run."""
        return self.two()[0]

    def two(self) -> tuple[Path, Path]:
        """Choose the folders of two archived runs."""
        one, other = self.random.sample(sorted(path.parent for path in self.archive.glob(f"*/{STATEMENT}")), 2)
        return one, other

    def file(self) -> Path:
        """Choose a file."""
        return self.random.choice(_files(self.archive))

    def lines(self) -> list[bytes]:
        """Return the lines of the ledger."""
        return (self.archive / LEDGER).read_bytes().splitlines(keepends=True)

    def write(self, lines: list[bytes]) -> None:
        """Replace the lines of the ledger."""
        (self.archive / LEDGER).write_bytes(b"".join(lines))


def _files(archive: Path) -> list[Path]:
    return sorted(path for path in archive.rglob("*") if path.is_file())


def _cut(made: Tampering) -> None:
    cut(made.file(), made.random)


def _lengthen(made: Tampering) -> None:
    lengthen(made.file(), made.random)


def _take_file(made: Tampering) -> None:
    path = made.run() / made.random.choice(_FILES)
    path.unlink()


def _take_ledger(made: Tampering) -> None:
    (made.archive / LEDGER).unlink()


def _take_run(made: Tampering) -> None:
    shutil.rmtree(made.run())


def _take_line(made: Tampering) -> None:
    lines = made.lines()
    number = made.random.randrange(len(lines))
    made.write(lines[:number] + lines[number + 1 :])


def _take_run_and_line(made: Tampering) -> None:
    """Take away what tells of a run, but for the chain."""
    folder = made.run()
    shutil.rmtree(folder)
    made.write([line for line in made.lines() if folder.name.encode() not in line])


def _swap_lines(made: Tampering) -> None:
    lines = made.lines()
    one, other = sorted(made.random.sample(range(len(lines)), 2))
    lines[one], lines[other] = lines[other], lines[one]
    made.write(lines)


def _swap_files(made: Tampering) -> None:
    one, other = made.two()
    name = made.random.choice(_FILES)
    aside = one / ".aside"
    (one / name).rename(aside)
    (other / name).rename(one / name)
    aside.rename(other / name)


def _swap_runs(made: Tampering) -> None:
    one, other = made.two()
    aside = made.archive / ".aside"
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def _change_number(made: Tampering) -> None:
    path = made.run() / RECORD
    record = unsealed(path.read_bytes())
    record["facts"]["rows"]["tasks"] += 1
    path.write_bytes(sealed(record))


def _change_verdict(made: Tampering) -> None:
    """Rewrite everything that tells of a run consistently, but for the chain behind it."""
    folder = made.run()
    record = {**unsealed((folder / RECORD).read_bytes()), "verdict": "interrupted"}
    (folder / RECORD).write_bytes(sealed(record))
    hashes = {name: sha256((folder / name).read_bytes()) for name in (STARTED, RECORD, NOTEBOOK, PAGE)}
    (folder / STATEMENT).write_bytes(envelope(made.settings, read_run(Record, record), hashes))
    hashes[STATEMENT] = sha256((folder / STATEMENT).read_bytes())
    lines = []
    for line in made.lines():
        data = unsealed(line)
        if data["run_id"] == folder.name:
            data |= {"verdict": "interrupted", "files": hashes}
        lines.append(sealed(data))
    made.write(lines)


def _change_line(made: Tampering) -> None:
    lines = made.lines()
    number = made.random.randrange(len(lines))
    lines[number] = sealed({**unsealed(lines[number]), "env": "production"})
    made.write(lines)


def _change_form(made: Tampering) -> None:
    path = made.run() / made.random.choice((STARTED, RECORD, STATEMENT))
    path.write_text(json.dumps(json.loads(path.read_bytes()), indent=1))


def _link(made: Tampering) -> None:
    link(made.run() / made.random.choice(_FILES), made.random)


def _pipe(made: Tampering) -> None:
    pipe(made.file(), made.random)


def _add(made: Tampering) -> None:
    folder = made.random.choice((made.archive, made.run()))
    (folder / "notes.txt").write_text("all is well")


def _add_page(made: Tampering) -> None:
    """Let a run that was never sealed look like one."""
    (folder,) = (path.parent for path in made.archive.glob(f"*/{STARTED}") if not path.with_name(RECORD).exists())
    shutil.copy(made.run() / PAGE, folder)


def _replay(made: Tampering) -> None:
    """Append the first run of another archive, which began behind no line either."""
    folder = make_run(resolve("staging", db_path=made.archive.parent / "other" / "abathur.db"))
    (line,) = (folder.parent / LEDGER).read_bytes().splitlines(keepends=True)
    shutil.move(folder, made.archive)
    made.write([*made.lines(), sealed({**unsealed(line), "previous": sha256(made.lines()[-1])})])


def _copy_run(made: Tampering) -> None:
    shutil.copytree(made.run(), made.archive / "20261123T101500123Z-9f3ac1")


TAMPERINGS: tuple[Callable[[Tampering], None], ...] = (
    *(_cut, _lengthen, _take_file, _take_ledger, _take_run, _take_line, _take_run_and_line),
    *(_swap_lines, _swap_files, _swap_runs, _change_number, _change_verdict, _change_line, _change_form),
    *(_link, _pipe, _add, _add_page, _replay, _copy_run),
)


def _flip(made: Tampering) -> None:
    flip(made.file(), made.random)


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
    return _plan(name, (_flip,), range(seed % every, 1000, every), seed, folder)


def tamperings(name: str, every: int, seed: int, folder: Path) -> list[Experiment]:
    """Return the experiments: each does something else to an archive; the control knows no ledger."""
    return _plan(name, TAMPERINGS, range(seed % every, 20, every), seed, folder)


def _plan(
    name: str, chosen: Sequence[Callable[[Tampering], None]], rounds: range, seed: int, folder: Path
) -> list[Experiment]:
    settings = settings_of(folder / name / "data" / "abathur.db")
    sound = make_archive(settings)
    if not verify_archive(sound).ok:
        raise BrokenHarnessError("verify fails an archive that nobody has tampered with")
    return [
        partial(_tamper, name, settings.db_path, sound, f"{seed}-{n}", tampering)
        for n in rounds
        for tampering in chosen
    ]


def _tamper(
    name: str, db: Path, sound: Path, seed: str, tampering: Callable[[Tampering], None], folder: Path
) -> Outcome:
    copy = folder / "tampered" / "runs"
    shutil.copytree(sound, copy)
    tampering(Tampering(copy, settings_of(db), Random(f"{seed}-{tampering.__name__}")))  # noqa: S311 - to be repeatable
    if name == "sound":
        found = not verify_archive(copy).ok
    else:
        found = (_by_names_and_sizes if tampering is _flip else _by_own_hashes)(copy, sound)
    harm = "" if found else f"not found: {tampering.__name__.strip('_')}, seed {seed}"
    return Outcome(1, int(_content(copy) != _content(sound)), harm)


def _content(archive: Path) -> dict[Path, tuple[bool, bytes]]:
    found = (path for path in archive.rglob("*") if not path.is_dir())
    return {
        path.relative_to(archive): (path.is_symlink(), path.read_bytes() if path.is_file() else b"") for path in found
    }
