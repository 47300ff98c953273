"""What Prometheus collects is what was measured, whole or not at all, and says so where nothing could be."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest
from alerts_helpers import promtool
from damage import ROWS, run_sql, untouched
from exposition_helpers import metrics, parsed
from main_helpers import command
from sampling import sampled

from abathur_nb.config.settings import Settings
from abathur_nb.measure.alerts import GAUGES


async def test_promtool_has_nothing_to_say_of_the_metrics(database: Settings) -> None:
    run_sql(database.db_path, *ROWS)
    with untouched(database.db_path):
        text = metrics(database)
    assert promtool("check", "metrics", given=text) == ""
    assert set(parsed(text)) == set(GAUGES)
    assert parsed(text)["abathur_up"] == {"": 1}
    assert f'database="{database.db_path}",env="development"' in text


async def test_hostile_names_are_labels_and_nothing_else(database: Settings) -> None:
    row = "INSERT INTO memory_entries (namespace, key, value, memory_type) VALUES (?, 'k', '{}', 'semantic')"
    for name in ('a:"} 9\nabathur_up 0', "a:\\", "a:\u202e", "a:{{x}}"):
        run_sql(database.db_path, row.replace("?", f"'{name}'"))
    text = metrics(database)
    assert promtool("check", "metrics", given=text) == ""
    assert parsed(text)["abathur_up"] == {"": 1}
    assert len(parsed(text)["abathur_namespace_rows"]) == 3 + 4
    with pytest.raises(AssertionError, match="no help text"):  # the control
        promtool("check", "metrics", given="abathur_up 1\n")


def test_the_file_is_replaced_whole_and_its_scratch_file_private(database: Settings, tmp_path: Path) -> None:
    folder, log = tmp_path / "textfile", tmp_path / "log"
    folder.mkdir()
    file = folder / "abathur.prom"
    file.write_text("old")
    traced = ["strace", "-f", "-y", "-e", "trace=openat,rename,renameat2", "-o", str(log)]
    arguments = ["metrics", "--db-path", str(database.db_path), "--output", str(file)]
    subprocess.run([*traced, sys.executable, "-m", "abathur_nb", *arguments], check=True, umask=0)
    (made,) = (line for line in log.read_text().splitlines() if "O_CREAT" in line and f'"{folder}/' in line)
    assert "O_EXCL" in made
    assert ", 0600) = " in made
    assert parsed(file.read_text())["abathur_up"] == {"": 1}
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert list(folder.iterdir()) == [file]


def test_where_it_cannot_be_written_the_cause_is_told_in_a_line(database: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "textfile"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=1", "tmpfs", folder], check=True)
    try:
        done = command("metrics", "--db-path", str(database.db_path), "--output", str(folder / "abathur.prom"))
    finally:
        subprocess.run(["umount", folder], check=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert f"the disk of {folder} is full" in done.stderr


@pytest.mark.parametrize("name", sampled(("x.txt", "no/where/x.prom", "folder.prom", "link.prom", ""), "link.prom"))
async def test_an_output_that_nobody_would_collect_is_refused(name: str, database: Settings, tmp_path: Path) -> None:
    (tmp_path / "folder.prom").mkdir()
    (tmp_path / "target").write_text("kept")
    (tmp_path / "link.prom").symlink_to(tmp_path / "target")
    done = command("metrics", "--db-path", str(database.db_path), "--output", str(tmp_path / name))
    assert (done.returncode, done.stdout) == (2, "")
    assert "--output: " in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert (tmp_path / "target").read_text() == "kept"


async def test_of_a_database_that_cannot_be_read_just_that_is_collected(database: Settings, tmp_path: Path) -> None:
    database.db_path.write_bytes(b"x" * 5000)
    file = tmp_path / "abathur.prom"
    done = command("metrics", "--db-path", str(database.db_path), "--output", str(file))
    assert done.returncode == 1
    assert "not SQLite" in done.stderr
    found = parsed(file.read_text())
    assert found["abathur_up"] == {"": 0}
    assert found["abathur_database_bytes"] == {"": 5000}
    assert "abathur_rows" not in found
