"""What never enters an archive: the name of the home directory, and a secret, however it is spelled."""

import asyncio
import base64
import html
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from cells import SOUND, execute
from IPython.core.interactiveshell import InteractiveShell
from running import only_run

from abathur_nb.config.settings import Settings, resolve
from abathur_nb.errors import ConfigurationError, RefusedError
from abathur_nb.evidence.archive import keep
from abathur_nb.evidence.canonical import masked, refuse_secrets, secret_values, tilde
from abathur_nb.evidence.ledger import LEDGER
from abathur_nb.evidence.record import NOTEBOOK, PAGE, RECORD, STARTED, STATEMENT
from abathur_nb.evidence.run import write_started
from abathur_nb.runbook.init import initialize_database

AL = "/home/al"
REPLACED = {
    "/home/al": "~",
    "/home/al/x.db": "~/x.db",
    "//home/al/x": "/~/x",
    "/home/al, /home/al/x and '/home/al'": "~, ~/x and '~'",
    'File "/home/al/x.py", line 1': 'File "~/x.py", line 1',
    "PosixPath('/home/al/x')": "PosixPath('~/x')",
    "PATH=/home/al/bin:/bin:/home/al/.local/bin": "PATH=~/bin:/bin:~/.local/bin",
    "-I/home/al/include --prefix=/home/al @/home/al/x": "-I~/include --prefix=~ @~/x",
    "file:///home/al/x": "file://~/x",
    "file://localhost/home/al/x": "file://localhost~/x",
    "?path=%2Fhome%2Fal%2Fx": "?path=~%2Fx",
    '{"path": "\\/home\\/al\\/x"}': '{"path": "~\\/x"}',
    "\x1b[0;32m/home/al/x.py\x1b[0m": "\x1b[0;32m~/x.py\x1b[0m",
    json.dumps("a\n/home/al/x\t/home/al"): json.dumps("a\n~/x\t~"),
    json.dumps("\x1b[1m/home/al\x1b[0m"): json.dumps("\x1b[1m~\x1b[0m"),
    "<pre>/home/al/x</pre>": "<pre>~/x</pre>",
    "../../home/al/x": "../..~/x",
}
KEPT = [
    *("", "~", "/home", "/home/alice/x", "/home/al-old", "/home/al.old/x", "/home/al_2", "/home/al2", "/home/al@x"),
    *("/mnt/home/al/x", "/mnt/a b/home/al", "data/home/al", "./home/al", "~/home/al", "_/home/al", "%s/home/al"),
    *("https://host/home/al/x", "https://home/al", "/HOME/AL", "/home/älice", "</home/al>"),
]


@pytest.fixture
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", AL)


@pytest.mark.usefixtures("at_home")
def test_the_home_directory_is_written_as_a_tilde_and_what_only_looks_like_it_stays() -> None:
    for text, wanted in REPLACED.items():
        assert tilde(text) == wanted
        assert AL not in tilde(text)
        assert tilde(wanted) == wanted
    for text in KEPT:
        assert tilde(text) == text
    data = {"/home/al/key": ["/home/al", {"deep": ("/home/al/x", 7, 1.5, None, True)}]}
    assert tilde(data) == {"~/key": ["~", {"deep": ["~/x", 7, 1.5, None, True]}]}


@pytest.mark.parametrize("home", ["/home/Ada Lövelace", "/home/x&y", "/srv/(a)+[b]", "/h"])
def test_any_name_of_a_home_is_found_however_it_is_quoted(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", home)
    for spelled in (home, quote(home), quote(home, safe=""), json.dumps(home)[1:-1], f"{home}/"):
        assert tilde(f"in {spelled}!") == f"in ~{'/' if spelled.endswith('/') else ''}!"


def test_roots_home_is_no_tag_no_user_and_no_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/root")
    for text in ("<a></root></a>", "postgres://root@host/db", "https://root/x", "chroot/root", "/root@host"):
        assert tilde(text) == text
    assert tilde("</root/x>") == "<~/x>"


VARIABLE = "AWS_SECRET_ACCESS_KEY"  # one that `secrets` names by default
PLANTED = "planted-s3cret-0815"
SECRETS = [
    PLANTED,
    "12345678",
    "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLE=",
    "p\"a's<s>&\\w/ö %41&lt;+ \t€😀{x}",
    "sixteen bytes--- and more",
    "\udc80not UTF-8\udcff",
    "/home/al/a path as a secret",
    "C:\\new\\\\table",
]
SPELLINGS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "in JSON": lambda text: json.dumps(text)[1:-1],
    "in JSON, not ASCII": lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    "in HTML": html.escape,
    "in HTML, few entities": lambda text: html.escape(text, quote=False),
    "in a URL": lambda text: quote(text, safe="", errors="surrogateescape"),
    "in a form": lambda text: quote_plus(text, errors="surrogateescape"),
    **{
        f"base64 behind {n} bytes": lambda text, n=n: base64.b64encode(  # type: ignore[misc]
            b"x" * n + text.encode(errors="surrogateescape") + b"\xff" * 3
        ).decode()
        for n in range(4)
    },
    "base64 for a URL": lambda text: base64.urlsafe_b64encode(text.encode(errors="surrogateescape")).decode(),
}


