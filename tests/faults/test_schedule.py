"""What installs a nightly run is what systemd and cron read, whatever is in the paths."""

import shlex
import shutil
import subprocess
from pathlib import Path

import abathur_nb as nb
from abathur_nb.config.settings import Settings, resolve


def test_the_database_of_the_environment_itself_is_not_named() -> None:
    assert "db_path" not in nb.schedule(resolve("production"), "validate").crontab
    assert (
        "User=abathur\n" in nb.schedule(resolve("production"), "validate").units["abathur-validate-production.service"]
    )


def test_what_it_prints_runs_as_it_stands(database: Settings) -> None:
    """The command of the crontab line, taken by a shell, makes a backup that counts as a nightly one."""
    found = nb.schedule(database, "backup")
    assert list(found.units) == ["abathur-backup-development.service", "abathur-backup-development.timer"]
    assert "Persistent=true" in found.units["abathur-backup-development.timer"]
    minute, hour, *days, command = found.crontab.split(maxsplit=5)
    assert (minute, hour, days) == ("30", "2", ["*"] * 3)
    subprocess.run(["sh", "-c", command], check=True, capture_output=True, cwd="/")
    (taken,) = nb.show_backups(database).to_dict("records")
    assert taken["reason"] == "nightly"


def test_a_path_of_any_characters_survives(tmp_path: Path) -> None:
    for name in ("a b", "a%b", "a$HOME", 'a"b', "a'b", "a\\b", "ä;b"):
        path = tmp_path / name / "x.db"
        found = nb.schedule(resolve("development", db_path=path), "validate")
        assert shlex.split(found.crontab.replace(r"\%", "%"))[-1] == str(path)
        service = found.units["abathur-validate-development.service"]
        (line,) = (line for line in service.splitlines() if line.startswith("ExecStart="))
        # As systemd.service(5) says: quotes and backslashes as C has them, then %% and $$.
        assert shlex.split(line)[-1].replace("%%", "%").replace("$$", "$") == str(path)


def test_systemd_itself_takes_the_units(tmp_path: Path) -> None:
    found = nb.schedule(resolve("development", db_path=tmp_path / "a b%c" / "x.db"), "backup")
    for name, text in found.units.items():
        (tmp_path / name).write_text(text.replace("User=abathur\n", ""))
    tool = shutil.which("systemd-analyze")
    assert tool, "systemd-analyze is missing: apt-get install systemd"
    units = map(str, tmp_path.glob("abathur-*"))
    told = subprocess.run([tool, "verify", *units], capture_output=True, text=True, check=False)
    assert (told.returncode, told.stderr) == (0, "")
