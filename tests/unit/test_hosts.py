"""The page of a fleet shows the worst first, and what the newest records of an archive say of a database."""

import json
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter
from typing import Any

import archives
import pytest
from prometheus_client.parser import text_string_to_metric_families

import abathur_nb as nb
from abathur_nb.cli import main
from abathur_nb.config.settings import Settings
from abathur_nb.evidence.record import WORST
from abathur_nb.measure.hosts import Fleet, metrics_of, state_of
from abathur_nb.text import timestamp

GOOD: dict[str, list[str]] = {"missing": [], "altered": [], "extra": []}


def ago(hours: float) -> str:
    return timestamp(datetime.now(UTC) - timedelta(hours=hours))


def row(host: str, name: str, verdict: str = "pass", **state: Any) -> dict[str, Any]:
    known = {
        "size": 10_000_000,
        "free": 5 * 10**9,
        "schema": GOOD,
        "backup": ago(1),
        "validation": ago(2),
        "p99_ms": 1.5,
    }
    known |= {"altered": "", "host": host, "backup_limit_hours": 26, "validation_limit_days": 7}
    known |= {"versions": {"abathur_nb": "0.1.0", "SQLite": "3.51.3", "Python": "3.11.7"}}
    database = f"/srv/{name}/abathur.db"
    found = {"host": host, "database": database, "verdict": verdict, "reason": f"why {verdict}\nand more"}
    found |= {"env": "production", "archive": f"/srv/{name}/runs", "archived": f"/srv/{name}/runs/page.html"}
    found |= {"run": "20261201T000000000Z-abcdef"}
    return found | {"head": "f" * 64, "earlier": False, "state": {} if verdict == "unreachable" else known | state}


def test_the_worst_comes_first_with_its_reason_and_what_to_do() -> None:
    fleet = Fleet(tuple(row(f"eu-{n}", verdict, verdict) for n, verdict in enumerate(reversed(WORST))))
    assert [one["verdict"] for one in fleet.rows] == list(WORST)
    assert fleet.summary == f"validate of 8 databases on 8 hosts: {', '.join(f'1 {verdict}' for verdict in WORST)}"
    worst = fleet.tables()[0]
    assert [cells[0].split()[1] for cells in worst.rows] == list(WORST[:-1])
    assert worst.rows[0][3:] == ("why unreachable", "on eu-7: systemctl status abathur-worker")
    assert worst.rows[5][4] == "on eu-2: abathur-nb run troubleshoot --env production -p db_path /srv/fail/abathur.db"
    assert {check.id for check in fleet.report.checks if check.failed} == set(WORST[:-1])
    assert not fleet.report.ok
    assert Fleet((row("a", "x"),)).report.ok
    lost = Fleet((row("a", "x") | {"not_collected": "no bucket"},)).report
    assert [(one.id, one.evidence) for one in lost.checks if one.failed] == [
        ("collected", ("a:/srv/x/abathur.db: no bucket",))
    ]
    html = fleet.to_html()
    assert html.index("why unreachable") < html.index("why refused")
    assert html.count("open its page") == len(WORST) - 1


def test_schemas_versions_ages_sizes_and_changes_are_told() -> None:
    rows = (
        row("a", "x"),
        row("a", "y", schema=GOOD | {"missing": ["idx_a"]}, backup=ago(100), free=10**6),
        row(
            "b", "z", validation=None, size=30_000_000, p99_ms=9.5, versions={"SQLite": "3.40.1", "abathur_nb": "0.0.9"}
        ),
    )
    previous = (row("a", "x", "fail"), row("b", "z", size=10_000_000), row("b", "gone"))
    fleet = Fleet(rows, previous=previous, gone=previous[2:])
    _, schemas, versions, ages, sizes, changes = fleet.tables()
    assert schemas.rows[0] == ("missing: idx_a", "1", "a:/srv/y/abathur.db")
    assert schemas.rows[1][:2] == ("as expected", "2")
    assert ("0.0.9", "3.40.1", "?", "the WAL-reset race", "1", "b") in versions.rows
    assert [cells[:2] for cells in ages.rows] == [
        ("a:/srv/y/abathur.db", "backup"),
        ("b:/srv/z/abathur.db", "validation"),
    ]
    assert ages.rows[1][2] == "none in 100 days"
    assert sizes.rows[0] == ("b:/srv/z/abathur.db", "30.0", "+20.0", "5,000", "9.5")
    assert changes.rows == (
        ("a:/srv/x/abathur.db", "fail", "pass"),
        ("a:/srv/y/abathur.db", "new", "pass"),
        ("b:/srv/gone/abathur.db", "pass", "gone"),
    )
    assert [check.id for check in fleet.report.checks if check.failed] == ["gone"]
    assert {check.id for check in fleet.report.checks if check.status == "warn"} == {"backed_up", "validated"}


def test_prometheus_reads_its_metrics() -> None:
    text = metrics_of(Fleet((row("a", "x"), row("a", "y", "unreachable"))))
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["abathur_fleet_databases", "a", "unreachable"] == 1
    assert found["abathur_fleet_last_validation_timestamp_seconds", "/srv/x/abathur.db", "a"] > 1.7e9


async def test_a_state_is_read_from_the_newest_records(database: Settings) -> None:
    assert state_of(database)["validation"] is None
    run = nb.start_run(database, "validate")
    run.seal(await nb.validate_database(database), await nb.show_schema(database))
    state = state_of(database)
    assert (state["altered"], state["validation"]) == ("", None), "not archived yet"
    assert state["size"] == database.db_path.stat().st_size


@pytest.mark.parametrize("number", [1, 5000])
def test_its_page_stays_small_and_fast(number: int) -> None:
    rows = tuple(row(f"host-{n // 100:02}", f"db-{n}", "fail" if n % 250 == 7 else "pass") for n in range(number))
    begun = perf_counter()
    fleet = Fleet(rows)
    pictures = [
        chart._repr_mimebundle_()[0]["image/png"]
        for chart in (nb.charts.fleet_squares(fleet), nb.charts.ages_of_fleet(fleet))
    ]
    html = fleet.to_html()
    assert perf_counter() - begun < 60, "5 s on an idle machine"
    assert len(html) + sum(map(len, pictures)) * 4 / 3 < 3_000_000


@pytest.mark.needs("promtool")
def test_the_newest_fleet_run_is_printed_as_data_metrics_and_rules(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.db_path.parent.mkdir(mode=0o700)
    archive = ["--archive", str(settings.archive_dir)]
    archives.run(settings, name="fleet", facts=Fleet((row("a", "old", "fail"),), id="1").to_record())
    archives.run(settings, name="fleet", facts=Fleet((row("a", "x"), row("b", "y", "unreachable")), id="2").to_record())
    assert main(["fleet", "json", *archive]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["id"], [one["verdict"] for one in found["databases"]]) == ("2", ["unreachable", "pass"])
    assert main(["fleet", *archive]) == 0
    assert capsys.readouterr().out.startswith("validate of 2 databases on 2 hosts: 1 unreachable, 1 pass\n")
    assert main(["fleet", "metrics", *archive, "--output", str(tmp_path / "fleet.prom")]) == 0
    assert 'abathur_fleet_databases{host="b",verdict="unreachable"} 1.0' in (tmp_path / "fleet.prom").read_text()
    assert main(["fleet", "alerts", "--output", str(tmp_path / "rules.yml")]) == 0
    done = subprocess.run(["promtool", "check", "rules", tmp_path / "rules.yml"], capture_output=True, check=False)
    assert done.returncode == 0, done.stdout
