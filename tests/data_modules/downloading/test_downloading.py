"""Downloads from a real server on this machine, which serves byte ranges and can be made to fail."""

import base64
import fcntl
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data_modules.downloading import catalog, transfer
from data_modules.downloading.catalog import KINDS, Remote
from data_modules.downloading.transfer import DownloadError, fetch
from implicit_slate.cli import main
from implicit_slate.errors import UserError

CONTENT = os.urandom(300_000)


@pytest.fixture
def remote(server) -> Remote:
    server.files["/data.h5"] = CONTENT
    return Remote(f"{server.address}/data.h5", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_arrives_whole_is_checked_and_is_not_fetched_again(server, remote, tmp_path):
    assert fetch(remote, tmp_path / "new") == "300.0 kB; its checksum is right"
    assert (tmp_path / "new" / "data.h5").read_bytes() == CONTENT
    assert "already" in fetch(remote, tmp_path / "new")
    assert names(tmp_path / "new") == ["data.h5"] and server.requests == [("/data.h5", None)]


@pytest.mark.parametrize(
    ("trouble", "requests"),
    [
        ({"breaks": [100_000, 150_000]}, [None, "bytes=131072-", "bytes=196608-"]),
        ({"breaks": [1000], "ranges": False}, [None, None]),
        ({"errors": [503, 503]}, [None, None, None]),
    ],
)
def test_trouble_that_passes(server, remote, tmp_path, trouble, requests):
    vars(server).update(trouble)
    fetch(remote, tmp_path)
    assert (tmp_path / "data.h5").read_bytes() == CONTENT
    assert [part for _, part in server.requests] == requests


@pytest.mark.parametrize("changed", [False, True])
def test_a_stopped_run_goes_on_unless_the_file_has_changed(server, tmp_path, monkeypatch, changed):
    monkeypatch.setattr(transfer, "ATTEMPTS", 1)
    server.files["/a"], server.breaks = CONTENT, [100_000]
    remote = Remote(f"{server.address}/a")
    with pytest.raises(DownloadError, match="/a: .*200000 more expected.*; the same command continues"):
        fetch(remote, tmp_path)
    assert names(tmp_path) == [".a.part", ".a.part.version"]
    server.files["/a"] = content = CONTENT[::-1] if changed else CONTENT
    fetch(remote, tmp_path)
    assert (tmp_path / "a").read_bytes() == content and names(tmp_path) == ["a"]
    assert server.requests[-1][1] == "bytes=65536-"


def test_all_bytes_were_there_when_it_was_stopped(server, tmp_path):
    server.files["/a"] = CONTENT
    (tmp_path / ".a.part").write_bytes(CONTENT)
    (tmp_path / ".a.part.version").write_text(f'"{hashlib.md5(CONTENT).hexdigest()}"')
    fetch(Remote(f"{server.address}/a"), tmp_path)
    assert (tmp_path / "a").read_bytes() == CONTENT and names(tmp_path) == ["a"]
    assert server.requests == [("/a", "bytes=300000-")]


@pytest.mark.parametrize("known", [True, False])
def test_a_file_is_kept_when_it_is_stopped_while_its_checksum_is_computed(server, remote, tmp_path, monkeypatch, known):
    """Also if the checksum is known only from the server, which sends it once."""
    if not known:
        server.headers = {"x-goog-hash": f"md5={base64.b64encode(hashlib.md5(CONTENT).digest()).decode()}"}
        remote = Remote(remote.address)

    def interrupted(*_) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch(remote, tmp_path)
    assert names(tmp_path) == [".data.h5.part", ".data.h5.part.version"]
    server.headers = {}
    assert fetch(remote, tmp_path) == "300.0 kB; its checksum is right"
    assert (tmp_path / "data.h5").read_bytes() == CONTENT and names(tmp_path) == ["data.h5"]
    assert [part for _, part in server.requests] == [None, *([] if known else ["bytes=300000-"])]


@pytest.mark.parametrize(
    ("errors", "content", "message"),
    [
        ([503] * 9, CONTENT, "data.h5: the server answers 503 Service Unavailable; the same command continues"),
        ([404], CONTENT, "data.h5: the server answers 404 Not Found"),
        ([], CONTENT[:-1], "expected 300000 bytes, but the server has 299999"),
        ([], CONTENT[::-1], "data.h5: expected sha256:.* but got .*; removed"),
    ],
    ids=["503", "404", "size", "checksum"],
)
def test_a_server_that_fails(server, remote, tmp_path, errors, content, message):
    server.errors, server.files["/data.h5"] = errors, content
    with pytest.raises(DownloadError, match=message):
        fetch(remote, tmp_path)
    assert not {"data.h5", ".data.h5.part"} & set(names(tmp_path))


def test_no_server(tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "PAUSE", 0.0)
    with pytest.raises(DownloadError, match="http://127.0.0.1:9/x: .*refused.*; the same command continues"):
        fetch(Remote("http://127.0.0.1:9/x"), tmp_path)


def test_another_file_of_that_name_is_left_alone(server, remote, tmp_path):
    (tmp_path / "data.h5").write_bytes(CONTENT[::-1])
    with pytest.raises(UserError, match=f"{tmp_path}/data.h5: expected .*; move it away"):
        fetch(remote, tmp_path)
    assert (tmp_path / "data.h5").read_bytes() == CONTENT[::-1] and not server.requests


def test_checksums_that_only_the_server_knows(server, tmp_path):
    server.files["/a"] = CONTENT
    digest = base64.b64encode(hashlib.md5(CONTENT).digest()).decode()
    server.headers = {"x-goog-hash": f"crc32c=AAAAAA==, md5={digest}"}
    assert "its checksum is right" in fetch(Remote(f"{server.address}/a"), tmp_path)
    server.headers = {"x-goog-hash": f"md5={base64.b64encode(bytes(16)).decode()}"}
    with pytest.raises(DownloadError, match="a: expected md5:0000"):
        fetch(Remote(f"{server.address}/a"), tmp_path / "other")
    server.headers = {}
    assert "no checksum is known" in fetch(Remote(f"{server.address}/a"), tmp_path / "third")


def test_two_at_once_do_not_mix(server, remote, tmp_path):
    with open(tmp_path / ".data.h5.part", "wb") as part:
        fcntl.flock(part, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is fetching"):
            fetch(remote, tmp_path)


def test_no_space(server, remote, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match="data.h5 needs 300.0 kB more, but 1.0 kB are free"):
        fetch(remote, tmp_path)
    assert not names(tmp_path)


def test_a_disk_that_fills_up_is_one_line_and_no_half_file(server, remote, tmp_path):
    """A limit on file size stands in for a full disk: both make writes fail."""
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "from data_modules.downloading.catalog import KINDS, Remote; from implicit_slate.cli import main;"
        f"KINDS['shapes3d'] = [Remote({remote.address!r})];"
        f"sys.exit(main(['data', 'download', 'shapes3d', '--out', {str(tmp_path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert ".data.h5.part: cannot be written (File too large); what is there is kept" in done.stderr
    assert "data.h5" not in names(tmp_path)
    fetch(remote, tmp_path)  # once there is space, it continues
    assert (tmp_path / "data.h5").read_bytes() == CONTENT and server.requests[-1][1] == "bytes=100000-"


def test_shapestacks_with_the_authors_checksums(server, tmp_path, capsys):
    for part in catalog.SHAPESTACKS_PARTS:
        server.files[f"/v1/shapestacks-{part}.tar.gz"] = data = CONTENT + part.encode()
        server.files[f"/v1/shapestacks-{part}.md5"] = f"{hashlib.md5(data).hexdigest()}  shapestacks.tar.gz\n".encode()
    command = ["data", "download", "shapestacks", "--base-address", f"{server.address}/v1/", "--out", str(tmp_path)]
    assert main(command) == 0
    assert names(tmp_path) == [f"shapestacks-{part}.tar.gz" for part in ("iseg", "meta", "rgb")]
    printed = capsys.readouterr().out
    assert printed.count("its checksum is right") == 3 and "tar xzf shapestacks-rgb.tar.gz" in printed
    server.files["/v1/shapestacks-rgb.md5"] = b"0" * 32
    (tmp_path / "shapestacks-rgb.tar.gz").unlink()
    assert main([*command, "--only", "shapestacks-rgb.tar.gz"]) == 1
    error = capsys.readouterr().err
    assert "shapestacks-rgb.tar.gz: expected md5:0000" in error
    assert "shapestacks-rgb.tar.gz" not in names(tmp_path)


def test_another_server_must_have_the_same_file(server, tmp_path, capsys):
    server.files["/3dshapes.h5"] = CONTENT
    assert main(["data", "download", "shapes3d", "--base-address", server.address, "--out", str(tmp_path)]) == 1
    assert "expected 267573662 bytes, but the server has 300000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["clevr-mirror"], "clevr-mirror: has no stable public address; its authors link it on https://sites.google"),
        (["folder"], "folder: has no stable public address"),
        (["shapestacks"], "shapestacks: give --base-address URL, .* https://shapestacks.robots.ox.ac.uk"),
        (["coc"], "unknown kind 'coc'; did you mean 'coco'"),
        (["coco", "--only", "val2017"], "--only val2017: not a file of coco; did you mean 'val2017.zip'"),
        (["coco", "--base-address", "here"], "--base-address here: expected http"),
        (["fid-weights", "--only", "a"], "fid-weights: --base-address and --only are for data sets"),
        ([], "download: the following arguments are required: KIND"),
        (["shapes3d"], "download: the following arguments are required: --out"),
        (["shapes3d", "--out", __file__], "expected a folder"),
    ],
)
def test_bad_usage_is_one_line_and_fetches_nothing(tmp_path, capsys, arguments, message):
    out = [] if "shapes3d" in arguments else ["--out", str(tmp_path / "out")]
    assert main(["data", "download", *arguments, *out]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_every_published_sum_is_a_sum():
    remotes = [remote for kind in KINDS.values() for remote in kind]
    assert len({remote.address for remote in remotes}) == len(remotes)
    for remote in remotes:
        assert (remote.size is None) == (remote.sha256 is None)
        assert remote.sha256 is None or re.fullmatch("[0-9a-f]{64}", remote.sha256)
