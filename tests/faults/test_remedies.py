"""What a remedy says can be pasted, and does what it says: the package's own verbs first, the sqlite3 shell last."""

import ast
import asyncio
import json
import re
import shlex
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from damage import MEMORY, ROWS, drop_check, drop_index, held, run_sql
from oddities import ODD, ODD_TABLES
from sampling import sampled
from situations import SITUATIONS, free, prepared

import abathur_nb as nb
from abathur_nb.config.settings import Settings
from abathur_nb.report import Report
from abathur_nb.text import SHELL

ROOT = Path(__file__).parents[2]
COMMANDS = "chmod|conda|df|du|export|find|fuser|ls|mkdir|mv|namei|papermill|python|rm|sqlite3|sudo"
SAFE = ("quote(", "' '.join(map(quote", "600 if ", "as_user(")  # quoted, a mode, or a user
SAFE_NAMES = [
    "quoted",
    "q",
    "given",
    "folder",
    "settings.as_arguments",
    "settings.env",
    "timer",
    "earlier.run_id",
    "later.run_id",
]
# A command begins a sentence or stands behind a colon, and reaches to the next sentence.
COMMAND = re.compile(rf"(?:^|[:;,] |&& |then )((?:{COMMANDS}) [^;]*?)(?=$|; |, | && |: )", re.MULTILINE)


def test_no_value_stands_in_a_command_unquoted() -> None:
    faults = []
    for path in sorted((ROOT / "abathur_nb").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in (node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)):
            before = ""
            for part in node.values:
                if isinstance(part, ast.FormattedValue):
                    value = ast.unparse(part.value)
                    in_command = re.search(rf"(?:^|[:;,(] |&& |then )(?:{COMMANDS}) [^;:&]*$", before)
                    if in_command and not value.startswith(SAFE) and value not in SAFE_NAMES:
                        faults.append(f"{path.relative_to(ROOT)}:{node.lineno}: {value} in {before!r}")
                    before += "…"
                else:
                    before += str(part.value) if isinstance(part, ast.Constant) else ""
    assert not faults


def test_no_text_of_the_package_sends_anybody_to_a_shell_of_any_version() -> None:
    told = [
        f"{path.relative_to(ROOT)}: {text}"
        for path in sorted((ROOT / "abathur_nb").rglob("*.py"))
        for text in re.findall(r".*\bsqlite3 ['\"…{/-].*", path.read_text(encoding="utf-8"))
    ]
    assert told == []
    assert "3.51.3 or newer" in SHELL


def utf_16(path: Path) -> None:
    """Make the database again as UTF-16, as a program with another default might."""
    other = path.with_name("other.db")
    with closing(sqlite3.connect(path)) as conn:
        script = "\n".join(line for line in conn.iterdump() if "sqlite_sequence" not in line)
        ids = [conn.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
    with closing(sqlite3.connect(other)) as conn:
        conn.executescript(f"PRAGMA encoding = 'UTF-16'; {script}")
        conn.executescript(
            f"PRAGMA application_id = {ids[0]}; PRAGMA user_version = {ids[1]};PRAGMA journal_mode = WAL;"
        )
    other.chmod(0o600)
    other.replace(path)


def spoil_index(path: Path) -> None:
    """Empty an index, and leave its table."""
    with closing(sqlite3.connect(path)) as conn:
        (page,) = conn.execute("SELECT rootpage FROM sqlite_master WHERE name = 'idx_tasks_submitted_at'").fetchone()
    with path.open("r+b") as file:
        file.seek(4096 * (page - 1))
        file.write(bytes([10, 0, 0, 0, 0, 16, 0, 0]))


def hot_journal(path: Path) -> None:
    """Kill a writer in the middle of a transaction that has reached the file."""
    run_sql(path, "PRAGMA journal_mode = DELETE")
    rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 999) "
    spill = f"{rows} INSERT INTO metrics (metric_name, metric_value) SELECT hex(randomblob(500)), i FROM n"
    with held(path, "PRAGMA cache_size = 1", "BEGIN IMMEDIATE", spill):
        assert Path(f"{path}-journal").stat().st_size > 512


