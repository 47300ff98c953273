"""Fleet: run one notebook for every database of an inventory, on this host or, through Dask, on the hosts of each.

On its host, each run is a command ``run`` of its own, with the evidence that a run by hand leaves; the ledgers are the
checkpoint. A task of Dask is text in and text out, so that hosts with other versions of this package can say so.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from abathur_nb.config.inventory import Host, read_inventory
from abathur_nb.config.parameters import notebook_shell
from abathur_nb.config.settings import Settings, read_file, resolve
from abathur_nb.errors import AbathurError, ConfigurationError
from abathur_nb.evidence.canonical import sha256, tilde
from abathur_nb.evidence.ledger import RUN_ID
from abathur_nb.evidence.record import begun_at, read_entry, run_ids
from abathur_nb.evidence.run import Run, new_run_id, shipped_notebook
from abathur_nb.evidence.verify import collect_archive
from abathur_nb.measure.hosts import Fleet, state_of
from abathur_nb.runner.batch import end_idle, interrupting, matching, not_run, run_one
from abathur_nb.runner.execution import Stop
from abathur_nb.text import counted, did_you_mean, printable, shown, some, url_fault

# None of them repairs, restores or applies anything.
NOTEBOOKS = ("validate", "preflight", "explain", "monitor", "readiness", "backup", "troubleshoot")
_UNREACHABLE_S = 60  # without a worker; distributed.scheduler.no-workers-timeout of Dask's configuration replaces it
_MOST = 65_536  # bytes of a scheduler file
_LOOK_S = 1  # between two looks at which hosts have a worker
_LOSSES = 2  # of the worker while it ran one database: then that database is not tried again
_CLOCKS = timedelta(days=1)  # the clocks of two hosts differ by less
_WAITING = 2  # times at_once: databases that are handed to a host, so that it need not wait for the next
_LOOPBACK = ("127.0.0.1", "localhost", "::1")

Row = dict[str, Any]  # what became of one database, as `measure.hosts` describes it
Ask = Callable[["Host", Mapping[str, Any]], Awaitable[dict[str, Any]]]  # asks a host to do something


# --- on the host of the databases


def work(text: str, stop: Stop | None = None) -> str:
    """Do on this host what a fleet run asks for, and return the answer; both are JSON. Raises nothing.

    ``{"globs": …}`` asks which databases exist; ``{"database": …}`` for a run of the notebook.
    """
    asked = json.loads(text)
    mine, wanted = about(asked["notebook"]), asked["about"]
    if differ := [f"{one} {mine[one]} instead of {wanted.get(one)}" for one in mine if mine[one] != wanted.get(one)]:
        return json.dumps({"refused": f"this host has another version: {', '.join(differ)}"})
    try:
        answer = _listed(asked) if "globs" in asked else _ran(asked, stop or Stop())
    except (AbathurError, OSError) as error:
        answer = {"refused": str(error)}
    return json.dumps(answer)


def work_in_dask(text: str) -> str:
    """Do `work` in a worker of Dask, which goes on with its next task meanwhile: resources limit how many."""
    from distributed import secede

    secede()
    return work(text)


def about(notebook: str) -> dict[str, str]:
    """Return what must be the same on all hosts: the version of this package, and the notebook's SHA-256."""
    return {"abathur_nb": version("abathur_nb"), f"{notebook}.ipynb": sha256(shipped_notebook(notebook) or b"")[:12]}


