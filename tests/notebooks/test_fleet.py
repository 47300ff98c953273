"""A fleet run reaches every database, names those that it can't, loses and repeats nothing, and trusts nobody."""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from damage import run_sql
from dasking import Cluster, certificates, cluster
from patience import HANGING_S

import abathur_nb as nb
from abathur_nb.config.settings import resolve
from abathur_nb.errors import ConfigurationError
from abathur_nb.evidence.record import Entry, read_archive
from abathur_nb.evidence.run import new_run_id, write_started
from abathur_nb.evidence.verify import verify_archive
from abathur_nb.runbook.fleet import about, work

pytestmark = pytest.mark.usefixtures("folder")
SOON = {"DASK_DISTRIBUTED__SCHEDULER__NO_WORKERS_TIMEOUT": "5s"}


class Place:
    """Hold the databases of some hosts, all on this machine, and their inventory."""

    def __init__(self, folder: Path, pristine: bytes) -> None:
        self.folder, self._pristine = folder, pristine
        self.inventory = folder / "fleet.toml"
        self.control = resolve(db_path=folder / "control" / "abathur.db")
        self._hosts: dict[str, list[str]] = {}

    def database(self, host: str, name: str) -> Path:
        """Make a sound database on a host, and name it in the inventory."""
        path = self.folder / host / name / "abathur.db"
        path.parent.mkdir(mode=0o700, parents=True)
        path.touch(mode=0o600)
        path.write_bytes(self._pristine)
        self.on(host, str(self.folder / host / "*" / "abathur.db"))
        return path

    def on(self, host: str, *paths: str) -> None:
        """Name more databases in the inventory."""
        self._hosts[host] = [*dict.fromkeys([*self._hosts.get(host, []), *paths])]
        tables = (
            f'[hosts.{host}]\nenv = "development"\ndatabases = {json.dumps(of)}' for host, of in self._hosts.items()
        )
        self.inventory.write_text("\n".join(tables))

    async def run(self, **options: Any) -> dict[str, Any]:
        """Return the rows of a fleet run by host and name of the database's directory."""
        fleet = await nb.run_fleet(self.control, self.inventory, **options)
        return {f"{row['host']}/{Path(row['database']).parent.name}": row for row in fleet.rows}


def runs_of(path: Path) -> list[Entry]:
    archive = resolve(db_path=path).archive_dir
    return [*read_archive(archive)] if archive.exists() else []


@pytest.fixture
def place(tmp_path: Path, pristine: bytes) -> Place:
    (tmp_path / "fleet").mkdir()
    return Place(tmp_path / "fleet", pristine)


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    variables = certificates(tmp_path / "tls") | SOON | {"DASK_TEMPORARY_DIRECTORY": str(tmp_path)}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    import dask

    dask.config.refresh()
    return variables


@pytest.fixture
def dask_cluster(tls: dict[str, str], tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path / "dask", tls) as started:
        yield started


async def test_on_one_host_each_database_has_its_own_verdict_and_the_others_are_undisturbed(place: Place) -> None:
    paths = {name: place.database("here", name) for name in ("sound", "altered", "missing", "fifo", "locked")}
    run_sql(paths["altered"], "DROP INDEX idx_tasks_parent")
    paths["missing"].unlink()
    paths["fifo"].unlink()
    os.mkfifo(paths["fifo"])
    place.on("here", str(paths["missing"]), str(place.folder / "nothing" / "*.db"))
    found = await place.run()
    verdicts = {name: row["verdict"] for name, row in found.items()}
    assert verdicts == {
        "here/sound": "pass",
        "here/locked": "pass",
        "here/altered": "fail",
        "here/missing": "refused",
        "here/fifo": "refused",
        "here/nothing": "fail",
    }
    assert found["here/nothing"]["reason"] == "no file matches it on here"
    for name in ("sound", "altered"):
        (entry,) = runs_of(paths[name])
        assert (entry.run_id, entry.line and entry.line.sha256) == tuple(
            found[f"here/{name}"][key] for key in ("run", "head")
        )
        assert verify_archive(entry.folder.parent).ok


