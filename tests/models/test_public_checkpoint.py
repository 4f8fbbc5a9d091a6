"""Checkpoint files of the public code: both layouts, and everything that can be wrong with them."""

from pathlib import Path

import pytest
import torch

from implicit_slate import load_public_checkpoint
from implicit_slate.errors import UserError

NOT_IN_THE_STATE = dict(num_slots=3, num_iterations=3, num_slot_heads=1, num_heads=2)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "public.pt"


def load(source, **changed):
    return load_public_checkpoint(source, **NOT_IN_THE_STATE | changed)


def refused(source, message: str, **changed):
    """Asserts that reading `source` raises a one-line `UserError` containing `message`, and returns it."""
    with pytest.raises(UserError) as error:
        load(source, **changed)
    line = str(error.value)
    assert message in line and "\n" not in line
    return line


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"epoch": 3, "optimizer": {}, "model": state}])
def test_a_file_gives_the_model_of_its_state(state, path, wrap):
    torch.save(wrap(state), path)
    from_file, from_state = load(path), load(state)
    assert not from_file.training
    for (name, a), b in zip(from_file.state_dict().items(), from_state.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_sizes_are_read_from_the_state(state):
    model = load(state, num_slots=5, num_iterations=2, num_heads=4, gradient="unrolled")
    assert (model.vocab_size, model.num_tokens) == (48, (model.image_size // 4) ** 2)
    assert model.sample_slots(2).shape[1] == 5
    assert model.predict(torch.zeros(1, model.num_tokens, dtype=torch.long)).solution.evaluations == 2


def test_images_may_have_one_channel(state):
    first, last = "dvae.encoder.0.m.weight", "dvae.decoder.11"
    weights = {name: state[name][:1] for name in (f"{last}.weight", f"{last}.bias")}
    model = load(state | weights | {first: state[first][:, :1]})
    assert model.views(torch.rand(1, 1, 24, 24), model.sample_slots(1)).reconstruction.shape[1] == 1


def half_of_a_file(path, state):
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path, state: None, "no such file"),
        (lambda path, state: path.write_bytes(b""), "not a PyTorch checkpoint"),
        (lambda path, state: path.write_bytes(b"PK\x03\x04"), "not a PyTorch checkpoint"),
        (half_of_a_file, "not a PyTorch checkpoint"),
        # An object of a class, whose constructor unpickling would run.
        (lambda path, state: torch.save({"model": Path("x")}, path), "not a PyTorch checkpoint"),
        (lambda path, state: torch.save([1, 2], path), "not a state dict"),
        (lambda path, state: torch.save(torch.zeros(3), path), "not a state dict"),
    ],
    ids=["missing", "empty", "zip", "half", "code", "list", "tensor"],
)
def test_a_file_of_another_kind_is_refused_and_code_in_it_is_not_run(state, path, write, message):
    write(path, state)
    assert str(path) in refused(path, message)


SHORTER = "dictionary.dictionary.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {}, "positions"),
        (lambda state: state | {"resnet.layer1.weight": torch.zeros(2)}, "'resnet.layer1.weight'"),
        (lambda state: {k: v for k, v in state.items() if k != "tf_dec.layer_norm.bias"}, "transformer.norm.bias"),
        (lambda state: state | {SHORTER: state[SHORTER][:-3]}, "dictionary.weight"),
        (lambda state: state | {"out.weight": "lost"}, "not a state of the public SLATE"),
    ],
    ids=["empty", "unknown name", "missing name", "other shape", "no tensor"],
)
def test_a_state_that_is_not_the_public_model_s(state, change, message):
    refused(change(state), message)


@pytest.mark.parametrize("heads", ["num_heads", "num_slot_heads"])
def test_heads_that_do_not_divide_the_width(state, heads):
    refused(state, f"{heads}=7", **{heads: 7})
