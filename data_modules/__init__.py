"""One LightningDataModule per data set, and the renderer of CLEVR-Mirror-like scenes (`data_modules.rendering`)."""

import importlib

_HOMES = {
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

__all__ = list(_HOMES)

KINDS = {
    "clevr-mirror": "CLEVRMirror",
    "shapestacks": "ShapeStacks",
    "coco": "COCO",
    "shapes3d": "Shapes3D",
    "clevr": "CLEVR",
    "folder": "ImageFolder",
}
"""What `implicit-slate data check` calls the data sets."""


def __getattr__(name: str):
    # Imported when first asked for: the renderer's worker processes need none of them, nor torch and Lightning.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
