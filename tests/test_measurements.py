"""The result of a benchmark: saved whole or not at all, read back only if it is one, and compared fairly."""

import json
import os
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from damage import fingerprint, run_as_other, untouched

from abathur_nb.config.settings import Settings
from abathur_nb.errors import ConfigurationError
from abathur_nb.measure.measurements import Baseline, BenchmarkResult, check_savable, compare, load_baseline
from abathur_nb.report import Check, Report

MS = 1_000_000
SAMPLES = {
    "session retrieval": [MS + n for n in range(1000)],
    "growth/1000": [2 * MS + n for n in range(300)],
    "growth/10000": [3 * MS + n for n in range(300)],
    "share/SQLite": [MS],
}


@pytest.fixture
def result() -> BenchmarkResult:
    report = Report("benchmark", (Check("session retrieval", "pass", "p99 < 10 ms", "p99 1 ms"),), subject="/x/é.db")
    return BenchmarkResult(report, SAMPLES, {"SQLite": "3.40.1", "PRAGMAs": {"journal_mode": "wal"}}, {})


def test_the_json_holds_report_machine_percentiles_and_every_sample(result: BenchmarkResult) -> None:
    told = json.loads(result.to_json())
    assert set(told) == {"report", "machine", "percentiles_ms", "limits_ms", "samples_ns"}
    assert told["report"]["ok"] is True
    assert told["report"]["checks"][0]["name"] == "session retrieval"
    assert told["machine"] == {"SQLite": "3.40.1", "PRAGMAs": {"journal_mode": "wal"}}
    assert told["samples_ns"] == SAMPLES
    low, value, high = told["percentiles_ms"]["session retrieval"]["p99"]
    assert low <= value <= high
    assert told["percentiles_ms"]["share/SQLite"]["p99"] == [1.0, 1.0, None]  # None, not NaN, which is no JSON
    json.loads(result.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_the_frame_has_a_row_a_measurement_with_the_interval_of_each_percentile(result: BenchmarkResult) -> None:
    frame = result.to_frame()
    assert list(frame["measurement"]) == list(SAMPLES)
    assert list(frame["samples"]) == [1000, 300, 300, 1]
    assert {"p50 ms", "p50 low", "p50 high", "p95 ms", "p99 ms", "p99 low", "p99 high"} <= set(frame.columns)
    assert frame["p50 ms"][1] == pytest.approx(2, rel=0.01)


def test_the_frame_shows_three_significant_digits_and_the_json_has_them_all() -> None:
    frame = BenchmarkResult(Report("benchmark", ()), {"a": [123_456] * 300}, {}, {}).to_frame()
    assert list(frame.iloc[0, 2:5]) == [0.123] * 3
    assert "0.123<" in frame.to_html()
    assert frame["p50 ms"].dtype == float  # a figure still, no text


def test_a_curve_is_the_measurements_of_one_name(result: BenchmarkResult) -> None:
    assert {label: len(found) for label, found in result.curve("growth").items()} == {"1000": 300, "10000": 300}
    assert result.curve("concurrency") == {}


# --- saving


def test_without_a_path_nothing_is_written(
    result: BenchmarkResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert result.save(None) == "not saved: no path was given"
    assert list(tmp_path.iterdir()) == []


def test_what_was_saved_is_what_is_loaded_and_only_its_owner_may_read_it(
    result: BenchmarkResult, tmp_path: Path
) -> None:
    path = tmp_path / "result.json"
    previous = os.umask(0)
    try:
        assert result.save(path) == f"saved as {path}"
    finally:
        os.umask(previous)
    assert path.read_text() == result.to_json()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_baseline(path) == Baseline(path, SAMPLES, result.machine)
    assert list(tmp_path.iterdir()) == [path]


def test_an_earlier_result_is_replaced(result: BenchmarkResult, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    BenchmarkResult(result.report, {"a": [1]}, {}, {}).save(path)
    result.save(path)
    assert load_baseline(path).samples == SAMPLES
    assert list(tmp_path.iterdir()) == [path]


def test_the_path_may_begin_at_home_or_at_the_working_directory(
    result: BenchmarkResult, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert result.save("~/a.json") == f"saved as {home}/a.json"
    assert result.save("b.json") == f"saved as {tmp_path}/b.json"
    assert load_baseline("~/a.json").samples == load_baseline("b.json").samples == SAMPLES


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("missing/result.json", "is missing"),
        ("file/result.json", "is not a directory"),
        ("folder", "no saved result"),
        ("x" * 300, "is a longer name than its file system takes"),
        ("a\x00b.json", "embedded null"),
        ("a\ud800b.json", "surrogates not allowed"),
    ],
)
def test_where_it_cannot_be_saved_one_line_says_so_and_nothing_is_left(
    where: str, told: str, result: BenchmarkResult, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigurationError, match=f"^the result cannot be saved as .*: .*{told}") as caught:
        result.save(f"{tmp_path}/{where}")
    assert str(caught.value).isprintable()
    with pytest.raises(ConfigurationError, match=re.escape(str(caught.value))):
        check_savable(f"{tmp_path}/{where}")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}
    assert (tmp_path / "file").read_text() == "kept"


def test_whether_it_can_be_saved_is_found_out_without_a_trace(tmp_path: Path, result: BenchmarkResult) -> None:
    before = tmp_path.stat().st_mtime_ns
    assert check_savable(tmp_path / "result.json") == tmp_path / "result.json"
    assert check_savable(None) is None
    assert tmp_path.stat().st_mtime_ns == before
    result.save(tmp_path / "result.json")
    with untouched(tmp_path / "result.json"):
        assert check_savable(tmp_path / "result.json") == tmp_path / "result.json"


def test_a_directory_that_may_not_be_written_to_is_no_place(public: Path) -> None:
    program = (
        "from abathur_nb.measure.measurements import check_savable\n"
        "try:\n    check_savable(sys.argv[1])\nexcept nb.ConfigurationError as error:\n    print(error)\n"
    )
    told = run_as_other(program, public / "result.json")
    cause = f"{public} could not be used (its directory may not be written to)"
    assert told.startswith(f"the result cannot be saved as '{public}/result.json': {cause}: ")


def test_a_name_with_no_room_for_its_draft_is_refused_beforehand(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is a longer name than its file system takes"):
        check_savable(tmp_path / ("x" * 250))


@pytest.mark.parametrize("path", [7, True, ["x"], b"x"])
def test_what_is_no_path_is_refused_in_one_line(path: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^the result cannot be saved as "):
        check_savable(path)


@pytest.mark.parametrize("beside", ["", "-wal"])
def test_it_never_replaces_a_database(beside: str, result: BenchmarkResult, database: Settings) -> None:
    path = Path(f"{database.db_path}{beside}")
    path.touch()
    with untouched(path), untouched(database.db_path), pytest.raises(ConfigurationError, match="no saved result"):
        result.save(path)


@pytest.mark.parametrize("kind", ["text", "link", "dangling link", "FIFO", "socket", "other JSON"])
def test_it_replaces_nothing_but_an_earlier_result(kind: str, result: BenchmarkResult, tmp_path: Path) -> None:
    path, victim = tmp_path / "x.json", tmp_path / "victim"
    match kind:
        case "text":
            path.write_text("notes")
        case "other JSON":
            path.write_text('{"samples": 1}')
        case "link":
            result.save(victim)
            path.symlink_to(victim)
        case "dangling link":
            path.symlink_to(victim)
        case "FIFO":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(str(path))
    before = {entry: fingerprint(entry) for entry in tmp_path.iterdir()}
    with pytest.raises(ConfigurationError, match="the result cannot be saved as "):
        result.save(path)
    assert {entry: fingerprint(entry) for entry in tmp_path.iterdir()} == before


def test_a_full_disk_leaves_the_earlier_result_whole(result: BenchmarkResult, tmp_path: Path) -> None:
    """A limit on the size of a file stands for the full disk: the write fails half-way."""
    path = tmp_path / "result.json"
    result.save(path)
    program = (
        "import resource, signal, sys\n"
        "from abathur_nb.measure.measurements import BenchmarkResult\n"
        "from abathur_nb.report import Report\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "result = BenchmarkResult(Report('b', ()), {'a': list(range(1, 100_000))}, {}, {})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "result.save(sys.argv[1])\n"
    )
    with untouched(path):
        done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ConfigurationError: the result cannot be saved as " in done.stderr
    assert "takes no file of that size: this process may write 4,096 bytes" in done.stderr
    assert list(tmp_path.iterdir()) == [path]


# --- loading


def test_no_baseline_is_no_samples() -> None:
    assert load_baseline(None) == Baseline()


NO_RESULTS: dict[str, bytes] = {
    "empty": b"",
    "no JSON": b"samples",
    "cut off": b'{"samples_ns": {"a": [1, 2',
    "a list": b"[1, 2]",
    "a number": b"7",
    "null": b"null",
    "without samples": b'{"report": {}}',
    "samples of another kind": b'{"samples_ns": [1, 2]}',
    "a measurement that is no list": b'{"samples_ns": {"a": 7}}',
    "a measurement of texts": b'{"samples_ns": {"a": ["fast"]}}',
    "a measurement of lists": b'{"samples_ns": {"a": [[1]]}}',
    "a measurement without samples": b'{"samples_ns": {"a": []}}',
    "without a machine": b'{"samples_ns": {"a": [1]}}',
    "a machine that is a text": b'{"samples_ns": {"a": [1]}, "machine": "x"}',
    "NaN": b'{"samples_ns": {"a": [NaN]}}',
    "infinite": b'{"samples_ns": {"a": [Infinity]}}',
    "1e999": b'{"samples_ns": {"a": [1e999]}}',
    "zero": b'{"samples_ns": {"a": [0, 0, 0]}}',
    "negative": b'{"samples_ns": {"a": [-5]}}',
    "true": b'{"samples_ns": {"a": [true]}}',
    "a number of 400 digits": b'{"samples_ns": {"a": [' + b"9" * 400 + b"]}}",
    "a number of 5000 digits": b'{"samples_ns": {"a": [' + b"9" * 5000 + b"]}}",
    "deep": b"[" * 100_000,
    "not UTF-8": b'{"samples_ns": {"\xff": [1]}}',
}


@pytest.mark.parametrize("content", NO_RESULTS.values(), ids=NO_RESULTS.keys())
def test_what_is_no_saved_result_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with untouched(path), pytest.raises(ConfigurationError, match=r"^baseline: .*x\.json'") as caught:
        load_baseline(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("kind", ["missing", "folder", "FIFO", "device", "enormous", "NUL", ""])
def test_what_cannot_be_read_is_refused_and_nothing_hangs(kind: str, tmp_path: Path) -> None:
    path: Any = tmp_path / "x.json"
    match kind:
        case "folder":
            path.mkdir()
        case "FIFO":
            os.mkfifo(path)
        case "device":
            path = "/dev/zero"
        case "enormous":
            with path.open("wb") as file:
                file.truncate(10**10)
        case "NUL":
            path = "a\x00b"
        case "":
            path = ""
    with pytest.raises(ConfigurationError, match=r"^baseline: ") as caught:
        load_baseline(path)
    assert str(caught.value).isprintable()


# --- comparing


def against(samples: dict[str, list[int]], earlier: dict[str, list[int]]) -> list[Check]:
    """Compare with an earlier run of the same machine, and return what is said of the samples."""
    machine, *checks = compare(samples, {"rows": 1}, Baseline(Path("x"), earlier, {"rows": 1}))
    assert (machine.name, machine.status) == ("the baseline's machine", "pass")
    return checks


def test_slower_beyond_both_intervals_is_a_warning_with_the_ratio() -> None:
    (check,) = against({"reads": [2 * MS + n for n in range(1000)]}, {"reads": [MS + n for n in range(1000)]})
    assert (check.name, check.status) == ("reads against the baseline", "warn")
    assert "was 1 ms (2.00 times)" in check.observed
    assert check.remedy
    assert not check.failed, "another machine is no failure of the database"


@pytest.mark.parametrize("now", [MS, MS // 2], ids=["as fast", "faster"])
def test_as_fast_or_faster_passes(now: int) -> None:
    (check,) = against({"reads": [now + n for n in range(1000)]}, {"reads": [MS + n for n in range(1000)]})
    assert (check.status, check.remedy) == ("pass", "")


def test_a_difference_within_the_intervals_is_none() -> None:
    before = [MS + n * 10_000 for n in range(300)]
    (check,) = against({"reads": [sample + 50_000 for sample in before]}, {"reads": before})
    assert check.status == "pass"


def test_a_slower_tail_is_seen_though_the_median_stands() -> None:
    fast = [MS] * 1000
    (check,) = against({"reads": [MS] * 900 + [9 * MS] * 100}, {"reads": fast})
    assert check.status == "warn"


def test_one_sample_against_one_sample_says_nothing() -> None:
    (check,) = against({"reads": [9 * MS]}, {"reads": [MS]})
    assert check.status == "pass"


def test_only_what_both_measured_is_compared() -> None:
    told = against({"a": [MS], "b": [MS]}, {"b": [MS], "c": [MS]})
    assert [check.name for check in told] == ["b against the baseline"]
    assert list(compare({"a": [MS]}, {"rows": 1}, Baseline())) == []


def test_the_machine_is_compared_before_the_samples() -> None:
    """Of another machine a difference in time says little: whoever reads on shall know."""
    told = list(compare({"a": [MS]}, {"rows": 1}, Baseline(Path("x"), {"a": [MS]}, {"rows": 2})))
    assert [check.name for check in told] == ["the baseline's machine", "a against the baseline"]
    assert told[0].status == "warn"
