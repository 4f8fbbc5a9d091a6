"""What a training step does, on a tiny SLATE."""

import lightning as L
import pytest
import torch

from implicit_slate.errors import UserError
from implicit_slate.training import DVAEModule, Optimization, SLATEModule
from implicit_slate.training.dvae_module import load_dvae
from tests.fixed_point.maps import ALL_MODES
from tests.tiny import SLATE_SIZES, TinyImages


def trainer(tmp_path, max_steps, callbacks=(), **options):
    return L.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        default_root_dir=tmp_path,
        logger=False,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=None,
        **{"enable_checkpointing": False, "val_check_interval": 1000, **options},
    )


def module(seed=0, **options):
    torch.manual_seed(seed)
    tricks = options.pop("optimization", Optimization(warmup_steps=None, decay=None))
    return SLATEModule(optimization=tricks, **{**SLATE_SIZES, **options})


class Rates(L.Callback):
    """Learning rates of every step as the optimiser saw them, and the gradient's largest value after clipping."""

    def __init__(self):
        self.rates, self.largest = [], []

    def on_before_zero_grad(self, trainer, module, optimizer):
        self.rates.append({group["name"]: group["lr"] for group in optimizer.param_groups})
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        if gradients:
            self.largest.append(torch.nn.utils.get_total_norm(gradients, float("inf")).item())


@pytest.mark.parametrize("gradient", ALL_MODES)
def test_every_mode_trains_under_mixed_precision(tmp_path, gradient):
    model = module(gradient=gradient)
    before = model.model.slot_attention.project_k.weight.detach().clone()
    run = trainer(tmp_path, max_steps=2, precision="bf16-mixed")
    run.fit(model, TinyImages())
    assert run.global_step == 2 and run.callback_metrics["train/loss"].isfinite()
    assert not torch.equal(model.model.slot_attention.project_k.weight, before)


@pytest.mark.parametrize("gradient", ["unrolled", "implicit"])
def test_every_trained_parameter_moves_and_the_frozen_ones_stay(tmp_path, gradient):
    model = module(gradient=gradient)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer(tmp_path, 3).fit(model, TinyImages())
    start = {"model.slot_attention.slot_mu", "model.slot_attention.slot_log_sigma"}
    # With one slot head the gradient of norm_slots.bias is zero but for rounding, so nothing is said about it.
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    unmoved = before.keys() - moved - {"model.slot_attention.norm_slots.bias"}
    assert unmoved == (start if gradient == "implicit" else set())


def test_groups_have_their_own_rates_and_only_the_main_one_warms_up(tmp_path):
    rates = Rates()
    tricks = Optimization(learning_rate=1e-3, dvae_learning_rate=2e-3, warmup_steps=4, decay=None)
    trainer(tmp_path, 5, [rates]).fit(module(optimization=tricks), TinyImages())
    main = [step["main"] for step in rates.rates][-5:]
    assert main == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3])
    assert {step["dvae"] for step in rates.rates[-5:]} == {2e-3}


def test_clipping_bounds_the_largest_value_of_the_whole_gradient(tmp_path):
    largest = {}
    for clip in (0.05, None):
        rates = Rates()
        tricks = Optimization(clip_norm=clip, warmup_steps=None, decay=None)
        trainer(tmp_path, 3, [rates]).fit(module(optimization=tricks), TinyImages())
        largest[clip] = max(rates.largest)
    assert largest[0.05] <= 0.05 + 1e-6 < largest[None]


def test_plateau_halving_reaches_both_groups(tmp_path):
    rates = Rates()
    model = module(optimization=Optimization(learning_rate=1e-3, warmup_steps=None, decay="plateau", patience=1))
    model.plateau.best = -1.0  # no validation will be better
    trainer(tmp_path, 4, [rates], val_check_interval=2).fit(model, TinyImages())
    assert rates.rates[-1] == pytest.approx({"main": 0.5e-3, "dvae": 1.5e-4})


def test_validation_logs_and_is_the_same_twice(tmp_path):
    model, data = module(), TinyImages()
    run = trainer(tmp_path, 1)
    first = run.validate(model, data, verbose=False)[0]
    assert first == run.validate(model, data, verbose=False)[0]
    assert first["val/loss"] == pytest.approx(first["val/cross_entropy"] + first["val/mse"])
    assert 1 <= first["val/code_perplexity"] <= first["val/codes_in_use"] <= 12


def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path):
    """Schedules and Adam continue where they were; dropout, Gumbel noise and slots are functions of the step."""
    tricks = Optimization(warmup_steps=4, decay="half_life", half_life=5)
    data = dict(num_images=4)  # one batch, so that the order of images does not matter here
    whole = module(optimization=tricks, dropout=0.1)
    trainer(tmp_path, 6, max_epochs=-1).fit(whole, TinyImages(**data))
    half = trainer(tmp_path, 3, max_epochs=-1)
    half.fit(module(optimization=tricks, dropout=0.1), TinyImages(**data))
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed = module(seed=99, optimization=tricks, dropout=0.1)
    rest = trainer(tmp_path, 6, max_epochs=-1)
    rest.fit(resumed, TinyImages(**data), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


def dvae_checkpoint(tmp_path, **options):
    torch.manual_seed(0)
    model = DVAEModule(vocab_size=12, optimization=Optimization(dvae_learning_rate=3e-3), **options)
    run = trainer(tmp_path, 60, val_check_interval=30)
    run.fit(model, TinyImages(batch_size=8))
    run.save_checkpoint(tmp_path / "dvae.ckpt")
    return model, run.callback_metrics


def test_a_warm_start_fills_the_vocabulary(tmp_path):
    _, metrics = dvae_checkpoint(tmp_path, warm_start_steps=50, tau_start=0.3)
    assert metrics["val/codes_in_use"] >= 8


def test_a_collapsed_dvae_fails_loudly(tmp_path):
    with pytest.raises(RuntimeError, match="collapsed.* of 12 codes"):
        dvae_checkpoint(tmp_path, min_codes=13)


def test_a_frozen_dvae_stays_and_the_rest_is_trained(tmp_path):
    dvae, _ = dvae_checkpoint(tmp_path)
    model = module(dvae_checkpoint=str(tmp_path / "dvae.ckpt"))
    assert list(model.parameter_groups()) == ["main"]
    trainer(tmp_path, 2).fit(model, TinyImages())
    for name, p in model.model.dvae.named_parameters():
        assert torch.equal(p, dvae.dvae.get_parameter(name))


def test_a_dvae_of_another_size_is_refused(tmp_path):
    dvae_checkpoint(tmp_path)
    with pytest.raises(UserError, match="another dVAE.*size mismatch"):
        load_dvae(module(vocab_size=16).model.dvae, str(tmp_path / "dvae.ckpt"))
    (tmp_path / "junk.ckpt").write_bytes(b"PK junk")
    with pytest.raises(UserError, match="junk.ckpt: not a checkpoint"):
        load_dvae(module().model.dvae, str(tmp_path / "junk.ckpt"))


def test_the_backward_solve_of_an_exact_mode_is_logged(tmp_path):
    run = trainer(tmp_path, max_steps=1)
    run.fit(module(gradient="exact(broyden, 5)"), TinyImages())
    assert run.callback_metrics["adjoint/products"] == 5 and run.callback_metrics["adjoint/residual"] > 0
    run = trainer(tmp_path, max_steps=1)
    run.fit(module(gradient="implicit"), TinyImages())
    assert "adjoint/products" not in run.callback_metrics
