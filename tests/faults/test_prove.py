"""A sample of each sweep that ``make prove`` runs whole, and whether the harness would notice a fault."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from patience import HANGING_S

TESTS = Path(__file__).resolve().parents[1]
# Of how many faults one is injected, such that each verb, each kind of object and each kind of fault is among them.
SAMPLES = (
    "kill:100 eio:120 random:200 race:60 full-backup:60 hot:120 flip:200 logs:17",
    "kill-restore:150 full-repair:120 crowded:60 spoilt:100 tamper:20 torn:16 split:30",
    "full-rollback:160 kill-replace:45 mutated:14 good:34 locks:20 choice:56",
    "drills:20 refused:80 runs:50",
)
LEAST = 2


def prove(tmp_path: Path, *arguments: str, program: str = "", **environment: str) -> tuple[int, str]:
    """Run faults/prove.py, or a program that changes it first; return its exit code and its table."""
    run = f"import sys; {program}; from faults import prove; sys.exit(prove.main(sys.argv[1:]))"
    start = ["-c", run] if program else ["-m", "faults.prove"]
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


@pytest.mark.needs("strace")
@pytest.mark.parametrize("sweeps", SAMPLES)
def test_every_fault_of_a_sample_is_survived_and_the_control_is_not(sweeps: str, tmp_path: Path) -> None:
    code, out = prove(tmp_path, *sweeps.split())
    assert code == 0, out
    lines = [line for line in out.splitlines() if line.count(" | ") == 5][1:]  # the bar of a slow backup comes before
    assert len(lines) == len(sweeps.split()), out
    for line in lines:
        _, injected, struck, survived, control, verdict = line.split(" | ")
        assert int(injected) == int(struck) == int(survived) >= LEAST, line
        damaged, of = map(int, re.findall(r"\d+", control))
        assert damaged * 10 > of * 3, "over 30 % of the least that any sweep demands; the verdict is of its own share"
        assert verdict.strip() == "ok"
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


@pytest.mark.needs("prometheus")
@pytest.mark.needs("prometheus-node-exporter")
@pytest.mark.needs("strace")
def test_what_goes_wrong_fires_in_a_real_prometheus_and_resolves(tmp_path: Path) -> None:
    code, out = prove(tmp_path, "alerts")
    assert code == 0, out
    assert [cell.strip() for cell in out.splitlines()[2].split(" | ")[1:]] == ["4", "4", "4", "4 of 4", "ok"]


@pytest.mark.needs("strace")
@pytest.mark.parametrize(
    ("sweep", "swap", "words"),
    [
        ("random:50", "from faults.experiments import INITIALIZERS as i; i['sound'] = i['naive']", "is half-made"),
        ("random:50", "from faults.experiments import INITIALIZERS as i; i['naive'] = i['sound']", "BROKEN HARNESS"),
        (
            "flip:200",
            "from abathur_nb import Report; import faults.tampering as t; t.verify_archive = lambda _: Report('', ())",
            "not found: flip, seed 2026-",
        ),
    ],
)
def test_what_is_unsound_or_proves_nothing_is_found_out(sweep: str, swap: str, words: str, tmp_path: Path) -> None:
    code, out = prove(tmp_path, sweep, program=swap)
    assert code == 1
    assert words in out
    assert "FAILED" in out or words == "BROKEN HARNESS"


def test_without_strace_it_fails_and_says_so_and_no_sweep_is_guessed(tmp_path: Path) -> None:
    code, out = prove(tmp_path, PATH=str(tmp_path))
    assert code == 1
    assert "strace is not installed" in out
    assert prove(tmp_path, "kil")[0] == 2
