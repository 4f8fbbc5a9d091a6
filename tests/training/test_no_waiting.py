"""A training step reads no values, since the CPU would wait for a GPU. Divergence is still found, with its step."""

import lightning as L
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from callbacks import Diverged, Divergence, GradientNorm, SlotJacobian, SlotUsage
from implicit_slate import host
from implicit_slate.fixed_point import NotFinite, fixed_point
from implicit_slate.training import DVAEModule, Optimization, SLATEModule, SpatialBroadcastModule
from tests.callbacks.test_measurements import Spike
from tests.tiny import Memory, TinyImages
from tests.training.setting import module, trainer

READING = ("_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "masked_select", "unique")
FIRST, LAST = 2, 4
"""The first and last step in which reading is forbidden."""


class NoReading(TorchDispatchMode):
    """Raises an error for operations whose result the CPU must read."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__.lstrip("_") not in {name.lstrip("_") for name in READING}, func
        return func(*args, **(kwargs or {}))


class Held(L.Callback):
    """Runs steps `FIRST` to `LAST` under `NoReading`, including everything that Lightning and callbacks do in them."""

    mode = None

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == FIRST:
            self.mode = NoReading()
            self.mode.__enter__()
        if trainer.global_step == LAST + 1:
            self.end()

    def on_exception(self, trainer, module, exception):
        self.end()

    def end(self):
        if self.mode is not None:
            self.mode.__exit__(None, None, None)
            self.mode = None


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(host, "is_free_to_read", lambda value: False)


def watched(every=100):
    return [SlotJacobian(every, 2), SlotUsage(every, 2), GradientNorm(every), Divergence()]


TRICKS = Optimization(warmup_steps=3, decay="half_life")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (SLATEModule, {"gradient": "unrolled"}),
        (SLATEModule, {"gradient": "implicit"}),
        (SLATEModule, {"gradient": "implicit", "solver": "broyden"}),
        (SLATEModule, {"gradient": "bilevel", "slot_init": "queries", "hard": True}),
        (SpatialBroadcastModule, {"gradient": "truncated(2)"}),
    ],
)
def test_a_step_between_the_points_of_logging_reads_nothing(as_on_a_gpu, kind, options):
    run = trainer(LAST + 2, [Held(), *watched()], logger=Memory(), log_every_n_steps=100)
    run.fit(module(kind, optimization=TRICKS, **options), TinyImages())
    assert run.global_step == LAST + 2


def test_neither_does_a_step_of_the_dvae(as_on_a_gpu):
    run = trainer(LAST + 2, [Held(), Divergence()], logger=Memory(), log_every_n_steps=100)
    run.fit(DVAEModule(vocab_size=8, optimization=TRICKS, warm_start_steps=0), TinyImages())
    assert run.global_step == LAST + 2


def test_a_reading_is_seen():
    """On a CPU, `Divergence` reads a value in every step."""
    with pytest.raises(AssertionError, match="local_scalar_dense"):
        trainer(LAST + 2, [Held(), Divergence()]).fit(module(SpatialBroadcastModule), TinyImages())


@pytest.mark.gpu
@pytest.mark.parametrize(("gradient", "compile"), [("unrolled", False), ("implicit", False), ("implicit", None)])
def test_a_gpu_is_not_waited_for(gradient, compile):
    class Strict(Held):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == FIRST:
                torch.cuda.set_sync_debug_mode("error")
            if trainer.global_step == LAST + 1:
                self.end()

        def end(self):
            torch.cuda.set_sync_debug_mode("default")

    options = {"logger": Memory(), "log_every_n_steps": 100, "accelerator": "gpu", "devices": 1}
    run = trainer(LAST + 2, [Strict(), *watched()], **options)
    made = module(SLATEModule, optimization=TRICKS, gradient=gradient, dropout=0.1, compile=compile)
    run.fit(made, TinyImages())
    assert run.global_step == LAST + 2


# Divergence that is detected later.


def diverged(*callbacks, made=None, **options) -> tuple[Diverged, L.Trainer]:
    run = trainer(9, callbacks, **{"logger": Memory(), "log_every_n_steps": 1000, **options})
    with pytest.raises(Diverged) as error:
        run.fit(made or module(SpatialBroadcastModule), TinyImages())
    return error.value, run


@pytest.mark.parametrize(("options", "read"), [({"log_every_n_steps": 3}, 5), ({"val_check_interval": 6}, 6), ({}, 9)])
def test_the_step_is_named_wherever_it_is_read(as_on_a_gpu, options, read):
    error, run = diverged(Spike(4, float("nan")), GradientNorm(100), Divergence(), **options)
    assert (error.step, run.global_step) == (4, read)
    assert run.logger.scalars["grad_norm"].keys() == ({4} if read < 9 else {9})


class SaveAt(L.Callback):
    def __init__(self, path, steps):
        self.path, self.steps = path, steps

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step in self.steps:
            trainer.save_checkpoint(self.path / f"{trainer.global_step}.ckpt", weights_only=False)


def test_nothing_is_saved_after_a_divergence(as_on_a_gpu, tmp_path):
    error, run = diverged(Spike(4, float("nan")), SaveAt(tmp_path, (3, 6)), Divergence())
    assert (error.step, run.global_step) == (4, 6)
    assert [file.name for file in tmp_path.iterdir()] == ["3.ckpt"]


class Spoil(L.Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == 3:
            with torch.no_grad():
                module.model.slot_attention.project_q.weight.fill_(torch.nan)


@pytest.mark.parametrize("gradient", ["unrolled", "truncated(2)", "implicit"])
def test_a_refinement_that_starts_from_nan_ends_training_without_any_callback(as_on_a_gpu, gradient):
    error, _ = diverged(Spoil(), made=module(SpatialBroadcastModule, gradient=gradient))
    assert str(error) == "training diverged at step 3: the first evaluation of the refinement is not finite"


def test_whoever_can_wait_gets_the_error_at_once(as_on_a_gpu):
    with pytest.raises(NotFinite, match="first evaluation"):
        fixed_point(lambda z: z + torch.nan, torch.zeros(2, 3))
    made = module(SpatialBroadcastModule).eval()
    with torch.no_grad():
        made.model.slot_attention.project_q.weight.fill_(torch.nan)
    with pytest.raises(NotFinite, match="first evaluation"):
        made.model.encode(TinyImages().probe(1)["image"])


def test_after_a_training_beside_a_gpu_threads_are_as_before(monkeypatch):
    monkeypatch.setattr(host, "leave_threads", lambda device: torch.set_num_threads(1))
    before, during = torch.get_num_threads(), []
    try:
        torch.set_num_threads(2)
        look = L.pytorch.callbacks.LambdaCallback(on_train_start=lambda *_: during.append(torch.get_num_threads()))
        trainer(1, callbacks=[look]).fit(module(SpatialBroadcastModule), TinyImages())
        assert during == [1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("device", "given", "expected"), [("cpu", False, 2), ("cuda", False, 1), ("cuda", True, 2)])
def test_beside_a_gpu_the_cpu_computes_with_one_thread(monkeypatch, device, given, expected):
    monkeypatch.setattr(host, "THREADS_ARE_GIVEN", given)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        host.leave_threads(torch.device(device))
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
