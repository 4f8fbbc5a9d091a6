"""Shared by the tests of training: small modules with their data, and a quiet trainer."""

import lightning as L
import torch

from data_modules import MirrorScenes
from data_modules.base import ArrayImages, Splits
from implicit_slate.training import Optimization, PropertyModule, SLATEModule, SpatialBroadcastModule
from tests.tiny import BROADCAST_SIZES, SLATE_SIZES

STEADY = Optimization(learning_rate=1e-3, clip_norm=None, warmup_steps=None, decay=None)
SIZES = {SLATEModule: SLATE_SIZES, SpatialBroadcastModule: BROADCAST_SIZES, PropertyModule: BROADCAST_SIZES}
START = {"model.slot_attention.slot_mu", "model.slot_attention.slot_log_sigma"}
"""Parameters that are trained only in modes whose gradient reaches the initial slots."""


class Squares(MirrorScenes):
    """One or two squares on grey, of two colours, with their positions as coordinates."""

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
        return Splits(*[ArrayImages(images.numpy(), properties=rows if self.properties else None)] * 3)


def module(kind, seed=0, **options):
    torch.manual_seed(seed)
    return kind(**{"optimization": STEADY, **SIZES[kind], **options})


def trainer(max_steps=2, callbacks=(), **options):
    return L.Trainer(
        max_steps=max_steps,
        callbacks=list(callbacks),
        **{
            "max_epochs": -1,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "val_check_interval": 1000,
            "check_val_every_n_epoch": None,
            "use_distributed_sampler": False,
            **options,
        },
    )


def moved_by(made, run, data) -> set[str]:
    """The names of the parameters that training changes.

    `norm_slots.bias` is left out: with one slot head its gradient is zero up to rounding.
    """
    before = {name: p.detach().clone() for name, p in made.named_parameters()}
    run.fit(made, data)
    moved = {name for name, p in made.named_parameters() if not torch.equal(p, before[name])}
    return moved - {"model.slot_attention.norm_slots.bias"}


def assert_same_weights(a, b):
    for (name, mine), theirs in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.equal(mine, theirs), name
