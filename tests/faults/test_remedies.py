"""What a remedy says can be pasted and does what it says, no secret of a URL is in it, and systemd reads a schedule."""

import ast
import asyncio
import inspect
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from inspect import isawaitable
from itertools import product
from pathlib import Path, PurePath
from typing import Any

import pytest
from damage import (
    MEMORY,
    ROWS,
    drop_check,
    drop_index,
    empty_index,
    fingerprint,
    held,
    run_as_other,
    run_sql,
    spoil_table,
)
from forms import remake
from oddities import ODD, ODD_TABLES
from sampling import sampled
from situations import SITUATIONS, VERBS, begun, free, in_the_log, leave, other_form, prepared

import abathur_nb as nb
from abathur_nb.cli import main
from abathur_nb.config.settings import SECRET_SETTINGS, Settings, resolve
from abathur_nb.errors import AbathurError, ConfigurationError
from abathur_nb.evidence.archive import declared_in, read_source
from abathur_nb.report import Report
from abathur_nb.store.sql import DATA
from abathur_nb.text import SHELL, url_fault, without_url_secrets

ROOT = Path(__file__).parents[2]
COMMANDS = "chmod|conda|df|du|export|find|fuser|ls|mkdir|mv|namei|python|rm|sqlite3|sudo"
SAFE = ("quote(", "join(", "600 if ", "700 if ")  # quoted, or a mode
SAFE_NAMES = {"quoted", "q", "user", "given", "folder", "settings.env", "timer", "earlier.run_id", "later.run_id"}
# A command begins a sentence or stands behind a colon, and reaches to the next sentence.
COMMAND = re.compile(rf"(?:^|[:;,] |&& |then )((?:/\S*/python|{COMMANDS}) [^;]*?)(?=$|; |, | && |: )", re.MULTILINE)


def test_no_value_stands_in_a_command_unquoted_and_no_text_sends_anybody_to_a_shell_of_any_version() -> None:
    faults = []
    for path in sorted((ROOT / "abathur_nb").rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        faults += re.findall(r".*\bsqlite3 ['\"…{/-].*", source)
        for node in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.JoinedStr)):
            before = ""
            for part in node.values:
                if isinstance(part, ast.FormattedValue):
                    value = ast.unparse(part.value)
                    in_command = re.search(rf"(?:^|[:;,(] |&& |then )(?:{COMMANDS}) [^;:&]*$", before)
                    if in_command and not value.startswith(SAFE) and value not in SAFE_NAMES:
                        faults.append(f"{path.relative_to(ROOT)}:{node.lineno}: {value} in {before!r}")
                before += str(part.value) if isinstance(part, ast.Constant) else "…"
    assert not faults
    assert "3.51.3 or newer" in SHELL


def utf_16(path: Path) -> None:
    remake(path, encoding="UTF-16")


def hot_journal(path: Path) -> None:
    """Kill a writer in the middle of a transaction that has reached the file."""
    run_sql(path, "PRAGMA journal_mode = DELETE")
    rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 999) "
    spill = f"{rows} INSERT INTO metrics (metric_name, metric_value) SELECT hex(randomblob(500)), i FROM n"
    with held(path, "PRAGMA cache_size = 1", "BEGIN IMMEDIATE", spill):
        assert Path(f"{path}-journal").stat().st_size > 512


def sql(*statements: str) -> Callable[[Path], None]:
    return lambda path: run_sql(path, *statements)


def changed(change: Callable[[bytes], bytes], *statements: str) -> Callable[[Path], None]:
    def change_it(path: Path) -> None:
        run_sql(path, *statements)
        path.write_bytes(change(path.read_bytes()))

    return change_it


MEMORIES = [MEMORY.replace("'k'", f"'k{n}'") for n in range(200)]


def destroy_rows(path: Path) -> None:
    run_sql(path, *MEMORIES)
    spoil_table(path, "tasks")


