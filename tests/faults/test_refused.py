"""After a refusal every byte and every name is as it was: each verb, in each situation that makes it refuse."""

import inspect
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from damage import run_as_other
from situations import CHANGING, READING, SITUATIONS, VERBS, begun, in_the_log, leave, other_form, prepared, tree

import abathur_nb as nb
from abathur_nb.config.settings import Settings, resolve


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory that each situation starts from."""
    return prepared(tmp_path_factory.mktemp("template"))


@pytest.mark.parametrize("situation", SITUATIONS)
async def test_what_is_refused_has_changed_nothing(situation: str, template: Path, tmp_path: Path) -> None:
    make, changes, given, meanwhile = SITUATIONS[situation]
    refused, changed = set[str](), dict[str, set[str]]()
    for verb, run in VERBS.items():
        folder = tmp_path / verb.replace(" ", "-")
        shutil.copytree(template, folder, symlinks=True)
        settings = replace(resolve("development", db_path=folder / "data" / "abathur.db"), **changes)
        make(settings)
        with meanwhile(settings):
            before = tree(folder)
            result = run(settings, **given)
            result = await result if inspect.isawaitable(result) else result
            after = tree(folder)
        report = getattr(result, "report", result)
        silent = [check for check in getattr(report, "checks", ()) if check.failed and not check.remedy]
        assert not silent, f"{verb} gives no remedy: {silent}"
        if getattr(report, "refused", verb in READING):
            refused.add(verb)
            changed[verb] = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert {verb: names for verb, names in changed.items() if names} == {}
    assert refused - {*READING}, "nothing was refused"
    if "confirm" in situation or "unapproved" in situation:
        assert refused >= set(CHANGING) - ({"put back"} if "begun" in situation or "absent" in situation else set())


@pytest.mark.parametrize("closed", ["data", "data/backups", "data/abathur.db"])
@pytest.mark.parametrize("make", [leave, other_form, begun, in_the_log])
def test_whoever_may_not_write_changes_nothing(
    closed: str, make: Callable[[Settings], None], template: Path, public: Path
) -> None:
    shutil.copytree(template, public / "x")
    folder = public / "x"
    settings = resolve("development", db_path=folder / "data" / "abathur.db")
    make(settings)
    for path in (folder, *folder.rglob("*")):
        shutil.chown(path, 65534, 65534)
    (folder / closed).chmod(0o400 if closed.endswith(".db") else 0o500)
    program = (
        "settings, refused = nb.resolve('development', db_path=sys.argv[1]), 0\n"
        "for verb in (*situations.CHANGING, 'backup'):\n"
        "    before = situations.tree(Path(sys.argv[2]))\n"
        "    report = asyncio.run(situations.VERBS[verb](settings))\n"
        "    refused += report.refused\n"
        "    assert not report.refused or situations.tree(Path(sys.argv[2])) == before, f'{verb}: {report}'\n"
        "print(refused)\n"
    )
    imports = f"sys.path.insert(0, {str(Path(__file__).parents[1] / 'support')!r})\nimport situations, tqdm\n"
    # The bar of a slow backup comes before it.
    refused = run_as_other(program, settings.db_path, folder, imports=imports).split()[-1]
    assert int(refused) >= (0 if closed.endswith(".db") else 3)


def test_every_verb_of_the_package_is_among_them() -> None:
    takes_settings = {
        name
        for name in nb.__all__
        if inspect.isroutine(found := getattr(nb, name))
        and next(iter(inspect.signature(found).parameters), "") == "settings"
    }
    used = {name for run in VERBS.values() for name in run.__code__.co_names}
    # start_run writes the run's own record, which a refusal may leave.
    assert takes_settings - used == {"start_run"}