def _listed(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the paths that globs match here, the globs that match none, and faults. Read-only."""
    found, empty, faults = matching(asked["globs"])
    try:
        resolve(asked["env"], db_path="/nowhere/abathur.db")
    except ConfigurationError as error:
        faults += error.faults
    return {"databases": found, "empty": empty, "faults": faults}


def _ran(asked: Mapping[str, Any], stop: Stop) -> dict[str, Any]:
    """Run the notebook for one database, and return its row."""
    path, batch, limit = asked["database"], asked["id"], asked["timeout_s"]
    settings = resolve(asked["env"], db_path=path)
    archive = settings.archive_dir
    lost = _lost(archive, batch) if asked["by_workers"] else []
    if len(lost) >= _LOSSES:
        result = not_run(path, "error", f"its worker was lost {counted(len(lost), 'time')}: see {', '.join(lost)}")
    else:
        words = ["run", asked["notebook"], "--json", "--env", asked["env"], "--since", batch]
        words += ["--page", "failures", f"--timeout={limit}"]
        (result,) = run_one(path, words, limit=limit, stop=stop)
    state = state_of(settings)
    if state["altered"]:
        result |= {"verdict": "altered", "reason": state["altered"]}
    if asked["collect"] and archive.is_dir():
        try:
            result["collected"] = collect_archive(archive, asked["collect"], asked["host"], path)
        except (AbathurError, OSError) as error:
            result["not_collected"] = str(error)
    return result | {"archive": str(archive), "state": state}


def _lost(archive: Path, batch: str) -> list[str]:
    """Return the runs of a fleet run that were never sealed: the process that ran them was lost."""
    with suppress(AbathurError):
        begun = f"{begun_at(batch) - _CLOCKS:%Y%m%dT%H%M%S}"
        entries = (read_entry(archive, one, None) for one in sorted(run_ids(archive)) if one > begun)
        return [one.run_id for one in entries if one.verdict == "unsealed" and one.known and one.known.fleet == batch]
    return []


# --- the fleet run


async def run_fleet(
    settings: Settings,
    inventory: str | os.PathLike[str],
    *,
    scheduler: str | None = None,
    notebook: str = "validate",
    only: str | None = None,
    since: str | None = None,
    at_once: int = 2,
    timeout_s: int = 600,
    most_failures: int = 0,
    collect: str | None = None,
    run: Run | None = None,
) -> Fleet:
    """Run ``notebook`` for every database of an inventory, and return what became of each.

    Each run leaves its record in the archive of its database. Without a ``scheduler`` this host must be the only one;
    else Dask's scheduler, at a ``tls://`` address or in a scheduler file, carries the work to the workers that announce
    ``host:NAME=1``. ``since`` goes on with an earlier fleet run: its id, or ``last``. ``at_once`` databases of a host
    run at a time, each at most ``timeout_s`` seconds; after ``most_failures`` (0: never) nothing more is begun.
    ``collect`` copies each archive to a directory or URL. ``run`` is the record of this fleet run. Raises
    ConfigurationError with every fault, before anything runs.
    """
    faults = _faults(scheduler, notebook, since, collect)
    hosts = list[Host]()
    try:
        hosts = read_inventory(inventory, only or "")
    except ConfigurationError as error:
        faults += error.faults
    if scheduler is None and len(hosts) > 1:
        names = some([host.name for host in hosts], 5)
        faults.append(f"scheduler: expected Dask's scheduler, which reaches {names}; or only, for the one that is here")
    if faults:
        raise ConfigurationError(faults)
    own = run.folder.name if run and run.folder else new_run_id()
    last, previous = _earlier(settings, str(inventory), notebook, own)
    batch = (last or own) if since == "last" else since or own
    request = {
        "about": about(notebook),
        "notebook": notebook,
        "id": batch,
        "timeout_s": timeout_s,
        "collect": collect,
        "by_workers": scheduler is not None,
    }
    stop = Stop()
    connected = _on_this_host(at_once, stop) if scheduler is None else _by_dask(scheduler, at_once)
    async with connected as ask:
        rows = await _hand_out(ask, hosts, request, only or "", previous, at_once=at_once, most_failures=most_failures)
    present = {(row["host"], row["database"]) for row in rows}
    asked = {host.name for host in hosts}
    gone = [row for row in previous if row["host"] in asked and (row["host"], row["database"]) not in present]
    gone = [row for row in gone if f"{row['host']}:{row['database']}".startswith(only or "")]
    return Fleet(
        tuple(rows), previous=previous, gone=tuple(gone), id=batch, inventory=str(inventory), notebook=notebook
    )


def _faults(scheduler: str | None, notebook: str, since: str | None, collect: str | None) -> list[str]:
    """Return the faults of these arguments of `run_fleet`. Read-only."""
    faults = []
    if notebook not in NOTEBOOKS:
        near = did_you_mean(str(notebook), NOTEBOOKS)
        faults.append(f"notebook: expected one of {', '.join(NOTEBOOKS)}, found {shown(notebook)}{near}")
    if since not in (None, "last") and not RUN_ID.fullmatch(str(since)):
        faults.append(f"since: expected None, last, or the id of a fleet run, found {shown(since)}")
    if collect is not None and (fault := url_fault("collect", collect)):
        faults.append(fault)
    if scheduler is not None:
        address = urlsplit(_address(scheduler))
        if address.scheme == "tcp" and address.hostname not in _LOOPBACK:
            why = "without TLS anybody who reaches the scheduler runs code on every host"
            faults.append(f"scheduler: expected tls://…, found {shown(scheduler)}: {why}")
        elif address.scheme not in ("tcp", "tls"):
            faults.append(f"scheduler: expected tls://HOST:PORT or a scheduler file, found {shown(scheduler)}")
    return faults


def _address(scheduler: str) -> str:
    """Return the address of a scheduler, which a scheduler file holds; an empty text if there is none. Read-only."""
    if "://" in scheduler:
        return scheduler
    with suppress(ConfigurationError, ValueError, TypeError, KeyError):
        return str(json.loads(read_file("scheduler", Path(scheduler), _MOST))["address"])
    return ""


def _earlier(settings: Settings, inventory: str, notebook: str, own: str) -> tuple[str, tuple[Row, ...]]:
    """Return the id with which ``since="last"`` goes on, and the rows of the last fleet run that ended. Read-only."""
    batch, rows = "", ()
    wanted = tilde({"inventory": inventory, "notebook": notebook})
    ids = run_ids(settings.archive_dir) if settings.archive_dir.is_dir() else ()
    for run_id in sorted(ids, reverse=True):
        known = read_entry(settings.archive_dir, run_id, None)
        started = known.known
        if (
            run_id == own
            or not started
            or started.notebook != "fleet"
            or not wanted.items() <= started.parameters.items()
        ):
            continue
        if not batch and (since := started.parameters.get("since")) != "last":
            batch = since or run_id
        if found := known.found("fleet"):
            rows = tuple(found["databases"])
        if batch and rows:
            break
    return batch, rows


async def _hand_out(
    ask: Ask,
    hosts: Sequence[Host],
    request: Mapping[str, Any],
    only: str,
    previous: Sequence[Row],
    *,
    at_once: int,
    most_failures: int,
) -> list[Row]:
    """Ask each host which databases it has, then for a run of each; return the rows. Shows its progress in one line."""
    from tqdm import tqdm

    base = {host.name: {**request, "host": host.name, "env": host.env} for host in hosts}
    answers = await asyncio.gather(*(ask(host, base[host.name] | {"globs": host.databases}) for host in hosts))
    faults = [
        f"host {h.name}: {fault}"
        for h, answer in zip(hosts, answers, strict=True)
        for fault in answer.get("faults", ())
    ]
    if faults:
        raise ConfigurationError(faults)
    rows: list[Row] = []
    todo: list[tuple[Host, str]] = []
    for host, answer in zip(hosts, answers, strict=True):
        if "databases" in answer:
            todo += [(host, path) for path in answer["databases"]]
            empty = f"no file matches it on {host.name}"
            rows += [_row(host, path, "fail", empty) for path in answer["empty"]]
        else:  # the host is not there, or must not be used: what it had last time is what cannot be reached now
            ((verdict, why),) = answer.items()
            known = [row["database"] for row in previous if row["host"] == host.name] or host.databases
            rows += [_row(host, path, verdict, why) for path in known]
    chosen = [(host, path) for host, path in todo if f"{host.name}:{path}".startswith(only)]
    rows = [row for row in rows if f"{row['host']}:{row['database']}".startswith(only)]
    places = {host.name: asyncio.Semaphore(_WAITING * at_once) for host in hosts}
    failed = sum(row["verdict"] != "pass" for row in rows)
    unreachable = sum(row["verdict"] == "unreachable" for row in rows)
    # A notebook shows what a cell prints; elsewhere None disables the bar where standard error is not a terminal.
    where = {"file": sys.stdout, "mininterval": 1} if notebook_shell() else {"disable": None, "leave": False}
    bar = tqdm(total=len(chosen) + len(rows), initial=len(rows), unit="database", **where)

    async def run(host: Host, path: str) -> Row:
        nonlocal failed, unreachable
        async with places[host.name]:
            if most_failures and failed >= most_failures:
                row = _row(host, path, "interrupted", f"not begun, because {failed} have failed")
            else:
                answer = await ask(host, base[host.name] | {"database": path})
                ((verdict, why),) = answer.items() if len(answer) == 1 else [("", "")]
                row = _row(host, path, verdict, why) if verdict else {"host": host.name, "env": host.env, **answer}
        failed += row["verdict"] != "pass"
        unreachable += row["verdict"] == "unreachable"
        bar.set_postfix_str(f"{failed} not passed, {unreachable} unreachable", refresh=False)
        bar.update()
        return row

    with bar:
        return [*rows, *await asyncio.gather(*(run(*one) for one in chosen))]


def _row(host: Host, path: str, verdict: str, why: str) -> Row:
    """Return the row of a database of which there is no run."""
    return not_run(path, verdict, why) | {"host": host.name, "env": host.env, "archive": "", "state": {}}


@asynccontextmanager
async def _on_this_host(at_once: int, stop: Stop) -> AsyncIterator[Ask]:
    """Do the work here, ``at_once`` databases at a time. What runs is interrupted if the block is cancelled."""
    loop = asyncio.get_running_loop()
    with interrupting(stop), ThreadPoolExecutor(at_once) as pool:

        async def ask(_host: Host, request: Mapping[str, Any]) -> dict[str, Any]:
            return dict(json.loads(await loop.run_in_executor(pool, work, json.dumps(request), stop)))

        try:
            yield ask
        except asyncio.CancelledError:
            stop.note(signal.SIGINT, None)
            pool.shutdown(cancel_futures=True)  # waits until what runs has ended
            raise
        finally:
            end_idle()


@asynccontextmanager
async def _by_dask(scheduler: str, at_once: int) -> AsyncIterator[Ask]:
    """Let Dask carry the work to the hosts. A host without a worker for a minute is unreachable."""
    try:
        import dask
        from distributed import Client, Security
        from distributed.client import FutureCancelledError
        from distributed.scheduler import KilledWorker
    except ImportError:
        raise ConfigurationError("scheduler: needs the extra fleet: pip install 'abathur_nb[fleet]'") from None
    address = _address(scheduler)
    bound = dask.utils.parse_timedelta(dask.config.get("distributed.scheduler.no-workers-timeout") or _UNREACHABLE_S)
    security = Security(require_encryption=True) if address.startswith("tls:") else None
    seen: dict[str, float] = {}  # when each resource was last announced

    client = Client(address, security=security, asynchronous=True, set_as_default=False)
    try:
        await client
    except (OSError, TypeError, ValueError) as error:  # TypeError: no certificate is configured
        with suppress(Exception):  # it would complain of this when it is collected
            await client.close()
        remedy = "see that it runs, and the files of TLS in Dask's configuration"
        raise ConfigurationError(
            f"scheduler: {shown(scheduler)} could not be connected to: {error}; {remedy}"
        ) from None
    async with client:

        async def look() -> None:
            while True:
                known = await client.scheduler.identity(n_workers=-1)  # type: ignore[union-attr]
                names = {name for worker in known["workers"].values() for name in worker["resources"]}
                seen.update(dict.fromkeys(names, monotonic()))
                await asyncio.sleep(_LOOK_S)

        async def ask(host: Host, request: Mapping[str, Any]) -> dict[str, Any]:
            name, begun = f"host:{host.name}", monotonic()
            future = client.submit(work_in_dask, json.dumps(request), resources={name: 1 / at_once}, pure=False)
            waiting = asyncio.ensure_future(future.result())  # type: ignore[call-overload]
            while not (await asyncio.wait({waiting}, timeout=_LOOK_S))[0]:
                if monotonic() - max(begun, seen.get(name, 0)) > bound:
                    await future.cancel()
                    waiting.cancel()
                    return {"unreachable": f"no worker has announced {name} for {bound:g} s"}
            try:
                return dict(json.loads(waiting.result()))
            except KilledWorker as error:
                return {"error": f"its worker was lost again and again: {error}"}
            except (FutureCancelledError, OSError) as error:
                return {"unreachable": f"the scheduler has ended: {error}"}
            except Exception as error:  # noqa: BLE001 - the worker has no such function, or can't import it
                return {"refused": f"this host has another version: {type(error).__name__}: {printable(str(error))}"}

        looking = asyncio.create_task(look())
        try:
            yield ask
        finally:
            looking.cancel()
