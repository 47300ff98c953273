"""Sweeps over an archive: any byte flipped, and what else is done to evidence; ``verify`` must find each."""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from faults.experiments import BrokenHarnessError, Result
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


@dataclass(frozen=True, slots=True)
class ArchiveSweep:
    """Name a sweep over an archive: the tamperings, how often each is tried, and a control that finds too little."""

    title: str
    tamperings: Sequence[Callable[[Tampering], None]]
    rounds: int
    control: Callable[[Path, Path], bool]

    def run(self, folder: Path, every: int, seed: int) -> Result:
        """Tamper with a fresh copy of one archive in every n-th round, and see whether ``verify`` finds it."""
        result, started = Result(self.title), time.monotonic()
        settings = resolve("development", db_path=folder / "data" / "abathur.db")
        sound, copy = make_archive(settings), folder / "tampered" / "runs"
        if not verify_archive(sound).ok:
            raise BrokenHarnessError("verify fails an archive that nobody has tampered with")
        for number in range(seed % every, self.rounds, every):
            for tampering in self.tamperings:
                random = Random(f"{seed}-{number}-{tampering.__name__}")  # noqa: S311 - to be repeatable
                shutil.copytree(sound, copy)
                tampering(Tampering(copy, settings, random))
                result.experiments += 1
                result.injected += 1
                result.struck += _content(copy) != _content(sound)
                if verify_archive(copy).ok:
                    result.harms.append(f"not found: {tampering.__name__.strip('_')}, seed {seed}-{number}")
                else:
                    result.survived += 1
                result.control += 1
                result.control_damaged += not self.control(copy, sound)
                shutil.rmtree(copy.parent)
        result.seconds = time.monotonic() - started
        return result


def _content(archive: Path) -> dict[Path, tuple[bool, bytes]]:
    found = (path for path in archive.rglob("*") if not path.is_dir())
    return {
        path.relative_to(archive): (path.is_symlink(), path.read_bytes() if path.is_file() else b"") for path in found
    }


TAMPERING_SWEEPS = {
    "flip": ArchiveSweep("a byte of an archive flipped", (_flip,), 1000, _by_names_and_sizes),
    "tamper": ArchiveSweep("an archive tampered with otherwise", TAMPERINGS, 20, _by_own_hashes),
}
