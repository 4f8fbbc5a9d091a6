"""One LightningDataModule per data set, and a renderer of CLEVR-Mirror-like scenes (`data_modules.rendering`)."""

from implicit_slate import lazy

HOMES = {
    "CLEVR": "clevr",
    "CLEVRMirror": "clevr_mirror",
    "COCO": "coco",
    "ImageDataModule": "base",
    "ImageFolder": "image_folder",
    "MirrorScenes": "mirror_scenes",
    "Shapes3D": "shapes3d",
    "ShapeStacks": "shapestacks",
    "Sprites": "sprites",
}

__all__ = list(HOMES)
__getattr__ = lazy.attributes(__name__, HOMES)

KINDS = {
    "clevr-mirror": "CLEVRMirror",
    "shapestacks": "ShapeStacks",
    "coco": "COCO",
    "shapes3d": "Shapes3D",
    "clevr": "CLEVR",
    "folder": "ImageFolder",
}
"""The names of the data sets in `implicit-slate data check`."""