REPAIRED: dict[str, Callable[[Path], object]] = {
    "journal mode": sql("PRAGMA journal_mode = DELETE"),
    "a missing index": drop_index,
    "an index without its entries": lambda path: empty_index(path, "idx_tasks_submitted_at"),
    "an altered table": drop_check,
    "broken JSON": sql("UPDATE tasks SET input_data = '{broken'"),
    "a lost reference": sql("INSERT INTO state (task_id, key, value) VALUES ('gone', 'k', '{}')"),
    "a counter": sql("UPDATE sqlite_sequence SET seq = 0"),
    "a seed": sql("DELETE FROM memory_entries WHERE key = 'default_workflow'"),
    "modes": partial(Path.chmod, mode=0o644),
    "a hot journal": hot_journal,
}
LEFT: dict[str, Callable[[Path], object]] = {
    "UTF-16": utf_16,
    "a renamed column": sql("ALTER TABLE tasks RENAME COLUMN submitted_at TO submitted"),
    "a renamed table": sql("ALTER TABLE tasks RENAME TO jobs"),
    "no header": changed(lambda content: bytes(100) + content[100:]),
    "lost pages": destroy_rows,
    "a lost byte": changed(lambda content: content[:-1]),
    # The header says that indexes know no DESC.
    "another schema format": changed(lambda content: content[:47] + b"\2" + content[48:], *MEMORIES[:9]),
    "an extra table": sql("CREATE TABLE extra (x)"),
    "an extra column": sql("ALTER TABLE tasks ADD COLUMN x NOT NULL DEFAULT 1"),
    "a dropped column": sql("ALTER TABLE tasks DROP COLUMN error_message"),
    "a column in another place": sql("ALTER TABLE tasks DROP COLUMN prompt", "ALTER TABLE tasks ADD COLUMN p TEXT"),
    "a trigger": sql("CREATE TRIGGER t AFTER DELETE ON agents BEGIN SELECT 1; END"),
    "an empty shell": changed(lambda _: b""),
    "text": changed(lambda _: b"plain\n" * 100),
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


RUNS: dict[str, Callable[..., Any]] = {"init": nb.initialize_database, "validate": nb.validate_database}
RUNS |= {"troubleshoot": nb.troubleshoot, "backup": nb.backup_database, "preflight": nb.preflight}
RUNS |= {"restore": nb.restore_database, "rollback": partial(nb.roll_back, to="fresh")}


def commands(reports: list[Report]) -> Iterator[str]:
    for check in (check for report in reports for check in report.checks if check.status != "pass"):
        for line in (check.remedy, check.remedy.partition("by hand: ")[2]):
            yield from (match[1] for match in COMMAND.finditer(line))


@pytest.mark.parametrize("name", sampled([*REPAIRED, *LEFT], *("a renamed table", "no header", "nothing", "text")))
def test_each_command_names_the_very_path_and_notebook_and_parameters(name: str, odd: Settings) -> None:
    (REPAIRED | LEFT)[name](odd.db_path)
    verbs: list[Callable[..., Any]] = [*RUNS.values(), partial(nb.troubleshoot, repair=True)]
    found = {*commands([asyncio.run(verb(odd)) for verb in verbs])}
    assert found
    for command in found:
        subprocess.run(["bash", "-n", "-c", command], check=True)
        words = shlex.split(command) if "$(" not in command else []
        places = [word for word in words if "place" in word]
        assert all(Path(place.rpartition("=")[2]).is_relative_to(odd.db_path.parent) for place in places), command
        if words[1:4] == ["-m", "abathur_nb", "run"]:
            given = {words[n + 1]: words[n + 2] for n, word in enumerate(words) if word == "-p"}
            assert given.keys() <= declared_in(read_source(words[4]).notebook).keys(), command
            assert words[5:7] == ["--env", odd.env]
            assert Path(given["db_path"]).is_relative_to(odd.db_path.parent)
        if words and words[0] in ("df", "du", "ls", "namei"):  # they only look
            subprocess.run(["bash", "-c", command], check=True, capture_output=True)


def test_the_command_of_a_remedy_runs_as_it_stands_from_any_directory(odd: Settings, tmp_path: Path) -> None:
    REPAIRED["a counter"](odd.db_path)
    (command,) = {c for c in commands([asyncio.run(nb.validate_database(odd))]) if "troubleshoot" in c}
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, "troubleshoot of staging: FAIL" in done.stdout) == (1, True), done.stdout + done.stderr


@pytest.mark.parametrize("name", sampled(REPAIRED, "a counter", "modes", "a hot journal"))
async def test_the_command_that_validate_names_repairs(name: str, odd: Settings) -> None:
    REPAIRED[name](odd.db_path)
    remedies = {check.remedy for check in (await nb.validate_database(odd)).checks if check.failed}
    remedies.discard("first repair the faults that other checks name")
    assert remedies
    assert all(shlex.join(odd.command("troubleshoot")) in remedy for remedy in remedies)
    for _ in range(2):  # behind a hot journal there may be another fault
        for plan in (check for check in (await nb.troubleshoot(odd)).checks if check.name == "plan"):
            told = re.search(r"-p repair True(?: -p confirm (\w+))?", plan.remedy)
            assert told
            await nb.troubleshoot(odd, repair=True, confirm=told[1])
    (await nb.validate_database(odd)).raise_for_failures()


