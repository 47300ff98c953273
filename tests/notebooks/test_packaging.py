"""What installs this project: the requirement files, the Makefile, a wheel outside a checkout."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import pytest
import yaml
from damage import query
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from patience import HANGING_S

import abathur_nb

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements(*lists: list[str]) -> dict[str, Requirement]:
    """Return the requirements of some lists by canonical name."""
    return {canonicalize_name(parsed.name): parsed for lines in lists for parsed in map(Requirement, lines)}


CORE = requirements(PROJECT["dependencies"])
LAB = requirements(PROJECT["optional-dependencies"]["lab"])
DEV = requirements(PROJECT["optional-dependencies"]["dev"])


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """Run a command and return what it printed; an exit code other than 0 fails the test with all of it."""
    given = {**os.environ, **environment}
    done = subprocess.run(command, check=False, cwd=cwd, env=given, capture_output=True, text=True, timeout=HANGING_S)
    assert done.returncode == 0, f"{command} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def files_in(folder: str) -> dict[str, bytes]:
    """Return the files that a checkout's ``sql/`` or ``notebooks/`` must bring, by path."""
    suffix = {"notebooks": (".ipynb",), "sql": (".sql", ".svg")}[folder]
    found = {f"{folder}/{p.name}": p.read_bytes() for p in (ROOT / folder).iterdir() if p.suffix in suffix}
    assert found, f"{folder}/ is empty"
    return found


def test_environment_yml_names_the_packages_and_bounds_of_pyproject_from_conda_forge_alone() -> None:
    """Conda brings the core and JupyterLab, python, sqlite and pip, and nothing else."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    listed = requirements([line for line in environment["dependencies"] if isinstance(line, str)])
    expected = {name: str(wanted.specifier) for name, wanted in (CORE | LAB).items()}
    expected |= {"python": PROJECT["requires-python"], "sqlite": ">=3.51.3", "pip": ""}
    assert {name: str(wanted.specifier) for name, wanted in listed.items()} == expected
    assert (environment["name"], environment["channels"]) == ("abathur", ["conda-forge"])
    assert [line for line in environment["dependencies"] if isinstance(line, dict)] == [{"pip": ["-e ."]}]
    # Beside JupyterLab papermill takes twice as long to start.
    assert {"jupyterlab", "jupyter-scheduler"} <= {*LAB} - {*CORE, *DEV}


def test_every_test_that_ci_names_exists() -> None:
    named = re.findall(r"tests/[\w/.]+", (ROOT / ".ci/run").read_text())
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_no_requirement_caps_a_version() -> None:
    for wanted in (CORE | LAB | DEV).values():
        assert {clause.operator for clause in wanted.specifier} == {">="}, str(wanted)


def test_constraints_pin_what_is_installed_and_each_dependency_within_its_bound() -> None:
    """Dependencies of dependencies too: an unpinned one would change under the tests."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = requirements([line for line in lines if line and not line.startswith("#")])
    for name, wanted in (CORE | LAB | DEV).items():
        (clause,) = pinned[name].specifier
        assert clause.operator == "=="
        assert wanted.specifier.contains(clause.version), f"{pinned[name]} is outside of {wanted}"
    seen, queue = {"abathur-nb"}, list((CORE | DEV).values())
    while queue:
        wanted = queue.pop()
        name = canonicalize_name(wanted.name)
        if name in seen:
            continue
        seen.add(name)
        assert name in pinned, f"constraints.txt does not pin {name}"
        for needed in map(Requirement, Distribution.from_name(name).requires or ()):
            extras = ("", *wanted.extras)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                queue.append(needed)


def test_no_file_of_the_packaging_names_an_index_or_a_folder_of_one_machine() -> None:
    forbidden = r"\w+://|--?(?:extra-)?index-url|find-links|trusted-host|(?:^|[\s'\"=:])/(?:root|home|work|Users|opt)/"
    for name in ("constraints.txt", "environment.yml", "pyproject.toml", "Makefile", ".ci/run"):
        assert re.findall(forbidden, (ROOT / name).read_text(), flags=re.MULTILINE) == [], name


