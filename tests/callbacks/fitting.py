"""Short trainings of tiny models under callbacks."""

import lightning as L
import torch

from callbacks import Diverged
from implicit_slate.training import Optimization, SLATEModule, SpatialBroadcastModule
from tests.tiny import BROADCAST_SIZES, SLATE_SIZES, Memory, TinyImages

SIZES = {SLATEModule: SLATE_SIZES, SpatialBroadcastModule: BROADCAST_SIZES}


def module(kind=SLATEModule, **options):
    torch.manual_seed(0)
    tricks = Optimization(learning_rate=5e-3, warmup_steps=None, decay=None)
    return kind(optimization=tricks, **{**SIZES[kind], **options})


def fit(model, *callbacks, max_steps=2, data=None, save=None, resume=None, **options):
    """Train on tiny images, from the checkpoint `resume` on and up to one at `save`; {tag: {step: value}}."""
    memory = Memory()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        max_epochs=-1,
        logger=memory,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        val_check_interval=1000,
        check_val_every_n_epoch=None,
        **options,
    )
    try:
        trainer.fit(model, data or TinyImages(), ckpt_path=resume, weights_only=True)
    except Diverged as error:
        error.scalars = memory.scalars
        raise
    if save:
        trainer.save_checkpoint(save)
    return memory.scalars
