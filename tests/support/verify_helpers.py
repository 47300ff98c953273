"""What test_verify and other tests share."""

import subprocess
from pathlib import Path

from abathur_nb.report import Check, Report


def check(report: Report, name: str) -> Check:
    (found,) = (one for one in report.checks if one.name == name)
    return found


def make_key(path: Path) -> Path:
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", path], check=True, capture_output=True)
    path.chmod(0o600)
    public = path.with_suffix(".pub")
    subprocess.run(["openssl", "pkey", "-in", path, "-pubout", "-out", public], check=True, capture_output=True)
    return public