def sql(*statements: str) -> Callable[[Path], None]:
    return lambda path: run_sql(path, *statements)


def destroy_header(path: Path) -> None:
    path.write_bytes(bytes(100) + path.read_bytes()[100:])


def another_format(path: Path) -> None:
    """Let the header say that indexes know no DESC."""
    run_sql(path, *(MEMORY.replace("'k'", f"'k{n}'") for n in range(9)))
    path.write_bytes(path.read_bytes()[:47] + b"\2" + path.read_bytes()[48:])


def destroy_rows(path: Path) -> None:
    run_sql(path, *(MEMORY.replace("'k'", f"'k{n}'") for n in range(200)))
    with closing(sqlite3.connect(path)) as conn:
        (page,) = conn.execute("SELECT rootpage FROM sqlite_master WHERE name = 'tasks'").fetchone()
    with path.open("r+b") as file:
        file.seek(4096 * (page - 1))
        file.write(b"\xff" * 4096)


REPAIRED: dict[str, Callable[[Path], object]] = {
    "journal mode": sql("PRAGMA journal_mode = DELETE"),
    "a missing index": drop_index,
    "an index without its entries": spoil_index,
    "an altered table": drop_check,
    "a renamed column": sql("ALTER TABLE tasks RENAME COLUMN submitted_at TO submitted"),
    "a renamed table": sql("ALTER TABLE tasks RENAME TO jobs"),
    "broken JSON": sql("UPDATE tasks SET input_data = '{broken'"),
    "a lost reference": sql("INSERT INTO state (task_id, key, value) VALUES ('gone', 'k', '{}')"),
    "a counter": sql("UPDATE sqlite_sequence SET seq = 0"),
    "a seed": sql("DELETE FROM memory_entries WHERE key = 'default_workflow'"),
    "modes": partial(Path.chmod, mode=0o644),
    "a hot journal": hot_journal,
}
LEFT: dict[str, Callable[[Path], object]] = {
    "UTF-16": utf_16,
    "no header": destroy_header,
    "lost pages": destroy_rows,
    "a lost byte": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "another schema format": another_format,
    "an extra table": sql("CREATE TABLE extra (x)"),
    "an extra column": sql("ALTER TABLE tasks ADD COLUMN x NOT NULL DEFAULT 1"),
    "a dropped column": sql("ALTER TABLE tasks DROP COLUMN error_message"),
    "a column in another place": sql("ALTER TABLE tasks DROP COLUMN prompt", "ALTER TABLE tasks ADD COLUMN p TEXT"),
    "a trigger": sql("CREATE TRIGGER t AFTER DELETE ON agents BEGIN SELECT 1; END"),
    "an empty shell": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("plain\n" * 100),
    "nothing": Path.unlink,
    "another application's": sql("PRAGMA application_id = 7"),
    "a newer one": sql("PRAGMA user_version = 9"),
    "a wrong value": sql("INSERT INTO tasks (id, prompt, status) VALUES ('x', 'p', 'WHATEVER')"),
    "a second name": lambda path: path.with_name("second").hardlink_to(path),
}


@pytest.fixture
def odd(tmp_path: Path) -> Settings:
    """Return the settings of a database whose path a shell would take apart."""
    settings = nb.resolve("staging", db_path=tmp_path / "it's a place" / "the $DB.db")
    asyncio.run(nb.initialize_database(settings)).raise_for_failures()
    run_sql(settings.db_path, *ROWS)
    return settings


async def every_report(settings: Settings, *, repair: bool = False) -> list[Report]:
    verbs = [nb.initialize_database, nb.validate_database, nb.troubleshoot, nb.backup_database, nb.preflight]
    verbs += [nb.restore_database, partial(nb.roll_back, to="fresh"), partial(nb.troubleshoot, repair=repair)]
    return [await verb(settings) for verb in verbs]


def commands(reports: list[Report]) -> Iterator[str]:
    for check in (check for report in reports for check in report.checks if check.status != "pass"):
        for line in (check.remedy, check.remedy.partition("by hand: ")[2]):
            yield from (match[1] for match in COMMAND.finditer(line))


