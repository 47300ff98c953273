"""Directories made private, and scratch ones that no killed process leaves for long."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from damage import run_as_other

from abathur_nb.files import private_directory, scratch_directory, sweep

ORPHAN = ".abathur-init-0123456789a"  # one hexadecimal digit less than a name that is swept

HOLD = """
import sys
from pathlib import Path
from abathur_nb.files import scratch_directory
with scratch_directory(Path(sys.argv[1]), "init") as scratch:
    (scratch / "draft.db").touch()
    print(scratch.name, flush=True)
    sys.stdin.read()
"""


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.mark.parametrize("umask", [0, 0o077, 0o777])
def test_directories_are_made_private_under_any_umask_and_others_keep_their_mode(tmp_path: Path, umask: int) -> None:
    tmp_path.chmod(0o755)
    before = os.umask(umask)
    try:
        with private_directory(tmp_path / "a" / "b"), scratch_directory(tmp_path / "a", "probe") as scratch:
            scratch_mode = mode_of(scratch)
    finally:
        os.umask(before)
    with private_directory(tmp_path):
        pass
    assert (mode_of(tmp_path / "a"), mode_of(tmp_path / "a" / "b"), scratch_mode) == (0o700, 0o700, 0o700)
    assert mode_of(tmp_path) == 0o755


def test_a_scratch_directory_is_gone_with_all_that_is_in_it_even_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(KeyError), scratch_directory(tmp_path, "init") as scratch:  # noqa: PT012
        (scratch / "deep").mkdir()
        (scratch / "deep" / "file").touch()
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError), scratch_directory(tmp_path / "none", "init"):
        pass


def test_the_scratch_directory_of_a_killed_process_is_swept_and_that_of_a_living_one_never(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        with scratch_directory(tmp_path, "init") as own:
            assert sweep(tmp_path) == []
            assert own.is_dir()
        assert (tmp_path / name / "draft.db").exists()
        process.kill()
        process.wait()
    assert (tmp_path / name / "draft.db").exists()
    assert sweep(tmp_path) == [name]
    assert list(tmp_path.iterdir()) == []


def test_sweeping_touches_nothing_but_scratch_directories(tmp_path: Path) -> None:
    """Neither files nor links of that name, nor what a link of that name points to, nor a user's own folders."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    (tmp_path / f"{ORPHAN}0").symlink_to(kept)
    (tmp_path / f"{ORPHAN}1").touch()
    os.mkfifo(tmp_path / f"{ORPHAN}2")
    near_misses = (
        *(".abathur", ".abathur-old-backups", ".abathur-init-x", ".abathur-init-0123456789a", f"x{ORPHAN}3"),
        *(f"{ORPHAN}3f", f"{ORPHAN}3\n", f"{ORPHAN}G", f"{ORPHAN}3.old", ".abathur-other-0123456789ab"),
    )
    for name in near_misses:
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").touch()
    before = sorted(tmp_path.rglob("*"))
    assert sweep(tmp_path) == []
    assert sorted(tmp_path.rglob("*")) == before
    assert sweep(tmp_path / "none") == []
    assert sweep(kept / "file") == []


def test_only_root_sweeps_what_belongs_to_another_and_only_what_was_removed_is_named(public: Path) -> None:
    orphan = public / f"{ORPHAN}0"
    orphan.mkdir()
    program = "from abathur_nb.files import sweep\nprint(sweep(Path(sys.argv[1])))\n"
    for folder_mode, owner in ((0o777, 0), (0o755, 65534)):  # another's; one's own, where nothing may be removed
        public.chmod(folder_mode)
        orphan.chmod(0o777)
        os.chown(orphan, owner, owner)
        assert run_as_other(program, public) == "[]\n"
        assert orphan.is_dir()
    assert sweep(public) == [orphan.name]


def test_sweepers_and_makers_do_not_disturb_each_other(tmp_path: Path) -> None:
    """A maker whose directory is swept before it is locked makes another."""
    program = "from pathlib import Path; from abathur_nb.files import sweep\nwhile True: sweep(Path.cwd())"
    with subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path) as sweeper:
        try:
            for _ in range(300):
                with scratch_directory(tmp_path, "init") as scratch:
                    (scratch / "draft").touch()
                    assert (scratch / "draft").exists()
        finally:
            sweeper.kill()
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []
