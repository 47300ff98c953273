"""Every notebook opened and run in JupyterLab, in a real browser, in both themes; a screenshot of each is kept.

Run by ``make browser``, since JupyterLab is an extra. The screenshots are in ``executed/browser/``.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from browser import FLAGS
from patience import HANGING_S
from playwright.sync_api import Page, sync_playwright
from servers import free_ports, wait_until

from abathur_nb.config.notebooks import NOTEBOOKS
from abathur_nb.evidence.record import Entry, read_archive

ROOT = Path(__file__).parents[2]
SCREENSHOTS = ROOT / "executed" / "browser"
pytestmark = pytest.mark.needs("chromium")
TOKEN = "of-this-test-alone"
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
# The one that must not pass yet: nobody has said that the team is trained, and so on.
NOT_READY = "readiness"
# What a person has to say in the parameters cell before it does anything.
SAID = {
    "rollback": ('to: "Optional[str]" = None', 'to: "Optional[str]" = "fresh"'),
    "fleet": ("/etc/abathur/fleet.toml", "fleet.toml"),
}
# What a page may ask for: its own server, or what it holds itself.
LOCAL = re.compile(r"(?:https?|wss?)://127\.0\.0\.1[:/]|data:|blob:")
WIDTH, TALLEST = 1400, 16_000  # pixels

# JupyterLab's own objects, which --LabApp.expose_app_in_browser gives to the page.
PANEL = "window.jupyterapp.shell.currentWidget"
OPENED = f"path => window.jupyterapp?.shell && {PANEL}?.context?.path === path && {PANEL}.context.isReady"
# The idle light shows before the socket carries requests, and Run All then runs nothing: so the kernel is asked.
RUN_ALL = f"""async () => {{
  const panel = {PANEL};
  await panel.sessionContext.ready;
  await panel.sessionContext.session.kernel.info;
  await window.jupyterapp.commands.execute("notebook:run-all-cells");
}}"""
COUNTS = f"() => [...{PANEL}.content.model.cells].filter(c => c.type === 'code').map(c => c.executionCount)"
SAY = f"""([before, after]) => {{
  for (const cell of {PANEL}.content.model.cells) {{
    cell.sharedModel.setSource(cell.sharedModel.getSource().replace(before, after));
  }}
}}"""
END = f"""async () => {{
  await window.jupyterapp.commands.execute("docmanager:save");
  await {PANEL}.sessionContext.shutdown();
  {PANEL}.close();
}}"""


@dataclass(frozen=True)
class Lab:
    """Hold a running JupyterLab: its address, the directory of its notebooks, and what its processes have as home."""

    address: str
    folder: Path
    environment: dict[str, str]

    def url(self, path: str = "") -> str:
        """Return where the browser finds something of JupyterLab."""
        return f"{self.address}/lab{path}?token={TOKEN}"


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Start JupyterLab as ``make lab`` does, for somebody who has a database, a backup and an archive."""
    base = tmp_path_factory.mktemp("lab")
    home, folder, settings = base / "home", base / "notebooks", base / "config" / "settings"
    home.mkdir()
    shutil.copytree(ROOT / "notebooks", folder, ignore=shutil.ignore_patterns(".*"))
    databases = json.dumps([str(home / "abathur_data" / "abathur.db")])
    (folder / "fleet.toml").write_text(f'[hosts.here]\nenv = "development"\ndatabases = {databases}')
    # Cells out of sight are otherwise not in the page, nor in its picture.
    tracker = settings / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    tracker.parent.mkdir(parents=True)
    tracker.write_text(json.dumps({"windowingMode": "none"}))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ABATHUR_", "JUPYTER"))}
    environment |= {
        "HOME": str(home),
        "JUPYTER_CONFIG_DIR": str(base / "config"),
        "JUPYTERLAB_SETTINGS_DIR": str(settings),
        "JUPYTERLAB_WORKSPACES_DIR": str(base / "config" / "workspaces"),
        "MPLCONFIGDIR": str(base / "matplotlib"),
    }
    command = [sys.executable, "-m", "abathur_nb", "run", "init", "validate", "backup", "--env", "development"]
    subprocess.run(command, env=environment, cwd=base, check=True, capture_output=True)
    (port,) = free_ports(1)
    told = subprocess.run(["make", "--dry-run", "lab"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (command,) = (line.split() for line in told.splitlines() if "/jupyter lab " in line)
    command[0] = str(Path(sys.executable).with_name(Path(command[0]).name))
    options = ["no-browser", "allow-root", "ServerApp.ip=127.0.0.1", f"ServerApp.port={port}"]
    options += ["ServerApp.port_retries=0", f"IdentityProvider.token={TOKEN}", "LabApp.expose_app_in_browser=True"]
    with (base / "log").open("wb") as log:
        server = subprocess.Popen(
            [*command, *(f"--{option}" for option in options)], env=environment, cwd=base, stdout=log, stderr=log
        )
    try:
        address = f"http://127.0.0.1:{port}"
        assert wait_until(lambda: answers(f"{address}/api/status?token={TOKEN}"), server), (base / "log").read_text()
        yield Lab(address, folder, environment)
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) in (0, -signal.SIGTERM)


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=HANGING_S).close()  # noqa: S310 - our own
    except OSError:
        return False
    return True


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    arguments = [flag for flag in FLAGS if not flag.startswith(("--headless", "--proxy"))]
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=[*arguments, "--no-sandbox"]
        )
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Page]:
    """Return a new tab; at its end, nothing may have been asked of any other host."""
    opened = browser.new_page(viewport={"width": WIDTH, "height": 1000})
    opened.set_default_timeout(HANGING_S * 1000)
    asked: list[str] = []
    opened.on("request", lambda request: None if LOCAL.match(request.url) else asked.append(request.url))
    yield opened
    opened.close()
    assert asked == []


