"""The notebooks as data: their order, what refuses each before it starts, what changes the database, when it runs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

__all__ = ["NOTEBOOKS", "Notebook", "notebook_named"]


@dataclass(frozen=True, slots=True)
class Timing:
    """Hold when a notebook runs by itself, in words and as systemd and cron write local time; its parameters then."""

    words: str
    on_calendar: str
    cron: str
    parameters: tuple[str, ...] = ()


NIGHTLY = Timing("every night", "*-*-* 02:30:00", "30 2 * * *")


@dataclass(frozen=True, slots=True)
class Notebook:
    """Hold what the package knows of a notebook."""

    name: str
    # The states of the path (see `target`) in which a run is refused, and leaves no record.
    refused_at: tuple[str, ...] = ("refused", "remains", "absent")
    judges_place: bool = False  # whether a directory or file system that forbids a database refuses it too
    changes_by: tuple[str, ...] = ()  # the parameters that, when True, let it change the database
    looks_by: str = ""  # the parameter that, when True, keeps it from making a database
    timing: Timing = NIGHTLY

    def changes(self, parameters: Mapping[str, object]) -> bool:
        """Return whether a run with these parameters may change an existing database."""
        return any(parameters.get(name) is True for name in self.changes_by)

    def only_looks(self, parameters: Mapping[str, object]) -> bool:
        """Return whether a run with these parameters leaves the database, or its absence, as it is."""
        return parameters.get(self.looks_by) is True if self.looks_by else not self.changes(parameters)


_ANY = ("refused",)  # it brings a lost database back, or asks what became of it
# In the order of an operator's day.
NOTEBOOKS = {
    notebook.name: notebook
    for notebook in (
        # before anybody uses the database
        Notebook("preflight", ("refused", "remains"), judges_place=True),
        Notebook("init", ("refused", "remains"), judges_place=True, looks_by="dry_run"),
        Notebook("validate"),
        Notebook("explain"),
        Notebook("benchmark"),
        Notebook("backup", timing=replace(NIGHTLY, parameters=("-p", "reason", "nightly"))),
        # day by day
        Notebook("monitor", timing=Timing("every hour", "*-*-* *:05:00", "5 * * * *", ("-p", "record", "True"))),
        Notebook("explore"),
        Notebook("history", _ANY),
        Notebook("readiness", _ANY),
        # after a fault; a typo in the path of a rollback would leave a record beside nothing
        Notebook("troubleshoot", _ANY, changes_by=("repair",)),
        Notebook("restore", _ANY, changes_by=("apply",)),
        Notebook("rollback", ("refused", "absent"), changes_by=("apply",)),
        Notebook("index", _ANY),  # shows the others
    )
}


def notebook_named(name: str) -> Notebook:
    """Return what is known of a notebook: of one of your own, that it needs a database."""
    return NOTEBOOKS.get(name) or Notebook(name, changes_by=("apply", "repair"))
