"""The command line: each command where it belongs, what is wrong in a line, no traceback, and a start without delay."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from main_helpers import command
from patience import HANGING_S

import abathur_nb as nb
from abathur_nb.cli import main
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
            codes = told.replace("\n", " ").partition("exit codes: ")[2]
            assert [f"{code} " in codes for code in EXIT_CODES.values()] == [True] * 6
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--version"])
    assert capsys.readouterr().out == f"abathur_nb {nb.__version__}\n"


def test_wrong_arguments_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = (["runn"], ["run"], ["run", "validate", "--no"], ["verify"], ["--wat"])
    for arguments in wrong:
        with pytest.raises(SystemExit, match=r"^2$"):
            main(arguments)
    assert capsys.readouterr().out == ""
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


def test_a_signal_before_a_run_has_begun_exits_with_5_in_silence(tmp_path: Path) -> None:
    read, write = os.pipe()
    program = (
        "import os, runpy\n"
        "from abathur_nb.runner import run as runner\n"
        "def wait(*_): os.write(int(os.environ['PIPE']), b'.'); os.read(0, 1)\n"
        "runner._checked = wait\n"
        "runpy.run_module('abathur_nb', run_name='__main__')\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, "run", "validate", "--env", "development"],
        env={**os.environ, "PIPE": str(write)},
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=[write],
        cwd=tmp_path,
    ) as process:
        os.close(write)
        assert os.read(read, 1) == b"."
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=HANGING_S)
    os.close(read)
    assert (process.returncode, err) == (5, b"")
