"""What is read of each run of an archive: verdict, time, facts; and nothing of what no run can have found out."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import archives
import pytest
from archives import run_at

import abathur_nb as nb
from abathur_nb.config.settings import Settings, resolve
from abathur_nb.evidence.canonical import sealed, unsealed
from abathur_nb.evidence.record import RECORD, STARTED, PastRun, past_runs, read_archive


def past(settings: Settings) -> tuple[PastRun, ...]:
    return past_runs(read_archive(settings.archive_dir))


def test_a_run_is_told_with_its_time_its_verdict_and_who_ran_it(settings: Settings) -> None:
    folder = run_at(settings, "20261001T120000")
    (run,) = past(settings)
    assert run.run_id == folder.name
    assert run.started_at == datetime(2026, 10, 1, 12, tzinfo=UTC)
    assert (run.notebook, run.label, run.verdict, run.sealed) == ("validate", "validate", "pass", True)
    assert run.seconds is not None
    assert run.seconds >= 0
    assert " on " in run.who
    assert run.facts.size == archives.IDENTITY["size"]
    assert run.facts.sizes == archives.FACTS["sizes"]
    assert run.facts.schema == archives.FACTS["schema"]
    assert run.facts.plans == {"get_session": "SEARCH sessions USING INDEX a (id=?)"}
    assert run.facts.percentiles == {"session retrieval": {"p50": (0.1, 0.2, 0.3), "p99": (0.5, 0.7, None)}}


def test_of_an_altered_run_no_fact_is_told(settings: Settings) -> None:
    record = run_at(settings, "20261001T120000") / RECORD
    assert [run.verdict for run in past(settings)] == ["pass"]  # the control
    record.write_bytes(record.read_bytes().replace(b"45056", b"45057"))
    (run,) = past(settings)
    assert (run.verdict, run.sealed, run.facts.size) == ("altered", False, None)


def test_a_record_that_belongs_to_another_beginning_is_altered_though_each_hash_is_right(settings: Settings) -> None:
    folder = archives.start(settings)
    archives.seal(folder, settings)
    assert [run.verdict for run in past(settings)] == ["pass"]  # the control
    begun = unsealed((folder / STARTED).read_bytes())
    (folder / STARTED).write_bytes(sealed({**begun, "user": "mallory"}))
    (run,) = past(settings)
    assert (run.verdict, run.sealed, run.facts.size) == ("altered", False, None)


ODD: list[Mapping[str, Any]] = [
    {"percentiles_ms": {"x": {"p99": [1, 2]}}},
    {"percentiles_ms": {"x": {"p99": ["1", "2", "3"]}}},
    {"percentiles_ms": {"x": {"p99": [1, -2, 3]}}},
    {"percentiles_ms": {"x": {"p99": [1, None, 3]}}},
    {"percentiles_ms": {"x": {"p99": [1, 10**400, 3]}}},
    {"percentiles_ms": {"x": {"p99": [1, 1e300, 3]}}},
    {"percentiles_ms": {"x": {"p99": 7}}},
    {"percentiles_ms": ["x"]},
    {"limits_ms": {"x": 20}},
    {"limits_ms": {"x": ["p99", "20"]}},
    {"machine": "fast"},
    {"schema": ["tasks"], "rows": {"tasks": 1}},
    {"plans": {"q": 7}},
    {"plans": 7},
    {"sizes": {"t": -1}},
    {"sizes": {"t": 10**20}},
    {"sizes": {"t": "large"}},
    {"sizes": {"t": 10**400}},
]


@pytest.mark.parametrize("facts", ODD, ids=str)
def test_facts_that_no_notebook_found_out_are_taken_for_an_altered_record(
    facts: Mapping[str, Any], settings: Settings
) -> None:
    """A record that was not archived can be made anew by anybody, with the right hash."""
    folder = archives.start(settings)
    archives.seal(folder, settings)
    record = unsealed((folder / RECORD).read_bytes())
    (folder / RECORD).write_bytes(sealed({**record, "facts": facts}))
    (run,) = past(settings)
    assert run.verdict == "altered"


@pytest.mark.parametrize(
    "run_id", ["99991231T235959999Z-abcdef", "00010101T000000000Z-abcdef", "20260231T120000000Z-abcdef"]
)
def test_an_id_that_holds_no_time_of_a_run_is_left_out(run_id: str, settings: Settings) -> None:
    run_at(settings, "20261001T120000")
    (settings.archive_dir / run_id).mkdir()
    assert len(read_archive(settings.archive_dir)) == 2
    assert [run.started_at.year for run in past(settings)] == [2026]


def test_in_an_archive_of_two_databases_each_label_says_which(settings: Settings, tmp_path: Path) -> None:
    other = resolve("development", db_path=tmp_path / "other.db", archive_dir=settings.archive_dir)
    run_at(settings, "20261001T120000")
    run_at(other, "20261001T130000")
    one, two = past(settings)
    assert one.notebook == two.notebook == "validate"
    assert one.label == f"validate of {one.database}"
    assert two.label.endswith("other.db")
    assert one.label != two.label


async def test_what_explain_and_benchmark_found_out_comes_back_as_it_was(database: Settings) -> None:
    plans = await nb.explain_queries(database)
    result = await nb.run_benchmark(database, rows=100, repetitions=299)
    run_at(database, "20261001T120000", "explain", facts=plans.to_record())
    run_at(database, "20261001T130000", "benchmark", facts=result.to_record())
    explained, measured = (run.facts for run in past(database))
    assert set(explained.plans) == set(plans.trees)
    assert "idx_audit_task" in explained.plans["audit_of_task"]
    assert measured.limits == {name: (f"p{level * 100:g}", limit) for name, (level, limit) in result.limits.items()}
    frame = result.to_frame().set_index("measurement")
    for name, (level, _) in measured.limits.items():
        assert measured.percentiles[name][level][1] == pytest.approx(frame.loc[name, f"{level} ms"], rel=0.01)
    assert measured.basis[-1] == "100"  # rows
