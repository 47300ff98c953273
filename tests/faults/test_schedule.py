"""What installs a nightly run is what systemd and cron read, whatever is in the paths."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import abathur_nb as nb
from abathur_nb.config.settings import Settings, resolve


def test_it_runs_the_notebook_by_this_python_for_this_database(database: Settings) -> None:
    found = nb.schedule(database, "backup")
    words = shlex.split(found.crontab)
    assert words[:5] == ["30", "2", "*", "*", "*"]
    assert words[5:9] == [sys.executable, "-m", "abathur_nb", "run"]
    assert words[9:] == [
        *("backup", "--env", "development", "-p", "db_path", str(database.db_path), "-p", "reason", "nightly"),
    ]
    assert list(found.units) == ["abathur-backup-development.service", "abathur-backup-development.timer"]
    assert "Persistent=true" in found.units["abathur-backup-development.timer"]


def test_the_database_of_the_environment_itself_is_not_named() -> None:
    assert "db_path" not in nb.schedule(resolve("production"), "validate").crontab
    assert (
        "User=abathur\n" in nb.schedule(resolve("production"), "validate").units["abathur-validate-production.service"]
    )


def test_what_it_prints_runs_as_it_stands(database: Settings) -> None:
    """The command of the crontab line, taken by a shell, makes a backup that counts as a nightly one."""
    command = nb.schedule(database, "backup").crontab.split(maxsplit=5)[5]
    subprocess.run(["sh", "-c", command], check=True, capture_output=True, cwd="/")
    (taken,) = nb.show_backups(database).to_dict("records")
    assert taken["reason"] == "nightly"


@pytest.mark.parametrize("name", ["a b", "a%b", "a$HOME", 'a"b', "a'b", "a\\b", "ä;b"])
def test_a_path_of_any_characters_survives(name: str, tmp_path: Path) -> None:
    path = tmp_path / name / "x.db"
    found = nb.schedule(resolve("development", db_path=path), "validate")
    unescaped = found.crontab.replace(r"\%", "%")
    assert shlex.split(unescaped)[-1] == str(path)
    service = found.units["abathur-validate-development.service"]
    (line,) = (line for line in service.splitlines() if line.startswith("ExecStart="))
    assert systemd_words(line.removeprefix("ExecStart="))[-1] == str(path)


def systemd_words(line: str) -> list[str]:
    """Split a line as systemd.service(5) says: quotes and backslashes as C has them, then ``%%`` and ``$$``."""
    return [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(line)]


def test_systemd_itself_takes_the_units(tmp_path: Path) -> None:
    found = nb.schedule(resolve("development", db_path=tmp_path / "a b%c" / "x.db"), "backup")
    for name, text in found.units.items():
        (tmp_path / name).write_text(text.replace("User=abathur\n", ""))
    tool = shutil.which("systemd-analyze")
    assert tool, "systemd-analyze is missing: apt-get install systemd"
    units = map(str, tmp_path.glob("abathur-*"))
    told = subprocess.run([tool, "verify", *units], capture_output=True, text=True, check=False)
    assert (told.returncode, told.stderr) == (0, "")
