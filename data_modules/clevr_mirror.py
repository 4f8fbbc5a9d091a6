"""CLEVR-Mirror in the layout of SLATE's authors, also as `implicit-slate data render` writes it."""

from pathlib import Path

from data_modules.base import ImageDataModule, Splits, split_70_15_15
from data_modules.image_files import FileImages
from implicit_slate.errors import UserError


class CLEVRMirror(ImageDataModule):
    """A folder with `images/*.png` and, where there are masks, `masks/<same name>.png`.

    By sorted name the first 70% train, the next 15% validate, the last 15% test.

    Args:
        root: the folder that holds `images`.
    """

    def __init__(
        self,
        root: str | Path,
        image_size: int = 64,
        batch_size: int = 50,
        num_workers: int = 0,
        seed: int | None = None,
    ):
        super().__init__(image_size, batch_size, num_workers, seed)
        self.root = Path(root)

    def load(self) -> Splits:
        folder = self.root / "images"
        if not folder.is_dir():
            raise UserError(f"{folder}: expected the folder of CLEVR-Mirror's images (CLEVR_new_*.png), found none")
        images = sorted(folder.glob("*.png"))
        if not images:
            raise UserError(f"{folder}: expected images (CLEVR_new_*.png), found no PNG file")
        with_masks = (self.root / "masks").is_dir()

        def files(paths: list[Path]) -> FileImages:
            masks = [self.root / "masks" / path.name for path in paths] if with_masks else None
            return FileImages(paths, masks, self.image_size)

        return Splits(*map(files, split_70_15_15(images, folder)))