GIVEN = re.compile(r"-p (\w+) ('[^']*'|[^\s;,]+)")
NAMED = re.compile(rf"\b({'|'.join(RUNS)})(?:\.ipynb| --env \w+)((?: -p \w+ (?:'[^']*'|[^\s;,]+))*)")
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
    report = await RUNS[verb](settings, **values)
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
    "name", sampled(sorted({*ODD} - {"a module that is absent"}), "fts5", "a view of itself", "a trigger")
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


PROGRAM = """
settings, refused = nb.resolve("development", db_path=sys.argv[1]), 0
for verb in (*situations.CHANGING, "backup"):
    before = situations.tree(Path(sys.argv[2]))
    report = asyncio.run(situations.VERBS[verb](settings))
    refused += report.refused
    assert not report.refused or situations.tree(Path(sys.argv[2])) == before, f"{verb}: {report}"
print(refused)
"""


Change = Callable[[Settings], None]


def given_away(template: Path, folder: Path, make: Change) -> Settings:
    """Make a copy of the template, and of it what is wanted, that belongs to another user."""
    shutil.copytree(template, folder)
    settings = resolve("development", db_path=folder / "data" / "abathur.db")
    make(settings)
    for path in (folder, *folder.rglob("*")):
        shutil.chown(path, 65534, 65534)
    return settings


@pytest.mark.parametrize(
    "at",
    sampled(
        product(("data", "data/backups", "data/abathur.db"), (leave, other_form, begun, in_the_log)),
        *(("data", begun), ("data/backups", leave), ("data/abathur.db", in_the_log)),
    ),
)
def test_who_may_not_write_changes_nothing(at: tuple[str, Change], template: Path, public: Path) -> None:
    (closed, make), folder = at, public / "x"
    settings = given_away(template, folder, make)
    (folder / closed).chmod(0o400 if closed.endswith(".db") else 0o500)
    imports = f"sys.path.insert(0, {str(Path(__file__).parents[1] / 'support')!r})\nimport mmap, situations, tqdm\n"
    # The bar of a slow backup comes before it.
    refused = run_as_other(PROGRAM, settings.db_path, folder, imports=imports).split()[-1]
    assert int(refused) >= (0 if closed.endswith(".db") else 3)


def test_a_plan_for_a_file_that_may_not_be_written_to_is_refused(template: Path, public: Path) -> None:
    settings = given_away(template, public / "x", leave)
    settings.db_path.chmod(0o400)
    program = """
settings = nb.resolve("development", db_path=sys.argv[1])
for apply in (False, True):
    report = asyncio.run(nb.roll_back(settings, to="fresh", apply=apply))
    print(report.refused, *(check.id for check in report.checks if check.failed))
"""
    told = run_as_other(program, settings.db_path, imports="import tqdm\n").splitlines()
    assert told == ["True writable"] * 2


def test_every_verb_of_the_package_is_in_the_sweep_over_refusals() -> None:
    takes_settings = {
        name
        for name in nb.__all__
        if inspect.isroutine(found := getattr(nb, name))
        and next(iter(inspect.signature(found).parameters), "") == "settings"
    }
    used = {name for run in VERBS.values() for name in run.__code__.co_names}
    # start_run writes the run's own record, which a refusal may leave; the others are about other databases, or none.
    assert takes_settings - used == {"start_run", "run_fleet", "show_workers"}


