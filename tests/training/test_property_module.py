"""Training set prediction: what is logged and trained, on whose slots, and what is said of mistakes."""

from dataclasses import replace

import lightning as L
import pytest
import torch

from callbacks import FixedPointDiagnostics, GradientNorm, SlotJacobian, SlotUsage
from data_modules import MirrorScenes
from data_modules.base import ArrayImages, Splits
from data_modules.scene_properties import WithProperties
from implicit_slate.errors import UserError
from implicit_slate.training import Optimization, PropertyModule, SLATEModule, SpatialBroadcastModule
from implicit_slate.training.experiment_cli import ExperimentCLI
from implicit_slate.training.trained import load_trained
from tests.tiny import BROADCAST_SIZES, SLATE_SIZES, Memory, TinyImages

SIZES = dict(image_size=16, width=8, num_slots=3, slot_size=12, slot_mlp_size=16, num_iterations=3)
STEADY = Optimization(learning_rate=1e-2, clip_norm=None, warmup_steps=None, decay=None)
PRECISIONS = {"ap_inf", "ap_1", "ap_0.5", "ap_0.25", "ap_0.125"}


class Squares(MirrorScenes):
    """One or two squares on grey; their colour is one of two, their coordinates where they are."""

    def __init__(self, properties: bool = True):
        super().__init__(image_size=16, batch_size=8, seed=0, properties=properties)

    def load(self):
        generator = torch.Generator().manual_seed(0)
        images, rows = torch.full((12, 16, 16, 3), 128, dtype=torch.uint8), torch.zeros(12, 2, 19)
        for i in range(12):
            for j in range(1 + i % 2):
                x, y = 8 * j + int(torch.randint(5, (), generator=generator)), 4 * (i % 3)
                color = int(torch.randint(2, (), generator=generator))
                images[i, y : y + 4, x : x + 4] = torch.tensor([[255, 0, 0], [0, 0, 255]][color], dtype=torch.uint8)
                rows[i, j, :3] = torch.tensor([x / 16, y / 16, 0.5])
                rows[i, j, [3, 6, 8, 10 + color, 18]] = 1
        part = ArrayImages(images.numpy())
        return Splits(*[WithProperties(part, rows) if self.properties else part] * 3)


def module(seed=0, **options):
    torch.manual_seed(seed)
    return PropertyModule(**{"optimization": STEADY, **SIZES, **options})


def trainer(max_steps=2, callbacks=(), logger=False):
    return L.Trainer(
        accelerator="cpu", max_steps=max_steps, max_epochs=-1, logger=logger, callbacks=list(callbacks),
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        log_every_n_steps=1, val_check_interval=1000, check_val_every_n_epoch=None, use_distributed_sampler=False,
    )  # fmt: skip


def checkpoint(path, made):
    run = trainer(1)
    run.fit(made, TinyImages())
    run.save_checkpoint(path)
    return path


@pytest.mark.parametrize("gradient", ["unrolled", "implicit", "exact(gmres)", "bilevel"])
def test_a_step_in_every_mode_moves_what_is_trained(gradient):
    made = module(gradient=gradient)
    before = {name: p.detach().clone() for name, p in made.named_parameters()}
    run = trainer()
    run.fit(made, Squares())
    unmoved = {name for name, p in made.named_parameters() if torch.equal(p, before[name])}
    start = {"model.slot_attention.slot_mu", "model.slot_attention.slot_log_sigma"}
    rounding = {"model.slot_attention.norm_slots.bias"}  # its gradient is zero but for rounding, with one slot head
    assert unmoved - rounding == (set() if gradient in ("unrolled", "bilevel") else start)
    assert run.callback_metrics["train/loss"].isfinite()


def test_it_learns_its_scenes():
    """After 250 steps on twelve scenes most of the objects come out with all of their attributes."""
    made, data = module(width=16, slot_size=16, optimization=replace(STEADY, learning_rate=3e-3)), Squares()
    first = trainer().validate(made, data, verbose=False)[0]
    trainer(250).fit(made, data)
    last = trainer().validate(made, data, verbose=False)[0]
    assert first["val/ap_inf"] < 0.3 and last["val/ap_inf"] > 0.6
    assert last["val/loss"] < first["val/loss"] / 5


def test_validation_and_test_log_the_loss_and_five_precisions_the_same_twice():
    made, data = module(), Squares()
    first, second = (trainer().validate(made, data, verbose=False)[0] for _ in range(2))
    assert first == second and first.keys() == {f"val/{name}" for name in PRECISIONS | {"loss"}}
    assert trainer().test(made, data, verbose=False)[0].keys() == {f"test/{name}" for name in PRECISIONS | {"loss"}}