@pytest.mark.parametrize("name", sampled([*REPAIRED, *LEFT], *("a renamed table", "no header", "nothing", "text")))
def test_each_command_names_the_very_path_and_notebook_and_parameters(name: str, odd: Settings) -> None:
    (REPAIRED | LEFT)[name](odd.db_path)
    found = {*commands(asyncio.run(every_report(odd, repair=True)))}
    assert found
    for command in found:
        subprocess.run(["bash", "-n", "-c", command], check=True)
        words = shlex.split(command) if "$(" not in command else []
        places = [word for word in words if "place" in word]
        assert all(Path(place.rpartition("=")[2]).is_relative_to(odd.db_path.parent) for place in places), command
        if words[:1] == ["papermill"]:
            cells = json.loads((ROOT / "notebooks" / words[1]).read_text(encoding="utf-8"))["cells"]
            declared = next("".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", ()))
            given = {words[n + 1]: words[n + 2] for n, word in enumerate(words) if word == "-p"}
            assert all(re.search(rf"^{name}\b", declared, re.MULTILINE) for name in given), command
            assert given["env"] == odd.env
            assert Path(given["db_path"]).is_relative_to(odd.db_path.parent)
        if words and words[0] in ("df", "du", "ls", "namei"):  # they only look
            subprocess.run(["bash", "-c", command], check=True, capture_output=True)


@pytest.mark.parametrize("name", sampled(REPAIRED, "a counter", "modes", "a hot journal"))
async def test_the_command_that_validate_names_repairs(name: str, odd: Settings) -> None:
    REPAIRED[name](odd.db_path)
    report = await nb.validate_database(odd)
    failed = [check for check in report.checks if check.status in ("fail", "error")]
    failed = [check for check in failed if check.remedy != "first repair what the checks above name"]
    assert failed
    for check in failed:
        command = f"papermill troubleshoot.ipynb out.ipynb -p env staging -p db_path {shlex.quote(str(odd.db_path))}"
        assert command in check.remedy
    for _ in range(2):  # behind a hot journal there may be another fault
        report = await nb.troubleshoot(odd)
        plan = next((check for check in report.checks if check.name == "plan"), None)
        if plan is None:
            break
        told = re.search(r"-p repair True(?: -p confirm (\w+))?", plan.remedy)
        assert told
        await nb.troubleshoot(odd, repair=True, confirm=told[1])
    (await nb.validate_database(odd)).raise_for_failures()


async def test_a_database_in_utf_16_is_written_as_utf_8_with_all_its_rows(odd: Settings) -> None:
    utf_16(odd.db_path)
    plan = next(c for c in (await nb.troubleshoot(odd)).checks if c.name == "plan")
    report = await nb.troubleshoot(odd, repair=True, confirm=plan.observed.split()[1])
    told = next(check for check in report.checks if check.name == "salvaged")
    assert "of 9 tables 9 intact; it is valid" in told.observed
    (salvaged,) = odd.backup_dir.glob("abathur_salvaged_*.sqlite")
    with closing(sqlite3.connect(salvaged)) as conn:
        assert conn.execute("PRAGMA encoding").fetchone() == ("UTF-8",)
        assert conn.execute("SELECT count(*) FROM tasks").fetchone() == (1,)


RUNS: dict[str, Callable[..., Any]] = {
    "init": nb.initialize_database,
    "validate": nb.validate_database,
    "troubleshoot": nb.troubleshoot,
    "backup": nb.backup_database,
    "restore": nb.restore_database,
    "rollback": nb.roll_back,
    "preflight": nb.preflight,
}
GIVEN = re.compile(r"-p (\w+) ('[^']*'|[^\s;,]+)")
NAMED = re.compile(rf"\b({'|'.join(RUNS)})\.ipynb((?: [\w/]+\.ipynb)?(?: -p \w+ (?:'[^']*'|[^\s;,]+))*)")
Run = tuple[str, frozenset[tuple[str, str]]]


def runs_in(remedy: str, this: Run, settings: Settings) -> Iterator[Run]:
    """Yield the runs to which a remedy sends an operator: of a notebook that it names, or this one with more."""
    remedy = re.sub(r"(?:&&|mv -n|1\. stop) .*", "", remedy)  # what comes after a change by hand
    for verb, words in NAMED.findall(remedy):
        given = dict(GIVEN.findall(words))
        if shlex.split(given.pop("db_path", str(settings.db_path))) == [str(settings.db_path)]:
            yield verb, frozenset((name, value) for name, value in given.items() if name != "env")
    if more := GIVEN.findall(NAMED.sub("", remedy)):
        yield this[0], frozenset({**dict(this[1]), **dict(more)}.items())


async def follow(run: Run, settings: Settings, path: tuple[Run, ...], acted: tuple[Run, ...] = ()) -> None:
    """Follow the remedies of a run to their ends: none returns to what was run before, until something was changed."""
    assert run not in path, f"in a circle: {path} {run}"
    verb, given = run
    values = {name: value == "True" if value in ("True", "False") else value for name, value in given}
    acts = verb in ("init", "backup") or bool(values.keys() & {"apply", "repair"})
    assert not acts or run not in acted, f"done again: {acted} {run}"
    report = await RUNS[verb](settings, **({"to": "fresh"} if verb == "rollback" else {}), **values)
    path, acted = ((run,), (*acted, run)) if acts and not report.refused else ((*path, run), acted)
    found = [run_ for check in report.checks if check.status != "pass" for run_ in runs_in(check.remedy, run, settings)]
    # What changes the database last.
    for then in sorted(dict.fromkeys(found), key=lambda one: bool({"apply", "repair"} & {*dict(one[1])})):
        await follow(then, settings, path, acted)


ODDITIES: dict[str, Callable[[Path], object]] = {name: sql(*lines) for name, lines in (ODD | ODD_TABLES).items()}
OTHER = {"a newer schema": sql("DROP INDEX idx_tasks_parent", "PRAGMA user_version = 9")}
DAMAGES = REPAIRED | LEFT | ODDITIES | OTHER
# With a backup of it, and without one.
ENDS = [*product((name for name in DAMAGES if name not in ("columns that cost", "2000 columns")), (True, False))]
# Those that end with nobody in the way.
MADE = {name: make for name, (make, _, given, place) in SITUATIONS.items() if place is free and not given}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("template"))


@pytest.mark.parametrize("at", sampled(ENDS, *ENDS[::9]), ids=str)
async def test_no_remedy_of_a_damage_leads_in_a_circle(at: tuple[str, bool], database: Settings) -> None:
    name, backup = at
    settings = replace(database, confirm_changes=True)
    run_sql(settings.db_path, *ROWS)
    if backup:
        (await nb.backup_database(settings)).raise_for_failures()
    DAMAGES[name](settings.db_path)
    await follow(("validate", frozenset()), settings, ())


@pytest.mark.parametrize("name", sampled(MADE, *list(MADE)[::6]))
async def test_no_remedy_in_a_situation_leads_in_a_circle(name: str, template: Path, tmp_path: Path) -> None:
    folder = tmp_path / "x"
    shutil.copytree(template, folder, symlinks=True)
    settings = nb.resolve("development", db_path=folder / "data" / "abathur.db")
    MADE[name](settings)
    await follow(("validate", frozenset()), replace(settings, confirm_changes=True), ())


@pytest.mark.parametrize(
    "name",
    sampled(sorted({*ODD} - {"a module that is absent"}), "fts5", "a view of itself", "a trigger"),
)
async def test_the_command_that_drops_what_does_not_belong_here_ends_it(name: str, database: Settings) -> None:
    run_sql(database.db_path, *ODD[name])
    for verb in (nb.validate_database, nb.troubleshoot):
        (told,) = {check.remedy for check in (await verb(database)).checks if check.failed}
        assert "troubleshoot" not in told
        assert "validate" not in told
    path, statement, *_ = shlex.split(told.rpartition("sqlite3 ")[2].partition("; a virtual")[0])
    run_sql(Path(path), *filter(None, statement.split(";")))
    (await nb.validate_database(database)).raise_for_failures()
