"""File systems of a test's own: small, read-only, or gone when the test ends."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def tmpfs(folder: Path, options: str = "size=8m") -> Iterator[Path]:
    """Mount a file system over a directory, which is made if need be, for the block."""
    folder.mkdir(mode=0o700, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"{options},mode=700", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def remount(folder: Path, options: str) -> None:
    """Change a file system that is mounted: its size, or whether it can be written to."""
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