def open_notebook(page: Page, lab: Lab, name: str) -> None:
    """Open JupyterLab with this notebook, and nothing else."""
    page.goto(lab.url(f"/tree/{name}.ipynb") + "&reset")
    wait_until_opened(page, name)


def wait_until_opened(page: Page, name: str) -> None:
    page.locator("#jupyterlab-splash").wait_for(state="detached")
    page.wait_for_function(OPENED, arg=f"{name}.ipynb")


def run_all(page: Page) -> None:
    page.evaluate(RUN_ALL)
    page.wait_for_function(f"() => ({COUNTS})().every(count => count !== null)")


def keep_screenshots(page: Page, name: str) -> None:
    """Keep a picture of the whole notebook in each theme."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.evaluate(f"() => {{ {PANEL}.content.activeCellIndex = 0; }}")
    outer = f"{PANEL}.content.node.querySelector('.jp-WindowedPanel-outer')"
    bottom = f"[...{outer}.querySelectorAll('.jp-Cell')].at(-1).getBoundingClientRect().bottom + {outer}.scrollTop"
    page.set_viewport_size({"width": WIDTH, "height": min(int(page.evaluate(f"() => {bottom}")) + 60, TALLEST)})
    for theme, title in THEMES.items():
        page.evaluate("theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})", title)
        page.locator(f"body[data-jp-theme-name='{title}']").wait_for(state="attached")
        page.locator("#jupyterlab-splash").wait_for(state="detached")
        page.evaluate(f"() => {{ {outer}.scrollTop = 0; }}")
        page.screenshot(path=SCREENSHOTS / f"{name}-{theme}.png")


def outputs_of(page: Page, start: str) -> list[Any]:
    """Return the outputs of the code cells whose source begins so."""
    cells = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-CodeCell").all()
    sources = page.evaluate(
        f"() => [...{PANEL}.content.model.cells].filter(c => c.type === 'code').map(c => c.sharedModel.getSource())"
    )
    return [
        cell.locator(".jp-OutputArea-output")
        for cell, source in zip(cells, sources, strict=True)
        if source.startswith(start)
    ]


@pytest.mark.parametrize("name", NOTEBOOKS)  # which then shows the runs of all the others
def test_it_runs_whole_and_shows_its_report_and_its_charts(name: str, page: Page, lab: Lab) -> None:
    open_notebook(page, lab, name)
    if name in SAID:
        page.evaluate(SAY, SAID[name])
    run_all(page)
    keep_screenshots(page, name)
    panel = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
    loud = panel.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']").all_inner_texts()
    if name == NOT_READY:
        (line,) = loud
        assert line.startswith("ChecksFailedError: readiness of ")
        assert len(line.strip().splitlines()) == 1, "one line, and no traceback"
    else:
        assert loud == [], "an error, a warning, or what should not have been printed"
    assert panel.locator(".abathur-report").last.is_visible()
    for output in outputs_of(page, "nb.charts."):
        chart = output.locator("img")
        if not chart.count():  # it says in words that there is nothing to draw yet
            assert len(output.inner_text()) > 10
            continue
        assert chart.evaluate("img => img.complete && img.naturalWidth > 300")
        assert chart.is_visible()
    page.evaluate(END)
    saved = json.loads((lab.folder / f"{name}.ipynb").read_text())
    assert all(cell["execution_count"] for cell in saved["cells"] if cell["cell_type"] == "code")


def test_the_index_leads_to_each_notebook_by_its_link(page: Page, lab: Lab) -> None:
    open_notebook(page, lab, "index")
    for name in ("preflight", "rollback"):
        page.evaluate("path => window.jupyterapp.commands.execute('docmanager:open', {path})", "index.ipynb")
        page.locator(f".jp-NotebookPanel:not(.lm-mod-hidden) a:text-is('{name}.ipynb')").first.click()
        wait_until_opened(page, name)


def test_a_notebook_that_was_run_and_saved_here_can_be_archived(page: Page, lab: Lab) -> None:
    open_notebook(page, lab, "explain")
    run_all(page)
    page.evaluate(END)
    command = [sys.executable, "-m", "abathur_nb", "archive", str(lab.folder / "explain.ipynb")]
    done = subprocess.run(command, env=lab.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("the cells are those of the template")


def test_make_lab_opens_the_index(page: Page, lab: Lab) -> None:
    page.goto(f"{lab.address}/?token={TOKEN}&reset")
    page.wait_for_url(f"{lab.address}/lab/tree/index.ipynb**")
    wait_until_opened(page, "index")
    assert page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) h1").first.inner_text().startswith("Index: ")


def test_nobody_is_asked_about_news(page: Page, lab: Lab) -> None:
    open_notebook(page, lab, "index")
    page.wait_for_function(f"() => {PANEL}.sessionContext.session?.kernel?.status === 'idle'")
    assert page.locator(".Toastify__toast").count() == 0


# --- jupyter-scheduler


def fill_in_job(page: Page, lab: Lab, name: str, **parameters: str) -> None:
    """Open the form that makes a job of a notebook, and fill in its parameters."""
    open_notebook(page, lab, name)
    # The form takes the path of the notebook once, when it opens: of one that is not ready it is empty.
    page.wait_for_function(f"() => {PANEL}.sessionContext.session?.kernel?.status === 'idle'")
    page.locator("[data-command='scheduling:create-from-notebook']").click()
    page.locator("input[name=jobName]").wait_for()
    for number, (parameter, value) in enumerate(parameters.items()):
        page.locator("button[title='Add new parameter']").click()
        for field, text in {"name": parameter, "value": value}.items():
            page.locator(f"input[name=parameter-{number}-{field}]").press_sequentially(text)
            page.keyboard.press("Tab")


def create(page: Page) -> None:
    """Press the button, and wait until the server has taken the job."""
    with page.expect_response(
        lambda answer: "/scheduler/job" in answer.url and answer.request.method == "POST"
    ) as sent:
        page.locator("button:text-is('Create')").click()
    assert sent.value.ok, sent.value.text()


def of_scheduler(page: Page, kind: str) -> list[Any]:
    """Return what jupyter-scheduler knows of its jobs or its job_definitions."""
    found = page.evaluate(f"async () => (await (await fetch('/scheduler/{kind}')).json()).{kind}")
    return list(found)


def status_of_job(page: Page, parameters: dict[str, str]) -> str:
    """Wait until a job has ended, and return how; jupyter-scheduler tells of that in no way that can be awaited."""
    for _ in range(5 * HANGING_S):
        (status,) = (job["status"] for job in of_scheduler(page, "jobs") if job["parameters"] == parameters)
        if status in ("COMPLETED", "FAILED"):
            return str(status)
        page.wait_for_timeout(200)
    raise AssertionError(status)


def archive_of(lab: Lab) -> list[Entry]:
    return list(read_archive(Path(lab.environment["HOME"]) / "abathur_data" / "runs"))


def test_a_backup_that_is_scheduled_runs_with_its_parameters_and_leaves_its_record(page: Page, lab: Lab) -> None:
    parameters = {"reason": "'nightly'"}
    fill_in_job(page, lab, "backup", **parameters)
    create(page)
    assert status_of_job(page, parameters) == "COMPLETED"
    record = archive_of(lab)[-1].record
    assert record is not None
    assert (record.notebook, record.verdict, record.parameters["reason"]) == ("backup", "pass", "nightly")


def test_a_parameter_mistyped_in_a_schedule_fails_the_job_and_runs_nothing(page: Page, lab: Lab) -> None:
    before, parameters = len(archive_of(lab)), {"reson": "'nightly'"}
    fill_in_job(page, lab, "backup", **parameters)
    create(page)
    assert status_of_job(page, parameters) == "FAILED"
    assert len(archive_of(lab)) == before


def test_a_validation_is_scheduled_for_each_weekday(page: Page, lab: Lab) -> None:
    fill_in_job(page, lab, "validate", env="'development'")
    page.locator("input[value=JobDefinition]").click()
    page.locator("input[name=scheduleClock]").fill("06:30")
    page.keyboard.press("Tab")
    page.set_viewport_size({"width": WIDTH, "height": 1000})
    page.screenshot(path=SCREENSHOTS / "schedule.png")
    create(page)
    (definition,) = of_scheduler(page, "job_definitions")
    assert (definition["schedule"], definition["active"]) == ("30 6 * * MON-FRI", True)