def test_callbacks_look_on():
    log = Memory()
    measures = ["residual_at_depth", "spectral_radius", "jacobian_regularizer", "gradient_cosine", "basins"]
    diagnostics = FixedPointDiagnostics(measures, every_n_steps=2, num_images=2, num_starts=2)
    looking = [SlotJacobian(every_n_steps=2, num_images=3), GradientNorm(every_n_steps=1), diagnostics,
               SlotUsage(every_n_steps=2, num_images=4)]  # fmt: skip
    trainer(2, looking, log).fit(module(), Squares())
    assert set(log.scalars["jacobian/spectral_norm"]) == {0, 2} and log.scalars["grad_norm"][2] > 0
    assert 0 < log.scalars["gradient/cosine"][0] <= 1 and "residual/depth_24" in log.scalars
    assert 1 <= log.scalars["slots/in_use"][2] <= 3


@pytest.mark.parametrize("read_out", [False, True])
def test_a_trained_model_comes_out_of_its_checkpoint(tmp_path, read_out):
    """As `implicit-slate fit` leaves it."""
    sizes, options = SIZES, []
    if read_out:
        path = checkpoint(tmp_path / "slate.ckpt", SLATEModule(**SLATE_SIZES))
        sizes, options = {}, [f"--model.encoder_checkpoint={path}"]
    options += [f"--model.{name}={value}" for name, value in sizes.items()]
    options += [f"--data={Squares.__module__}.Squares", "--trainer.max_steps=1", "--trainer.accelerator=cpu"]
    options += ["--trainer.enable_progress_bar=false", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    cli = ExperimentCLI(args=["fit", "--model=implicit_slate.training.PropertyModule", *options])
    trained = load_trained(next((tmp_path / "run").rglob("*.ckpt"))).model
    for (name, a), b in zip(cli.model.model.named_parameters(), trained.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_the_default_optimisation_is_the_source_s():
    settings = PropertyModule(**SIZES).optimization
    assert settings.clip_norm is None and settings.learning_rate == 4e-4
    for step, factor in {0: 1e-3, 499: 0.5 * 0.5**0.00998, 1_000: 0.5**0.02, 50_000: 0.5, 150_000: 0.125}.items():
        assert settings.main_factor(step) == pytest.approx(factor)


def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path):
    whole, half, resumed = module(), trainer(2), module(seed=9)
    trainer(4).fit(whole, Squares())
    half.fit(module(), Squares())
    half.save_checkpoint(tmp_path / "half.ckpt")
    trainer(4).fit(resumed, Squares(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


# The slots of a model trained before. A checkpoint that does not name its class is SLATEModule's.


def test_reading_out_trains_the_head_alone(tmp_path):
    source = SLATEModule(**SLATE_SIZES | {"gradient": "exact(gmres)"})
    path = checkpoint(tmp_path / "slate.ckpt", source)
    made = PropertyModule(encoder_checkpoint=str(path), optimization=STEADY)
    before = {name: p.detach().clone() for name, p in made.named_parameters()}
    for name, p in source.model.named_parameters():
        assert torch.equal(before[f"model.source.{name}"], p), name
    run = trainer(2, [SlotJacobian(every_n_steps=2, num_images=2), GradientNorm(every_n_steps=1)])
    run.fit(made, Squares())
    moved = {name for name, p in made.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if name.startswith("model.head.")}
    assert made.model.image_size == 16 and run.callback_metrics["train/loss"].isfinite()


def test_a_checkpoint_of_an_experiment_file_is_read_out(tmp_path):
    """As `implicit-slate fit` leaves it, which says of what class it is."""
    sizes = [f"--model.{name}={value}" for name, value in BROADCAST_SIZES.items()]
    options = ["--data=tests.tiny.TinyImages", "--trainer.max_steps=1", "--trainer.accelerator=cpu", *sizes]
    options += ["--trainer.enable_progress_bar=false", f"--trainer.default_root_dir={tmp_path}"]
    ExperimentCLI(args=["fit", f"--model={SpatialBroadcastModule.__module__}.SpatialBroadcastModule", *options])
    made = PropertyModule(encoder_checkpoint=str(next(tmp_path.rglob("*.ckpt"))), optimization=STEADY)
    assert type(made.model.source).__name__ == "SpatialBroadcast"
    trainer(1).fit(made, Squares())


def test_a_bad_encoder_checkpoint_is_one_line(tmp_path):
    with pytest.raises(UserError, match="encoder_checkpoint: /nowhere.ckpt: no such file"):
        PropertyModule(encoder_checkpoint="/nowhere.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="encoder_checkpoint: .*other.ckpt: not a checkpoint"):
        PropertyModule(encoder_checkpoint=str(tmp_path / "other.ckpt"))


def test_slots_that_are_not_trained_have_no_regulariser(tmp_path):
    with pytest.raises(UserError, match="jacobian_weight=0.1: the slots of an encoder_checkpoint are not trained"):
        PropertyModule(encoder_checkpoint="/nowhere.ckpt", jacobian_weight=0.1)


@pytest.mark.parametrize("action", ["fit", "validate"])
def test_data_without_properties_are_one_line(action):
    with pytest.raises(UserError, match="data: batches without properties; `properties: true`"):
        getattr(trainer(), action)(module(), Squares(properties=False))
