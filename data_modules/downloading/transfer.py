"""Downloads a file as `.<name>.part`, and renames it once its checksum is right.

A stopped download continues if the server still has the same version.
"""

import base64
import fcntl
import hashlib
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import requests
from rich.filesize import decimal

from data_modules.downloading.catalog import Remote
from data_modules.progress import meter
from implicit_slate.errors import UserError
from implicit_slate.files import replace_durably

BLOCK = 1 << 16  # bytes; the most that a broken connection can lose
TIMEOUT = 60.0  # seconds without receiving a byte
ATTEMPTS = 5  # consecutive attempts that receive nothing, before giving up
PAUSE = 2.0  # seconds, multiplied by the number of such attempts


class DownloadError(Exception):
    """A download failed through no fault of the user. The message is one line."""


def fetch(remote: Remote, folder: Path, attempts: int | None = None, timeout: float = TIMEOUT) -> str:
    """Puts the file into `folder`, and returns a text that says what was checked.

    Args:
        attempts: consecutive attempts that may receive nothing; by default ATTEMPTS.
        timeout: seconds without receiving a byte.

    Raises:
        DownloadError: the server or the network failed, or what was received is not the expected file.
        UserError: `folder` cannot be written, or has a different file of this name, which is left as it is.
    """
    target, known = folder / remote.name, remote.sha256 and f"sha256:{remote.sha256}"
    if target.exists():
        if known and _sum(target, known) != known:
            raise UserError(f"{target}: expected a file with checksum {known}; move it away to fetch it again")
        return f"is there already; {'its checksum is right' if known else 'no checksum is known'}"
    part = folder / f".{remote.name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        known = known or _published_md5(remote, timeout)
        known = _Resuming(remote, part, attempts or ATTEMPTS, timeout).fetch(target, known)
    except requests.RequestException as error:  # a subclass of OSError
        raise DownloadError(f"{remote.address}: {_reason(error)}; the same command continues") from None
    except OSError as error:
        advice = "what is there is kept, and the same command continues"
        raise UserError(f"{part}: cannot be written ({error.strerror}); {advice}") from error
    size = decimal(target.stat().st_size)
    return f"{size}; its checksum is right" if known else f"{size} as the server says; no checksum is known"


@dataclass
class _Resuming:
    """A download that continues `part`, and tries again as long as bytes arrive."""

    remote: Remote
    part: Path
    attempts: int
    timeout: float
    server_md5: str | None = None
    """The sum given by the server, checked if no other is known."""

    def fetch(self, target: Path, known: str | None) -> str | None:
        """Downloads to `target` and checks its sum against `known`, such as `sha256:…` (None: the server's MD5).

        Returns the sum that was checked, or None.
        """
        failures = 0
        with open(self.part, "a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.part}: another process is fetching this file") from None
            try:
                while self._size() != self.remote.size:
                    before = self._size()
                    try:
                        self._go_on(file)
                        break
                    except requests.RequestException as error:
                        failures = 1 if self._size() > before else failures + 1
                        passing = error.response is None or error.response.status_code >= 500
                        if failures == self.attempts or not passing:
                            raise
                    time.sleep(PAUSE * failures)
            finally:
                if not self._size():
                    self.part.unlink()
                    self._version.unlink(missing_ok=True)
            known = known or (self.server_md5 and f"md5:{self.server_md5}")
            # Checked before renaming: this takes minutes, and if it is interrupted, the part must remain.
            if known and (found := _sum(self.part, known)) != known:
                self.part.unlink()
                self._version.unlink(missing_ok=True)
                raise DownloadError(f"{self.remote.address}: expected {known} but got {found}; removed")
            replace_durably(self.part, target)
            self._version.unlink(missing_ok=True)
        return known

    def _go_on(self, file: BinaryIO) -> None:
        """One request, for the missing bytes. If the file on the server has changed, or the server does not support
        ranges, it is fetched from the start."""
        address, have, headers = self.remote.address, self._size(), {"Accept-Encoding": "identity"}
        if have and self._version.exists():
            tag, _, md5 = self._version.read_text().partition("\n")
            headers |= {"Range": f"bytes={have}-", "If-Range": tag}
            self.server_md5 = md5 or None  # kept, because a response without content need not repeat it
        with requests.get(address, headers=headers, stream=True, timeout=self.timeout) as response:
            total = _total(response)
            if response.status_code == 416 and total == have:
                return  # the part is complete
            if response.status_code == 416:
                file.truncate(0)
                raise requests.ConnectionError("the server has less than what is here")
            response.raise_for_status()
            if response.status_code != 206:
                file.truncate(have := 0)
            if None not in (self.remote.size, total) and total != self.remote.size:
                raise DownloadError(f"{address}: expected {self.remote.size} bytes, but the server has {total}")
            self._note_version(response)
            free = shutil.disk_usage(self.part.parent).free
            if total is not None and total - have > free:
                needed = f"needs {decimal(total - have)} more, but {decimal(free)} are free"
                raise UserError(f"{self.part.parent}: {self.remote.name} {needed}")
            with meter(self.remote.name, total, have, "bytes") as advance:
                for block in response.iter_content(BLOCK):
                    file.write(block)
                    file.flush()
                    advance(len(block))

    def _size(self) -> int:
        return self.part.stat().st_size

    @property
    def _version(self) -> Path:
        """The file that records which version on the server the part belongs to, and that version's MD5."""
        return self.part.with_name(f"{self.part.name}.version")

    def _note_version(self, response: requests.Response) -> None:
        # Google's storage sends `x-goog-hash: crc32c=…, md5=…` in base64; without an MD5 for composite objects.
        found = re.search(r"md5=([\w+/]+=*)", response.headers.get("x-goog-hash", ""))
        self.server_md5 = base64.b64decode(found[1]).hex() if found else None
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if version and not version.startswith("W/"):  # a weak ETag does not allow ranges
            self._version.write_text(f"{version}\n{self.server_md5 or ''}")
        else:
            self._version.unlink(missing_ok=True)


def _published_md5(remote: Remote, timeout: float) -> str | None:
    """The first word of 32 hexadecimal digits in the file at `md5_address`; None if there is no such file."""
    if remote.md5_address is None:
        return None
    response = requests.get(remote.md5_address, timeout=timeout)
    if response.status_code == 404:
        return None
    response.raise_for_status()
    if (found := re.search(r"\b[0-9a-fA-F]{32}\b", response.text)) is None:
        raise DownloadError(f"{remote.md5_address}: expected an MD5 sum of 32 hexadecimal digits, found none")
    return f"md5:{found[0].lower()}"


def _sum(path: Path, known: str) -> str:
    """The file's checksum by the method of `known`, in the same notation (`method:digits`)."""
    method = known.partition(":")[0]
    with open(path, "rb") as file:
        return f"{method}:{hashlib.file_digest(file, method).hexdigest()}"


def _total(response: requests.Response) -> int | None:
    """The size of the whole file, from `Content-Range: bytes 5-9/10` or `Content-Length: 10`."""
    given = response.headers.get("Content-Range", "").rpartition("/")[2]
    if not given and response.status_code == 200:
        given = response.headers.get("Content-Length", "")
    return int(given) if given.isdigit() else None


def _reason(error: requests.RequestException) -> str:
    if error.response is not None:
        return f"the server answers {error.response.status_code} {error.response.reason}"
    return " ".join(str(error).split())
