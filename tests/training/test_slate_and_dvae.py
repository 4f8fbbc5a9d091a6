"""Groups of parameters and their rates; a dVAE trained alone, and SLATE on a frozen one."""

import lightning as L
import pytest
import torch

from implicit_slate.errors import UserError
from implicit_slate.training import DVAEModule, Optimization, SLATEModule
from implicit_slate.training.dvae_module import load_dvae
from tests.tiny import TinyImages
from tests.training.setting import module, trainer


class Rates(L.Callback):
    """Learning rates of every step as the optimiser saw them, and the gradient's largest value after clipping."""

    def __init__(self):
        self.rates, self.largest = [], []

    def on_before_zero_grad(self, trainer, module, optimizer):
        self.rates.append({group["name"]: group["lr"] for group in optimizer.param_groups})
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        if gradients:
            self.largest.append(torch.nn.utils.get_total_norm(gradients, float("inf")).item())


def rates_of(max_steps, optimization, best=float("inf"), **options) -> Rates:
    rates, made = Rates(), module(SLATEModule, optimization=optimization)
    made.plateau.best = best
    trainer(max_steps, [rates], **options).fit(made, TinyImages())
    return rates


def test_groups_have_their_own_rates_and_only_the_main_one_warms_up():
    tricks = Optimization(learning_rate=1e-3, dvae_learning_rate=2e-3, warmup_steps=4, decay=None)
    rates = rates_of(5, tricks).rates[-5:]
    assert [step["main"] for step in rates] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3])
    assert {step["dvae"] for step in rates} == {2e-3}


def test_clipping_bounds_the_largest_value_of_the_whole_gradient():
    clipped, free = (
        max(rates_of(3, Optimization(clip_norm=clip, warmup_steps=None, decay=None)).largest) for clip in (0.05, None)
    )
    assert clipped <= 0.05 + 1e-6 < free


def test_plateau_halving_reaches_both_groups():
    tricks = Optimization(learning_rate=1e-3, warmup_steps=None, decay="plateau", patience=1)
    rates = rates_of(4, tricks, best=-1.0, val_check_interval=2)  # no validation will be better
    assert rates.rates[-1] == pytest.approx({"main": 0.5e-3, "dvae": 1.5e-4})


def test_lightning_s_own_clipping_is_refused_for_ours():
    with pytest.raises(UserError, match="trainer.gradient_clip_val=1.0: .*model.optimization.clip_norm"):
        trainer(1, gradient_clip_val=1.0).fit(module(SLATEModule), TinyImages())


def dvae_checkpoint(tmp_path, **options):
    torch.manual_seed(0)
    made = DVAEModule(vocab_size=12, optimization=Optimization(dvae_learning_rate=3e-3), **options)
    run = trainer(60, val_check_interval=30)
    run.fit(made, TinyImages(batch_size=8))
    run.save_checkpoint(tmp_path / "dvae.ckpt")
    return made, run.callback_metrics


def test_a_warm_start_fills_the_vocabulary(tmp_path):
    _, metrics = dvae_checkpoint(tmp_path, warm_start_steps=50, tau_start=0.3)
    assert metrics["val/codes_in_use"] >= 8


def test_a_collapsed_dvae_fails_loudly(tmp_path):
    with pytest.raises(RuntimeError, match="collapsed.* of 12 codes"):
        dvae_checkpoint(tmp_path, min_codes=13)


def test_a_frozen_dvae_stays_and_one_of_another_size_is_refused(tmp_path):
    dvae, _ = dvae_checkpoint(tmp_path)
    made = module(SLATEModule, dvae_checkpoint=str(tmp_path / "dvae.ckpt"))
    assert list(made.parameter_groups()) == ["main"]
    trainer().fit(made, TinyImages())
    for name, p in made.model.dvae.named_parameters():
        assert torch.equal(p, dvae.dvae.get_parameter(name))
    with pytest.raises(UserError, match="dvae.ckpt: weights of another model: .* expected"):
        load_dvae(module(SLATEModule, vocab_size=16).model.dvae, str(tmp_path / "dvae.ckpt"))
    (tmp_path / "junk.ckpt").write_bytes(b"PK junk")
    with pytest.raises(UserError, match="junk.ckpt: not a checkpoint"):
        load_dvae(made.model.dvae, str(tmp_path / "junk.ckpt"))
