"""A copy of an archive, in a directory or in object storage: never changed, read as it lies, told if it cannot be."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from archives import RED, fleet_row, fleet_run, run
from fsspec import filesystem
from fsspec.implementations.memory import MemoryFileSystem
from main_helpers import called, command
from patience import HANGING_S
from running import NOTEBOOKS

import abathur_nb as nb
from abathur_nb.cli import main
from abathur_nb.config.settings import Settings, resolve
from abathur_nb.errors import ConfigurationError, RefusedError
from abathur_nb.evidence import stores
from abathur_nb.evidence.ledger import LEDGER
from abathur_nb.evidence.record import STARTED
from abathur_nb.evidence.run import write_record, write_started
from abathur_nb.evidence.stores import fetched, open_store
from abathur_nb.evidence.verify import collect_archive, copy_archive, verify_archive

pytestmark = pytest.mark.usefixtures("sockets")  # where no temporary file may be left


def add_run(settings: Settings) -> str:
    return run(settings, name="init").name


@pytest.fixture(scope="module")
def three_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = resolve(db_path=tmp_path_factory.mktemp("three") / "x.db")
    for _ in range(2):
        add_run(settings)
    run(settings, "fail", name="init", reports=(RED,))
    return settings.archive_dir


@pytest.fixture
def archive(three_runs: Path, settings: Settings) -> Path:
    settings.archive_dir.parent.mkdir()
    return Path(shutil.copytree(three_runs, settings.archive_dir))


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def copied_runs(url: str, archive: Path) -> int:
    """Return how many runs a copy holds that verifies; what it holds is the beginning of the archive."""
    try:
        with fetched(url) as copy:
            report = verify_archive(copy)
            ledger = (copy / LEDGER).read_bytes()
    except RefusedError as error:
        assert "is not a copy of an archive: no line of a ledger" in error.observed  # noqa: PT017
        return 0
    assert report.ok, str(report)
    assert "never sealed" not in str(report)  # a copied run was; what was cut short is only left over
    assert (archive / LEDGER).read_bytes().startswith(ledger)
    return ledger.count(b"\n")


@pytest.fixture
def s3(s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(params=["file URL", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        request.getfixturevalue("s3")
    return {"file URL": f"file://{tmp_path}/copies/there", "s3": f"s3://evidence/{tmp_path.name}/copy"}[request.param]


def test_a_copy_comes_back_byte_for_byte_and_verifies(url: str, archive: Path) -> None:
    before = content_of(archive)
    done = copy_archive(archive, url)
    assert len(done["copied"]) == 3 * 6
    assert done["left"] == []
    with fetched(url) as copy:
        assert content_of(copy) == before
        assert verify_archive(copy).ok
        assert copy.stat().st_mode & 0o077 == 0
    assert not copy.exists()
    assert content_of(archive) == before


def test_copying_again_adds_what_is_new_and_touches_nothing_else(url: str, archive: Path, settings: Settings) -> None:
    copy_archive(archive, url)
    store = open_store(url)
    before = {name: store.read(name) for name in store.found()}
    marks = stamps(url)
    begun, unarchived = (write_started(settings, "init", {}) for _ in range(2))
    write_record(unarchived, settings, "pass")
    assert copy_archive(archive, url) == {"copied": [], "left": sorted([begun.name, unarchived.name])}
    assert stamps(url) == marks
    with pytest.raises(RefusedError):
        store.add("ledger/00000001.jsonl", b"another")
    new = add_run(settings)
    done = copy_archive(archive, url)
    assert {name.partition("/")[0] for name in done["copied"]} == {new, "ledger"}
    assert {name: store.read(name) for name in before} == before
    assert {name: mark for name, mark in stamps(url).items() if name in marks} == marks
    assert copied_runs(url, archive) == 4


def stamps(url: str) -> dict[str, object]:
    """Return what would show that an object was written once more, even with the same content."""
    from fsspec.core import url_to_fs

    system, root = url_to_fs(url)
    system.invalidate_cache()
    found = system.find(root, detail=True)
    return {
        path.removeprefix(root).strip("/"): [told.get(name) for name in ("ino", "mtime", "created", "LastModified")]
        for path, told in found.items()
    }


def spoil(url: str, name: str, change: Callable[[bytes], bytes]) -> None:
    """Change an object as somebody does who is allowed to."""
    from fsspec.core import url_to_fs

    system, root = url_to_fs(url)
    system.pipe_file(f"{root}/{name}", change(system.cat_file(f"{root}/{name}")))


def remove(url: str, name: str) -> None:
    from fsspec.core import url_to_fs

    system, root = url_to_fs(url)
    system.rm_file(f"{root}/{name}")


def test_a_copy_that_was_altered_is_not_gone_on_with(url: str, archive: Path, settings: Settings) -> None:
    names = copy_archive(archive, url)["copied"]
    spoil(url, names[2], lambda content: content[:-3] + b"xx\n")
    spoil(url, names[5], lambda _: b"")
    add_run(settings)
    marks = stamps(url)
    with pytest.raises(RefusedError) as caught:
        copy_archive(archive, url)
    assert f"does not: {names[2]}, {names[5]}. Nothing was copied" in caught.value.observed
    assert stamps(url) == marks


def test_a_copy_that_knows_more_shows_an_archive_that_was_cut_off(url: str, archive: Path, settings: Settings) -> None:
    whole = (archive / LEDGER).read_bytes()
    copy_archive(archive, url)
    (archive / LEDGER).write_bytes(whole[: whole.rstrip().rfind(b"\n") + 1])
    with pytest.raises(RefusedError, match=r"does not: .*Nothing was copied"):
        copy_archive(archive, url)
    add_run(settings)  # a third line again, another one
    with pytest.raises(RefusedError, match=r"does not: .*Nothing was copied"):
        copy_archive(archive, url)


def test_a_copy_goes_not_where_others_write_nor_into_itself(archive: Path, settings: Settings, tmp_path: Path) -> None:
    copy, letters = tmp_path / "copy", tmp_path / "letters"
    copy_archive(archive, str(copy))
    letters.mkdir()
    (letters / "letter").write_text("dear", encoding="utf-8")
    other = replace(settings, archive_dir=tmp_path / "other")
    add_run(other)
    before = [content_of(place) for place in (copy, letters, archive)]
    for place, words in (
        (copy, r"holds what the archive .* does not: ledger/00000001.jsonl, "),
        (letters, r"holds what the archive .* does not: letter\. Nothing was copied"),
        (other.archive_dir, "is inside the archive"),
        (f"file://{other.archive_dir}/x/y", "is inside the archive"),
    ):
        with pytest.raises(RefusedError, match=words):
            copy_archive(other.archive_dir, str(place))
    assert [content_of(place) for place in (copy, letters, archive)] == before


def test_collecting_again_reads_and_copies_only_what_is_new(
    archive: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def watched(url: str) -> stores.Store:
        store = open_store(url)
        return store._replace(read=lambda name: asked.append(name) or store.read(name))  # type: ignore[func-returns-value]

    monkeypatch.setattr("abathur_nb.evidence.verify.open_store", watched)
    collect = partial(collect_archive, archive, str(tmp_path / "place"), "eu-1")
    url = collect("/srv/a b/x.db")
    assert url.startswith(f"{tmp_path}/place/eu-1/srv-a-b-x.db-")
    assert url != collect("/srv/a-b/x.db")
    newest = max(path.name for path in Path(url).iterdir() if path.name != "ledger")
    before = content_of(Path(url))
    for added in (False, True):
        more = {add_run(settings), "ledger"} if added else set()
        asked.clear()
        assert collect("/srv/a b/x.db") == url
        assert [name.partition("/")[0] for name in sorted(asked)] == [*[newest] * 5, "ledger"]
        after = content_of(Path(url))
        assert {name.partition("/")[0] for name in after.keys() - before.keys()} == more
        assert after.items() >= before.items()
    spoil(url, "ledger/00000004.jsonl", lambda content: content.replace(b"pass", b"fail"))
    with pytest.raises(RefusedError, match=r"does not: ledger/00000004\.jsonl\. Nothing was copied"):
        collect("/srv/a b/x.db")


def test_collected_copies_are_verified_together(
    url: str, archive: Path, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = replace(settings, archive_dir=tmp_path / "fleet")
    copies = [collect_archive(archive, url, host, "/x.db") for host in ("eu-1", "eu-2")]
    there = {"state": {"host": "far"}, "database": "/x.db"}
    rows = [fleet_row(settings, host=copy.split("/")[-2], collected=copy, **there) for copy in copies]
    fleet_run(fleet, *rows)
    copy_archive(fleet.archive_dir, f"{url}/fleet")
    shutil.rmtree(archive)
    path = url.removeprefix("file://")
    here = (["verify", str(fleet.archive_dir), "--collected", url], ["verify", path], ["verify", url])
    for arguments in here:
        capsys.readouterr()
        assert main(arguments) == 0, capsys.readouterr().out
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": verify passed")[0] for line in lines[:3]] == [*copies, f"{url}/fleet"]
    assert lines[3:] == ["0 of 3 copies failed"]
    for name in sorted(open_store(copies[1]).found()):
        if name.startswith(rows[1]["run"]) or name == "ledger/00000003.jsonl":
            remove(copies[1], name)
    assert main(["verify", copies[1]]) == 0, "by itself it is sound"
    for arguments in here:
        capsys.readouterr()
        assert main(arguments) == 1
        assert f"anchors: eu-2:/x.db: the line of run {rows[1]['run']} is missing" in capsys.readouterr().out
    for name in open_store(copies[1]).found():
        remove(copies[1], name)
    assert main(here[0]) == 1


def test_a_file_that_the_ledger_does_not_name_stops_it_at_once(archive: Path, tmp_path: Path) -> None:
    path = sorted(path for path in archive.iterdir() if path.is_dir())[1] / STARTED
    path.write_bytes(path.read_bytes().replace(b"init", b"inix"))
    with pytest.raises(RefusedError, match=f"{path.parent.name}/{STARTED}: its hash is not the one"):
        copy_archive(archive, str(tmp_path / "copy"))
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("done", [0, 5, 6, 17])
def test_cut_short_it_is_a_shorter_archive(done: int, url: str, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = [done]

    def cut(store: stores.Store) -> stores.Store:
        @stores._refusing(store.where)
        def add(name: str, content: bytes) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise ConnectionResetError(104, "Connection reset by peer")
            store.add(name, content)

        return store._replace(add=add)

    with monkeypatch.context() as patched:
        patched.setattr("abathur_nb.evidence.verify.open_store", lambda url: cut(open_store(url)))
        with pytest.raises(RefusedError, match=r"ConnectionResetError: .*Connection reset by peer.*run this again"):
            copy_archive(archive, url)
    assert copied_runs(url, archive) == done // 6
    assert len(copy_archive(archive, url)["copied"]) == 18 - done
    assert copied_runs(url, archive) == 3


def test_a_place_that_is_none_is_told_and_no_password_is_shown(archive: Path) -> None:
    for url, told in {
        "": "expected a path",
        "~nobody/x": "expected an absolute path",
        "file://relative/x": "expected an absolute path",
        "s3://bucket/a b": "expected a directory, or protocol",
        "s3://bucket/x?key=s3cret": "expected a URL without a password, parameters, a query or a fragment",
        "simplecache::s3://bucket/x": "expected a directory, or protocol",
        "s4://bucket/x": "a protocol of fsspec, found 's4://bucket/x'",
        "s3://:s3cret@bucket": "expected a URL without a password",
    }.items():
        for ask in (lambda url=url: copy_archive(archive, url), lambda url=url: fetched(url).__enter__()):
            with pytest.raises(ConfigurationError) as caught:
                ask()
            assert str(caught.value).startswith("URL")
            assert told in str(caught.value)
            assert "s3cret" not in str(caught.value)


def test_an_object_whose_name_leads_elsewhere_is_refused(archive: Path, tmp_path: Path) -> None:
    url, store = f"memory://{tmp_path.name}", MemoryFileSystem().store
    copy_archive(archive, url)
    for name in ("../evil", "ledger.jsonl", "a/../../evil", "a/b/c", "a/..", "x y", ".."):
        path = f"/{tmp_path.name}/{name}"
        store[path] = store[f"/{tmp_path.name}/ledger/00000001.jsonl"]
        with pytest.raises(RefusedError, match="is not a copy of an archive: an object named"), fetched(url):
            pass
        del store[path]


@pytest.mark.parametrize("url", ["file URL"], indirect=True)
def test_the_command_tells_what_it_did_and_verify_reads_the_copy(url: str, archive: Path, settings: Settings) -> None:
    unsealed = write_started(settings, "init", {}).name
    where = ("--db-path", str(settings.db_path))
    words = (
        f"copied 3 lines of the ledger, 18 objects in all, to {url}\n"
        f"not copied, because not in the ledger and not evidence: {unsealed}\n"
    )
    assert called("copy", url, *where) == (0, words, "")
    assert called("copy", url, "--archive", str(archive))[1].startswith("copied 0 lines of the ledger, 0 objects")
    code, out, err = called("verify", url)
    assert (code, err) == (0, ""), out
    spoil(url, "ledger/00000002.jsonl", lambda content: content.replace(b"pass", b"fail"))
    assert called("verify", url)[0] == 1
    code, out, err = called("copy", url, *where)
    assert (code, out) == (2, "")
    assert "ledger/00000002.jsonl. Nothing was copied" in err


def untimed(text: str) -> str:
    return re.sub(r"\d\d:\d\d:\d\d\.\d{3} UTC", "", text)


@pytest.mark.parametrize("url", ["s3"], indirect=True)
def test_runs_diff_and_verify_say_alike_of_a_copy(archive: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    copy_archive(archive, url)
    one, _, last = sorted(path.name for path in archive.iterdir() if path.is_dir())
    for arguments in (["runs"], ["runs", "--json"], ["diff", one, last]):
        codes = [main([*arguments, "--archive", where]) for where in (str(archive), url)]
        out = capsys.readouterr().out.splitlines()
        assert codes[0] == codes[1]
        assert out[: len(out) // 2] == out[len(out) // 2 :] != []
    assert main(["verify", str(archive)]) == main(["verify", url]) == 0
    out = untimed(capsys.readouterr().out.replace(url, str(archive))).splitlines()
    assert out[: len(out) // 2] == out[len(out) // 2 :] != []


def test_history_reads_a_copy(archive: Path, url: str, settings: Settings) -> None:
    copy_archive(archive, url)
    shutil.rmtree(archive)
    history = nb.read_history(settings, url)
    assert (len(history.runs), history.report.subject) == (3, url)


@pytest.mark.parametrize(
    ("variables", "where", "told"),
    [
        ({}, "s3://evidence/none", "is not a copy of an archive: no line of a ledger"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong-" + "s3cret"}, "s3://evidence/x", "PermissionError: "),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "s3://evidence/x", "EndpointConnectionError: "),
    ],
    ids=["s3 without a copy", "s3 with a wrong key", "s3 without a server"],
)
@pytest.mark.usefixtures("s3")
def test_a_copy_that_cannot_be_read_is_told_in_a_line(variables: dict[str, str], where: str, told: str) -> None:
    done = command("verify", where, **variables)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert (told in line, where in line, "s3cret" in line) == (True, True, False)


@pytest.mark.parametrize("url", ["s3"], indirect=True)
def test_papermill_reads_a_template_from_s3_and_writes_its_output_there(url: str, database: Settings) -> None:
    system = filesystem("s3", skip_instance_cache=True)
    place = url.removeprefix("s3://")
    system.put_file(str(NOTEBOOKS / "explain.ipynb"), f"{place}/explain.ipynb")
    command = [str(Path(sys.executable).with_name("papermill")), "--no-progress-bar", "--engine", "abathur"]
    done = subprocess.run(
        [*command, f"{url}/explain.ipynb", f"{url}/out.ipynb", "-p", "db_path", str(database.db_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=HANGING_S,
    )
    assert done.returncode == 0, done.stderr
    output = json.loads(system.cat_file(f"{place}/out.ipynb"))
    assert all(cell["execution_count"] for cell in output["cells"] if cell["cell_type"] == "code")
    (record,) = database.archive_dir.glob("*/record.json")
    assert json.loads(record.read_bytes())["verdict"] == "pass"
    assert [*database.archive_dir.glob("*/page.html")]
