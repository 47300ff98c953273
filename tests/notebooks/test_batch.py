"""Many databases at a time: each leaves what a run by hand leaves, none disturbs another, and none is run twice."""

import json
import os
import signal
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest
from running import CHECK, KILLED, SEAL, START, VERDICT, Fifo, Ran, ended, run, runner, write_notebook

from abathur_nb.cli import main
from abathur_nb.config.settings import resolve
from abathur_nb.evidence.record import Entry, read_archive
from abathur_nb.evidence.verify import verify_archive

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def databases(tmp_path: Path, pristine: bytes) -> list[Path]:
    """Return the paths of four sound databases, each in a directory of its own."""
    paths = [tmp_path / "srv" / name / "abathur.db" for name in ("a", "b", "c", "d")]
    for path in paths:
        path.parent.mkdir(mode=0o700, parents=True)
        path.touch(mode=0o600)
        path.write_bytes(pristine)
    return paths


def results(done: Ran) -> dict[str, dict[str, Any]]:
    """Return what a run with --json has printed, by the name of the database's directory."""
    printed = [json.loads(line) for line in done.lines]
    return {Path(result["database"]).parent.name: result for result in printed}


def runs_of(path: Path) -> list[Entry]:
    archive = resolve(db_path=path).archive_dir
    return [*read_archive(archive)] if archive.exists() else []


def test_each_database_gets_the_verdict_and_the_evidence_that_it_gets_alone(databases: list[Path]) -> None:
    _, altered, missing, garbage = databases
    altered.with_name("abathur.db-journal").write_bytes(b"x" * 512)
    missing.unlink()
    garbage.write_bytes(b"garbage" * 1000)
    alone = {path.parent.name: run("validate", "-p", "db_path", path).code for path in databases}
    done = run("validate", "--each", *databases, "--json", "--jobs", "3")
    found = results(done)
    codes = {"pass": 0, "fail": 1, "refused": 2}
    assert {name: codes[result["verdict"]] for name, result in found.items()} == alone
    assert alone == {"a": 0, "b": alone["b"], "c": 2, "d": alone["d"]}
    assert done.code == max((1, 2), key=[*alone.values()].__contains__)
    for path in databases:
        result, entries = found[path.parent.name], runs_of(path)
        if result["run"] is None:
            assert entries == []
            continue
        entry = entries[-1]
        assert (entry.run_id, entry.verdict, entry.faults) == (result["run"], result["verdict"], ())
        assert entry.line
        assert entry.line.sha256 == result["head"]
        assert str(entry.artifact) == result["archived"]
        assert (entry.folder / "page.html").exists() == (entry.verdict != "pass")
        assert verify_archive(resolve(db_path=path).archive_dir).ok
    assert found["c"]["reason"].startswith(f"no database at {missing}")


def test_what_was_sealed_in_a_batch_or_since_a_moment_is_not_run_again(databases: list[Path]) -> None:
    first = run("validate", "--each", str(databases[0].parent.parent / "[ab]" / "*.db"))
    assert (first.code, len(first.lines)) == (0, 3), first
    *_, batch = first.lines[-1].split()
    assert first.lines[-1].startswith("abathur_nb run: 2 databases: 2 pass; to do what is left: --since ")
    again = results(run("validate", "--each", *databases, "--since", batch, "--json"))
    assert {name: result["earlier"] for name, result in again.items()} == {"a": True, "b": True, "c": False, "d": False}
    assert [len(runs_of(path)) for path in databases] == [1, 1, 1, 1]
    assert {runs_of(path)[0].sealed.fleet for path in databases if runs_of(path)[0].sealed} == {batch}  # type: ignore[union-attr]
    begun = runs_of(databases[2])[0].sealed
    assert begun
    by_moment = results(run("validate", "--each", *databases, "--since", begun.started_at, "--json"))
    assert by_moment["c"]["earlier"]
    assert not by_moment["a"]["earlier"]
    others = run("preflight", "--since", batch, "-p", "db_path", databases[0]), run("validate", "--since", "2999-01-01")
    assert "PASS in" in others[0].out, "another notebook"
    assert others[1].code != 0


def test_faults_are_refused_all_at_once_before_anything_runs(
    databases: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, *_ = databases
    twice = [str(a), f"{a.parent}/../a/abathur.db", str(tmp_path / "nothing" / "*.db")]
    (tmp_path / "link.db").symlink_to(a)
    options = ["-p", "rows", "1", "--jobs", "0", "--since", "yesterday", "-p", "db_path", "x.db"]
    assert main(["run", "validate", *options, "--each", *twice, str(tmp_path / "link.db")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    said = ("is the same file as", "link.db' is the same", "nothing/*.db', found none", "--jobs: expected a number")
    for words in (*said, "--since: expected a moment", "expected no db_path", "'rows'"):
        assert words in err
    assert not [path for path in databases if runs_of(path)]


def test_a_kernel_that_dies_takes_nothing_along(databases: list[Path], tmp_path: Path) -> None:
    kill = f"if 'srv/b/' in str(settings.db_path):\n{indent(KILLED, '    ')}"
    mine = write_notebook(tmp_path / "mine.ipynb", START, kill, CHECK, SEAL, VERDICT)
    done = run(mine, "--each", *databases, "--json")
    found = results(done)
    assert {name: result["verdict"] for name, result in found.items()} == {
        **dict.fromkeys("acd", "pass"),
        "b": "error",
    }
    assert "killed by SIGKILL" in found["b"]["reason"]
    assert done.code == 3


def test_a_signal_ends_what_runs_which_is_sealed_and_begins_nothing_more(databases: list[Path], tmp_path: Path) -> None:
    fifo = Fifo(tmp_path / "fifo")
    wait = f"if 'srv/a/' in str(settings.db_path):\n{indent(fifo.cell, '    ')}\n    import time; time.sleep(600)"
    mine = write_notebook(tmp_path / "mine.ipynb", START, wait, CHECK, SEAL, VERDICT)
    with runner(mine, "--each", *databases, "--jobs", "1", "--json") as process:
        kernel = fifo.wait()
        process.send_signal(signal.SIGINT)
        done = ended(process)
    assert done.code == 5
    assert {name: result["verdict"] for name, result in results(done).items()} == dict.fromkeys("abcd", "interrupted")
    assert [entry.verdict for entry in runs_of(databases[0])] == ["interrupted"]
    assert not any(runs_of(path) for path in databases[1:])
    with pytest.raises(ProcessLookupError):
        os.kill(kernel, 0)
