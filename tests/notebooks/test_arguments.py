"""What is given to the runner is read by the declared types, without a guess; every fault is told at once."""

import argparse
import os
import socket
from pathlib import Path

import pytest

from abathur_nb.cli import make_parser
from abathur_nb.config.parameters import Given, Parameter, faults_of_names, read_given, values_for

DECLARED = {
    "env": Parameter("env", str, "development"),
    "db_path": Parameter("db_path", str, None),
    "dry_run": Parameter("dry_run", bool, False),
    "rows": Parameter("rows", int, 10),
    "offset": Parameter("offset", int, None),
    "share": Parameter("share", float, 0.5),
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def file_of(text: str) -> str:
    Path("y").write_text(text, encoding="utf-8", errors="surrogateescape")
    return "y"


def parsed(*arguments: str) -> argparse.Namespace:
    return make_parser().parse_args(["run", "x", *arguments])


def read(*arguments: str) -> tuple[dict[str, object], list[str]]:
    """Return the values that the arguments give the declared parameters, and the faults."""
    faults: list[str] = []
    given = read_given(parsed("--env", "staging", *arguments), faults)
    return values_for(DECLARED, given, faults), faults


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        *(("db_path", text, text) for text in ("/a/b.db", "007", "")),
        *(("db_path", "None", None), ("dry_run", "True", True), ("dry_run", "False", False)),
        *(("rows", "10000000", 10_000_000), ("offset", "0", 0), ("share", "1.10", 1.1)),
    ],
)
def test_an_argument_is_read_by_the_declared_type(name: str, text: str, value: object) -> None:
    values, faults = read("-p", name, text)
    assert faults == []
    assert (values[name], type(values[name])) == (value, type(value))


GUESSED: dict[tuple[str, str], tuple[str, ...]] = {
    ("dry_run", "expected True or False, found 'true'"): ("true",),
    ("rows", "expected a whole number in plain digits"): (
        *("007", "1e3", "1e999", "nan", "0x10", "1_000", "1.0", " 5", "5 ", "+5", "-0", "", "٣", "None", "9" * 5000),
    ),
    ("rows", "rows: expected a whole number in 1..10000000, found "): ("0", "9223372036854775808"),
    ("share", "expected a number in plain digits"): ("1e3", "inf", "nan", ".5", "5.", "1,5", "0x1", "00.5", ""),
    ("share", "share: expected a finite number"): ("9" * 400,),
    ("db_path", r"expected printable characters, found '/"): ("/\n", "/\udc80", "/\u202etxt"),
}


@pytest.mark.parametrize(("name", "told", "text"), [(*told, text) for told, texts in GUESSED.items() for text in texts])
def test_what_would_have_to_be_guessed_is_refused(name: str, told: str, text: str) -> None:
    _, faults = read("-p", name, text)
    (fault,) = faults
    assert fault.startswith(name)
    assert told in fault
    assert fault.isprintable()
    assert len(fault) < 300


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("db_path: /a/b.db", {"db_path": "/a/b.db"}),
        ("{rows: 5, dry_run: true}", {"rows": 5, "dry_run": True}),
        ("db_path:", {"db_path": None}),
        ('db_path: "null"', {"db_path": "null"}),
        ("db_path: 1.10", {"db_path": "1.10"}),
        ("db_path: 2026-11-23", {"db_path": "2026-11-23"}),
        ("{}", {}),
    ],
)
def test_yaml_is_read_by_the_declared_type_too(text: str, values: dict[str, object]) -> None:
    found, faults = read("-f", file_of(text))
    assert faults == []
    assert found == {"env": "staging", **values}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        *(
            (text, "-f y: expected one mapping NAME: VALUE, without lists, mappings or tags in it")
            for text in (
                *("- a", "", "a", "rows: [5]", "rows: {a: 5}", "[a]: 5", "rows: !!int 5"),
                "!!python/object/apply:os.system ['touch canary']",
                "rows: !!python/object/apply:os.system ['touch canary']",
                "rows: !!python/name:os.system canary",
                "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]",
            )
        ),
        ("a: " + "[" * 60_000, "-f y: expected YAML in UTF-8, found: maximum recursion depth exceeded"),
        ("rows: *a", "-f y: expected YAML in UTF-8, found: found undefined alias"),
        ("rows: 5\n---\nrows: 6", "-f y: expected YAML in UTF-8, found: expected a single document"),
        ("rows: 5: 6", "-f y: expected YAML in UTF-8, found: mapping values are not allowed here"),
        ("rows: \udc80", "-f y: expected YAML in UTF-8, found: 'utf-8' codec can't decode"),
        ("\ufeffrows: 5", "-f y: expected UTF-8 without a byte order mark"),
        ("rows: 5 #" + "x" * 70_000, "-f y: cannot be read: it is larger than 65,536 bytes"),
        ("rows: 5\nrows: 6", "rows: given twice (from -f y, -f y)"),
        ("rows: '5'", "rows (from -f y): expected int without quotation marks, found '5'"),
        ("dry_run: yes", "dry_run (from -f y): expected True or False, found 'yes'"),
        ("rows: ~", "rows (from -f y): expected int, not null, found '~'"),
        ("share: .inf", "share (from -f y): expected a number in plain digits"),
    ],
)
def test_yaml_that_is_no_plain_mapping_is_refused_in_one_line(text: str, told: str, tmp_path: Path) -> None:
    _, faults = read("-f", file_of(text))
    assert [fault for fault in faults if told in fault], faults
    for fault in faults:
        assert fault.isprintable()
        assert len(fault) < 400
    assert [path.name for path in tmp_path.iterdir()] == ["y"], "code of a parameter has run"


