"""A sample of each sweep that ``make prove`` runs whole, and whether the harness would notice a fault."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from patience import HANGING_S

TESTS = Path(__file__).resolve().parents[1]
# Of how many faults one is injected.
SAMPLES = {"kill": 20, "random": 25, "race": 25, "enospc": 20, "eio": 20, "flip": 10, "tamper": 20, "runs": 6}
SAMPLES |= {"kill-backup": 14, "kill-restore": 20, "kill-rollback": 30, "kill-replace": 8, "kill-repair": 20}
SAMPLES |= {"full-backup": 14, "full-restore": 20, "full-rollback": 30, "full-replace": 8, "full-repair": 20}
SAMPLES |= {"hot": 25, "crowded": 10, "spoilt": 20, "mutated": 4, "good": 10, "locks": 5, "logs": 10, "torn": 5}
SAMPLES |= {"choice": 18, "split": 5, "drills": 6, "refused": 12}


def prove(tmp_path: Path, *arguments: str, program: str = "", **environment: str) -> tuple[int, str]:
    """Run faults/prove.py, or a program that changes it first; return its exit code and its table."""
    start = ["-c", f"import sys; {program}"] if program else ["-m", "faults.prove"]
    done = subprocess.run(
        [sys.executable, *start, *arguments],
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": f"{TESTS}:{TESTS / 'support'}", **environment},
        capture_output=True,
        text=True,
        timeout=HANGING_S,
        check=False,
        start_new_session=True,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


@pytest.mark.parametrize("sweep", SAMPLES)
def test_every_fault_of_a_sample_is_survived_and_the_control_is_not(sweep: str, tmp_path: Path) -> None:
    code, out = prove(tmp_path, sweep, "--sample", str(SAMPLES[sweep]))
    assert code == 0, out
    _, injected, struck, survived, control, verdict = out.splitlines()[2].split(" | ")
    assert int(injected) == int(struck) == int(survived) >= 10
    damaged, of = map(int, re.findall(r"\d+", control))
    assert damaged * 10 > of * 3, "over 30 % of the least that any sweep demands; the verdict is of its own share"
    assert verdict.strip() == "ok"
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_what_goes_wrong_fires_in_a_real_prometheus_and_resolves(tmp_path: Path) -> None:
    code, out = prove(tmp_path, "alerts")
    assert code == 0, out
    assert [cell.strip() for cell in out.splitlines()[2].split(" | ")[1:]] == ["4", "4", "4", "4 of 4", "ok"]


def test_an_alert_that_never_fires_is_found_out(tmp_path: Path) -> None:
    deaf = (
        "from dataclasses import replace; from faults import alerting as a; a._TELLS_WITHIN = 8; "
        "given = a.prometheus_rules; "
        "a.prometheus_rules = lambda settings: given(replace(settings, backup_max_age_hours=1e9))"
    )
    code, out = prove(tmp_path, program=f"{deaf}; from faults import prove; sys.exit(prove.main(['alerts']))")
    assert code == 1
    assert "AbathurBackupOld: it never fired" in out


def test_a_naive_initialization_is_found_out(tmp_path: Path) -> None:
    swap = "from faults.initializers import INITIALIZERS as i; i['sound'] = i['naive']"
    code, out = prove(
        tmp_path, program=f"{swap}; from faults import prove; sys.exit(prove.main(['random', '--sample', '50']))"
    )
    assert code == 1
    assert "FAILED" in out
    assert "the database is half-made" in out


def test_a_verify_that_finds_nothing_is_found_out(tmp_path: Path) -> None:
    blind = (
        "from faults import tampering as t; from abathur_nb import Report; t.verify_archive = lambda a: Report('', ())"
    )
    code, out = prove(
        tmp_path, program=f"{blind}; from faults import prove; sys.exit(prove.main(['flip', '--sample', '200']))"
    )
    assert code == 1
    assert "FAILED" in out
    assert re.search(r"not found, seed 2026-\d+: byte \d+ of \S+ xor 0x", out)


def test_a_backup_that_is_no_snapshot_is_found_out(tmp_path: Path) -> None:
    swap = "from faults import backups as b; b._COPIES['sound'] = b._COPIES['naive']"
    code, out = prove(
        tmp_path, program=f"{swap}; from faults import prove; sys.exit(prove.main(['hot', '--sample', '50']))"
    )
    assert code == 1
    assert "FAILED" in out


def test_a_control_that_takes_no_harm_breaks_the_harness(tmp_path: Path) -> None:
    swap = "from faults.initializers import INITIALIZERS as i; i['naive'] = i['sound']"
    code, out = prove(
        tmp_path, program=f"{swap}; from faults import prove; sys.exit(prove.main(['random', '--sample', '50']))"
    )
    assert code == 1
    assert "BROKEN HARNESS" in out


def test_without_strace_it_fails_and_says_so(tmp_path: Path) -> None:
    code, out = prove(tmp_path, PATH=str(tmp_path))
    assert code == 1
    assert "strace is not installed" in out


def test_a_sweep_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    code, _ = prove(tmp_path, "kil")
    assert code == 2