CANARY = "CANARY-0815"
SIGNED = f"https://h.example/b/x?X-Amz-Signature={CANARY}"
NAMES = """sso_token csrfToken webhook_secret q-signature API_KEY masterKey AWSAccessKeyId X-Amz-Credential password1
pass_word pwd"""
# Of each kind of place that holds a secret.
SECRET = [
    SIGNED,
    *(f"{scheme}://bucket/x?key={CANARY}" for scheme in ("S3", "simplecache::s3", "git+https", "file")),
    *(f"https://h/x{sign}{CANARY}" for sign in ("#", ";", "%3F", "%253F", "?a=b c&d=")),
    *(f"https://h{sign}{CANARY}" for sign in ("?", "#", ";", "%3f")),
    *(f"{scheme}://alice:{CANARY}@h/x" for scheme in ("s3", "HTTPS")),
    *(f"{user}@h/x" for user in (f"s3://a%3A{CANARY}", f"https://{CANARY}", f"s3://:{CANARY}", f"s3://k:a/{CANARY}")),
    *(f"https://{CANARY}%40h/x", f"https:/h/x?{CANARY}", f" https://h/x?{CANARY}", f"https:///h?{CANARY}"),
    *(f"{place}k?sig={CANARY}" for place in ("//host/", "https:host/", "host:8080/a/", "\\\\host\\", "./", "see h/")),
    *(f"host/k?v=1&{name}={CANARY}" for name in ("X-Amz-Signature", "access_token", "KEY", "%73ig")),
    *(f"host/k{sign}{CANARY}" for sign in ("#token=", ";jwt=", "%3Fsig%3D", "%253Fsig=", "?a#b&password=")),
    *(f'{{"url":"host/k?sig={CANARY}"}}', f"host%2Fk%3Fsig%3D{CANARY}"),
    *(f"github.com/o/r/x?v=1&{name}={CANARY}" for name in NAMES.split()),
    *(f"{place}{CANARY}" for place in ("my-app.azurewebsites.net/api/x?code=", "f.example/x?v=1&CODE=")),
    *(f"host.example.com{sign}{CANARY}" for sign in ("?sig=", "#token=", ":80?v=1&key=")),
    *(f"see user:{CANARY}@{host}/path" for host in ("host", "h.example:80", "[::1]")),
    *(f"user:{CANARY}%40h/x", f"user%3A{CANARY}@h/x", f"{CANARY}:x@h/x"),
    *(f"'{SIGNED}'", f"<{SIGNED}>", f"s3://open/x and https://a:{CANARY}@h/x"),
]
OPEN = """\
s3://bucket/x|s3://bucket|S3://bucket/a@b|s3://bucket/a:b@c|s3://bucket/%20x/|memory://x|http://localhost:9000/a@b
sftp://alice@host:22/x|abfs://container@account.dfs.core.windows.net/x|/data/a?b#c;d.db|~/x#1|a@b:c|user:alice:likes?
C:/x?|what? a/b|Ada Lovelace, 2026-11-20|see https://wiki/page; then ask|as said? https://wiki/page: why?
's3://bucket/x'|is it done? yes|a/b? c=d|a/b?c=d|docs/*.md?|and/or?monkey=1&page_token_count=2|{"a":"x/y","b":"?key=1"}
SELECT a/b FROM t WHERE key=?|1/2;3|C:\\a\\b?c=1|a/key=1/part?|/sig=1/token=2|TOKEN=x/y|hosts/a#b=c
and/or?hockey=1&turkey=2&design=3&compass=4|docs/page.html?code=1|/data/x.db?code=1|10:30@noon
git@host:path/x|a/b:c@d/e|user:ada@example.com|at 10:30 @ h/x|/a:b@c/d|img:tag@sha256:1
s3://arn:aws:s3:us-west-2:123456789012:accesspoint/name"""


def test_a_url_that_may_hold_a_secret_is_refused_and_not_shown_and_any_other_text_is_taken() -> None:
    for url in SECRET:
        assert url_fault("archive", url).startswith("archive: expected a URL without "), url
        for message in (str(ConfigurationError(f"x: found {url!r}; y")), without_url_secrets(f"x: found {url!r}; y")):
            assert CANARY not in message, url
            assert message.startswith(("x: found '", 'x: found "'))
            assert message.endswith(" y")

    for value in OPEN.replace("\n", "|").split("|"):
        assert url_fault("archive", value) == ""
        assert without_url_secrets(f"{value}: a; b? c # d") == f"{value}: a; b? c # d"


def test_each_parameter_and_each_setting_refuses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (DATA / "notebooks").glob("*.ipynb"):
        texts = [one for one in declared_in(read_source(path.stem).notebook).values() if one.type is str]
        assert texts
        for parameter in texts:
            told = parameter.fault(SIGNED)
            assert told.startswith(f"{parameter.name}: expected a URL without ")
            assert CANARY not in told
    file = tmp_path / "x.toml"
    for name in [s.name for s in fields(Settings) if s.metadata and s.name not in SECRET_SETTINGS]:
        file.write_text(f'[environments.staging]\n{name} = "{SIGNED}"\n')
        layers: list[tuple[dict[str, str], dict[str, str]]] = [({f"ABATHUR_{name.upper()}": SIGNED}, {})]
        layers += [({"ABATHUR_CONFIG": str(file)}, {}), *[({}, {name: SIGNED})] * name.endswith(("_path", "_dir"))]
        for variables, given in layers:
            with monkeypatch.context() as patched:
                for variable, value in variables.items():
                    patched.setenv(variable, value)
                with pytest.raises(ConfigurationError, match=name) as caught:
                    nb.resolve("staging", **given)
            assert CANARY not in str(caught.value)


