"""A file system on which power cuts can be simulated."""

import subprocess
import time
from pathlib import Path


class MountRefused(Exception):
    """File systems cannot be mounted on this machine."""


class Disk:
    """An ext4 file system in a file, mounted at `place`; a context manager."""

    def __init__(self, folder: Path, megabytes: int = 96):
        self.image, self.place = folder / "disk.img", folder / "disk"
        self.place.mkdir()
        _call("truncate", "-s", f"{megabytes}M", self.image)
        _call("mkfs.ext4", "-q", self.image)
        self._mount()

    def __enter__(self) -> "Disk":
        return self

    def __exit__(self, *exception) -> None:
        _call("umount", "--lazy", self.place)

    def lose_power(self) -> None:
        """Simulates a power cut: everything not yet written to the disk is lost. All writing processes must be dead.

        The image file contains what the file system has written to the disk, without what it still keeps in memory. Two
        equal consecutive copies of it are a consistent snapshot.
        """
        copies = [self.image.read_bytes(), self.image.read_bytes()]
        while copies[0] != copies[1]:
            copies = [copies[1], self.image.read_bytes()]
        for _ in range(100):  # killed processes may not have ended yet
            if subprocess.run(["umount", self.place], capture_output=True).returncode == 0:
                break
            time.sleep(0.1)
        else:
            raise RuntimeError(f"{self.place}: still in use")
        self.image.write_bytes(copies[0])
        self._mount()

    def _mount(self) -> None:
        # noauto_da_alloc: the kernel's protection of programs that rename without flushing would hide such errors.
        _call("mount", "-o", "loop,noauto_da_alloc", self.image, self.place)


def _call(*command) -> None:
    try:
        subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise MountRefused(f"{command[0]}: {getattr(error, 'stderr', '') or error}".strip()) from error