def refused(settings: Settings, text: str) -> bool:
    try:
        refuse_secrets(settings, {"page.html": f"before {text} after".encode(errors="surrogateescape")})
    except RefusedError:
        return True
    return False


@pytest.mark.parametrize("how", SPELLINGS)
def test_a_secret_is_found_in_any_usual_spelling(how: str, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for secret in SECRETS:
        spelled = SPELLINGS[how](secret)
        monkeypatch.delenv(VARIABLE, raising=False)
        assert not refused(settings, spelled)
        monkeypatch.setenv(VARIABLE, secret)
        assert refused(settings, spelled), secret
        assert not refused(settings, SPELLINGS[how](secret[:-4])), secret


def test_each_line_of_a_key_is_a_secret_but_not_its_head(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    key = ["MC4CAQAwBQYDK2VwBCIEIDyR", "q7Xb0Yb4OyZXg0gJ2cuRvlhU"]
    lines = ["-----BEGIN PRIVATE KEY-----", *key, "-----END PRIVATE KEY-----"]
    monkeypatch.setenv(VARIABLE, "\n".join([*lines, ""]))
    assert refused(settings, lines[1])
    assert refused(settings, f"<td>{lines[2]}</td>")
    assert not refused(settings, f"{lines[0]} {lines[3]}")


def test_the_error_names_secrets_and_files_without_a_value(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", PLANTED)
    monkeypatch.setenv("B_TOKEN", "another-secret")
    monkeypatch.setenv("UNUSED", "never-shown-anywhere")
    watching = replace(settings, secrets="A_TOKEN, B_TOKEN,UNUSED ABSENT", signing_key_passphrase="open sesame")  # noqa: S106
    assert secret_values(watching).keys() == {"A_TOKEN", "B_TOKEN", "UNUSED", "signing_key_passphrase"}
    files = {"one": PLANTED.encode(), "two": b"x another-secret open sesame", "three": b"nothing"}
    with pytest.raises(RefusedError) as caught:
        refuse_secrets(watching, files)
    assert caught.value.observed == (
        "nothing was archived: a file would hold the value of A_TOKEN in one; of B_TOKEN in two; "
        "of signing_key_passphrase in two"
    )
    refuse_secrets(watching, {"three": files["three"]})


@pytest.mark.parametrize("resolved", [True, False])
def test_a_line_for_a_log_is_masked_even_beside_a_secret_too_short_to_be_searched_for(
    settings: Settings, resolved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ABATHUR_SECRETS", "LONG SHORT")
    monkeypatch.setenv("LONG", "hunter2hunter2")
    monkeypatch.setenv("SHORT", "abc")
    given = replace(settings, secrets="LONG SHORT") if resolved else None
    assert masked("it holds hunter2hunter2 and abc", given) == "it holds ••• and abc"


@pytest.mark.parametrize("short", ["1", "1234567", "  1234567\n"])
def test_a_secret_too_short_stops_it_at_once(short: str, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, short)
    with pytest.raises(ConfigurationError) as caught:
        write_started(replace(settings, signing_key_passphrase=short), "init", {})
    assert [fault.partition(":")[0] for fault in caught.value.faults] == [VARIABLE, "signing_key_passphrase"]
    assert all("at least 8 characters" in fault for fault in caught.value.faults)
    assert not settings.db_path.parent.exists()
    monkeypatch.setenv(VARIABLE, "  \n")  # set, and empty
    write_started(settings, "init", {})


@pytest.fixture
def planted(database: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv(VARIABLE, PLANTED)
    return database


def hits(archive: Path, secret: str = PLANTED) -> list[str]:
    """Return the files of an archive that hold a secret, in what their base64 says too."""
    return [
        path.name
        for path in archive.rglob("*")
        if path.is_file() and (secret.encode() in (content := path.read_bytes()) or in_base64(content, secret))
    ]


def in_base64(content: bytes, secret: str) -> bool:
    try:
        payload = base64.b64decode(json.loads(content)["payload"])
        inner = json.loads(payload)["predicate"]["configuration"][0]["content"]
    except (ValueError, KeyError, TypeError):
        return False
    return secret.encode() in payload or secret.encode() in base64.b64decode(inner)


PLACES = {
    "a print": f"print({PLANTED!r})",
    "an error's message": f"raise ValueError('no access with {PLANTED}')",
    "shown HTML": f"from IPython.display import HTML\nHTML('<b>{html.escape(PLANTED)}</b>')",
    "a comment": f"# key: {base64.b64encode(PLANTED.encode()).decode()}",
    "two prints": f"import sys\nprint({PLANTED[:9]!r}, end='', flush=True)\nprint({PLANTED[9:]!r})",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_secret_in_a_cell_leaves_the_run_unsealed(shell: InteractiveShell, place: str, planted: Settings) -> None:
    notebook = execute(shell, planted, SOUND[0], PLACES[place], SOUND[1])
    entry = only_run(planted)
    if entry.record:
        with pytest.raises(RefusedError, match=VARIABLE):
            keep(entry.folder, planted, notebook)
    assert [path.name for path in entry.folder.iterdir()] == [STARTED]
    assert only_run(planted).verdict == "unsealed"
    assert hits(planted.archive_dir) == []
    assert not (planted.archive_dir / LEDGER).exists()


def test_the_search_would_find_it_in_every_file(shell: InteractiveShell, database: Settings) -> None:
    """The control: nobody declared it a secret."""
    cell = f"print({PLANTED!r})\nnb.Report({PLANTED!r}, (nb.Check('sky', 'pass'),))"
    notebook = execute(shell, database, SOUND[0], cell, SOUND[1])
    keep(only_run(database).folder, database, notebook)
    assert sorted(hits(database.archive_dir)) == sorted([NOTEBOOK, PAGE, RECORD, STATEMENT])


def test_a_secret_in_a_parameter_leaves_nothing_on_the_disk(shell: InteractiveShell, planted: Settings) -> None:
    notebook = execute(shell, planted, *SOUND)
    keep(only_run(planted).folder, planted, notebook)
    before = sorted(planted.archive_dir.rglob("*"))
    with pytest.raises(RefusedError, match=f"{VARIABLE} in started.json"):
        write_started(planted, "validate", {"baseline": f"/x/{PLANTED}.json"})
    assert sorted(planted.archive_dir.rglob("*")) == before
    elsewhere = replace(planted, archive_dir=planted.archive_dir / "deeper")
    with pytest.raises(RefusedError, match=f"{VARIABLE} in started.json"):
        write_started(elsewhere, "validate", {PLANTED: 1})
    assert not elsewhere.archive_dir.exists()


def test_no_file_of_an_archived_run_names_the_home_directory(
    shell: InteractiveShell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home" / "al"
    (home / "lib").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    (home / "lib" / "broken.py").write_text("def f():\n    open(__file__ + '.none')\n")
    settings = resolve(db_path=home / "data" / "abathur.db")
    asyncio.run(initialize_database(settings)).raise_for_failures()
    broken = f"import sys, os\nsys.path.insert(0, {str(home / 'lib')!r})\nprint(os.environ['HOME'], {{sys.path[0]: 1}})"
    notebook = execute(shell, settings, broken, "import broken\nbroken.f()")
    notebook.metadata["papermill"] = {"input_path": f"{home}/in.ipynb", "parameters": {"db_path": str(home / "x.db")}}
    text = json.dumps(notebook)
    assert text.count(str(home)) > 10
    entry = only_run(settings)
    assert entry.record is not None
    assert (entry.record.error or {})["name"] == "FileNotFoundError"
    keep(entry.folder, settings, notebook)
    for path in settings.archive_dir.rglob("*"):
        if path.is_file():
            assert str(home) not in path.read_text(), path
    kept = json.loads((entry.folder / NOTEBOOK).read_text())
    assert kept["metadata"]["papermill"] == {"input_path": "~/in.ipynb", "parameters": {"db_path": "~/x.db"}}
    assert "~/lib/broken.py" in (entry.folder / PAGE).read_text()
