"""A disk of our own, from which the power can be taken away."""

import subprocess
import time
from pathlib import Path


class MountRefused(Exception):
    """This machine does not let us mount a file system."""


class Disk:
    """An ext4 file system in a file, mounted at `place`. A context manager."""

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
        """What was not on the disk by now is lost. Whatever wrote to the disk must be dead.

        The image has what the file system has given to the disk, and nothing of what it still held back in memory. Two
        equal copies in a row are one moment of it.
        """
        copies = [self.image.read_bytes(), self.image.read_bytes()]
        while copies[0] != copies[1]:
            copies = [copies[1], self.image.read_bytes()]
        for _ in range(100):  # the kernel may still be ending those that were killed
            if subprocess.run(["umount", self.place], capture_output=True).returncode == 0:
                break
            time.sleep(0.1)
        else:
            raise RuntimeError(f"{self.place}: still in use")
        self.image.write_bytes(copies[0])
        self._mount()

    def _mount(self) -> None:
        # Without the kernel's own remedy for programs that rename without flushing: it would hide what we look for.
        _call("mount", "-o", "loop,noauto_da_alloc", self.image, self.place)


def _call(*command) -> None:
    try:
        subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise MountRefused(f"{command[0]}: {getattr(error, 'stderr', '') or error}".strip()) from error
