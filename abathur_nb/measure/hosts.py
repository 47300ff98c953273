"""What the newest records of an archive say of a database, and the view of many databases on one page."""

import argparse
import json
import os
import platform
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from html import escape
from itertools import islice
from math import inf
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from abathur_nb.config.settings import Settings, resolve
from abathur_nb.errors import RefusedError
from abathur_nb.evidence.ledger import newest_lines
from abathur_nb.evidence.record import WORST, Entry, newest_entries, read_entry
from abathur_nb.evidence.stores import chosen_archive, local
from abathur_nb.files import write_durably
from abathur_nb.health.checks import has_reset_race
from abathur_nb.report import Check, Report
from abathur_nb.store.schema import expected_objects
from abathur_nb.store.sql import normalized
from abathur_nb.text import MB, Shown, Table, age, counted, html_cell, html_table, moment_of, some, timestamp

if TYPE_CHECKING:
    import pandas as pd

Row = Mapping[str, Any]
_MARKS = {"pass": "✓", "refused": "⊘", "interrupted": "■", "unreachable": "?", "altered": "!"}  # others: ✗
_LINES, _DAYS = 500, 100  # how far back a ledger is read
_SHOWN = 200  # databases that did not pass, on the page
_NAMED = 10  # of the largest, the fastest growing and so on


# --- one database, on its own host


def state_of(settings: Settings) -> dict[str, Any]:
    """Return what the newest lines of a ledger, their records and the disk say of a database. Read-only; JSON data.

    ``altered`` says why the newest lines or records fail their hashes. Times are UTC; what is unknown is None.
    """
    state: dict[str, Any] = dict.fromkeys(("size", "free", "schema", "backup", "validation", "p99_ms"))
    state |= {"altered": "", "host": platform.node(), "versions": {}}
    state["backup_limit_hours"] = settings.backup_max_age_hours
    state["validation_limit_days"] = settings.validation_max_age_days
    with suppress(OSError):
        state |= {"size": os.lstat(settings.db_path).st_size, "free": shutil.disk_usage(settings.db_path.parent).free}
    if not os.access(settings.archive_dir, os.R_OK | os.X_OK):  # missing, or another account's
        return state
    try:
        for entry in _newest(settings):
            if entry.faults:
                state["altered"] = entry.faults[0]
                break
            record = entry.sealed
            if not record:
                continue
            state["versions"] = state["versions"] or dict(record.versions)
            when = {"backup": "backup", "validate": "validation"}.get(entry.notebook, "")
            if when and record.verdict == "pass":
                state[when] = state[when] or record.started_at
            if state["schema"] is None and record.facts.get("schema"):
                state["schema"] = _differences(record.facts["schema"])
            if state["p99_ms"] is None and (found := record.facts.get("percentiles_ms")):
                state["p99_ms"] = max(levels["p99"][1] for levels in found.values() if "p99" in levels)
    except RefusedError as error:
        state["altered"] = error.observed
    return state


def _newest(settings: Settings) -> Iterable[Entry]:
    """Yield the newest run of a database, its newest of each notebook, and the last that passed of two of them."""
    earliest, archive = timestamp(datetime.now(UTC) - timedelta(days=_DAYS)), settings.archive_dir
    seen = set[tuple[str, bool]]()
    for line in islice(newest_lines(archive), _LINES):
        data = line.data
        if data["written_at"] < earliest:
            break
        if data["kind"] != "run" or (kind := (data["notebook"], data["verdict"] == "pass")) in seen:
            continue
        entry = read_entry(archive, data["run_id"], line)
        if entry.faults or entry.is_of(settings):  # an archive may be that of several databases
            seen |= {kind} | ({(kind[0], False)} if kind[1] else set())
            yield entry


