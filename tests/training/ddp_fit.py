"""Run by `test_ddp.py` in two processes: a few steps of every gradient mode, each rank's weights saved."""

import sys
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from callbacks import Divergence, GradientNorm, SlotJacobian
from implicit_slate.training import Optimization, SLATEModule
from tests.fixed_point.maps import ALL_MODES
from tests.tiny import SLATE_SIZES, TinyImages

RUNS = {mode: {"gradient": mode} for mode in ALL_MODES} | {
    "queries": {"gradient": "bilevel", "slot_init": "queries"},
    "BB": {"gradient": "exact(broyden, 7)", "solver": "broyden", "tol": 1e-4},
}


def main(out: Path) -> None:
    torch.set_num_threads(1)
    for gradient, settings in RUNS.items():
        L.seed_everything(0)
        tricks = Optimization(warmup_steps=2, decay="plateau")
        model = SLATEModule(optimization=tricks, **SLATE_SIZES | settings)
        trainer = L.Trainer(
            accelerator="cpu",
            strategy="ddp",
            devices=2,
            max_steps=4,
            default_root_dir=out,
            logger=TensorBoardLogger(out, name=gradient, version=""),
            log_every_n_steps=2,
            val_check_interval=2,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            use_distributed_sampler=False,
            callbacks=[SlotJacobian(every_n_steps=2, num_images=2), GradientNorm(every_n_steps=2), Divergence()],
        )
        trainer.fit(model, TinyImages())
        torch.save(model.state_dict(), out / f"{gradient}-{trainer.global_rank}.pt")
        torch.save(torch.rand(1), out / f"{gradient}-{trainer.global_rank}-noise.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
