"""Portable models: from a checkpoint to a file by `implicit-slate export`, and loaded by `load_pretrained`."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from implicit_slate import load_pretrained
from implicit_slate.cli import main
from implicit_slate.errors import UserError
from implicit_slate.models import DiscreteVAE, SlotModel
from implicit_slate.models.portable import FOLDER, KEY
from implicit_slate.training import SLATEModule, SpatialBroadcastModule
from implicit_slate.training.checkpoints import load_trained, load_untrained
from tests.tiny import TinyImages
from tests.training.setting import assert_same_weights, module, trainer


def trained(folder, kind=SLATEModule, **options):
    """The checkpoint of a short training run, with the class name that LightningCLI records in it."""
    made, run = module(kind, **options), trainer()
    run.fit(made, TinyImages())
    made.hparams["_class_path"] = f"implicit_slate.training.{kind.__name__}"
    run.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


def exported(folder, checkpoint):
    out = folder / "model.safetensors"
    assert main(["export", str(checkpoint), str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    return exported(folder, trained(folder))


def refused(name, message):
    with pytest.raises(UserError) as error:
        load_pretrained(name)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [SLATEModule, SpatialBroadcastModule])
def test_a_file_gives_the_model_of_its_checkpoint(tmp_path, kind):
    checkpoint = trained(tmp_path, kind, gradient="neumann(2)")
    model, image = load_pretrained(exported(tmp_path, checkpoint)), TinyImages().probe(2)["image"]
    there = load_trained(checkpoint).model
    assert type(model) is type(there)
    noise = torch.random.get_rng_state()
    assert not any(one.training for one in (model, there, load_untrained(checkpoint, seed=0)))
    assert torch.equal(torch.random.get_rng_state(), noise)
    assert model.slot_attention.gradient == there.slot_attention.gradient
    slots_init = model.sample_slots(2, torch.Generator().manual_seed(0)).detach()
    for mine, theirs in zip(model.views(image, slots_init), there.views(image, slots_init), strict=True):
        assert mine is theirs is None or torch.equal(mine, theirs)


def test_a_file_keeps_the_defaults_of_its_time(file):
    with open(file, "rb") as content:
        header = json.loads(content.read(int.from_bytes(content.read(8), "little")))
    facts = json.loads(header["__metadata__"][KEY])
    assert facts["class"] == "SLATE" and facts["step"] == 2
    assert facts["arguments"]["solver"] == "picard"  # a default that training did not set
    assert "optimization" not in facts["arguments"]


def test_nothing_is_overwritten(file, capsys):
    before = file.read_bytes()
    assert main(["export", str(file.parent / "last.ckpt"), str(file)]) == 2
    assert "exists already" in capsys.readouterr().err and file.read_bytes() == before
    assert main(["export", str(file.parent / "last.ckpt"), str(file.with_suffix(".pt"))]) == 2
    assert "ends in .safetensors" in capsys.readouterr().err and not file.with_suffix(".pt").exists()


def test_what_is_no_model_is_refused_in_a_line(tmp_path, file):
    path = tmp_path / "bad.safetensors"
    refused("sprites-dvea", "sprites-dvea: no pretrained model of this name; did you mean 'sprites-dvae'?")
    refused(path, "bad.safetensors: no such file")
    for content in (b"", b"PK junk", file.read_bytes()[:-100]):
        path.write_bytes(content)
        refused(path, "bad.safetensors: not a safetensors file, or a damaged one")
    refused(file.parent / "last.ckpt", "; `implicit-slate export` makes one of a checkpoint")
    weights, facts = load_file(file), {"format": 1, "class": "SLATE", "arguments": {}}
    save_file(weights, path)
    refused(path, "not written by `implicit-slate export`")
    for change, message in [
        ({"format": 2}, "has format 2; this version reads format 1"),
        ({"class": "os.system", "arguments": {"command": "true"}}, "holds a os.system, which is not imported"),
        ({"class": "Linear"}, "holds a Linear, which is not imported"),
        ({"arguments": {"vocab": 3}}, "not a checkpoint of SLATE as it is now: "),
        ({"arguments": 3}, "not a checkpoint of SLATE as it is now: "),
        ({"arguments": {"d_model": 12, "num_heads": 2}}, "weights of another model: "),
    ]:
        save_file(weights, path, {KEY: json.dumps(facts | change)})
        refused(path, message)


def test_a_training_takes_its_dvae_from_a_file_or_by_name(file):
    assert_same_weights(module(SLATEModule, dvae_checkpoint=str(file)).model.dvae, load_pretrained(file).dvae)
    made = module(SLATEModule, vocab_size=48, dvae_checkpoint="sprites-dvae")
    assert made.dvae_is_frozen
    assert_same_weights(made.model.dvae, load_pretrained("sprites-dvae"))
    with pytest.raises(UserError, match="sprites-dvae: weights of another model: .* expected"):
        module(SLATEModule, dvae_checkpoint="sprites-dvae")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.safetensors")), ids=lambda path: path.stem)
def test_a_shipped_model_loads_and_has_its_section_in_the_card(path):
    assert isinstance(load_pretrained(path.stem), SlotModel | DiscreteVAE)
    assert f"\n## {path.stem}\n" in (FOLDER / "README.md").read_text()
    assert path.stat().st_size < 3_000_000