def _differences(schema: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the names of missing, altered and extra objects of a recorded schema."""
    expected = {name: normalized(found.sql) for name, found in expected_objects().items()}
    return {
        "missing": sorted(expected.keys() - schema.keys()),
        "altered": sorted(name for name, sql in expected.items() if schema.get(name, sql) != sql),
        "extra": sorted(schema.keys() - expected.keys()),
    }


# --- all databases, on one page


@dataclass(frozen=True, slots=True)
class Fleet(Shown):
    """Hold what became of each database of a fleet run, and what became of it in the one before; worst first.

    ``gone`` are the databases that the last fleet run had and that are missing now.
    """

    rows: tuple[Row, ...]
    previous: tuple[Row, ...] = ()
    gone: tuple[Row, ...] = ()
    id: str = ""
    inventory: str = ""
    notebook: str = "validate"
    report: Report = field(init=False)  # a check for each verdict but pass, of what is gone, and of what is late

    def __post_init__(self) -> None:
        ordered = sorted(self.rows, key=lambda row: (WORST.index(row["verdict"]), row["host"], row["database"]))
        object.__setattr__(self, "rows", tuple(ordered))
        object.__setattr__(self, "report", self._judged())

    @property
    def counts(self) -> Mapping[str, int]:
        """Return how many databases have each verdict, the worst first."""
        found = Counter(row["verdict"] for row in self.rows)
        return {verdict: found[verdict] for verdict in WORST if verdict in found}

    @property
    def summary(self) -> str:
        """Return the headline: how many databases of how many hosts ended how."""
        hosts = counted(len({row["host"] for row in self.rows}), "host")
        counts = ", ".join(f"{number:,} {verdict}" for verdict, number in self.counts.items())
        return f"{self.notebook} of {counted(len(self.rows), 'database')} on {hosts}: {counts or 'none'}"

    def _judged(self) -> Report:
        checks = []
        for verdict in WORST[:-1]:
            found = [row for row in self.rows if row["verdict"] == verdict]
            observed = some([_name(row) for row in found], _NAMED) or "none"
            evidence = [f"{_name(row)}: {_first(row['reason'])}" for row in found[:_SHOWN]]
            remedy = _remedy(found[0]) if found else ""
            name = f"{verdict} databases" if verdict in WORST[:2] else f"runs that ended with {verdict}"
            checks.append(Check.that(verdict, not found, "none", observed, remedy, evidence=evidence, name=name))
        names = some([_name(row) for row in self.gone], _NAMED) or "none"
        remedy = "find out who removed them, or why their host no longer lists them"
        checks.append(Check.that("gone", not self.gone, "every database of the last fleet run", names, remedy))
        if lost := [row for row in self.rows if row.get("not_collected")]:
            evidence = [f"{_name(row)}: {row['not_collected']}" for row in lost[:_SHOWN]]
            names, remedy = (
                some([_name(row) for row in lost], _NAMED),
                "correct that; the next fleet run copies the rest",
            )
            checks.append(
                Check("collected", "fail", "a copy of each archive", f"not copied: {names}", remedy, tuple(evidence))
            )
        for name, late in (("backed_up", self._late("backup")), ("validated", self._late("validation"))):
            observed = some([f"{_name(row)}: {words}" for row, words in late], _NAMED) or "none is late"
            remedy = f"run {'backup' if name == 'backed_up' else 'validate'} for them"
            checks.append(Check.that(name, not late, "within the limit of each database", observed, remedy, "warn"))
        return Report("fleet", tuple(checks), subject=self.inventory)

    def to_record(self) -> dict[str, Any]:
        """Return what the record of the fleet run keeps: it anchors the ledger of each database."""
        return {
            "fleet": {"id": self.id, "inventory": self.inventory, "notebook": self.notebook, "databases": [*self.rows]}
        }

    def to_json(self) -> str:
        """Return the rows as JSON text, the worst first."""
        return json.dumps(self.to_record()["fleet"], indent=1)

    def to_frame(self) -> "pd.DataFrame":
        """Return the rows as a pandas frame, the worst first."""
        import pandas as pd

        return pd.json_normalize([dict(row) for row in self.rows])

    def __str__(self) -> str:
        return "\n\n".join([self.summary, *(str(table) for table in self.tables())])

    def to_html(self) -> str:
        """Return the page as HTML without scripts, for light and dark themes."""
        return f"<p><b>{escape(self.summary)}</b></p>{self._worst_html()}" + "".join(
            table.to_html() for table in self.tables()[1:]
        )

    def tables(self) -> list[Table]:
        """Return the tables of the page: what did not pass, then schemas, versions, ages, sizes and changes."""
        return [self._worst(), self._schemas(), self._versions(), self._ages(), self._sizes(), self._changes()]

    def _worst(self) -> Table:
        bad = [row for row in self.rows if row["verdict"] != "pass"]
        rows = tuple(
            (_mark(row), row["host"], row["database"], _first(row["reason"]), _remedy(row)) for row in bad[:_SHOWN]
        )
        caption = f"{counted(len(bad), 'database')} did not pass" + (
            f"; the first {_SHOWN}" if len(bad) > _SHOWN else ""
        )
        heads = ("verdict", "host", "database", "why", "what to do")
        return Table(heads, rows, "every database passed", opened=_SHOWN, caption=caption if bad else "")

    def _worst_html(self) -> str:
        """Return the table of what did not pass, with links to the pages of the runs."""
        table, bad = self._worst(), [row for row in self.rows if row["verdict"] != "pass"]
        if not bad:
            return table.to_html()
        lines = []
        for row, cells in zip(bad, table.rows, strict=False):
            link = f"<br><a href='{escape(_url(row))}'>open its page</a>" if row.get("archived") else ""
            lines.append([html_cell(cell, link if place == 2 else "") for place, cell in enumerate(cells)])
        return f"<p><b>{escape(table.caption)}</b></p>{html_table(table.heads, lines)}"

    def _schemas(self) -> Table:
        found: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows:
            schema = row["state"].get("schema")
            if schema is not None:
                words = [f"{kind}: {some(schema[kind], 5)}" for kind in ("missing", "altered", "extra") if schema[kind]]
                found["; ".join(words) or "as expected"].append(row)
        lines = sorted(found.items(), key=lambda one: (one[0] == "as expected", len(one[1])))
        rows = tuple((words, f"{len(of):,}", some([_name(row) for row in of], 3)) for words, of in lines)
        return Table(("schema", "databases", "which"), rows, "no schema is recorded yet", caption="Schemas")

    def _versions(self) -> Table:
        found: dict[tuple[str, ...], set[str]] = defaultdict(set)
        for row in self.rows:
            if versions := row["state"].get("versions"):
                kind = tuple(str(versions.get(name, "?")) for name in ("abathur_nb", "SQLite", "Python"))
                linked = tuple(int(part) for part in kind[1].split(".") if part.isdecimal())
                found[(*kind, "the WAL-reset race" if has_reset_race(linked) else "")].add(row["host"])
        rows = tuple((*kind, f"{len(of):,}", some(sorted(of), 5)) for kind, of in sorted(found.items()))
        heads = ("abathur_nb", "SQLite", "Python", "known hazard", "hosts", "which")
        return Table(heads, rows, "no version is recorded yet", caption="Versions")

    def ages(self, what: str) -> list[float | None]:
        """Return the age of the last ``backup`` or ``validation`` of each known database, in parts of its limit."""
        now, found = datetime.now(UTC), []
        for state in (row["state"] for row in self.rows if row["state"]):
            limit = state["backup_limit_hours"] / 24 if what == "backup" else state["validation_limit_days"]
            found.append((now - moment_of(state[what])) / timedelta(days=limit) if state[what] else None)
        return found

    def _late(self, what: str) -> list[tuple[Row, str]]:
        """Return the databases whose last backup or validation is missing or older than its limit, the oldest first."""
        known = [row for row in self.rows if row["state"]]
        late = [(inf if old is None else old, row) for row, old in zip(known, self.ages(what), strict=True)]
        late = sorted((one for one in late if one[0] > 1), key=lambda one: -one[0])
        return [
            (row, f"none in {_DAYS} days" if old == inf else age(moment_of(row["state"][what]))) for old, row in late
        ]

    def _ages(self) -> Table:
        rows = [(_name(row), what, words) for what in ("backup", "validation") for row, words in self._late(what)]
        return Table(
            ("database", "last", "age"),
            tuple(rows),
            "none is late",
            opened=_NAMED,
            caption="Late backups and validations",
        )

    def _sizes(self) -> Table:
        before = {_name(row): row["state"].get("size") for row in self.previous}
        known = [row for row in self.rows if row["state"].get("size") is not None]
        growth = {_name(row): row["state"]["size"] - (before.get(_name(row)) or row["state"]["size"]) for row in known}
        ranks = (
            lambda row: -row["state"]["size"],
            lambda row: -growth[_name(row)],
            lambda row: row["state"]["free"] if row["state"]["free"] is not None else float("inf"),
            lambda row: -(row["state"]["p99_ms"] or 0),
        )
        chosen = {_name(row): row for rank in ranks for row in sorted(known, key=rank)[:5]}
        rows = tuple(
            (
                name,
                f"{row['state']['size'] / MB:,.1f}",
                f"{growth[name] / MB:+,.1f}",
                _mb(row["state"]["free"]),
                _ms(row),
            )
            for name, row in chosen.items()
        )
        heads = ("database", "size (MB)", "since last time (MB)", "free disk (MB)", "slowest p99 (ms)")
        return Table(
            heads, rows, "no size is known", caption="The largest, the fastest growing, the fullest disk, the slowest"
        )

    def _changes(self) -> Table:
        before, now = ({_name(row): row["verdict"] for row in rows} for rows in (self.previous, self.rows))
        lines = [
            (name, before.get(name, "new"), verdict) for name, verdict in now.items() if before.get(name) != verdict
        ]
        lines += [(_name(row), row["verdict"], "gone") for row in self.gone]
        nothing = "nothing" if self.previous else "there is no earlier fleet run of this inventory"
        rows = tuple(lines) if self.previous else ()
        return Table(
            ("database", "last time", "now"), rows, nothing, opened=_NAMED, caption="What changed since last time"
        )


def _name(row: Row) -> str:
    return f"{row['host']}:{row['database']}"


def _mark(row: Row) -> str:
    return f"{_MARKS.get(row['verdict'], '✗')} {row['verdict']}"


def _first(reason: str) -> str:
    return reason.partition("\n")[0]


def _mb(size: float | None) -> str:
    return "" if size is None else f"{size / MB:,.0f}"


def _ms(row: Row) -> str:
    return "" if row["state"]["p99_ms"] is None else f"{row['state']['p99_ms']:.3g}"


def _url(row: Row) -> str:
    return f"file://{row['archived']}"


def _remedy(row: Row) -> str:
    """Return what to do about a database that did not pass, as a command on its host."""
    if row["verdict"] == "fail" and row["run"] is None:
        return "correct the inventory, or find out who removed the files"
    command = f"--env {row['env']} -p db_path {quote(row['database'])}"
    return {
        "unreachable": f"on {row['host']}: systemctl status abathur-worker",
        "altered": f"on {row['host']}: abathur-nb verify {quote(row.get('archive', ''))}",
        "refused": "see the reason",
        "interrupted": "run the fleet again with since = last",
    }.get(row["verdict"], f"on {row['host']}: abathur-nb run troubleshoot {command}")


def metrics_of(fleet: Fleet) -> str:
    """Return a fleet run as text for Prometheus' textfile collector."""
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    registry = CollectorRegistry()
    counts = Gauge("abathur_fleet_databases", "databases by verdict", ["host", "verdict"], registry=registry)
    last = Gauge(
        "abathur_fleet_last_validation_timestamp_seconds",
        "start of the newest validation that passed; 0 for never",
        ["host", "database"],
        registry=registry,
    )
    for (host, verdict), number in Counter((row["host"], row["verdict"]) for row in fleet.rows).items():
        counts.labels(host, verdict).set(number)
    for row in fleet.rows:
        if row["state"]:
            moment = row["state"]["validation"]
            last.labels(row["host"], row["database"]).set(moment_of(moment).timestamp() if moment else 0)
    return generate_latest(registry).decode()


def rules_of(settings: Settings) -> dict[str, Any]:
    """Return the content of a Prometheus rule file for `metrics_of`: what is unreachable, or not validated for days."""
    days = settings.validation_max_age_days
    rules = [
        ("Unreachable", 'abathur_fleet_databases{verdict="unreachable"} > 0', "cannot be reached", "start its worker"),
        (
            "NotValidated",
            f"time() - abathur_fleet_last_validation_timestamp_seconds > {days * 86_400!r}",
            f"passed no validation for {days:g} days",
            "run fleet.ipynb",
        ),
    ]
    found = [
        {
            "alert": f"AbathurFleet{name}",
            "expr": expression,
            "labels": {"severity": "critical"},
            "annotations": {"summary": f"Abathur: {{{{ $labels.host }}}} {{{{ $labels.database }}}} {words}: {remedy}"},
        }
        for name, expression, words, remedy in rules
    ]
    return {"groups": [{"name": "abathur-fleet", "rules": found}]}


def command(arguments: argparse.Namespace) -> int:
    """Print the newest fleet run of an archive as text, JSON or metrics, or the alert rules. Writes ``--output``."""
    if arguments.form == "alerts":
        import yaml

        settings = resolve("development" if arguments.env is None else arguments.env, db_path=arguments.db_path)
        text = yaml.safe_dump(rules_of(settings), sort_keys=False, width=120)
    else:
        with local(chosen_archive(arguments)) as archive:
            found = next((one.found("fleet") for one in newest_entries(archive, "fleet") if one.found("fleet")), None)
        if not found:
            raise RefusedError("the archive holds no fleet run", "run fleet.ipynb")
        fleet = Fleet(tuple(found["databases"]), **{name: found[name] for name in ("id", "inventory", "notebook")})
        forms: dict[str, Callable[[], str]] = {"json": fleet.to_json, "metrics": partial(metrics_of, fleet)}
        text = forms.get(arguments.form, fleet.__str__)() + "\n"
    if arguments.output:
        write_durably(Path(arguments.output), text.encode(), mode=0o644)  # a collector runs as another user
    else:
        sys.stdout.write(text)
    return 0
