"""The network of FID: its features, and that wrong files are reported in one line and never executed."""

import pickle

import pytest
import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

from implicit_slate.errors import UserError
from implicit_slate.metrics import inception
from implicit_slate.metrics.inception import (
    CONVERTED_NAME,
    ORIGINAL_NAME,
    Inception,
    Network,
    WeightsMissing,
    find_weights,
    to_uint8,
)
from tests.tiny import Command

# fmt: off
STORED = torch.tensor([  # every 128th feature of each image, computed by torch-fidelity's own class
    [0.2309254, 0.05932508, 0.1760374, 0.008897588, 0.03144382, 0.1326275, 0.09151979, 0.004242979,
     0, 0.05512413, 0.06069153, 0.497876, 0.01118847, 0.6267807, 0.3045574, 0.2855123],
    [1.286343, 0.07605268, 0.5495219, 0.04544511, 0.1809808, 0.03538663, 0.1268577, 0.03425165,
     0.08741662, 0.506692, 0.524717, 0.06412335, 0.02207819, 0.8086807, 0.5039001, 0.2106241],
    [0.5569603, 0.270868, 0.069787, 0.1619104, 0.05923134, 0.6304916, 0.3233649, 0.002684629,
     0.004583185, 0.1853638, 0.864807, 0, 0.08621774, 0.3680135, 1.129881, 0.2162416],
])
# fmt: on


def images() -> Tensor:
    """Images of stripes, a moiré pattern and a chessboard, uint8 (3, 3, 96, 96)."""
    c, y, x = torch.meshgrid(torch.arange(3), torch.arange(96), torch.arange(96), indexing="ij")
    made = [(3 * x + 5 * y + 40 * c) % 256, (x * y + 80 * c) % 256, (x // 12 + y // 12 + c) % 2 * 255]
    return torch.stack(made).to(torch.uint8)


@pytest.fixture(scope="module")
def network(fid_weights) -> Inception:
    return Inception(fid_weights)


def test_features_are_the_stored_ones_and_no_random_numbers_are_drawn(fid_weights):
    state = torch.random.get_rng_state()
    features = Inception(fid_weights)(images())
    assert torch.equal(state, torch.random.get_rng_state())
    assert features.shape == (3, 2048) and features.dtype == torch.float32
    assert torch.allclose(features[:, ::128], STORED, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_full_float32_convolutions_are_for_this_network_alone(network, monkeypatch, precision):
    convolution = torch.backends.cudnn.conv
    before, seen = convolution.fp32_precision, []
    monkeypatch.setattr(network.network, "forward", lambda x: (seen.append(convolution.fp32_precision),))
    try:
        convolution.fp32_precision = precision
        network(images()[:1])
        assert seen == ["ieee"] and convolution.fp32_precision == precision
    finally:
        convolution.fp32_precision = before


def test_is_frozen_and_keeps_float32_under_autocast(network):
    image = images()[:1]
    expected = network(image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network.train()(image), expected)
    assert not network.training and not network.network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_the_network_has_94_convolutions_and_no_classifier():
    network = Network()
    assert len(network.blocks()) == 94
    learned = [tensor for block in network.blocks().values() for tensor in (block.conv.weight, block.bn.bias)]
    assert sum(tensor.numel() for tensor in learned) == 21_768_352  # the number that Keras gives
    assert not any(name.startswith("fc") for name in network.state_dict())
    assert all(parameter.is_meta for parameter in network.parameters())


def test_the_original_is_named_as_torch_fidelity_names_it():
    assert URL_INCEPTION_V3.endswith(f"/{ORIGINAL_NAME}")
    assert ORIGINAL_NAME.removesuffix(".pth").endswith(f"-{inception.ORIGINAL_SHA256[:8]}")  # as torch.hub requires


def test_bytes_become_the_same_bytes():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(values.float() / 255), values)
    assert to_uint8(torch.tensor([-0.1, 1.1])).tolist() == [0, 255]


def test_weights_are_found_in_a_file_a_folder_or_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    with pytest.raises(WeightsMissing, match=f"^{cache}: .* `implicit-slate data download fid-weights` fetches them$"):
        find_weights()
    cache.mkdir(parents=True)
    for name in (CONVERTED_NAME, ORIGINAL_NAME):  # the latter is preferred
        (cache / name).touch()
        assert find_weights() == find_weights(cache) == find_weights(cache / name) == cache / name
    with pytest.raises(WeightsMissing, match=f"`implicit-slate data download fid-weights --out {tmp_path}` fetches"):
        find_weights(tmp_path)
    with pytest.raises(WeightsMissing, match="here: no such file or folder; `implicit-slate data download"):
        find_weights(tmp_path / "here")


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_text("words"),
        lambda path: path.write_bytes(b""),
        lambda path: torch.save({"Conv2d_1a_3x3.conv.weight": torch.zeros(3)}, path),
        lambda path: torch.save({"state": {"a": 1}}, path),
        lambda path: torch.save(torch.zeros(3), path),
        lambda path: torch.save(Command(path.parent / "run"), path),
        lambda path: path.write_bytes(pickle.dumps(Command(path.parent / "run"))),
        lambda path: torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path),
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.jit", "error:'torch.load' received", "error:Detected pickle")
def test_a_foreign_file_is_one_line_and_never_run(tmp_path, make):
    path = tmp_path / "weights.pth"
    make(path)
    with pytest.raises(UserError, match=r"weights\.pth: expected weights-inception-.*checksum") as raised:
        Inception(path)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_wrong_checksum_and_a_folder_are_one_line(tmp_path, fid_weights):
    path = tmp_path / ORIGINAL_NAME
    state = torch.load(fid_weights, weights_only=True)
    state["Conv2d_1a_3x3.bn.bias"][0] += 1e-6
    torch.save(state, path)
    with pytest.raises(UserError, match=f"{path}: expected .*; `implicit-slate data download fid-weights` fetches"):
        Inception(path)
    with pytest.raises(UserError, match="cannot be read"):
        Inception(tmp_path)
