"""Fetches a file over HTTP: resumable, whole or not there, its size and checksum checked.

A file grows as `.<name>.part` and gets its name when all of it is right. What was stopped goes on where it was.
"""

import base64
import fcntl
import hashlib
import http.client
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rich.filesize import decimal

from data_modules.downloading.catalog import Remote
from data_modules.progress import meter
from implicit_slate.errors import UserError

BLOCK = 1 << 20
TIMEOUT = 60.0  # seconds without a byte
ATTEMPTS = 5  # in a row that bring nothing
PAUSE = 2.0  # seconds, times the number of such attempts
NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


class DownloadError(Exception):
    """A download failed through no fault of the user. One line."""


def fetch(remote: Remote, folder: Path, attempts: int | None = None, timeout: float = TIMEOUT) -> str:
    """Puts the file into `folder`, and says what was checked.

    Args:
        attempts: how many in a row may bring nothing; by default ATTEMPTS.
        timeout: seconds without a byte.

    Raises:
        DownloadError: the server or the network failed, or what it gave is not the file.
        UserError: nothing can be written there, or a wrong file has the name already, which is left alone.
    """
    target, part = folder / remote.name, folder / f".{remote.name}.part"
    if target.exists():
        size = target.stat().st_size
        if remote.size not in (None, size):
            raise UserError(f"{target}: expected {remote.size} bytes, found {size}; move it away to fetch it anew")
        if remote.sha256 and _digest(target, "sha256") != remote.sha256:
            raise UserError(f"{target}: expected another SHA-256 sum, {remote.sha256}; move it away to fetch it anew")
        return f"is there already; {'SHA-256 is right' if remote.sha256 else 'no checksum is known'}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _own(part) as file:
            md5 = _fill(remote, file, part, attempts or ATTEMPTS, timeout)
            said = _verify(remote, part, md5)
            part.replace(target)
            _tag(part).unlink(missing_ok=True)
            return said
    except OSError as error:
        raise UserError(
            f"{part}: cannot be written ({error.strerror}); what is there is kept, and the same command goes on"
        ) from error


@contextmanager
def _own(part: Path) -> Iterator[BinaryIO]:
    """The unfinished file, which no other process may fill at the same time."""
    with open(part, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{part}: another process is fetching this file") from None
        try:
            yield file
        finally:
            if part.exists() and not part.stat().st_size:
                part.unlink()


def _fill(remote: Remote, file: BinaryIO, part: Path, attempts: int, timeout: float) -> str | None:
    """Appends what is missing. The MD5 sum in hexadecimal digits that the server says, if it says one."""
    failures = 0
    while True:
        before = part.stat().st_size
        try:
            return _continue(remote, file, part, timeout)
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise DownloadError(f"{remote.address}: the server answers {error.code} {error.reason}") from None
            reason = f"the server answers {error.code} {error.reason}"
        except NETWORK_ERRORS as error:
            reason = str(getattr(error, "reason", "") or error or type(error).__name__)
        failures = 1 if part.stat().st_size > before else failures + 1
        if failures == attempts:
            raise DownloadError(f"{remote.address}: {reason}; the same command goes on") from None
        time.sleep(PAUSE * failures)


def _continue(remote: Remote, file: BinaryIO, part: Path, timeout: float) -> str | None:
    """One request, for what is missing. Where the file on the server has changed since, or it serves no parts of
    files, it is fetched from the start."""
    have, tag = part.stat().st_size, _tag(part)
    if have == remote.size:
        return None
    request = urllib.request.Request(remote.address, headers={"Accept-Encoding": "identity"})
    if have and tag.exists():
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", tag.read_text())
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code != 416 or not have:
                raise
            if _total(error) == have:  # nothing is missing
                return None
        file.truncate(0)
        return _continue(remote, file, part, timeout)
    with response:
        if response.status != 206:
            file.truncate(have := 0)
        total = _total(response)
        if remote.size and total not in (None, remote.size):
            raise DownloadError(f"{remote.address}: expected {remote.size} bytes, but the server has {total}")
        total = total or remote.size
        _write_tag(tag, response)
        _copy(response, file, part, remote.name, have, total)
        if total is not None and part.stat().st_size < total:
            raise ConnectionError("the connection broke off")
        return _server_md5(response)


def _copy(response, file: BinaryIO, part: Path, name: str, have: int, total: int | None) -> None:
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - have > free:
        raise UserError(f"{part.parent}: {name} needs {decimal(total - have)} more, but {decimal(free)} are free")
    with meter(name, total, have, "bytes") as advance:
        while block := response.read(BLOCK):
            file.write(block)
            file.flush()
            advance(len(block))


def _verify(remote: Remote, part: Path, server_md5: str | None) -> str:
    """What was checked. DownloadError, and the file is removed, if it is not what it should be."""
    for name, expected, source in (
        ("SHA-256", remote.sha256, "published"),
        ("MD5", _published_md5(remote), "published"),
        ("MD5", server_md5, "the server's"),
    ):
        if expected is None:
            continue
        if (found := _digest(part, name.replace("-", "").lower())) != expected:
            part.unlink()
            raise DownloadError(f"{remote.address}: expected the {name} sum {expected}, found {found}; removed")
        return f"{decimal(part.stat().st_size)}; {name} is {source}"
    return f"{decimal(part.stat().st_size)} as the server says; no checksum is known"


def _published_md5(remote: Remote) -> str | None:
    if remote.md5_address is None:
        return None
    try:
        with urllib.request.urlopen(remote.md5_address, timeout=TIMEOUT) as response:
            found = re.search(r"\b[0-9a-fA-F]{32}\b", response.read(4096).decode(errors="replace"))
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise DownloadError(f"{remote.md5_address}: the server answers {error.code} {error.reason}") from None
    except NETWORK_ERRORS as error:
        raise DownloadError(f"{remote.md5_address}: {error}; the same command goes on") from None
    if found is None:
        raise DownloadError(f"{remote.md5_address}: expected an MD5 sum of 32 hexadecimal digits, found none")
    return found[0].lower()


def _server_md5(response) -> str | None:
    """Google's storage says `x-goog-hash: crc32c=…, md5=…`, in base 64; of files put together from parts no MD5."""
    found = re.search(r"md5=([\w+/]+=*)", ",".join(response.headers.get_all("x-goog-hash", [])))
    return base64.b64decode(found[1]).hex() if found else None


def _total(response) -> int | None:
    """The size of the whole file, from `Content-Range: bytes 5-9/10` or `Content-Length: 10`."""
    if given := response.headers.get("Content-Range"):
        total = given.rpartition("/")[2]
        return int(total) if total.isdigit() else None
    given = response.headers.get("Content-Length")
    return int(given) if given and response.status == 200 else None


def _tag(part: Path) -> Path:
    """Where it is kept which version of the file on the server the unfinished one is of."""
    return part.with_name(f"{part.name}.version")


def _write_tag(tag: Path, response) -> None:
    version = response.headers.get("ETag") or response.headers.get("Last-Modified")
    if version and not version.startswith("W/"):  # by weak tags nothing may be continued
        tag.write_text(version)
    else:
        tag.unlink(missing_ok=True)


def _digest(path: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm)
    with open(path, "rb") as file, meter(f"{algorithm} of {path.name}", path.stat().st_size, 0, "bytes") as advance:
        while block := file.read(BLOCK):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()
