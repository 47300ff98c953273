"""The notebooks as data: order, states that refuse a run, parameters that change the database; timers and workers."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from shlex import join

from abathur_nb.config.settings import Settings
from abathur_nb.text import Shown, user_name

# When a notebook runs by itself (local time): in words, for systemd, for cron.
_NIGHTLY = ("every night", "*-*-* 02:30:00", "30 2 * * *")
_HOURLY = ("every hour", "*-*-* *:05:00", "5 * * * *")


@dataclass(frozen=True, slots=True)
class Notebook:
    """Hold what the package knows about a notebook."""

    name: str
    # States of the path (see `target`) in which a run is refused before a record is written.
    refused_at: tuple[str, ...] = ("refused", "remains", "absent")
    judges_place: bool = False  # whether checks of the directory and file system may refuse a run
    changes_by: tuple[str, ...] = ()  # the parameters that let a run change the database if True
    looks_by: str = ""  # the parameter that prevents making a database if True
    of_many: bool = False  # whether it is about other databases than that of its settings
    timing: tuple[str, str, str] = _NIGHTLY
    scheduled: tuple[str, ...] = ()  # the arguments of a run that a timer starts

    def changes(self, parameters: Mapping[str, object]) -> bool:
        """Return whether a run with these parameters may change an existing database."""
        return any(parameters.get(name) is True for name in self.changes_by)

    def only_looks(self, parameters: Mapping[str, object]) -> bool:
        """Return whether a run with these parameters need not be recorded where there is no data directory."""
        if self.of_many:
            return False
        return parameters.get(self.looks_by) is True if self.looks_by else not self.changes(parameters)


_ANY = ("refused",)  # these notebooks run without a database too
# In the order in which an operator needs them.
NOTEBOOKS = {
    notebook.name: notebook
    for notebook in (
        # before the database is used
        Notebook("preflight", ("refused", "remains"), judges_place=True),
        Notebook("init", ("refused", "remains"), judges_place=True, looks_by="dry_run"),
        Notebook("validate"),
        Notebook("explain"),
        Notebook("benchmark"),
        Notebook("backup", scheduled=("-p", "reason", "nightly")),
        # day by day
        Notebook("monitor", timing=_HOURLY, scheduled=("-p", "record", "True")),
        Notebook("explore"),
        Notebook("history", _ANY),
        Notebook("readiness", _ANY),
        Notebook("fleet", _ANY, of_many=True),
        # after a fault; rollback is refused without a database, which a typo in the path looks like
        Notebook("troubleshoot", _ANY, changes_by=("repair",)),
        Notebook("restore", _ANY, changes_by=("apply",)),
        Notebook("rollback", ("refused", "absent"), changes_by=("apply",)),
        Notebook("index", _ANY),  # shows the others
    )
}


def notebook_named(name: str) -> Notebook:
    """Return the Notebook of a name; for one of your own, a Notebook that needs a database."""
    return NOTEBOOKS.get(name) or Notebook(name, changes_by=("apply", "repair"))


@dataclass(frozen=True, slots=True)
class Schedule:
    """Hold the units of a systemd timer by file name, and an equivalent line of a crontab."""

    units: dict[str, str]
    crontab: str

    def __str__(self) -> str:
        timer = next(name for name in self.units if name.endswith(".timer"))
        parts = [f"# /etc/systemd/system/{name}\n{text}" for name, text in self.units.items()]
        enable = f"# then\nsudo systemctl daemon-reload && sudo systemctl enable --now {timer}"
        return "\n".join([*parts, enable, "", "# or, without systemd: crontab -e", self.crontab])

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        words, text = "a systemd timer, and a crontab line", str(self)
        html = f"<details><summary>{words}</summary><pre>{escape(text)}</pre></details>"
        return {"text/html": html, "text/plain": text}


def schedule(settings: Settings, notebook: str) -> Schedule:
    """Return the timer that runs ``notebook`` for this database: at 02:30, ``monitor`` every hour. Read-only.

    It runs this Python as the environment's service account or, without one, as the current user.
    """
    known, name = notebook_named(notebook), f"abathur-{notebook}-{settings.env}"
    when, on_calendar, cron = known.timing
    words = [*settings.command(notebook), *known.scheduled]
    about = f"[Unit]\nDescription=Abathur: {notebook} of {settings.env}"
    service = f"""\
{about}

[Service]
Type=oneshot
User={settings.service_account or user_name(os.geteuid())}
ExecStart={" ".join(map(_unit_word, words))}
"""
    timer = f"""\
{about}, {when}

