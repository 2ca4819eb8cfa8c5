"""A disk for the spool that can be full: a small file system of its own, or a limit where none can be mounted.

For root the spool folder is a tmpfs, and filling it up gives the gateways a real ENOSPC. Others cannot mount: there
the kernel refuses the gateways' writes by RLIMIT_FSIZE (EFBIG), as long as the fault lasts."""

import contextlib
import os
import resource
import subprocess
from collections.abc import Iterable
from pathlib import Path

import psutil

_UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


class SpoolDisk:
    """The file system of a spool. `mount` before the product starts, `unmount` after it has ended."""

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self._folder = folder
        self._size_bytes = size_bytes
        self._filler = folder / "filler"
        self.is_mounted = False

    def mount(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        command = [
            "mount",
            "-t",
            "tmpfs",
            "-o",
            f"size={self._size_bytes},mode=0700",
            "tmpfs",
            str(self._folder),
        ]
        self.is_mounted = (
            os.getuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
        )

    def unmount(self) -> None:
        if self.is_mounted:
            subprocess.run(["umount", "--lazy", str(self._folder)], check=True)
            self.is_mounted = False

    def fill(self, pids: Iterable[int]) -> None:
        """Leave no room, or none for these processes. Called again while the fault lasts: ingest makes room."""
        if not self.is_mounted:
            for pid in pids:
                _limit(pid, (0, resource.RLIM_INFINITY))
            return
        with self._filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            room = os.statvfs(self._folder)
            os.posix_fallocate(file.fileno(), file.tell(), max(1, room.f_bavail * room.f_bsize))
            while True:
                file.write(bytes(4096))

    def free(self, pids: Iterable[int]) -> None:
        """Make room again."""
        self._filler.unlink(missing_ok=True)
        if not self.is_mounted:
            for pid in pids:
                _limit(pid, _UNLIMITED)


def _limit(pid: int, limit: tuple[int, int]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).rlimit(psutil.RLIMIT_FSIZE, limit)
