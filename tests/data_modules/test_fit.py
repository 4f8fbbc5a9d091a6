"""A few steps of training and a validation on every data module that reads files. (COCO has its own.)"""

import lightning as L
import numpy as np
import pytest

from data_modules import CLEVR, CLEVRMirror, ImageFolder, Shapes3D, ShapeStacks, shapes3d
from implicit_slate.training import SLATEModule
from tests.data_modules import made
from tests.tiny import SLATE_SIZES


@pytest.fixture
def small_splits(monkeypatch):
    monkeypatch.setattr(shapes3d, "SPLITS", {"train": range(16), "val": range(17, 20), "test": range(20, 24)})


MAKE = {
    "CLEVRMirror": lambda root: CLEVRMirror(made.clevr_mirror(root), 16, 4),
    "CLEVRMirror on the device": lambda root: CLEVRMirror(made.clevr_mirror(root), 16, 4, on_device=True),
    "ShapeStacks": lambda root: ShapeStacks(made.shapestacks(root), 16, batch_size=4, num_workers=1),
    "Shapes3D": lambda root: Shapes3D(made.shapes3d(root, np.arange(24, dtype=np.uint8)), 16, 4),
    "CLEVR": lambda root: CLEVR(made.clevr_hdf5(root), 16, batch_size=4, num_train=6, num_eval=3),
    "ImageFolder": lambda root: ImageFolder(made.clevr_mirror(root) / "images", 16, batch_size=4),
}


@pytest.mark.parametrize("name", MAKE)
def test_fit(name, tmp_path, small_splits):
    trainer = L.Trainer(
        max_steps=3,
        val_check_interval=3,
        check_val_every_n_epoch=None,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(SLATEModule(**SLATE_SIZES), datamodule=MAKE[name](tmp_path))
    assert trainer.global_step == 3 and trainer.callback_metrics["val/loss"].isfinite()
