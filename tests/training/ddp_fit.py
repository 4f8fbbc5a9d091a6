"""Run by `test_ddp.py` in two processes: trains a few steps in every gradient mode, and saves each rank's weights; one
step on half a batch each, and saves the gradient; then on images that one rank cannot use, and saves each error."""

import sys
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from callbacks import Diverged, Divergence, GradientNorm, SlotJacobian
from implicit_slate import host
from implicit_slate.training import Optimization, SLATEModule, SpatialBroadcastModule
from tests.fixed_point.maps import ALL_MODES
from tests.tiny import SLATE_SIZES, TinyImages
from tests.training.setting import Squares, module, trainer

RUNS = {mode: {"gradient": mode} for mode in ALL_MODES} | {
    "queries": {"gradient": "bilevel", "slot_init": "queries"},
    "BB": {"gradient": "exact(broyden, 7)", "solver": "broyden", "tol": 1e-4},
}


class SpoilImages(L.Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_rank == 1 and trainer.global_step == 2:
            batch["image"].fill_(torch.inf)


def main(out: Path) -> None:
    torch.set_num_threads(1)
    train_every_mode(out)
    for gradient in ALL_MODES:
        torch.save(gradients(gradient, 4, strategy="ddp", devices=2), out / f"{gradient}-gradients.pt")
    diverge(out / "read-at-once")
    host.is_free_to_read = lambda value: False  # as on a GPU
    diverge(out / "read-late")


def diverge(out: Path) -> None:
    run = trainer(5, [SpoilImages()], strategy="ddp", devices=2, log_every_n_steps=2)
    try:
        run.fit(module(SpatialBroadcastModule), TinyImages())
    except Diverged as error:
        out.mkdir(exist_ok=True)
        (out / f"{run.global_rank}.txt").write_text(str(error))


def train_every_mode(out: Path) -> None:
    for gradient, settings in RUNS.items():
        L.seed_everything(0)
        tricks = Optimization(warmup_steps=2, decay="plateau")
        model = SLATEModule(optimization=tricks, **SLATE_SIZES | settings)
        looking = [SlotJacobian(every_n_steps=2, num_images=2), GradientNorm(every_n_steps=2), Divergence()]
        logger = TensorBoardLogger(out, name=gradient, version="")
        run = trainer(4, looking, strategy="ddp", devices=2, logger=logger, log_every_n_steps=2, val_check_interval=2)
        run.fit(model, TinyImages())
        torch.save(model.state_dict(), out / f"{gradient}-{run.global_rank}.pt")
        torch.save(torch.rand(1), out / f"{gradient}-{run.global_rank}-noise.pt")


def gradients(gradient: str, batch_size: int, **options) -> dict[str, torch.Tensor]:
    """The gradient of one training step by parameter. Noise would differ between ranks; this model has none."""
    made, data = module(SpatialBroadcastModule, gradient=gradient, slot_init="queries"), Squares(properties=False)
    data.batch_size = batch_size
    trainer(1, **options).fit(made, data)
    return {name: p.grad for name, p in made.named_parameters() if p.requires_grad}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
