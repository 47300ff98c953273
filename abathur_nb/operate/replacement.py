"""Replacing what a database holds: keep what stands there, write the new content, prove that it stands there."""

from pathlib import Path

from abathur_nb.connection import connect
from abathur_nb.operate.aside import complete, discard, new_folder, replace_file
from abathur_nb.operate.backup import back_up
from abathur_nb.operate.content import Content, difference, read_content
from abathur_nb.operate.standing import Standing
from abathur_nb.operate.transfer import copy_in, copy_out, open_copy, publish
from abathur_nb.report import Check
from abathur_nb.scratch import make_private_directory, scratch_directory
from abathur_nb.settings import Settings
from abathur_nb.validate import file_checks

__all__ = ["finish_begun", "replace_database", "steps_to"]


def steps_to(standing: Standing, settings: Settings, reason: str, new: str) -> tuple[str, ...]:
    """Return, in words, what ``replace_database`` will do."""
    path = settings.db_path
    if standing.state == "readable":
        return (
            f"back up {path} as abathur_{reason}_… in {settings.backup_dir}, and prove that backup",
            f"write {new} into {path}, in one transaction",
            f"validate {path}",
        )
    if standing.state == "absent":
        return (f"make {path} of {new}, under another name first", f"validate {path}")
    return (
        f"move {path}, with its side files, into a new directory abathur_aside_… beside it",
        f"give the name {path.name} to a copy of {new}",
        f"validate {path}",
    )


def finish_begun(settings: Settings) -> tuple[Check, ...]:
    """Go on with a replacement that was killed, and return a check that says so, or none. Raises RefusedError."""
    moved = complete(settings.db_path)
    if not moved:
        return ()
    names = ", ".join(path.name for path in moved)
    observed = f"a replacement that was begun is completed; what stood there is in {moved[0].parent}: {names}"
    return (Check("begun before", "warn", "no replacement was left half done", observed, "none is needed"),)


async def replace_database(
    settings: Settings, standing: Standing, source: Path, wanted: Content, *, reason: str
) -> list[Check]:
    """Put the content of ``source`` where ``standing`` was found; what stood there is kept. Returns the checks.

    Raises RefusedError, BusyError, sqlite3.Error, OSError: then what stood there stands there still, or, where it had
    to be moved aside, ``finish_begun`` goes on.
    """
    path = settings.db_path
    checks = []
    if standing.state == "readable":
        kept, _ = await back_up(settings, reason=reason)
        checks.append(Check("what stood there", "pass", expected="a proven backup of it", observed=str(kept.path)))
        found, written_since = await copy_in(source, settings)
        return [*checks, _content(wanted, found, written_since), *await file_checks(settings)]
    make_private_directory(path.parent)
    if standing.state == "absent":
        with scratch_directory(path.parent, "restore") as scratch:
            await _copy(source, scratch / "draft.db", path.parent)
            publish(scratch / "draft.db", path)
    else:
        folder = new_folder(path)
        try:
            draft = folder / "draft.db"
            await _copy(source, draft, path.parent)
            moved = replace_file(path, folder, draft)
        except BaseException:
            discard(folder, path)
            raise
        observed = f"{folder}: {', '.join(entry.name for entry in moved)}"
        checks.append(Check("what stood there", "pass", expected="moved aside, as it was", observed=observed))
    async with connect(path, settings=settings) as conn:
        await conn.execute_fetchall("BEGIN")
        found = await read_content(conn)
    return [*checks, _content(wanted, found), *await file_checks(settings)]


async def _copy(source: Path, draft: Path, owned_as: Path) -> None:
    async with open_copy(source) as conn:
        await copy_out(conn, draft, owned_as=owned_as)


def _content(wanted: Content, found: Content, written_since: bool = False) -> Check:
    since = f"; {difference(wanted, found)}: somebody has written since" if written_since and found != wanted else ""
    return Check.that(
        "content",
        found == wanted,
        expected=f"{wanted.total:,} rows, digest {wanted.digest[:12]}…",
        observed=f"{found.total:,} rows, digest {found.digest[:12]}…{since}",
        remedy="stop who writes, see which rows are new, and restore again",
        otherwise="warn" if written_since else "fail",
    )
