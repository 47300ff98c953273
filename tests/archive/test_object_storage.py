"""An archive in object storage: read as it lies there, and clear words for whatever a real S3 server says no to."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import archives
import pytest
from fsspec import filesystem
from main_helpers import command
from patience import HANGING_S
from running import NOTEBOOKS

import abathur_nb as nb
from abathur_nb.cli import main
from abathur_nb.config.settings import Settings
from abathur_nb.evidence.verify import copy_archive

pytestmark = pytest.mark.usefixtures("sockets")  # where no temporary file may be left


@pytest.fixture(autouse=True)
def _client(s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def archive(settings: Settings) -> Path:
    archives.run(settings)
    archives.run(settings)
    archives.run(settings, "fail", reports=(archives.RED,))
    return settings.archive_dir


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"s3://evidence/{tmp_path.name}/copy"


def untimed(text: str) -> str:
    return re.sub(r"\d\d:\d\d:\d\d\.\d{3} UTC", "", text)


def test_runs_diff_and_verify_say_of_the_copy_what_they_say_of_the_archive(
    archive: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
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
)
def test_a_copy_that_cannot_be_read_is_told_in_a_line(variables: dict[str, str], where: str, told: str) -> None:
    done = command("verify", where, **variables)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert (told in line, where in line, "s3cret" in line) == (True, True, False)


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
