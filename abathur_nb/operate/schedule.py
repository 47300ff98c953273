"""How a notebook is run by itself, day after day: a systemd timer and a crontab line, ready to install."""

import os
import sys
from dataclasses import dataclass
from html import escape
from shlex import quote

from abathur_nb.notebooks import notebook_named
from abathur_nb.settings import Settings
from abathur_nb.wording import user_name

__all__ = ["Schedule", "schedule"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Hold the units of a systemd timer by their file names, and the line of a crontab that does the same."""

    units: dict[str, str]
    crontab: str

    def __str__(self) -> str:
        timer = next(name for name in self.units if name.endswith(".timer"))
        parts = [f"# /etc/systemd/system/{name}\n{text}" for name, text in self.units.items()]
        enable = f"# then\nsudo systemctl daemon-reload && sudo systemctl enable --now {timer}"
        return "\n".join([*parts, enable, "", "# or, where there is no systemd: crontab -e", self.crontab])

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        html = (
            f"<details><summary>a systemd timer, and a crontab line</summary><pre>{escape(str(self))}</pre></details>"
        )
        return {"text/html": html, "text/plain": str(self)}


def schedule(settings: Settings, notebook: str) -> Schedule:
    """Return what has ``notebook`` run by the strict runner, for this database. Read-only.

    Every night at 02:30, ``monitor`` every hour. By this Python, and as the environment's service account, or as who
    asks where it has none.
    """
    user = settings.service_account or user_name(os.geteuid())
    words = [sys.executable, "-m", "abathur_nb", "run", notebook, "--env", settings.env]
    if not settings.is_own_path:
        words += ["-p", "db_path", str(settings.db_path)]
    timing = notebook_named(notebook).timing
    words += timing.parameters
    name = f"abathur-{notebook}-{settings.env}"
    service = f"""\
[Unit]
Description=Abathur: {notebook} of {settings.env}

[Service]
Type=oneshot
User={user}
ExecStart={" ".join(_unit_word(word) for word in words)}
"""
    timer = f"""\
[Unit]
Description=Abathur: {notebook} of {settings.env}, {timing.words}

[Timer]
OnCalendar={timing.on_calendar}
RandomizedDelaySec=300
Persistent=true

[Install]
WantedBy=timers.target
"""
    # A per cent sign begins a new line in a crontab (crontab(5)).
    command = " ".join(quote(word) for word in words).replace("%", r"\%")
    return Schedule({f"{name}.service": service, f"{name}.timer": timer}, f"{timing.cron} {command}")


def _unit_word(word: str) -> str:
    """Quote a word as systemd.service(5) reads it: ``%`` and ``$`` have a meaning inside of quotes too."""
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{word}"' if not word or any(c in word for c in " \t'\"\\;") else word