[Timer]
OnCalendar={on_calendar}
RandomizedDelaySec=300
Persistent=true

[Install]
WantedBy=timers.target
"""
    # In a crontab an unescaped per cent sign is a line feed (crontab(5)).
    crontab = f"{cron} {join(words)}".replace("%", r"\%")
    return Schedule({f"{name}.service": service, f"{name}.timer": timer}, crontab)


def _unit_word(word: str) -> str:
    """Quote a word for systemd.service(5), where ``%`` and ``$`` are special inside quotes too."""
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{word}"' if not word or any(c in word for c in " \t'\"\\;") else word


# --- what a host needs to take part in fleet runs

_DASK = """\
distributed:
  comm:
    require-encryption: true
    tls:
      ca-file: /etc/abathur/tls/ca.pem
      scheduler: {cert: /etc/abathur/tls/cert.pem, key: /etc/abathur/tls/key.pem}
      worker: {cert: /etc/abathur/tls/cert.pem, key: /etc/abathur/tls/key.pem}
      client: {cert: /etc/abathur/tls/cert.pem, key: /etc/abathur/tls/key.pem}
"""
_SYSTEMD = """\
[Unit]
Description=Abathur: worker of this host for fleet runs
Wants=network-online.target
After=network-online.target

[Service]
User=@ACCOUNT@
ExecStart=@DASK@ worker @SCHEDULER@ --nthreads 1 --no-nanny --no-dashboard --name %H --resources host:%H=1
RuntimeDirectory=abathur-worker
WorkingDirectory=/run/abathur-worker
Restart=always

[Install]
WantedBy=multi-user.target
"""
_KUBERNETES = """\
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: abathur-worker}
spec:
  selector: {matchLabels: {app: abathur-worker}}
  template:
    metadata: {labels: {app: abathur-worker}}
    spec:
      hostPID: true  # to see which processes hold a lock
      containers:
        - name: worker
          image: IMAGE-WITH-ABATHUR-NB-AND-ITS-EXTRA-FLEET
          args: [dask, worker, "@SCHEDULER@", --nthreads, "1", --no-nanny, --no-dashboard,
                 --name, $(NODE), --resources, host:$(NODE)=1]
          env: [{name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
          volumeMounts:
            - {name: data, mountPath: /srv/abathur}
            - {name: tls, mountPath: /etc/abathur/tls, readOnly: true}
            - {name: dask, mountPath: /etc/dask, readOnly: true}
      volumes:
        - {name: data, hostPath: {path: /srv/abathur}}
        - {name: tls, secret: {secretName: abathur-tls}}
        - {name: dask, configMap: {name: abathur-dask}}
"""
_SSH = """\
ssh HOST @COMMAND@ --json --each "'/srv/abathur/*/abathur.db'"
"""


@dataclass(frozen=True, slots=True)
class Workers(Shown):
    """Hold the files that let a host take part in fleet runs, by their names."""

    files: Mapping[str, str]

    def __str__(self) -> str:
        return "\n".join(f"# {name}\n{text}" for name, text in self.files.items())

    def to_html(self) -> str:
        """Return the files as HTML, folded."""
        shown = (
            f"<details><summary>{escape(n)}</summary><pre>{escape(t)}</pre></details>" for n, t in self.files.items()
        )
        return "".join(shown)


def show_workers(settings: Settings, scheduler: str | None = None) -> Workers:
    """Return what a host needs for fleet runs: files of Dask, systemd and Kubernetes, or by SSH. Read-only."""
    words = {
        "@ACCOUNT@": settings.service_account or user_name(os.geteuid()),
        "@DASK@": str(Path(sys.executable).with_name("dask")),
        "@SCHEDULER@": scheduler if scheduler and "://" in scheduler else "tls://SCHEDULER:8786",
        "@COMMAND@": join([sys.executable, "-m", "abathur_nb", "run", "validate", "--env", settings.env]),
    }
    files = {
        "/etc/dask/abathur.yaml, on every host, on the scheduler's and here: mutual TLS": _DASK,
        "/etc/systemd/system/abathur-worker.service, on every host": _SYSTEMD,
        "abathur-worker.yaml, for Kubernetes: a worker on each node, whose name is that of the host": _KUBERNETES,
        "by SSH, without Dask: the exit code is the worst, and each line a result": _SSH,
    }
    for mark, word in words.items():
        files = {name: text.replace(mark, word) for name, text in files.items()}
    return Workers(files)
