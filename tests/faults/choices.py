"""What restore takes, what a drill says, and what a refusal leaves.

Of three backups a restoration takes the newest, or refuses and names what is wrong with it; a drill says what the
restoration then does; a refusal of any verb changes nothing. The controls take the newest file that passes the
runbook's own validation, restore into a new file and are content with integrity_check, or keep a copy and go on with
what was begun before they ask whether they may.
"""

import asyncio
import inspect
import re
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from random import Random

from damage import MEMORY, TASK, flip_bits, run_sql
from forms import MODES, PAGES, made
from manifests import as_before, redated, rewritten
from situations import CHANGING, READING, SITUATIONS, VERBS, prepared, tree

import abathur_nb as nb
from abathur_nb.backups.aside import complete
from abathur_nb.backups.manifest import Backup, Content, list_backups, read_backup
from abathur_nb.config.settings import Settings, resolve
from abathur_nb.store.schema import expected_objects
from faults.experiments import Experiment, Outcome, content_of, fault_in, first_backup

_HARMLESS = (
    "SELECT 1",
    "CREATE TABLE IF NOT EXISTS _litestream_lock (id INTEGER)",
    "CREATE UNIQUE INDEX IF NOT EXISTS idx_extra ON audit (id, result)",
    "CREATE VIRTUAL TABLE IF NOT EXISTS places USING rtree(id, low, high)",
    f"{TASK.replace('INSERT', 'INSERT OR REPLACE')}; UPDATE tasks SET input_data = '{{', priority = 99",
    "INSERT INTO audit (action_type, agent_id) VALUES ('x', 'none')",
    "UPDATE memory_entries SET created_at = '9999-01-01 00:00:00.000' WHERE namespace = 'user:a'",
    "UPDATE memory_entries SET value = '{}' WHERE id = 1; DELETE FROM sqlite_sequence",
)
_HARMFUL = ("DROP INDEX idx_audit_task", "ALTER TABLE audit ADD COLUMN more", "DROP TABLE metrics")
_CLOCKS = (timedelta(days=365), timedelta(days=-20_000))


def _rewritten(**facts: object) -> Callable[[Backup], object]:
    return lambda backup: rewritten(backup, **facts)


_SPOILING: tuple[Callable[[Backup], object], ...] = (
    lambda backup: backup.manifest.write_bytes(backup.manifest.read_bytes()[:-9]),
    *(lambda backup: flip_bits(backup.path, 9000), lambda backup: backup.manifest.unlink()),
    *(lambda backup: backup.path.unlink(), _rewritten(content={}), _rewritten(user_version=99), _rewritten(format=2)),
    _rewritten(proof={"restored_s": 1, "validated_s": 1, "findings": ["integrity", "values"]}),
    lambda backup: rewritten(backup, content={**backup.facts["content"], "digest": "0" * 64}),
)


def choose(name: str, settings: Settings, random: Random) -> tuple[bool, str]:
    """Make three backups, the newest of which serves or does not, and restore unasked."""
    told = []
    for number in range(2):
        change = random.choice((*_HARMLESS, *_HARMFUL[:1] * number)) if number else "SELECT 1"
        backup = _back_up(settings, f"old-{number}", change)
        if change in _HARMFUL:
            run_sql(settings.db_path, expected_objects()["idx_audit_task"].sql)
        if random.random() < 0.5:
            clock = random.choice(_CLOCKS)
            backup = redated(backup, clock + timedelta(days=number))
            told.append(f"the clock was off by {clock.days} days")
        if random.random() < 0.3:
            as_before(backup)
    fit = random.random() < 0.6
    change = random.choice(_HARMLESS[1:] if fit else ("SELECT 1", *_HARMFUL))
    newest = _back_up(settings, "newest", change)
    wanted = content_of(settings.db_path)
    if change == "SELECT 1":
        random.choice(_SPOILING if name == "sound" else _SPOILING[1:2])(newest)
    run_sql(settings.db_path, MEMORY.replace("'k'", "'since'"))
    before = content_of(settings.db_path)
    harm = _RESTORES[name](settings, newest, fit)
    after = content_of(settings.db_path)
    if not harm and after != (wanted if fit else before):
        harm = "another one was restored than the newest" if fit else "an older one was restored in silence"
    return before != wanted, f"{change}; {', '.join(told)}: {harm}" if harm else ""


def _back_up(settings: Settings, key: str, change: str) -> Backup:
    run_sql(settings.db_path, MEMORY.replace("'k'", f"'{key}'"), *change.split("; "))
    asyncio.run(nb.backup_database(settings, reason=key.replace("-", "_"))).raise_for_failures()
    return next(b for b in list_backups(settings.backup_dir)[0] if b.facts["reason"] == key.replace("-", "_"))


def _restore(settings: Settings, newest: Backup, fit: bool) -> str:
    drill = asyncio.run(nb.restore_database(settings, drill=True))
    report = asyncio.run(nb.restore_database(settings, apply=True))
    if fit in (report.refused, drill.refused):
        return f"{'refused' if fit else 'not refused'}: {drill.summary}, {report.summary}"
    if newest.path.name not in str(report):
        return f"{newest.path.name} is not named"
    if not fit:  # an older one wants a name, by which it serves
        named = re.findall(r"-p backup (\S+?)(?=;|$)", next(check.remedy for check in report.checks if check.failed))
        if not named or not all(asyncio.run(nb.restore_database(settings, backup=name)).ok for name in named):
            return f"what is named does not serve: {named}"
    return ""