async def test_every_fault_is_refused_at_once_before_anything_runs(place: Place) -> None:
    path = place.database("here", "a")
    twice = f"{path.parent}/../a/abathur.db"
    place.inventory.write_text(
        f'[hosts.eu-1]\nenv = "development"\ndatabases = ["{path}", "{twice}", "relative.db"]\ndatabase = 1\n'
        '[hosts.eu-2]\ndatabases = "x"\n[host.eu-3]\n[hosts."no host"]\n'
    )
    with pytest.raises(ConfigurationError) as caught:
        await place.run(
            notebook="validat", since="yesterday", scheduler="tcp://scheduler.invalid:8786", collect="s3://a:b@c/d"
        )
    for words in (
        "is named twice", "absolute path, found 'relative.db'", "unknown key 'database'; did you mean databases?",
        "[hosts.eu-2]: env", "[hosts.eu-2]: databases: expected a list", "found 'host'", "found 'no host'",
        "did you mean validate?", "since: expected None, last", "without TLS anybody", "collect: expected a URL",
    ):  # fmt: skip
        assert any(words in fault for fault in caught.value.faults), words
    for inventory, options, words in (
        ('[hosts.a]\nenv = "prod"\ndatabases = ["/x.db"]', {}, "did you mean production?"),
        ('[hosts.a]\nenv = "production"\ndatabases = ["/x.db"]', {"only": "b"}, "only: expected the beginning"),
        (
            "".join(f'[hosts.{h}]\nenv = "production"\ndatabases = ["/x.db"]\n' for h in "ab"),
            {},
            "scheduler: expected Dask",
        ),
        (f'[hosts.a]\nenv = "development"\ndatabases = ["{path}", "{path.parent.parent}/*/*.db"]', {}, "same file"),
    ):
        if "same file" in words:
            (path.parent.parent / "link").symlink_to(path.parent)
        place.inventory.write_text(inventory)
        with pytest.raises(ConfigurationError) as caught:
            await place.run(**options)
        assert words in str(caught.value)
    assert runs_of(path) == []


@pytest.mark.parametrize("content", ['{"address": "tcp://scheduler.invalid:8786"}', '{"address": 1}', "[]", "not JSON"])
async def test_a_scheduler_file_is_held_to_what_its_address_is_held_to(place: Place, content: str) -> None:
    place.database("here", "a")
    (place.folder / "scheduler.json").write_text(content)
    words = "without TLS anybody" if "tcp:" in content else "scheduler: expected tls://HOST:PORT or a scheduler file"
    with pytest.raises(ConfigurationError, match=words):
        await place.run(scheduler=str(place.folder / "scheduler.json"))


async def test_dask_carries_the_work_to_each_host_and_names_those_that_it_cannot_reach_or_trust(
    place: Place, dask_cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "sitecustomize.py").write_text(
        "import importlib.metadata as m\nreal = m.version\n"
        "m.version = lambda name: '0.0.9' if name == 'abathur_nb' else real(name)"
    )
    for host in ("eu-1", "eu-2", "eu-3", "eu-4"):
        place.database(host, "a")
        place.database(host, "b")
    dask_cluster.worker("eu-1")
    dask_cluster.worker("eu-2")
    dask_cluster.worker("eu-3", PYTHONPATH=str(tmp_path / "other"))
    found = await place.run(scheduler=dask_cluster.address)
    verdicts = {name: row["verdict"] for name, row in found.items()}
    both = ("a", "b")
    assert verdicts == {
        **{f"{host}/{name}": "pass" for host in ("eu-1", "eu-2") for name in both},
        "eu-3/*": "refused",
        "eu-4/*": "unreachable",
    }
    assert "abathur_nb 0.0.9 instead of" in found["eu-3/*"]["reason"]
    assert "no worker has announced host:eu-4 for 5 s" in found["eu-4/*"]["reason"]
    only = await place.run(scheduler=str(dask_cluster.file), only=f"eu-1:{place.folder}/eu-1/b", since=None)
    assert list(only) == ["eu-1/b"]
    assert len(runs_of(place.folder / "eu-1" / "a" / "abathur.db")) == 1


