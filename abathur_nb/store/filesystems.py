"""The file system that holds a path, and what that means for a database in write-ahead mode."""

import os
import re
from pathlib import Path
from shlex import quote
from typing import Literal

from abathur_nb.report import Check
from abathur_nb.store.connection import SIDE_FILES

Kind = Literal["local", "layered", "memory", "host share", "shared", "unknown"]
# By the exact names of the kernel, as mountinfo has them, those of FUSE without "fuse."; the remote ones are those of
# coreutils' stat.c, gnulib's mountlist.c and systemd. The index of a write-ahead log is memory that the processes of
# one kernel share: another machine, or the host of a virtual one, does not see it.
_NAMES: dict[Kind, str] = {
    "local": "ext2 ext3 ext4 xfs btrfs zfs f2fs bcachefs jfs reiserfs reiser4 nilfs2 ubifs jffs2 ntfs3 simfs",
    "layered": "overlay overlayfs aufs unionfs ecryptfs fuse fuseblk",
    "memory": "tmpfs ramfs rootfs",
    # A container's bind mount on a laptop: Docker Desktop gives virtiofs a name of its own.
    "host share": "virtiofs 9p fakeowner osxfs grpcfuse",
    "shared": """nfs nfs4 cifs smb smb2 smb3 smbfs smbnetfs ncp ncpfs afs k-afs auristorfs coda ceph ceph-fuse cephfs
        lustre lustre_lite gpfs mmfs gfs gfs2 ocfs2 beegfs fhgfs orangefs pvfs2 panfs snfs cvfs acfs ibrix vxfs wekafs
        scoutfs glusterfs mfs moosefs lizardfs saunafs juicefs quobyte xtreemfs rozofs seaweedfs eosxd sshfs s3fs goofys
        gcsfuse blobfuse blobfuse2 mount-s3 mountpoint-s3 rclone davfs davfs2 curlftpfs ftpfs gvfsd-fuse fuse_dfs hdfs
        vboxsf vmhgfs vmhgfs-fuse hgfs prl_fs prl_fsd drvfs hostfs""",
}
_KINDS = {name: kind for kind, names in _NAMES.items() for name in names.split()}


def kind_of(name: str) -> Kind:
    """Return what a file system is by its exact name; one of FUSE that is not known is layered."""
    base, _, of_fuse = name.partition(".")
    if base in ("fuse", "fuseblk"):
        found = _KINDS.get(of_fuse, "layered")
        return found if found in ("shared", "host share") else "layered"
    return _KINDS.get(name, "unknown")


def mounted_files(path: Path) -> list[Check]:
    """Return a warning if the database or a side file is itself a mount point, else nothing. Read-only; Linux only.

    Such a file can be written to, and neither renamed nor removed (EBUSY).
    """
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    except OSError:
        return []
    # Most machines mount no such file: to look at each mount takes ten times as long as to read them.
    if re.split(r"[\s\\]", path.name)[0] not in mounts:
        return []
    names = [f"{path}{suffix}" for suffix in ("", *SIDE_FILES)]
    found = [name for name in names if _mount_of(Path(name), mounts)[0] == os.path.realpath(name)]
    if not found:
        return []
    expected = "the directory is mounted, and no single file of the database"
    observed = f"a mount point itself, which cannot be renamed or removed: {', '.join(found)}"
    folder = quote(str(path.parent))
    # A log beside a file that is mounted alone is lost with the container.
    remedy = f"stop its processes, copy the database with its -wal into one directory, and mount that at {folder} "
    return [Check("mounted_files", "warn", expected, observed, f"{remedy}in place of the file: -v DIRECTORY:{folder}")]


def file_system(path: Path, mounts: str | None = None) -> str:
    """Return the name of the file system that holds ``path``, ``unknown`` where it can't be known. Read-only."""
    return _mount_of(path, mounts)[1]


def _mount_of(path: Path, mounts: str | None = None) -> tuple[str, str]:
    """Return the mount point of the file system that holds ``path``, and its name. Read-only.

    ``mounts`` is the text of ``/proc/self/mountinfo`` (proc(5)), by default this process's own; Linux only.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
        except OSError:
            return "", "unknown"
    real, found = os.path.realpath(path), list[tuple[str, str, str, str]]()
    for line in mounts.splitlines():
        fields, _, behind = line.partition(" - ")
        number, parent, _, _, written = fields.split()[:5]
        # A blank, a tab, a newline and a backslash in a mount point are written in octal.
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), written)
        if real == point or real.startswith(point.rstrip("/") + "/"):
            found.append((point, number, parent if parent != number else "", behind.split()[0]))
    numbers, at, point, kind = {number for _, number, _, _ in found}, "", "", "unknown"
    # As the kernel looks a path up: at each step the mount that the path comes to first. One that was mounted later on
    # a directory above hides what was mounted deeper before: that one's parent is another mount.
    while here := [mount for mount in found if (mount[2] if mount[2] in numbers else "") == at]:
        point, at, _, kind = min(here, key=lambda mount: len(mount[0]))
    return point, kind
