"""Short training runs of tiny models with callbacks."""

import torch

from callbacks import Diverged
from implicit_slate.training import Optimization, SLATEModule, SpatialBroadcastModule
from tests.tiny import Memory, TinyImages
from tests.training import setting

KINDS = [SLATEModule, SpatialBroadcastModule]


def module(kind=SLATEModule, **options):
    return setting.module(kind, optimization=Optimization(learning_rate=5e-3, warmup_steps=None, decay=None), **options)


def fit(model, *callbacks, max_steps=2, data=None, save=None, resume=None, **options):
    """Trains on tiny images from checkpoint `resume`, if given; saves one to `save`. Returns {tag: {step: value}}."""
    memory = Memory()
    trainer = setting.trainer(max_steps, callbacks, **{"logger": memory, "log_every_n_steps": 1000, **options})
    try:
        trainer.fit(model, data or TinyImages(), ckpt_path=resume, weights_only=True)
    except Diverged as error:
        error.scalars = memory.scalars
        raise
    if save:
        trainer.save_checkpoint(save)
    return memory.scalars


def refinement(model, callback):
    """f, the initial slots and z* for the callback's images, with the model's current weights."""
    model.eval()
    with torch.no_grad():
        f = model.model.refinement(callback._batch["image"])
        return f, callback._slots_init, model.model.slot_attention.solver(f, callback._slots_init).z