def test_a_file_that_is_none_or_too_large_is_refused_without_a_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "latin").write_bytes(b"db_path: /\xe9")
    (tmp_path / "utf16").write_bytes("rows: 5".encode("utf-16"))
    (tmp_path / "large").write_bytes(b"rows: 5 #" + b"x" * 65_536)
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    told = {
        "missing": "cannot be read: No such file or directory",
        **dict.fromkeys(("folder", "fifo"), "cannot be read: not a regular file"),
        "latin": "expected YAML in UTF-8, found: 'utf-8' codec can't decode byte 0xe9 in position 10",
        "large": "it is larger than 65,536 bytes",
        **dict.fromkeys(("socket", "utf16", "link", "/dev/zero", "a\0b", ""), ""),
    }
    _, faults = read(*(part for name in told for part in ("-f", str(tmp_path / name) if name else "")))
    listener.close()
    assert len(faults) == len(told)
    for words, fault in zip(told.values(), faults, strict=True):
        assert words in fault
        assert fault.isprintable()


def test_the_environment_is_given_at_most_once_in_any_way() -> None:
    def given_by(*arguments: str) -> tuple[list[Given], list[str]]:
        faults: list[str] = []
        return read_given(parsed(*(file_of(word) if ":" in word else word for word in arguments)), faults), faults

    for arguments in (("--env", "a"), ("-p", "env", "a"), ("-f", "env: a")):
        (given,), faults = given_by(*arguments)
        assert (given.name, given.text, faults) == ("env", "a", [])
        for more in (("--env", "b"), ("-p", "env", "a"), ("-f", "env: b")):
            _, (fault,) = given_by(*arguments, *more)
            assert fault.startswith("env: given twice (from ")
    assert given_by() == ([], [])


def test_a_name_that_no_listed_notebook_declares_is_refused_with_a_suggestion() -> None:
    given = [Given(name, "1", "-p") for name in ("rows", "db_pth", "x=1;import os;y", "Env", "dry_run")]
    faults = faults_of_names(given, ("env", "db_path", "rows"))
    assert faults == [
        "parameter 'db_pth' (from -p) is not declared (env, db_path, rows); did you mean db_path?",
        "parameter 'x=1;import os;y' (from -p) is not declared (env, db_path, rows)",
        "parameter 'Env' (from -p) is not declared (env, db_path, rows); did you mean env?",
        "parameter 'dry_run' (from -p) is not declared (env, db_path, rows)",
    ]


def test_a_value_goes_to_the_notebooks_that_declare_it() -> None:
    faults: list[str] = []
    given = [Given("rows", "7", "-p"), Given("env", "a", "--env")]
    assert values_for({"env": DECLARED["env"]}, given, faults) == {"env": "a"}
    assert values_for(DECLARED, given, faults) == {"env": "a", "rows": 7}
    assert faults == []
