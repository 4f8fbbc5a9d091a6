"""Small synthetic data and models for tests."""

import os

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader, default_collate

SLATE_SIZES = dict(
    image_size=16,
    vocab_size=12,
    d_model=16,
    num_slots=3,
    slot_size=16,
    slot_mlp_size=16,
    num_iterations=3,
    num_blocks=1,
    num_heads=2,
    dropout=0.0,
)
BROADCAST_SIZES = dict(image_size=16, width=8, num_slots=3, slot_size=12, slot_mlp_size=16, num_iterations=3)


class TinyImages(L.LightningDataModule):
    """Two coloured squares on grey, with masks; a function of the index."""

    def __init__(self, image_size: int = 16, batch_size: int = 4, num_images: int = 24):
        super().__init__()
        self.image_size, self.batch_size, self.num_images = image_size, batch_size, num_images

    def item(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        image = torch.full((3, self.image_size, self.image_size), 0.5)
        mask = torch.zeros(self.image_size, self.image_size, dtype=torch.long)
        for label in (1, 2):
            x, y = torch.randint(0, self.image_size - 6, (2,), generator=generator).tolist()
            image[:, y : y + 6, x : x + 6] = torch.rand(3, 1, 1, generator=generator)
            mask[y : y + 6, x : x + 6] = label
        return {"image": image, "mask": mask}

    def probe(self, num_images: int) -> dict[str, torch.Tensor]:
        return default_collate([self.item(1000 + i) for i in range(num_images)])

    def train_dataloader(self):
        rank, world = self.trainer.global_rank, self.trainer.world_size
        data = [self.item(i) for i in range(rank, self.num_images, world)]
        return DataLoader(data, batch_size=self.batch_size)

    def val_dataloader(self):
        rank, world = self.trainer.global_rank, self.trainer.world_size
        data = [self.item(1000 + i) for i in range(rank, 6, world)]
        return DataLoader(data, batch_size=4)


class Memory(Logger):
    """Stores logged values: {name: {step: value}}."""

    name, version = "memory", 0

    def __init__(self):
        super().__init__()
        self.scalars = {}

    def log_metrics(self, metrics, step=None):
        for name, value in metrics.items():
            self.scalars.setdefault(name, {})[step] = value

    def log_hyperparams(self, *args, **kwargs):
        pass


class Command:
    """Creates a folder when unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)
