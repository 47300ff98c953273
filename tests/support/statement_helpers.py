"""What test_statement and other tests share."""

import subprocess
from pathlib import Path


def openssl(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["openssl", *arguments], capture_output=True, check=False)


def make_key(path: Path, *options: str) -> Path:
    """Make a private key as the README says, and its public one beside it."""
    assert openssl("genpkey", *(options or ("-algorithm", "ed25519")), "-out", path).returncode == 0
    path.chmod(0o600)
    password = ("-passin", options[options.index("-pass") + 1]) if "-pass" in options else ()
    assert openssl("pkey", "-in", path, *password, "-pubout", "-out", path.with_suffix(".pub")).returncode == 0
    return path
