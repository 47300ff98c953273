"""The command line: each command where it belongs, what is wrong in a line, no traceback, and a start without delay."""

import subprocess
import sys

import pytest
from main_helpers import command

import abathur_nb as nb
from abathur_nb.cli import main
from abathur_nb.config.notebooks import NOTEBOOKS
from abathur_nb.evidence.record import EXIT_CODES

COMMANDS = ("run", "archive", "runs", "verify", "diff", "copy", "metrics", "alerts")


def test_help_names_every_command_and_imports_none() -> None:
    done = command("--help")
    assert done.returncode == 0
    assert "`" not in done.stdout, "what is meant for programmers"
    assert all(f"\n    {name} " in done.stdout for name in COMMANDS)
    loaded = "import sys; sys.argv[1:] = ['--help']\ntry: main()\nexcept SystemExit: pass"
    program = f"from abathur_nb.cli import main\n{loaded}\nprint('abathur_nb.runner.run' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")


def test_every_command_tells_what_it_takes_and_run_its_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        with pytest.raises(SystemExit, match=r"^0$"):
            main([name, "--help"])
        told = capsys.readouterr().out
        assert told.startswith(f"usage: python -m abathur_nb {name} ")
        if name == "run":
            names, _, codes = told.replace("\n", " ").partition("Notebooks: ")[2].partition(". Exit codes: ")
            assert names.split(", ") == [*NOTEBOOKS]
            assert [f"{code} " in codes for code in EXIT_CODES.values()] == [True] * 6
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--version"])
    assert capsys.readouterr().out == f"abathur_nb {nb.__version__}\n"


def test_wrong_arguments_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    of_run = "usage: python -m abathur_nb run "
    wrong = {
        "runn": "invalid choice: 'runn'",
        "validate": "invalid choice: 'validate'|; to run a notebook, use the command run: run validate",
        "run": of_run,
        "run validate --envv x": f"{of_run}|unrecognized arguments: --envv x; did you mean --env?",
        "run troubleshoot --repair": "unrecognized arguments: --repair; give a notebook's parameter|-p repair True",
        "run validate --db-path x": "unrecognized arguments: --db-path x; give a notebook's parameter",
        "run troubleshoot -p repair=True": "expected 2 arguments; give a notebook's parameter",
        "verify": "usage: python -m abathur_nb verify ",
        "verify --env production": "arguments: --env; name the directory of the archive",
        "--wat": "usage: python -m abathur_nb [-h]",
    }
    for arguments, words in wrong.items():
        with pytest.raises(SystemExit, match=r"^2$"):
            main(arguments.split())
        printed = capsys.readouterr()
        assert not printed.out
        assert all(word in printed.err for word in words.split("|")), arguments
    assert command().returncode == 2


def test_what_a_user_can_cause_is_told_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "validat", "--env", "prod", "-p", "rows", "0"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, "what the one that is missing would declare is not known"
    assert lines[0].startswith("abathur_nb run: notebook 'validat': expected one of ")
    assert main(["run", "validate", "--env", "\x1b[31mprod", "-p", "rows", "0"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("abathur_nb run: ") and line.isprintable() for line in lines)


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_closed_stream_changes_no_exit_code(closed: str) -> None:
    shell = f'"{sys.executable}" -m abathur_nb verify /nonexistent {closed}'
    assert subprocess.run(["sh", "-c", shell], check=False, capture_output=True).returncode == 2
