"""Behaviour of every image data module, on a synthetic one: loaders, seeds, Lightning's trainer, bad values."""

import lightning as L
import numpy as np
import pytest
import torch

from data_modules.base import ArrayImages, ImageDataModule, Splits, split_70_15_15
from implicit_slate.errors import UserError
from tests.training.setting import trainer


class Numbered(ImageDataModule):
    """40 training images; all values of image i are i."""

    def load(self) -> Splits:
        def images(start: int, stop: int) -> ArrayImages:
            values = np.arange(start, stop, dtype=np.uint8)[:, None, None, None]
            return ArrayImages(np.broadcast_to(values, (stop - start, 8, 8, 3)))

        return Splits(images(0, 40), images(40, 50), images(50, 61))


class Recorder(L.LightningModule):
    """Records the images that it receives."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.trained: list[list[int]] = []
        self.validated: list[list[int]] = []

    def training_step(self, batch, index):
        self.trained.append(numbers(batch))
        return self.weight.sum()

    def validation_step(self, batch, index):
        self.validated.append(numbers(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def numbers(batch) -> list[int]:
    return (batch["image"][:, 0, 0, 0] * 255).round().int().tolist()


def test_batch_format():
    masks = np.zeros((3, 8, 8), np.uint8)
    masks[1] = 4
    batch = ArrayImages(np.full((3, 8, 8, 3), 255, np.uint8), masks)[[2, 1]]
    assert batch["image"].shape == (2, 3, 8, 8) and batch["image"].dtype == torch.float32
    assert batch["mask"].shape == (2, 8, 8) and batch["mask"].dtype == torch.int64
    assert batch["image"].max() == 1.0 and batch["mask"].unique().tolist() == [0, 4]
    assert batch["index"].tolist() == [2, 1]
    assert set(ArrayImages(np.zeros((1, 4, 4, 3), np.uint8))[[0]]) == {"image", "index"}


def test_probe_is_the_start_of_the_validation_split():
    module = Numbered(8, 4)
    module.setup()
    assert (module.probe(3)["image"][:, 0, 0, 0] * 255).round().tolist() == [40, 41, 42]
    assert len(module.probe(1000)["image"]) == 10


def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(tmp_path):
    whole = Recorder()
    trainer(25, val_check_interval=10).fit(whole, Numbered(8, 6, seed=3))
    assert len(whole.trained) == 25 and len(whole.validated) == 4
    assert sum(whole.validated, []) == [*range(40, 50)] * 2

    stopped, resumed = Recorder(), Recorder()
    first = trainer(13)
    first.fit(stopped, Numbered(8, 6, seed=3))
    first.save_checkpoint(tmp_path / "last.ckpt")
    trainer(25).fit(resumed, Numbered(8, 6, seed=3), ckpt_path=tmp_path / "last.ckpt")
    assert stopped.trained + resumed.trained == whole.trained


def test_the_order_follows_the_seed_of_the_run():
    module = Numbered(8, 6)
    module.setup()
    orders = []
    for seed in (0, 1, 0):
        L.seed_everything(seed, verbose=False)
        orders.append(numbers(next(iter(module.train_dataloader()))))
    assert orders[0] == orders[2] != orders[1]


def test_lightning_leaves_the_samplers_alone_under_ddp():
    from lightning.pytorch.trainer.connectors.data_connector import _DataConnector

    module = Numbered(8, 6)
    module.setup()
    connector = _DataConnector(trainer(1, devices=2, strategy="ddp", use_distributed_sampler=True))
    assert not connector._requires_distributed_sampler(module.train_dataloader())
    assert not connector._requires_distributed_sampler(module.val_dataloader())


def test_lightning_does_not_make_batches_of_one_image():
    with pytest.raises(UserError, match="overfit_batches=2: batches would be of one image"):
        trainer(3, overfit_batches=2).fit(Recorder(), Numbered(8, 4))


def test_workers_give_the_same_batches():
    batches = []
    for num_workers in (0, 2):
        module = Numbered(8, 6, num_workers=num_workers, seed=0)
        module.setup()
        loader = iter(module.train_dataloader())
        batches.append([numbers(next(loader)) for _ in range(9)])
    assert batches[0] == batches[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(((size, 4), f"image_size={size}: expected a positive multiple of 4") for size in (30, 65, 0, -4)),
        ((8, 0), "batch_size=0: expected a positive whole number"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        Numbered(*options)


@pytest.mark.parametrize(("n", "sizes"), [(20, [14, 3, 3]), (24, [16, 4, 4]), (7, [4, 1, 2])])
def test_split(n, sizes):
    parts = split_70_15_15(list(range(n)), "here")
    assert [len(part) for part in parts] == sizes and [i for part in parts for i in part] == list(range(n))
    with pytest.raises(UserError, match="here: the validation split is empty"):
        split_70_15_15([0, 1], "here")
