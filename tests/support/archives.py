"""Archives made quickly, without a kernel, as runs make them; keys that sign them; and ways to tamper with them."""

import json
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import nbformat

from abathur_nb.config.settings import Settings
from abathur_nb.evidence.archive import keep
from abathur_nb.evidence.canonical import sealed, sha256
from abathur_nb.evidence.ledger import FIRST, LEDGER, read_ledger
from abathur_nb.evidence.record import Record, Verdict, read_run
from abathur_nb.evidence.run import write_record, write_started
from abathur_nb.report import Check, Report

GREEN = Report("validate", (Check("tables", "pass", "9 tables", "9 tables, each as in sql/"),))
RED = Report("validate", (Check("tables", "fail", "9 tables", "8 tables; missing: audit", "restore a backup"),))
FACTS: Mapping[str, Any] = {
    "schema": {"tasks": "CREATE TABLE tasks (id TEXT)", "idx_a": "CREATE INDEX idx_a ON tasks (id)"},
    "plans": {"get_session": ["SEARCH sessions USING INDEX a (id=?)"]},
    "percentiles_ms": {"session retrieval": {"p50": [0.1, 0.2, 0.3], "p99": [0.5, 0.7, None]}},
    "rows": {"tasks": 3},
    "sizes": {"tasks": 4096},
}
IDENTITY = {"path": "abathur.db", "size": 45056, "application_id": 1, "user_version": 1, "schema_sha256": "0" * 64}


def notebook(text: str) -> Any:
    cell = nbformat.v4.new_code_cell(text, id="one", execution_count=1)
    cell.outputs = [nbformat.v4.new_output("execute_result", {"text/plain": "2"}, execution_count=1)]
    return nbformat.v4.new_notebook(cells=[cell])


def start(settings: Settings, name: str = "validate", **parameters: object) -> Path:
    return write_started(settings, name, {"env": settings.env, **parameters})


def seal(
    folder: Path,
    settings: Settings,
    verdict: Verdict = "pass",
    *,
    reports: Sequence[Report] = (GREEN,),
    facts: Mapping[str, Any] = FACTS,
    database: Mapping[str, Any] = IDENTITY,
    **more: Any,
) -> Record:
    both = {"before": database, "after": database}
    return write_record(folder, settings, verdict, reports=tuple(reports), facts=facts, database=both, **more)


def record_with(**fields: Any) -> Record:
    defaults = {
        "format": 2,
        "run_id": "20261123T101500123Z-9f3ac1",
        "notebook": "validate",
        "env": "development",
        "user": "ada",
        "host": "lab",
        "ledger_head": "0" * 64,
        "started_sha256": "0" * 64,
        "template": {"name": "validate.ipynb", "sha256": "0" * 64},
        "parameters": {"env": "development"},
        "settings": {"readers": "2"},
        "versions": {"SQLite": "3.40.1"},
        "started_at": "2026-11-23 10:15:00.123",
        "ended_at": "2026-11-23 10:15:01.623",
        "verdict": "pass",
        "reports": [GREEN.to_dict()],
        "facts": deepcopy(dict(FACTS)),
        "database": {"before": IDENTITY, "after": IDENTITY},
        "error": None,
    }
    return read_run(Record, json.loads(json.dumps({**defaults, **fields})))


def run(settings: Settings, verdict: Verdict = "pass", *, name: str = "validate", **more: Any) -> Path:
    folder = start(settings, name)
    seal(folder, settings, verdict, **more)
    keep(folder, settings, notebook(f"'{folder.name}'"))
    return folder


def archive(settings: Settings, runs: int = 4) -> Path:
    """Make an archive: of so many runs one failed, and behind them one sealed, not archived, and one unsealed."""
    for number in range(runs):
        failed = number == 1
        run(settings, "fail" if failed else "pass", reports=(RED if failed else GREEN,))
    seal(start(settings), settings)
    start(settings)
    return settings.archive_dir


def fleet_row(settings: Settings, **more: Any) -> dict[str, Any]:
    """Return what a fleet run records of a database of this host."""
    line = read_ledger(settings.archive_dir).lines[-1]
    of_it = {"host": "here", "database": str(settings.db_path), "archive": str(settings.archive_dir), "verdict": "pass"}
    return of_it | {"run": line.data["run_id"], "head": line.sha256, "state": {"host": platform.node()}} | more


def fleet_run(settings: Settings, *rows: Mapping[str, Any], inventory: str = "fleet.toml", **parameters: str) -> None:
    """Make the run of ``fleet`` that recorded these rows."""
    folder = start(settings, "fleet", inventory=inventory, **parameters)
    fleet = {"id": folder.name, "inventory": inventory, "notebook": "validate", "databases": [*rows]}
    seal(folder, settings, facts={"fleet": fleet})
    keep(folder, settings, notebook("'fleet'"), html=False)


def ledger_lines(archive: Path) -> list[bytes]:
    return (archive / LEDGER).read_bytes().splitlines(keepends=True)


def run_id_of(number: int) -> str:
    return f"20261123T101500{number % 1000:03}Z-{number:06x}"


def ledger_line(number: int, **more: Any) -> dict[str, Any]:
    """Return what a run has written into the ledger."""
    files = {name: sha256(name.encode()) for name in ("record.json", "started.json")}
    said = dict.fromkeys(("notebook", "env", "verdict"), "x")
    said |= dict.fromkeys(("started_at", "ended_at", "written_at"), "2026-11-23 10:15:00.123")
    return {"kind": "run", "run_id": run_id_of(number), "files": files, "as_template": True, **said, **more}


def chain(lines: Iterable[Mapping[str, Any]]) -> bytes:
    """Return the bytes of a ledger with these lines."""
    head, content = FIRST, list[bytes]()
    for data in lines:
        content.append(sealed({**data, "previous": head}))
        head = sha256(content[-1])
    return b"".join(content)


def run_at(
    settings: Settings, moment: str, name: str = "validate", verdict: Verdict | None = "pass", **more: Any
) -> Path:
    """Make a run that began at ``20261001T120000``: archived, or unsealed if its verdict is None."""
    parameters = {"env": settings.env}
    folder = write_started(settings, name, parameters, run_id=f"{moment}000Z-{len(moment + name):06x}")
    if verdict:
        seal(folder, settings, verdict, **more)
        keep(folder, settings, notebook(name), html=False)
    return folder


def check(report: Report, name: str) -> Check:
    (found,) = (one for one in report.checks if one.name == name)
    return found


def openssl(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["openssl", *arguments], capture_output=True, check=False)


def make_key(path: Path, *options: str) -> Path:
    assert openssl("genpkey", *(options or ("-algorithm", "ed25519")), "-out", path).returncode == 0
    path.chmod(0o600)
    password = ("-passin", options[options.index("-pass") + 1]) if "-pass" in options else ()
    assert openssl("pkey", "-in", path, *password, "-pubout", "-out", path.with_suffix(".pub")).returncode == 0
    return path