def _restore_naively(settings: Settings, _newest: Backup, _fit: bool) -> str:
    files = sorted(settings.backup_dir.glob("abathur_*.db"), key=lambda path: path.name.split("_", 2)[-1][-22:])
    names = ", ".join(f"'{name}'" for name in expected_objects())
    strange = f"SELECT count(*) FROM sqlite_master WHERE name NOT LIKE 'sqlite%' AND name NOT IN ({names})"
    missing = f"SELECT count(*) <> {len(expected_objects())} FROM sqlite_master WHERE name IN ({names})"
    broken = "SELECT count(*) FROM tasks WHERE NOT json_valid(input_data)"
    sound = [path for path in files if not fault_in(path, strange, missing, broken)]
    for suffix in ("-wal", "-shm"):
        Path(f"{settings.db_path}{suffix}").unlink(missing_ok=True)
    shutil.copy(sound[-1], settings.db_path)
    return ""


_RESTORES = {"sound": _restore, "naive": _restore_naively}


# --- drills and restorations between page sizes


def drills(name: str, every: int, seed: int, folder: Path) -> list[Experiment]:
    """Return the experiments: the backup of each page size, into a database of each."""
    backups = [_backup(folder / f"{name}-{size}" / "abathur.db", size) for size in PAGES]
    pairs = [(size, backup) for size in PAGES for backup in backups]
    return [partial(_drill, name, *pair) for pair in pairs[seed % every :: every]]


def _backup(path: Path, size: int) -> Path:
    settings = asyncio.run(made(path, page_size=size))
    asyncio.run(nb.backup_database(settings)).raise_for_failures()
    return first_backup(settings).path


def _drill(name: str, size: int, backup: Path, folder: Path) -> Outcome:
    settings = asyncio.run(made(folder / "data" / "abathur.db", page_size=size, mode=MODES[size // 512 % len(MODES)]))
    wanted = read_backup(backup).content
    drilled, restored = (_drill_and_restore if name == "sound" else _drill_naively)(settings, backup, wanted)
    says = f"the drill says {'yes' if drilled else 'no'}, the restoration {'works' if restored else 'fails'}"
    right = drilled and restored if name == "sound" else drilled == restored
    return Outcome(1, 1, "" if right else f"{backup.parents[1].name} into {size} bytes a page: {says}")


def _drill_and_restore(settings: Settings, backup: Path, wanted: Content) -> tuple[bool, bool]:
    drill = asyncio.run(nb.restore_database(settings, backup=backup, drill=True))
    report = asyncio.run(nb.restore_database(settings, backup=backup, apply=True))
    return drill.ok, report.ok and content_of(settings.db_path) == wanted


def _drill_naively(settings: Settings, backup: Path, wanted: Content) -> tuple[bool, bool]:
    with closing(sqlite3.connect(backup)) as source, closing(sqlite3.connect(":memory:")) as scratch:
        source.backup(scratch)
        drilled = scratch.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        try:
            with closing(sqlite3.connect(settings.db_path)) as live:
                source.backup(live)
        except sqlite3.Error:
            return drilled, False
    return drilled, content_of(settings.db_path) == wanted


# --- refusals


def refusals(name: str, every: int, seed: int, folder: Path) -> list[Experiment]:
    """Return the experiments: each verb, in each situation."""
    template = prepared(folder / f"template-{name}")
    pairs = [(situation, verb) for situation in SITUATIONS for verb in VERBS]
    return [partial(_refuse, name, template, *pair) for pair in pairs[seed % every :: every]]


def _refuse(name: str, template: Path, situation: str, verb: str, folder: Path) -> Outcome:
    make, changes, given, meanwhile = SITUATIONS[situation]
    shutil.copytree(template, folder, symlinks=True)
    settings = replace(resolve("development", db_path=folder / "data" / "abathur.db"), **changes)
    make(settings)
    with meanwhile(settings):
        before = tree(folder)
        refused, harm = (
            asyncio.run(_run(situation, verb, settings, given)) if name == "sound" else _change_and_ask(settings)
        )
        after = tree(folder)
    if refused and (changed := sorted(x for x in before.keys() | after.keys() if before.get(x) != after.get(x))):
        harm = f"refused, and changed {', '.join(changed)}"
    return Outcome(1, 1, f"{verb}, {situation}: {harm}" if harm else "")


async def _run(situation: str, verb: str, settings: Settings, given: object) -> tuple[bool, str]:
    result = VERBS[verb](settings, **given)  # type: ignore[arg-type]
    result = await result if inspect.isawaitable(result) else result
    report = getattr(result, "report", result)
    refused = getattr(report, "refused", verb in READING)
    if silent := [check.name for check in getattr(report, "checks", ()) if check.failed and not check.remedy]:
        return refused, f"no remedy for {', '.join(silent)}"
    forbidden = verb in CHANGING and ("confirm" in situation or "unapproved" in situation)
    if verb == "put back" and ("begun" in situation or "absent" in situation):
        forbidden = False
    return refused, "not refused" if forbidden and not refused else ""


def _change_and_ask(settings: Settings) -> tuple[bool, str]:
    with suppress(OSError, nb.AbathurError):
        complete(settings.db_path)
    with suppress(OSError):
        settings.backup_dir.mkdir(exist_ok=True)
        if settings.db_path.is_file():
            shutil.copy(settings.db_path, settings.backup_dir / "before.db")
    with suppress(sqlite3.Error), closing(sqlite3.connect(settings.db_path.with_name("lock.db"))) as conn:
        conn.execute("PRAGMA user_version = 1")
    return True, ""