async def test_a_killed_worker_loses_and_repeats_nothing_and_leaves_no_process(
    place: Place, dask_cluster: Cluster
) -> None:
    paths = [place.database("eu-1", f"n{number:02}") for number in range(12)]
    first = dask_cluster.worker("eu-1")
    running = asyncio.create_task(place.run(scheduler=dask_cluster.address))
    async with asyncio.timeout(HANGING_S):
        while not running.done() and not any(map(runs_of, paths)):  # noqa: ASYNC110 - what another process writes is no event here
            await asyncio.sleep(0.01)
    server = children_of(first.pid)
    runs = [run for one in server for run in children_of(one)]
    first.kill()
    first.wait()
    dask_cluster.worker("eu-1")
    found = await running
    assert {row["verdict"] for row in found.values()} == {"pass"}
    assert len(found) == len(paths)
    for path in paths:
        sealed = [entry for entry in runs_of(path) if entry.line]
        assert len(sealed) == 1, "lost or repeated"
        assert verify_archive(sealed[0].folder.parent).ok
    assert server
    assert runs
    assert not any(Path(f"/proc/{pid}").exists() for pid in (*server, *runs))


def children_of(pid: int) -> list[int]:
    return [int(one) for of in Path(f"/proc/{pid}/task").glob("*/children") for one in of.read_text().split()]


async def test_last_goes_on_with_the_last_fleet_run_also_if_it_was_killed(place: Place) -> None:
    paths = [place.database("here", name) for name in "ab"]
    killed = new_run_id()
    parameters = {"inventory": str(place.inventory), "notebook": "validate", "since": None}
    await place.run(since=killed, only=f"here:{paths[0].parent}")
    write_started(place.control, "fleet", parameters, run_id=killed)
    found = await place.run(since="last")
    assert {name: row["earlier"] for name, row in found.items()} == {"here/a": True, "here/b": False}
    assert {runs_of(path)[0].known.fleet for path in paths} == {killed}  # type: ignore[union-attr]


def asked(path: Path, **more: object) -> dict[str, Any]:
    request = {"about": about("validate"), "notebook": "validate", "id": new_run_id(), "timeout_s": 60, "collect": None}
    request |= {"host": "here", "env": "development", "by_workers": True, "database": str(path)}
    answer: dict[str, Any] = json.loads(work(json.dumps({**request, **more})))
    return answer


def test_a_database_on_which_the_worker_was_lost_twice_is_not_tried_again(place: Place) -> None:
    path, batch = place.database("here", "a"), new_run_id()
    settings = resolve(db_path=path)
    for number in range(2):
        write_started(settings, "validate", {}, fleet=batch)
        row = asked(path, id=batch) if number else {"verdict": ""}
    assert row["verdict"] == "error"
    assert row["reason"].startswith("its worker was lost 2 times: see ")
    assert asked(path)["verdict"] == "pass", "another fleet run tries it"


async def test_without_a_certificate_a_client_is_cut_off(
    place: Place, dask_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dask

    place.database("eu-1", "a")
    dask_cluster.worker("eu-1")
    for name in [name for name in os.environ if name.startswith("DASK_DISTRIBUTED__COMM__TLS__CLIENT")]:
        monkeypatch.delenv(name)
    none = {f"distributed.comm.tls.client.{name}": None for name in ("cert", "key")}
    with dask.config.set(none), pytest.raises(ConfigurationError, match="scheduler: "):
        await place.run(scheduler=dask_cluster.address)
    assert runs_of(place.folder / "eu-1" / "a" / "abathur.db") == []
