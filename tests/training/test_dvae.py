"""Training a dVAE alone, and SLATE with a frozen dVAE."""

import pytest
import torch

from implicit_slate.errors import TrainingError, UserError
from implicit_slate.models import slate
from implicit_slate.training import DVAEModule, Optimization, SLATEModule, dvae_module, slate_module
from implicit_slate.training.dvae_module import load_dvae
from tests.tiny import TinyImages
from tests.training.setting import Squares, assert_same_weights, module, trainer


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


def test_the_clusters_of_a_warm_start_are_a_function_of_the_data():
    centroids = []
    for _ in range(2):
        made = DVAEModule(vocab_size=12, warm_start_steps=1)
        trainer(1).fit(made, TinyImages())
        centroids.append(made.centroids)
    assert torch.equal(*centroids) and centroids[0].any()


@pytest.mark.parametrize(
    ("make", "sampler", "hard"),
    [
        (lambda **tau: module(SLATEModule, hard=True, **tau), slate, True),
        (lambda **tau: module(SLATEModule, **tau), slate, False),
        (lambda **tau: DVAEModule(vocab_size=12, **tau), dvae_module, False),
    ],
)
def test_samples_have_the_temperature_of_their_step_and_the_hardness_that_was_asked_for(
    monkeypatch, make, sampler, hard
):
    sample, seen = sampler.gumbel_softmax, []

    def watched(logits, tau, hard=False):
        seen.append((pytest.approx(float(tau)), hard))
        return sample(logits, tau, hard)

    monkeypatch.setattr(sampler, "gumbel_softmax", watched)
    trainer(4).fit(make(tau_start=1.0, tau_final=0.2, tau_steps=2), TinyImages())
    assert seen == [(tau, hard) for tau in (1.0, 0.6, 0.2, 0.2)]


def test_a_collapsed_dvae_fails_loudly(tmp_path):
    with pytest.raises(TrainingError, match="collapsed.* of 12 codes"):
        dvae_checkpoint(tmp_path, min_codes=12)


def test_more_codes_than_there_are_cannot_be_asked_for():
    with pytest.raises(UserError, match="min_codes=13: there are only vocab_size=12 codes"):
        DVAEModule(vocab_size=12, min_codes=13)


def test_a_collapsed_dvae_fails_again_when_it_is_continued_at_its_end(tmp_path):
    dvae_checkpoint(tmp_path)
    made = DVAEModule(vocab_size=12, min_codes=12)
    with pytest.raises(TrainingError, match="collapsed.* of 12 codes"):
        trainer(60).fit(made, TinyImages(batch_size=8), ckpt_path=str(tmp_path / "dvae.ckpt"), weights_only=True)


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


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_a_dvae_warms_up_and_stays_frozen_in_every_precision(tmp_path, precision):
    made = DVAEModule(vocab_size=12, warm_start_steps=1)
    run = trainer(2, precision=precision)
    run.fit(made, TinyImages())
    run.save_checkpoint(tmp_path / "dvae.ckpt")
    trainer(1, precision=precision).fit(module(SLATEModule, dvae_checkpoint=str(tmp_path / "dvae.ckpt")), Squares())


def test_other_images_have_other_tokens(tmp_path):
    dvae_checkpoint(tmp_path)
    made = module(SLATEModule, dvae_checkpoint=str(tmp_path / "dvae.ckpt"))
    trainer(1).fit(made, Squares())  # few images, so their tokens are cached
    trainer(1).fit(made, TinyImages())
    batch = TinyImages().probe(2) | {"index": torch.tensor([0, 1])}
    assert torch.equal(made._tokenize(batch), made.model.tokenize(batch["image"]))


def test_the_tokens_of_a_frozen_dvae_are_computed_once_and_training_is_the_same(tmp_path, monkeypatch):
    dvae_checkpoint(tmp_path)
    options = dict(dvae_checkpoint=str(tmp_path / "dvae.ckpt"))
    once, every_time, seen = module(SLATEModule, **options), module(SLATEModule, **options), []
    monkeypatch.setattr(every_time, "_tokenize", lambda batch: every_time.model.tokenize(batch["image"]))
    tokenize = once.model.tokenize
    monkeypatch.setattr(once.model, "tokenize", lambda image: (seen.append(len(image)), tokenize(image))[1])
    for made in (once, every_time):
        trainer(6).fit(made, Squares(properties=False))  # 12 images, 8 per step
    assert seen == [12]
    assert_same_weights(once, every_time)


@pytest.mark.parametrize(
    ("at_once", "expected"),
    [
        (12, [12, 6, 6]),  # the training images, at the start, and two validation batches
        (11, [8, 6, 6, 8, 6, 8, 6]),  # there is room for one validation batch only
    ],
)
def test_what_a_frozen_dvae_makes_of_few_images_is_computed_once_and_losses_are_the_same(
    tmp_path, monkeypatch, at_once, expected
):
    monkeypatch.setattr(slate_module, "TOKENIZED_AT_ONCE", at_once)
    dvae_checkpoint(tmp_path, warm_start_steps=50, tau_start=0.3)  # many codes, so batches have different tokens
    queries = dict(gradient="bilevel", slot_init="queries")  # without noise
    made, losses, seen = module(SLATEModule, dvae_checkpoint=str(tmp_path / "dvae.ckpt"), **queries), [], []
    tokenize, evaluate = made.model.tokenize, made.evaluate

    def compared(batch):
        losses.append((evaluate(batch), made.model.losses(batch["image"])))
        return losses[-1][0]

    monkeypatch.setattr(made, "evaluate", compared)
    monkeypatch.setattr(made.model, "tokenize", lambda image: (seen.append(len(image)), tokenize(image))[1])
    trainer(3, val_check_interval=1).fit(made, Squares(properties=False))
    assert seen == expected
    assert len(losses) == 6 and len({float(ours["cross_entropy"]) for ours, _ in losses}) == 6
    for ours, whole in losses:
        assert torch.equal(ours["cross_entropy"], whole.cross_entropy) and torch.equal(ours["mse"], whole.mse)


def test_other_data_than_last_time_is_looked_at_anew(tmp_path):
    dvae_checkpoint(tmp_path)
    made, run = module(SLATEModule, dvae_checkpoint=str(tmp_path / "dvae.ckpt")), trainer()
    [first], [second] = run.validate(made, Squares(), verbose=False), run.validate(made, TinyImages(), verbose=False)
    assert first["val/mse"] != second["val/mse"]
