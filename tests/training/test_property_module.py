"""Set prediction: it learns, with its own or another model's slots; the messages for mistakes."""

from dataclasses import replace
from typing import get_args

import pytest
import torch

from callbacks import FixedPointDiagnostics, GradientNorm, SlotJacobian, SlotUsage
from callbacks.fixed_point_diagnostics import Measure
from implicit_slate.errors import UserError
from implicit_slate.training import PropertyModule, SLATEModule, SpatialBroadcastModule
from implicit_slate.training.checkpoints import load_trained
from implicit_slate.training.experiment_cli import ExperimentCLI
from tests.callbacks.fitting import fit
from tests.tiny import TinyImages
from tests.training.setting import SIZES, STEADY, Squares, assert_same_weights, module, moved_by, trainer


def test_it_learns_its_scenes():
    """After 250 steps on twelve scenes, most objects are predicted with all their attributes."""
    options = dict(width=16, slot_size=16, optimization=replace(STEADY, learning_rate=3e-3))
    made, data = module(PropertyModule, **options), Squares()
    first = trainer().validate(made, data, verbose=False)[0]
    trainer(250).fit(made, data)
    last = trainer().validate(made, data, verbose=False)[0]
    assert first["val/ap_inf"] < 0.3 and last["val/ap_inf"] > 0.6
    assert last["val/loss"] < first["val/loss"] / 5


def test_callbacks_look_on():
    diagnostics = FixedPointDiagnostics(list(get_args(Measure)), num_images=2)
    looking = [SlotJacobian(num_images=3), GradientNorm(), diagnostics, SlotUsage(num_images=4)]
    scalars = fit(module(PropertyModule), *looking, data=Squares())
    assert set(scalars["jacobian/spectral_norm"]) == {0, 2} and scalars["grad_norm"][2] > 0
    assert 0 < scalars["gradient/cosine"][0] <= 1 and "residual/depth_24" in scalars
    assert 0 <= scalars["basins/distinct"][2] <= scalars["basins/converged"][2] <= 8
    assert 1 <= scalars["slots/in_use"][2] <= 3


def checkpoint(path, made):
    run = trainer(1)
    run.fit(made, TinyImages())
    run.save_checkpoint(path)
    return path


@pytest.mark.parametrize("source", [PropertyModule, SpatialBroadcastModule, "readout"])
def test_a_trained_model_comes_out_of_a_checkpoint_of_fit(tmp_path, source):
    """The checkpoint is as written by `implicit-slate fit`, and names its class."""
    kind = PropertyModule if source == "readout" else source
    options = [f"--model.{name}={value}" for name, value in SIZES[kind].items()]
    if source == "readout":
        path = checkpoint(tmp_path / "slate.ckpt", module(SLATEModule))
        options = [f"--model.encoder_checkpoint={path}"]
    options += [f"--data={Squares.__module__}.Squares", "--trainer.max_steps=1", "--trainer.accelerator=cpu"]
    options += ["--trainer.enable_progress_bar=false", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    cli = ExperimentCLI(args=["fit", f"--model=implicit_slate.training.{kind.__name__}", *options])
    path = next((tmp_path / "run").rglob("*.ckpt"))
    (tmp_path / "slate.ckpt").unlink(missing_ok=True)  # a trained model needs only its own checkpoint
    trained = load_trained(path).model
    assert_same_weights(cli.model.model, trained)
    if kind is SpatialBroadcastModule:
        read_out = PropertyModule(encoder_checkpoint=str(path), optimization=STEADY)
        assert_same_weights(read_out.model.source, trained)
        trainer(1).fit(read_out, Squares())


def test_reading_out_trains_the_head_alone(tmp_path):
    """A checkpoint that does not name its class is taken as a SLATEModule's."""
    source = module(SLATEModule, gradient="exact(gmres)")
    path = checkpoint(tmp_path / "slate.ckpt", source)
    made = PropertyModule(encoder_checkpoint=str(path), optimization=STEADY)
    assert_same_weights(source.model, made.model.source)
    run = trainer(2, [SlotJacobian(every_n_steps=2, num_images=2), GradientNorm(every_n_steps=1)])
    head = {name for name, _ in made.named_parameters() if name.startswith("model.head.")}
    assert moved_by(made, run, Squares()) == head
    assert made.model.image_size == 16 and run.callback_metrics["train/loss"].isfinite()


def test_the_gradient_of_frozen_slots_cannot_be_measured(tmp_path):
    path = checkpoint(tmp_path / "slate.ckpt", module(SLATEModule))
    made = PropertyModule(encoder_checkpoint=str(path), optimization=STEADY)
    with pytest.raises(UserError, match="measures: 'gradient_cosine' needs a slot attention that is trained"):
        fit(made, FixedPointDiagnostics(["gradient_cosine"], num_images=2), data=Squares())


def test_bad_encoder_checkpoints_are_one_line(tmp_path):
    with pytest.raises(UserError, match="/nowhere.ckpt: no such file"):
        PropertyModule(encoder_checkpoint="/nowhere.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="other.ckpt: not a checkpoint"):
        PropertyModule(encoder_checkpoint=str(tmp_path / "other.ckpt"))
    with pytest.raises(UserError, match="jacobian_weight=0.1: the slots of an encoder_checkpoint are not trained"):
        PropertyModule(encoder_checkpoint="/nowhere.ckpt", jacobian_weight=0.1)


@pytest.mark.parametrize("action", ["fit", "validate"])
def test_data_without_properties_are_one_line(action):
    with pytest.raises(UserError, match="data: batches without properties; `properties: true`"):
        getattr(trainer(), action)(module(PropertyModule), Squares(properties=False))
