"""What test_exposition and other tests share."""

from main_helpers import command
from prometheus_client.parser import text_string_to_metric_families

from abathur_nb.config.settings import Settings


def metrics(settings: Settings, *arguments: str, code: int = 0) -> str:
    done = command("metrics", "--db-path", str(settings.db_path), *arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def parsed(text: str) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            of = ", ".join(v for k, v in sample.labels.items() if k not in ("env", "database"))
            found.setdefault(sample.name, {})[of] = sample.value
    return found