@pytest.fixture
def kept(database: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Settings]:
    """Return a database; no file may hold the secret afterwards, and nothing may have been recorded."""
    monkeypatch.chdir(tmp_path)
    yield database
    assert fingerprint(database.archive_dir) is None
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]


# By what of the command line it is given.
LINES = """\
verify {}|verify x --key {}|verify --kee {}|copy {}|{}|runs --archive {}|diff a b --archive {}|diff {} {}|archive {}
copy /x --archive {}|runs --db-path {}|runs --env {}|alerts {}|metrics --output {}|metrics --db-path {}
run {} --env development|run history -p archive {}|run history -p {} x|run history -f {}|run history --timeout {}
run history --nothing {}|run history --page=never{}"""


@pytest.mark.parametrize("url", [SIGNED, f"S3://KEY:{CANARY}@bucket/x"])
def test_each_command_refuses_it_and_no_line_holds_it(url: str, kept: Settings, capfd: Any) -> None:
    for given in LINES.replace("\n", "|").split("|"):
        where = ["--env", "development", "-p", "db_path", str(kept.db_path)] if given.startswith("run ") else []
        try:
            code: object = main([word.format(url) for word in given.split()] + where)
        except SystemExit as error:  # argparse's own
            code = error.code
        shown = "".join(capfd.readouterr())
        assert code in (1, 2), given
        assert shown, given
        assert CANARY not in shown, given


CALLS: dict[str, Callable[[Settings, Any], Any]] = {
    "restore": lambda settings, url: nb.restore_database(settings, backup=url),
    "rollback": lambda settings, url: nb.roll_back(settings, to=url),
    "put back": lambda settings, url: nb.troubleshoot(settings, put_back=url),
    "history": nb.read_history,
    "compare with": lambda settings, url: nb.run_benchmark(settings, compare_with=url),
    "reason": lambda settings, url: nb.backup_database(settings, reason=url),
}


async def test_each_verb_refuses_it_and_what_names_no_file_and_no_report_holds_it(kept: Settings) -> None:
    for name, call in CALLS.items():
        for value in (SIGNED, "", "/", "..", "~nobody/x", "\0", "\ud800", "x" * 5000, b"x", 7, Path("/"), PurePath()):
            told = "refused"
            try:
                found = call(kept, value)
                report = await found if isawaitable(found) else found
                assert not getattr(report, "report", report).ok, (name, value)
                told = f"{report}{report.to_json()}" if value == SIGNED else told
            except AbathurError as error:
                told = str(error)
            assert told, (name, value)
            assert CANARY not in told, (name, value)


def test_what_schedule_prints_runs_as_it_stands(database: Settings) -> None:
    """The command of the crontab line, taken by a shell, makes a backup that counts as a nightly one."""
    found = nb.schedule(database, "backup")
    assert list(found.units) == ["abathur-backup-development.service", "abathur-backup-development.timer"]
    assert "Persistent=true" in found.units["abathur-backup-development.timer"]
    minute, hour, *days, command = found.crontab.split(maxsplit=5)
    assert (minute, hour, days) == ("30", "2", ["*"] * 3)
    subprocess.run(["sh", "-c", command], check=True, capture_output=True, cwd="/")
    (taken,) = nb.show_backups(database).to_frame().to_dict("records")
    assert taken["reason"] == "nightly"
    usual = nb.schedule(resolve("production"), "validate")
    assert "db_path" not in usual.crontab
    assert "User=abathur\n" in usual.units["abathur-validate-production.service"]


def test_a_path_of_any_characters_survives_in_a_schedule(tmp_path: Path) -> None:
    for name in ("a b", "a%b", "a$HOME", 'a"b', "a'b", "a\\b", "ä;b"):
        path = tmp_path / name / "x.db"
        found = nb.schedule(resolve("development", db_path=path), "validate")
        assert shlex.split(found.crontab.replace(r"\%", "%"))[-1] == str(path)
        service = found.units["abathur-validate-development.service"]
        (line,) = (line for line in service.splitlines() if line.startswith("ExecStart="))
        # As systemd.service(5) says: quotes and backslashes as C has them, then %% and $$.
        assert shlex.split(line)[-1].replace("%%", "%").replace("$$", "$") == str(path)


@pytest.mark.needs("systemd-analyze")
def test_systemd_itself_takes_the_units(tmp_path: Path) -> None:
    found = nb.schedule(resolve("development", db_path=tmp_path / "a b%c" / "x.db"), "backup")
    for name, text in found.units.items():
        (tmp_path / name).write_text(text.replace("User=abathur\n", ""))
    units = map(str, tmp_path.glob("abathur-*"))
    told = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    assert (told.returncode, told.stderr) == (0, "")
