"""How settings are resolved, what a notebook declares and takes: every bad value named before anything is touched."""

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from damage import run_as_other
from hostile import BYTES, PLACES

import abathur_nb as nb
from abathur_nb.config.parameters import FORM, check_parameters, check_ranges, declared_parameters, said, said_fault
from abathur_nb.config.settings import resolve
from abathur_nb.errors import ConfigurationError
from abathur_nb.report import Report
from abathur_nb.text import shown


def write_config(home: Path, text: str | bytes) -> Path:
    path = home / ".config" / "abathur" / "abathur.toml"
    path.parent.mkdir(parents=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def faults(*args: Any, **given: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as caught:
        resolve(*args, **given)
    assert isinstance(caught.value, ValueError)
    assert all(fault.isprintable() for fault in caught.value.faults)
    return caught.value.faults


@pytest.mark.parametrize(
    ("env", "db_path", "backup_dir"),
    [
        ("development", "~/abathur_data/abathur.db", "~/abathur_data/backups"),
        ("staging", "/var/lib/abathur-staging/abathur.db", "/var/lib/abathur-staging/backups"),
        ("production", "/var/lib/abathur/abathur.db", "/backups"),
    ],
)
def test_each_environment_has_its_own_paths(home: Path, env: str, db_path: str, backup_dir: str) -> None:
    settings = resolve(env)
    assert settings.db_path == Path(db_path.replace("~", str(home)))
    assert settings.backup_dir == Path(backup_dir.replace("~", str(home)))
    assert settings.archive_dir == settings.db_path.parent / "runs"
    assert settings.origins["db_path"] == "default"
    assert list(home.iterdir()) == []


def test_a_wrong_environment_names_those_there_are_or_the_one_that_was_meant() -> None:
    hostile = ("", "../../etc", "x\0", "'); import os; os.system('touch canary'); ('", "\ud800", "x" * 100_000)
    near = ("prod", "Production", " production ", "production\n", "prodution")
    for env in (*hostile, *near):
        (fault,) = faults(env)
        assert fault.startswith("env: expected one of development, staging, production, found ")
        assert fault.endswith("; did you mean production?") is (env in near)
        assert len(fault) < 300
    others: list[Any] = [None, ["production"], {"a": 1}, math.nan, 10**400, 10**5000, True, b"production"]
    for other in others:
        (fault,) = faults(other)
        assert fault.startswith("env: expected one of development")
        assert fault.endswith(f"({type(other).__name__})")


BAD_PATHS: list[Any] = [
    *("", ":memory:", "file:x?mode=memory", "file:///tmp/x.db", "~other/x.db", "/a\0b", "/a\nb", "/a\udc80b"),
    *("/a\u202eb", "/" + "n" * 256, "/n" * 2048, b"/bytes.db", 7, True, ["/x"], math.nan),
    "/x/.abathur-init-0123456789ab/a",
]


@pytest.mark.parametrize("name", ["db_path", "backup_dir", "archive_dir"])
def test_a_bad_path_is_a_fault_that_names_its_setting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in BAD_PATHS:
        (fault,) = faults("development", **{name: path})
        assert fault.startswith(f"{name} (from argument): expected a")
    assert "outside of the scratch directories (.abathur-…)" in fault
    monkeypatch.setenv(f"ABATHUR_{name.upper()}", "/v/x")
    assert getattr(resolve("production"), name) == Path("/v/x")
    monkeypatch.setenv(f"ABATHUR_{name.upper()}", "")
    assert faults("production")[0].startswith(f"{name} (from ABATHUR_{name.upper()}): expected a path")


def test_a_relative_path_is_resolved_in_development_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve("development", db_path="a/../x.db").db_path == tmp_path / "x.db"
    for env in ("staging", "production"):
        assert faults(env, db_path="x.db") == ("db_path (from argument): expected an absolute path, found 'x.db'",)


def test_a_tilde_is_ones_own_home_and_leading_slashes_are_one(home: Path) -> None:
    """To SQLite's URIs what follows two slashes would be a host."""
    assert resolve("production", db_path="~/x.db").db_path == home / "x.db"
    for slashes in ("//", "///"):
        assert str(resolve(db_path=f"{slashes}x//a.db").db_path) == "/x/a.db"
    assert str(resolve(db_path="/x/.abathur-init-mine/a").db_path) == "/x/.abathur-init-mine/a"  # which is never swept


def test_with_a_database_of_ones_own_backups_and_runs_go_beside_it() -> None:
    settings = resolve("production", db_path="/x/y.db")
    assert (settings.backup_dir, settings.archive_dir) == (Path("/x/backups"), Path("/x/runs"))
    assert settings.origins["backup_dir"] == "beside the data"
    assert resolve("production", db_path="/x/y.db", backup_dir="/b").backup_dir == Path("/b")


def test_arguments_beat_variables_beat_the_file_beats_the_defaults(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_config(home, '[environments.staging]\ndb_path = "/file/x.db"\nreaders = 3\nmax_wal_mb = 7\n')
    monkeypatch.setenv("ABATHUR_READERS", "4")
    monkeypatch.setenv("ABATHUR_BACKUP_DIR", "/variable/backups")
    settings = resolve("staging", backup_dir="/argument/backups")
    assert (settings.db_path, settings.backup_dir) == (Path("/file/x.db"), Path("/argument/backups"))
    assert (settings.readers, settings.max_wal_mb, settings.min_free_mb) == (4, 7, 500)
    where = f"settings file {path}"
    named = {"db_path": where, "backup_dir": "argument", "archive_dir": "beside the data", "readers": "ABATHUR_READERS"}
    assert settings.origins == {**named, "env": "argument", "max_wal_mb": where, "confirm_changes": "default"}
    assert resolve("development").readers == 4  # a variable holds for every environment
    assert resolve("development").max_wal_mb == 256  # a table for its own


def test_the_file_may_add_an_environment_of_ones_own_that_names_its_database(home: Path) -> None:
    path = write_config(home, '[environments.lab]\ndb_path = "/lab/x.db"\n')
    settings = resolve("lab")
    assert (settings.db_path, settings.on_shared_directory) == (Path("/lab/x.db"), "refuse")
    assert faults("lb")[0].startswith("env: expected one of development, staging, production, lab, found 'lb'")
    path.write_text("[environments.lab]\nreaders = 3\n")
    assert "db_path: environment 'lab' has no db_path" in faults("lab")[0]


def test_the_variable_names_another_file_never_one_found_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "abathur.toml").write_text("[environments.development]\nreaders = 7\n")
    monkeypatch.chdir(tmp_path)
    assert resolve().readers == 2
    monkeypatch.setenv("ABATHUR_CONFIG", str(tmp_path / "abathur.toml"))
    assert resolve().readers == 7
    monkeypatch.setenv("ABATHUR_CONFIG", str(tmp_path / "none.toml"))
    assert "cannot be read: No such file or directory" in faults()[0]
    monkeypatch.setenv("ABATHUR_CONFIG", str(tmp_path))
    assert "cannot be read" in faults()[0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[environments.development", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        ("readers = 3", "expected a table [environments.NAME] (a-z, 0-9, _ and -), found 'readers'"),
        ("environments = 3", "found environments = 3"),
        ("[environments.'../x']\nreaders = 3", "expected a table [environments.NAME]"),
        ("[environments.development]\nreader = 3", "has no setting 'reader'; did you mean readers?"),
        ("[environments.development]\nenv = 'x'", "has no setting 'env'"),
        ("[environments.development]\ndb_path = 7", "expected a path as text, found 7 (int)"),
        ("[environments.development]\nreaders = 0", "readers (from settings file"),
        (
            "[environments.development]\nreaders = true",
            "expected a whole number of at least 1 and at most 32, found True",
        ),
        ("[environments.development]\nsynchronous = 'OFF'", "synchronous (from settings file"),
        ("[environments.development]\nrequire_safe_wal = 1", "expected true or false, found 1"),
        ("[environments.development]\nrequire_safe_wal = 'true'", "expected true or false, found 'true'"),
    ],
)
def test_a_faulty_settings_file_is_named_with_its_fault(home: Path, text: str | bytes, told: str) -> None:
    write_config(home, text)
    (fault,) = faults()
    assert str(home) in fault
    assert told in fault


def test_a_faulty_variable_of_ours_is_named_with_its_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABATHUR_FRONTEND_COLOUR", "red")
    assert resolve().readers == 2
    for variable, value, told in (
        ("ABATHUR_READERS", "0x10", "found '0x10'"),
        ("ABATHUR_READERS", "", "found ''"),
        ("ABATHUR_READERS", "33", "expected a whole number of at least 1 and at most 32, found '33'"),
        ("ABATHUR_REQUIRE_SAFE_WAL", "perhaps", "found 'perhaps'"),
        ("ABATHUR_DB_PAHT", "/x.db", "no such setting; did you mean ABATHUR_DB_PATH?"),
    ):
        with monkeypatch.context() as patched:
            patched.setenv(variable, value)
            (fault,) = faults()
            assert (variable in fault, told in fault) == (True, True)


def test_only_true_and_false_are_truths(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one fault is that of the variable: no path is blamed for what it was to allow."""
    for text in ("1", "0", "yes", "", " true", "true\n", "ｔｒｕｅ"):
        monkeypatch.setenv("ABATHUR_RELATIVE_PATHS", text)
        fault = f"relative_paths (from ABATHUR_RELATIVE_PATHS): expected true or false, found {shown(text)}"
        assert faults("development", db_path="x.db") == (fault,)
    monkeypatch.setenv("ABATHUR_RELATIVE_PATHS", "False")
    assert "expected an absolute path" in faults("development", db_path="x.db")[0]
    monkeypatch.setenv("ABATHUR_RELATIVE_PATHS", "TRUE")
    monkeypatch.setenv("ABATHUR_SERVICE_ACCOUNT", "true")
    settings = resolve("production", db_path="x.db")
    assert (settings.db_path, settings.relative_paths) == (Path.cwd() / "x.db", True)
    assert settings.service_account == "true", "a text that reads like a truth stays a text"


def test_all_faults_are_named_at_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(home, "[environments.production]\nreader = 3\nmax_wal_mb = -1\n")
    monkeypatch.setenv("ABATHUR_ARCHIVE_DIR", "runs")
    found = faults("prod", db_path=":memory:", backup_dir="")
    assert len(found) == 5
    for name, fault in zip(
        ("[environments.production]", "env", "db_path", "backup_dir", "archive_dir"), found, strict=True
    ):
        assert name in fault
    assert len(faults("production", db_path=":memory:")) == 4  # the file's max_wal_mb is the fourth


def test_a_secret_setting_is_masked_wherever_it_is_shown(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve().secrets == "AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN"
    assert resolve().shown()["signing_key_passphrase"] == ""
    write_config(home, "[environments.staging]\nsigning_key = '/k.pem'\nsecrets = 'A_TOKEN, B_TOKEN'\n")
    monkeypatch.setenv("ABATHUR_SIGNING_KEY_PASSPHRASE", "open sesame")
    settings = resolve("staging")
    assert (settings.signing_key, settings.secrets) == ("/k.pem", "A_TOKEN, B_TOKEN")
    assert settings.signing_key_passphrase == "open sesame"
    for text in (str(settings), repr(settings), settings._repr_html_(), str(settings.shown())):
        assert "sesame" not in text
    assert "signing_key_passphrase = ••• (ABATHUR_SIGNING_KEY_PASSPHRASE)" in str(settings)
    assert ">•••</td>" in settings._repr_html_()


def test_a_wrong_secret_setting_is_named_and_not_shown(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_config(home, "")
    for text in ("['sesame open']", "{sesame = 'open'}", "5351", "3.1415926"):
        path.write_text(f"[environments.development]\nsigning_key_passphrase = {text}\n")
        (fault,) = faults()
        assert fault.startswith("signing_key_passphrase (from settings file ")
        assert fault.endswith("found a secret")
    path.write_text("[environments.development]\nsigning_key_pasphrase = 'open sesame'\n")
    monkeypatch.setenv("ABATHUR_SIGNING_KEY_PASSPHRAS", "open sesame")
    found = faults()
    assert len(found) == 2
    assert all("signing_key_passphrase" in fault.lower() and "sesame" not in fault for fault in found)


@pytest.mark.parametrize("value", ["", "no/home"])
def test_without_a_home_nothing_is_read_from_here(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path, "[environments.here]\ndb_path = '/x/y.db'\n")
    monkeypatch.setenv("HOME", value)
    assert "needs a HOME that is one" in faults("development")[0]
    assert "here" not in faults("here")[0].partition("found")[0]


def test_what_is_no_file_of_settings_is_named(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_config(home, "")
    for content in (*filter(None, BYTES.values()), b"x=" + b"[" * 50_000, b'[environments.qa]\ndb_path = "/srv/x.db\n'):
        path.write_bytes(content)
        (fault,) = faults("qa" if b"qa" in content else "development")
        assert str(path) in fault
    for name, make in PLACES.items():
        monkeypatch.setenv("ABATHUR_CONFIG", str(tmp_path / name))
        make(tmp_path / name)
        assert str(tmp_path / name) in faults("development")[0]
    monkeypatch.setenv("ABATHUR_CONFIG", "/dev/zero")
    assert "cannot be read" in faults("development")[0]


def test_a_home_that_is_closed_to_this_user_has_no_settings_file(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    program = "os.environ['HOME'] = sys.argv[1]\nprint(nb.resolve('development', db_path='/srv/x/x.db').readers)\n"
    assert run_as_other(program, tmp_path) == "2\n"


CELL = """\
# What this run works with
env: "str" = "development"  # the environment
db_path: "Optional[str]" = None  # another database
dry_run = False
repetitions = 1000
ratio: float = 0.5
team_trained: "Optional[str]" = None
"""
DECLARED = declared_parameters(CELL)


def test_a_parameters_cell_declares_names_types_and_defaults_and_nothing_but_literals() -> None:
    assert {p.name: (p.type, p.default) for p in DECLARED.values()} == {
        "env": (str, "development"),
        "db_path": (str, None),
        "dry_run": (bool, False),
        "repetitions": (int, 1000),
        "ratio": (float, 0.5),
        "team_trained": (str, None),
    }
    for source in ("import os", "x = print()", "x = y", "x: int", "a = b = 1", "x, y = 1, 2", "x += 1", "x = None"):
        with pytest.raises(ConfigurationError):
            declared_parameters(source)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("env", "production", ""),
        ("dry_run", True, ""),
        ("ratio", 1, ""),
        ("repetitions", 100_000, ""),
        ("PAPERMILL_INPUT_PATH", "/x", ""),
        ("team_trained", "Ada Lovelace, 2026-11-20", ""),
        ("env", None, "env: expected str, found None (NoneType)"),
        ("env", ["production"], "env: expected str, found ['production'] (list)"),
        ("db_path", 7, "db_path: expected str"),
        ("dry_run", "false", "dry_run: expected True or False, found 'false' (str)"),
        ("repetitions", True, "repetitions: expected int, found True (bool)"),
        ("repetitions", "007", "repetitions: expected int"),
        ("repetitions", 0, "repetitions: expected a whole number in 1..100000, found 0"),
        ("ratio", math.nan, "ratio: expected a finite number, found nan"),
        ("env", "\ud800", "env: expected text without lone surrogates, found '\\ud800'"),
        ("envv", "x", "'envv' is not declared"),
        ("envv", "x", "did you mean env?"),
        ("PAPERMILL_INPUT_PATH", 7, "is not declared"),
        ("team_trained", "yes", FORM),
    ],
)
def test_a_given_value_is_of_its_type_and_in_its_range(name: str, value: Any, told: str) -> None:
    found = check_parameters(DECLARED, {name: value})
    assert len(found) == bool(told)
    assert not told or told in found[0]


def test_every_fault_of_the_given_values_is_named() -> None:
    assert len(check_parameters(DECLARED, {"env": 1, "dry_run": "no", "repetitions": 0, "x": 1, "ratio": 0.1})) == 4


def test_a_verb_holds_its_numbers_to_the_same_ranges() -> None:
    check_ranges(repetitions=1, rows=10_000_000)
    wrong: list[Any] = [0, -1, 2**63, 1.0, "7", None, True]
    for value in wrong:
        with pytest.raises(ConfigurationError, match=r"^repetitions: .*; rows: "):
            check_ranges(repetitions=value, rows=value)


QUESTION = "team trained on procedures"
TODAY = datetime.now(UTC)
SAID = {
    "  Ada Lovelace ,2026-11-20 ": "said by Ada Lovelace on 2026-11-20",
    "Lovelace, Ada, 2026-11-20": "said by Lovelace, Ada on 2026-11-20",
    "Łucja Żółć-O'Neill 3rd, 2024-02-29": "said by Łucja Żółć-O'Neill 3rd on 2024-02-29",
    "李, 1999-12-31": "said by 李 on 1999-12-31",
    f"A, {TODAY:%Y-%m-%d}": f"said by A on {TODAY:%Y-%m-%d}",
}
MALFORMED: list[Any] = [
    *("", " ", ",", "yes", "Ada Lovelace", "2026-11-20", ", 2026-11-20", " , 2026-11-20", ",,2026-11-20"),
    *("Ada Lovelace 2026-11-20", "Ada Lovelace, 20.11.2026", "Ada Lovelace, 2026-11-20 12:00", "Ada, 2026-11-2"),
    *("Ada, 2026-02-30", "Ada, 0000-01-01", "Ada, 2026-W47-5", "Ada, 20261120", "Ada, ２０２６-11-20"),
    *("Ada\nLovelace, 2026-11-20", "Ada\0, 2026-11-20", "\u202eAda, 2026-11-20", "Ada \ud800, 2026-11-20"),
    *("x" * 200 + ", 2026-11-20", "007, 2026-11-20", "--, 2026-11-20", "2026-11-19, 2026-11-20"),
    *(True, 7, 1.5, ["Ada, 2026-11-20"], b"Ada, 2026-11-20", {"Ada": "2026-11-20"}),
]


def test_who_said_it_and_when_is_recorded_and_nothing_is_passed_by_it() -> None:
    for answer, observed in SAID.items():
        check = nb.said(QUESTION, answer)
        assert (check.name, check.status, check.observed, check.remedy) == (QUESTION, "skip", observed, "")
        assert "1 skip" in Report("trial", (check,)).summary
        assert said_fault("x", answer) == ""
    nobody = said(QUESTION, None)
    assert (nobody.status, nobody.observed) == ("skip", "nobody confirmed it")
    assert nobody.remedy == 'name a person and day: "Ada Lovelace, 2026-11-20"'


def test_anything_else_is_told_the_form_and_nobody_can_have_said_so_tomorrow() -> None:
    for answer in MALFORMED:
        with pytest.raises(ConfigurationError) as caught:
            said(QUESTION, answer)
        (fault,) = caught.value.faults
        assert fault.startswith(f"{QUESTION}: expected a person's name and a date, as in {FORM}, found ")
        assert fault.isprintable()
        assert len(fault) < 300
    for day in (f"{TODAY + timedelta(days=2):%Y-%m-%d}", "9999-12-31"):
        with pytest.raises(ConfigurationError, match=f"expected a date of today or before, as in .*, found {day}"):
            said(QUESTION, f"Ada Lovelace, {day}")