TARGETS = ("init", "lab", "test", "check", "coverage", "docs", "bench", "prove", "browser")


def test_make_alone_lists_every_target_and_each_makes_its_environment_from_python_alone(tmp_path: Path) -> None:
    listed = re.findall(r"^ +make (\w+) +\S", run("make", "--no-print-directory"), flags=re.MULTILINE)
    assert sorted(listed) == sorted(("help", *TARGETS))
    for target in TARGETS:
        plan = run("make", "--dry-run", f"VENV={tmp_path}/fresh", f"LAB={tmp_path}/fresh", target)
        made = plan.index(f"-m venv {tmp_path}/fresh")
        installed = plan.index(f"{tmp_path}/fresh/bin/pip install")
        assert made < installed < plan.rindex(f"{tmp_path}/fresh/bin/")
        assert "--constraint constraints.txt" in plan


def test_the_running_package_is_this_checkouts_and_an_editable_one_holds_no_copy(tmp_path: Path) -> None:
    """Copied into site-packages, ``sql/`` would grow stale while the checkout's is edited."""
    assert Path(abathur_nb.__file__).parent == ROOT / "abathur_nb"
    assert not (ROOT / "abathur_nb" / "data").exists(), "data/ would hide the checkout's own sql/ and notebooks/"
    assert dir(abathur_nb) == sorted(abathur_nb.__all__), "Tab shows the public names and nothing else"
    build = f"from hatchling.build import build_editable; print(build_editable({str(tmp_path)!r}))"
    with zipfile.ZipFile(tmp_path / run(sys.executable, "-c", build).splitlines()[-1]) as wheel:
        (name,) = (name for name in wheel.namelist() if ".dist-info/" not in name)
        assert name.endswith(".pth")
        assert wheel.read(name).decode().strip() == str(ROOT)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, and from that the wheel, as a release would."""
    folder = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a new environment, which borrows the dependencies of the running one."""
    environment = tmp_path_factory.mktemp("installed") / "env"
    python = environment / "bin" / "python"
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    (wheel,) = built.glob("*.whl")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", wheel)
    # A directory that a .pth file adds has its own .pth files ignored, so the checkout stays out of sight.
    (site_packages,) = environment.glob("lib/python3.*/site-packages")
    (site_packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(python, "-m", "ipykernel", "install", "--sys-prefix", "--name", "python3")
    return environment


def test_the_wheel_carries_sql_and_notebooks_byte_for_byte(built: Path) -> None:
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        for name, content in (files_in("sql") | files_in("notebooks")).items():
            assert wheel.read(f"abathur_nb/data/{name}") == content
        assert "abathur_nb/evidence/page.html.j2" in wheel.namelist()
        tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"abathur_nb", f"abathur_nb-{PROJECT['version']}.dist-info"}


def test_an_installed_wheel_reads_its_own_sql_and_makes_a_database_anywhere(installed: Path, tmp_path: Path) -> None:
    program = "import abathur_nb as nb; print(nb.__file__); print(*sorted(nb.load_queries()), sep='\\n')"
    where, *queries = run(installed / "bin/python", "-c", program, cwd=tmp_path).splitlines()
    assert Path(where).is_relative_to(installed)
    assert queries == sorted(abathur_nb.load_queries())
    assert run(installed / "bin/abathur-nb", "--version", cwd=tmp_path) == f"abathur_nb {abathur_nb.__version__}\n"
    # Papermill runs the wheel's init notebook on the wheel's own package.
    (notebook,) = installed.glob("lib/python3.*/site-packages/abathur_nb/data/notebooks/init.ipynb")
    database = tmp_path / "data" / "abathur.db"
    papermill: list[str | Path] = [installed / "bin/python", "-m", "papermill", notebook, "out.ipynb"]
    run(*papermill, "-p", "db_path", database, cwd=tmp_path, JUPYTER_PREFER_ENV_PATH="1")
    named = "SELECT count(*) FROM sqlite_master WHERE type = 'index' AND name NOT LIKE 'sqlite_%'"
    assert query(database, named) == [(33,)]
