"""Run by `test_ddp.py` in two processes: a few steps of every gradient mode, each rank's weights saved."""

import sys
from pathlib import Path
from unittest import mock

import lightning as L
import torch
import yaml
from lightning.pytorch.loggers import TensorBoardLogger

from callbacks import Divergence, GradientNorm, SlotJacobian
from implicit_slate import cli
from implicit_slate.training import Optimization, SLATEModule
from tests.fixed_point.maps import ALL_MODES
from tests.tiny import SLATE_SIZES, TinyImages
from tests.training.setting import trainer

RUNS = {mode: {"gradient": mode} for mode in ALL_MODES} | {
    "queries": {"gradient": "bilevel", "slot_init": "queries"},
    "BB": {"gradient": "exact(broyden, 7)", "solver": "broyden", "tol": 1e-4},
}
BATCH = 8
"""Images in a step of `fit`, over all processes."""


def main(out: Path) -> None:
    torch.set_num_threads(1)
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
        fit(out, gradient, devices=2)


def fit(out: Path, name: str, devices: int) -> None:
    """Two steps of `implicit-slate fit` with batches of `BATCH` over the devices, the same noise for every image, and a
    learning rate that leaves the weights as they are; the gradients are saved."""
    optimization = {"learning_rate": 1e-12, "dvae_learning_rate": 1e-12, "warmup_steps": None}
    settings = {**SLATE_SIZES, "num_slot_heads": 2, **RUNS[name], "optimization": optimization}
    config = {
        "model": {"class_path": "implicit_slate.training.SLATEModule", "init_args": settings},
        "data": {
            "class_path": "data_modules.Sprites",
            "init_args": {"image_size": 16, "batch_size": BATCH // devices, "num_images": [20, 4, 4]},
        },
        "trainer": {
            "callbacks": [{"class_path": "tests.training.ddp_fit.Gradients", "init_args": {"out": f"{out}/{name}"}}],
            "max_steps": 2, "devices": devices, "strategy": "ddp" if devices > 1 else "auto", "limit_val_batches": 0,
            "accelerator": "cpu", "precision": "64-true", "logger": False, "enable_checkpointing": False,
            "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": str(out),
        },
    }  # fmt: skip
    file = out / f"{name}-{devices}.yaml"
    file.write_text(yaml.safe_dump(config))
    randn = torch.randn

    def same_for_every_image(shape, **options):
        return randn(shape[1:], generator=torch.Generator().manual_seed(0), **options).expand(shape)

    with (
        mock.patch("torch.randn", same_for_every_image),
        mock.patch("torch.rand_like", lambda x, **options: torch.full_like(x, 0.5, **options)),
    ):
        assert cli.main(["fit", "--config", str(file)]) == 0


class Gradients(L.Callback):
    """Saves the gradient of every step before clipping, and which images it is of."""

    def __init__(self, out: str):
        self.out = out

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        self.index = batch["index"]

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
        place = f"{trainer.global_step}-{trainer.global_rank}-of-{trainer.world_size}"
        torch.save((self.index, found), f"{self.out}-gradient-{place}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
