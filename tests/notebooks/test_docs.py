"""The code, settings and commands of README and docs do what they say, and what is generated is up to date."""

import ast
import asyncio
import re
import shlex
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import yaml
from papermill.cli import _resolve_type

import abathur_nb as nb
from abathur_nb.cli import make_parser
from abathur_nb.config.inventory import read_inventory
from abathur_nb.config.parameters import RANGES, check_parameters
from abathur_nb.config.settings import Settings
from abathur_nb.evidence.archive import read_source

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = {path: path.read_text(encoding="utf-8") for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))}
PROSE = "\n".join(text for path, text in DOCS.items() if path.name not in ("api.md", "schema.md", "CHANGELOG.md"))


def blocks(language: str) -> list[str]:
    """Return the code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PROSE, re.MULTILINE | re.DOTALL)


def test_what_is_generated_is_up_to_date() -> None:
    """After a change of the code: ``python docs/generate.py``."""
    spec = spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec
    assert spec.loader
    generate = module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert {path for path, text in generate.pages().items() if DOCS[path] != text} == set()


def test_its_links_lead_somewhere() -> None:
    for path, text in DOCS.items():
        links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link and path.name != "api.md"]
        assert [link for link in links if not (path.parent / link).exists()] == [], path
    assert len(README.splitlines()) <= 150


def test_its_settings_file_makes_an_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example, inventory = sorted(blocks("toml"))
    (tmp_path / "fleet.toml").write_text(inventory, encoding="utf-8")
    assert [host.name for host in read_inventory(tmp_path / "fleet.toml")] == ["eu-1", "eu-2"]
    (tmp_path / "abathur.toml").write_text(example, encoding="utf-8")
    monkeypatch.setenv("ABATHUR_CONFIG", str(tmp_path / "abathur.toml"))
    settings = nb.resolve("qa")
    assert settings.db_path == Path("/srv/qa/abathur.db")
    assert settings.backup_dir == Path("/srv/qa/backups")
    assert (settings.memory_p99_ms, settings.require_safe_wal, settings.synchronous) == (50, False, "FULL")
    assert settings.on_shared_directory == "refuse", "an environment of one's own starts with the strict policy"


def test_its_table_of_environments_is_theirs() -> None:
    for name in nb.ENVIRONMENTS:
        settings = nb.resolve(name)
        path = str(settings.db_path).replace(str(Path.home()), "~")
        assert f"`{path}`" in PROSE
    severities = {"warn": "warns", "fail": "fails", "refuse": "refused"}
    rows = {"directory that others own": "shared_directory", "tmpfs": "tmpfs", "share of the host": "host_share"}
    for words, setting in rows.items():
        told = [severities[getattr(nb.resolve(name), f"on_{setting}")] for name in nb.ENVIRONMENTS]
        (row,) = [line for line in PROSE.splitlines() if line.startswith(f"| {words}")]
        assert [cell.strip() for cell in row.split("|")[2:5]] == told


def test_its_code_runs_and_runs_again(database: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABATHUR_DB_PATH", str(database.db_path))
    names: dict[str, object] = {}
    for example in 2 * blocks("python"):
        code = compile(example, "README.md and docs/python.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        asyncio.run(eval(code, names))  # noqa: S307 - the documents' own code
    report = names["report"]
    assert isinstance(report, nb.Report)
    report.raise_for_failures()


def test_its_papermill_commands_name_a_notebook_and_parameters_that_it_declares() -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith(".venv/bin/papermill")]
    assert lines
    for line in lines:
        words = line.replace("--engine abathur ", "")
        source, _, *arguments = shlex.split(words, comments=True)[1:]
        given: dict[str, Any] = {}
        while arguments:
            if arguments.pop(0) == "-y":
                given |= yaml.safe_load(arguments.pop(0))
            else:
                name, value, *arguments = arguments
                given[name] = _resolve_type(value)
        assert check_parameters(read_source(str(ROOT / source)).declared, given) == [], line


def test_its_commands_are_parsed_and_every_command_is_documented() -> None:
    start = ".venv/bin/python -m abathur_nb "
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith(start)]
    for line in lines:
        make_parser().parse_args(shlex.split(line.removeprefix(start).partition(" > ")[0], comments=True))
    (commands,) = (action.choices for action in make_parser()._actions if isinstance(action.choices, dict))
    assert {line.removeprefix(start).split()[0] for line in lines} == set(commands)


@pytest.mark.needs("sqlite3")
def test_its_ten_minutes_end_with_a_healed_database_and_a_row_of_its_backup_can_be_read(home: Path) -> None:
    (block,) = (block for block in blocks("sh") if "repair True" in block)
    (row,) = (line for line in PROSE.splitlines() if "run restore explore" in line)
    row = row.replace("BACKUP", '"$(ls ~/abathur_data/backups/abathur_manual_*.db)"')
    row = row.replace("user:alice:pref -p key theme", "app:abathur:agent_instructions -p key default_workflow")
    for line in (*block.splitlines(), row):
        command = line.replace(".venv/bin/python", shlex.quote(sys.executable))
        done = subprocess.run(["bash", "-c", command], cwd=home, capture_output=True, text=True, check=False)
        assert done.returncode == ("# exit 1" in line), (line, done.stdout, done.stderr)
        failed = re.search(r"# exit 1: (\d+) checks fail", line)
        assert not failed or f" {failed[1]} of " in done.stdout, line
    assert "Retrieve relevant context" in Path(done.stdout.split()[-1]).read_text(encoding="utf-8")
    assert asyncio.run(nb.validate_database(nb.resolve())).ok
    assert len(list((home / "abathur_data" / "backups" / "quarantine").glob("*.jsonl"))) == 1, "nothing was lost"


def test_its_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"^make (\w+)", "\n".join(blocks("sh")), re.MULTILINE))
    assert named
    assert named <= targets


def test_its_ranges_are_those_that_are_checked() -> None:
    for name, (low, high) in RANGES.items():
        assert f"`{name}` ({low} to {high:,})" in PROSE
