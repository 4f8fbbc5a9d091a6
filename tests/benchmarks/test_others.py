"""The benchmarks of generation, loading and the callback: compared methods give equal results, and all are timed."""

import pytest
import torch

from benchmarks import generation, loading, profile_step, scaling, slot_jacobian
from data_modules import CLEVRMirror
from implicit_slate import SLATE
from tests.tiny import SLATE_SIZES


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SLATE(**SLATE_SIZES).eval()


def test_the_plain_method_generates_what_the_cache_does_and_both_are_timed(model):
    slots = model.sample_slots(2).detach()
    tokens = model.generate(slots)
    for length in range(model.num_tokens):
        assert torch.equal(generation.plain_step(model, tokens[:, :length], slots), tokens[:, length])
    assert min(generation.measure(model, batch_size=2, parts=3)) > 0


def test_methods_that_disagree_are_not_compared(model, monkeypatch):
    monkeypatch.setattr(generation, "plain_step", lambda model, tokens, slots: torch.full((len(slots),), -1))
    with pytest.raises(RuntimeError, match="disagree"):
        generation.measure(model, batch_size=2, parts=1)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    loading.write_images(folder, 20)
    module = CLEVRMirror(folder, loading.SIZE)
    module.setup()
    return {"decoding": loading.DecodedEachTime(module.sources()["train"]), "cached": module.splits.train}


def test_decoding_and_cache_load_the_same(both):
    assert [len(images) for images in both.values()] == [14, 14]
    first, second = (images[[3, 13, 0]] for images in both.values())
    assert torch.equal(first["image"], second["image"]) and torch.equal(first["mask"], second["mask"])
    assert first["image"].std() > 0.05 and first["mask"].max() >= 3


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_cache_is_faster(both, num_workers):
    speeds = loading.measure(both, num_workers, seconds=0.2, rounds=1)
    assert speeds["cached"] > speeds["decoding"] > 0


@pytest.mark.parametrize("gradient", ["unrolled", "implicit"])
def test_steps_and_measurements_of_the_stress_setting_are_timed(gradient):
    settings, cadence = slot_jacobian.stress_setting()
    assert settings["image_size"] == 32 and cadence > 0
    step, measurement = slot_jacobian.measure(settings | {"gradient": gradient}, True, 4, 2, batch_size=2)
    assert 0 < step < 10 and 0 < measurement < 10


def test_every_part_of_a_step_has_a_kind_and_the_shares_are_all_of_it():
    step = profile_step.prepare("float32", SLATE_SIZES | {"dropout": 0.1}, 4, "cpu")
    shares = profile_step.shares(step)
    assert sum(shares.values()) == pytest.approx(1)
    for kind in ("matrix products", "softmax", "normalisation", "random numbers", "optimiser", "element by element"):
        assert shares[kind] > 0, kind


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("aten::addmm", "matrix products"),
        ("aten::mkldnn_convolution", "convolutions"),
        ("aten::_softmax_backward_data", "softmax"),
        ("aten::native_layer_norm", "normalisation"),
        ("aten::index_fill_", "copies"),
        ("aten::linalg_vector_norm", "optimiser"),
        ("aten::mul", "element by element"),
        ("aten::view", profile_step.OTHER),
    ],
)
def test_an_operation_belongs_to_the_kind_that_its_name_tells(operation, kind):
    assert profile_step.kind_of(operation) == kind


def test_the_sweeps_are_drawn_and_written(monkeypatch, tmp_path):
    small = SLATE_SIZES | {"batch_size": 2}
    monkeypatch.setattr(scaling, "MIDDLE", small)
    monkeypatch.setattr(scaling, "SWEEPS", {name: (small[name], 2 * small[name]) for name in scaling.SWEEPS})
    monkeypatch.setattr("sys.argv", ["scaling", "--rounds", "1", "--out", str(tmp_path)])
    scaling.main()
    lines = (tmp_path / "scaling.csv").read_text().splitlines()
    assert lines[0] == "varied,gradient,value,seconds" and len(lines) == 1 + 5 * 2 * 2
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
