"""Whoever may not write changes nothing; that no refusal does, whatever it is of, is for ``make prove``."""

import inspect
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from damage import run_as_other
from sampling import sampled
from situations import VERBS, begun, in_the_log, leave, other_form, prepared

import abathur_nb as nb
from abathur_nb.config.settings import Settings, resolve

PROGRAM = """
settings, refused = nb.resolve("development", db_path=sys.argv[1]), 0
for verb in (*situations.CHANGING, "backup"):
    before = situations.tree(Path(sys.argv[2]))
    report = asyncio.run(situations.VERBS[verb](settings))
    refused += report.refused
    assert not report.refused or situations.tree(Path(sys.argv[2])) == before, f"{verb}: {report}"
print(refused)
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory that each case starts from."""
    return prepared(tmp_path_factory.mktemp("template"))


@pytest.mark.parametrize(
    "at",
    sampled(
        product(("data", "data/backups", "data/abathur.db"), (leave, other_form, begun, in_the_log)),
        *(("data", begun), ("data/backups", leave), ("data/abathur.db", in_the_log)),
    ),
)
def test_whoever_may_not_write_changes_nothing(
    at: tuple[str, Callable[[Settings], None]], template: Path, public: Path
) -> None:
    (closed, make), folder = at, public / "x"
    shutil.copytree(template, folder)
    settings = resolve("development", db_path=folder / "data" / "abathur.db")
    make(settings)
    for path in (folder, *folder.rglob("*")):
        shutil.chown(path, 65534, 65534)
    (folder / closed).chmod(0o400 if closed.endswith(".db") else 0o500)
    imports = f"sys.path.insert(0, {str(Path(__file__).parents[1] / 'support')!r})\nimport situations, tqdm\n"
    # The bar of a slow backup comes before it.
    refused = run_as_other(PROGRAM, settings.db_path, folder, imports=imports).split()[-1]
    assert int(refused) >= (0 if closed.endswith(".db") else 3)


def test_every_verb_of_the_package_is_in_the_sweep_over_refusals() -> None:
    takes_settings = {
        name
        for name in nb.__all__
        if inspect.isroutine(found := getattr(nb, name))
        and next(iter(inspect.signature(found).parameters), "") == "settings"
    }
    used = {name for run in VERBS.values() for name in run.__code__.co_names}
    # start_run writes the run's own record, which a refusal may leave.
    assert takes_settings - used == {"start_run"}
