"""Short trainings under callbacks."""

import lightning as L

from tests.tiny import Memory, TinyImages


def fit(model, *callbacks, max_steps=2, data=None, save=None, **options):
    """Train for some steps on tiny images, save a checkpoint at `save`, and return {tag: {step: value}}."""
    memory = Memory()
    trainer = L.Trainer(
        accelerator="cpu", max_steps=max_steps, max_epochs=-1, logger=memory, callbacks=list(callbacks),
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0,
        val_check_interval=1000, check_val_every_n_epoch=None,
    )  # fmt: skip
    trainer.fit(model, data or TinyImages(), **options)
    if save:
        trainer.save_checkpoint(save)
    return memory.scalars
