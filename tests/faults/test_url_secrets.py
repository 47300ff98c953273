"""No secret of a URL enters anything that is kept or shown: such a URL is refused before a record could hold it."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from inspect import isawaitable
from pathlib import Path, PurePath
from typing import Any

import pytest
from damage import fingerprint
from patience import HANGING_S

import abathur_nb as nb
from abathur_nb.cli import main
from abathur_nb.config.settings import SECRET_SETTINGS, Settings
from abathur_nb.errors import AbathurError, ConfigurationError
from abathur_nb.evidence.archive import declared_in, read_source
from abathur_nb.store.sql import DATA
from abathur_nb.text import url_fault, without_url_secrets

CANARY = "CANARY-0815"
SIGNED = f"https://h.example/b/x?X-Amz-Signature={CANARY}"
NAMES = """sso_token csrfToken webhook_secret q-signature API_KEY masterKey AWSAccessKeyId X-Amz-Credential password1
pass_word pwd Code"""
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


def test_a_url_that_may_hold_a_secret_is_refused_and_not_shown() -> None:
    for url in SECRET:
        assert url_fault("archive", url).startswith("archive: expected a URL without "), url
        for message in (str(ConfigurationError(f"x: found {url!r}; y")), without_url_secrets(f"x: found {url!r}; y")):
            assert CANARY not in message, url
            assert message.startswith(("x: found '", 'x: found "'))
            assert message.endswith(" y")


def test_what_holds_no_secret_of_a_url_is_taken_and_shown() -> None:
    for value in OPEN.replace("\n", "|").split("|"):
        assert url_fault("archive", value) == ""
        assert without_url_secrets(f"{value}: a; b? c # d") == f"{value}: a; b? c # d"


def test_each_parameter_that_is_text_refuses_it() -> None:
    for path in (DATA / "notebooks").glob("*.ipynb"):
        texts = [one for one in declared_in(read_source(path.stem).notebook).values() if one.type is str]
        assert texts
        for parameter in texts:
            told = parameter.fault(SIGNED)
            assert told.startswith(f"{parameter.name}: expected a URL without ")
            assert CANARY not in told


TEXTS = [s.name for s in fields(Settings) if s.metadata and s.name not in SECRET_SETTINGS]


def test_each_setting_refuses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TEXTS:
        for layer in ("variable", "file", *["argument"] * name.endswith(("_path", "_dir"))):
            with monkeypatch.context() as patched:
                if layer == "variable":
                    patched.setenv(f"ABATHUR_{name.upper()}", SIGNED)
                elif layer == "file":
                    (tmp_path / "x.toml").write_text(f'[environments.staging]\n{name} = "{SIGNED}"\n')
                    patched.setenv("ABATHUR_CONFIG", str(tmp_path / "x.toml"))
                with pytest.raises(ConfigurationError, match=name) as caught:
                    nb.resolve("staging", **({name: SIGNED} if layer == "argument" else {}))
                assert CANARY not in str(caught.value)


@pytest.fixture
def kept(database: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Settings]:
    """Return a database; no file may hold the secret afterwards, and nothing may have been recorded."""
    monkeypatch.chdir(tmp_path)
    yield database
    assert fingerprint(database.archive_dir) is None
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]


# By what of the command line it is given.
COMMANDS = """\
verify {}|verify x --key {}|verify --kee {}|copy {}|{}|runs --archive {}|diff a b --archive {}|diff {} {}|archive {}
copy /x --archive {}|runs --db-path {}|runs --env {}|alerts {}|metrics --output {}|metrics --db-path {}
run {} --env development|run history -p archive {}|run history -p {} x|run history -f {}|run history --timeout {}
run history --nothing {}|run history --no-html={}"""


@pytest.mark.parametrize("url", [SIGNED, f"S3://KEY:{CANARY}@bucket/x"])
def test_each_command_refuses_it_and_no_line_holds_it(url: str, kept: Settings, capfd: Any) -> None:
    for given in COMMANDS.replace("\n", "|").split("|"):
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


def test_papermill_itself_keeps_what_it_is_given_and_nothing_of_ours_does(kept: Settings, tmp_path: Path) -> None:
    command = [
        str(Path(sys.executable).with_name("papermill")),
        str(DATA / "notebooks" / "history.ipynb"),
        "-",
    ]
    values = ["-p", "db_path", str(kept.db_path), "-r", "archive", SIGNED]
    done = subprocess.run(
        [*command, *values], capture_output=True, text=True, check=False, timeout=HANGING_S, cwd=tmp_path
    )
    assert done.returncode == 1
    assert "archive: expected a URL without a password, parameters, a query or a fragment" in done.stderr
    assert CANARY not in done.stderr
