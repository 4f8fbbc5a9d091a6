"""The files that can be fetched, and their addresses.

Sizes and SHA-256 sums are those published by TensorFlow Datasets in `checksums.tsv` and `url_checksums/`.
"""

import re
from dataclasses import dataclass, replace

from implicit_slate.errors import UserError, nearest


@dataclass(frozen=True)
class Remote:
    """A file that can be fetched."""

    address: str
    size: int | None = None
    sha256: str | None = None
    on_request: bool = False
    """Whether to fetch it only if --only names it."""
    md5_address: str | None = None
    """Address of a text file whose first word of 32 hexadecimal digits is the MD5 sum."""

    @property
    def name(self) -> str:
        return self.address.rpartition("/")[2]


FID_WEIGHTS = "fid-weights"
COCO, GOOGLE = "http://images.cocodataset.org", "https://storage.googleapis.com"
COCO_ANNOTATIONS_SHA256 = "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268"
COCO_VAL_SHA256 = "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05"
COCO_TRAIN_SHA256 = "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929"
COCO_TEST_SHA256 = "c7908c3c9f94ba2f3340ebbeec58c25db6be8774f18d68c2f15d0e369d95baba"
SHAPES3D_SHA256 = "0a0f6ed98baff276a50f3a081a7434d788da63cb135a98189b2a5b5769be1785"
CLEVR_SHA256 = "5cd61cf1096ed20944df93c9adb31e74d189b8459a94f54ba00090e5c59936d1"
KINDS: dict[str, list[Remote]] = {
    "shapes3d": [Remote(f"{GOOGLE}/3d-shapes/3dshapes.h5", 267573662, SHAPES3D_SHA256)],
    "coco": [
        Remote(f"{COCO}/annotations/annotations_trainval2017.zip", 252907541, COCO_ANNOTATIONS_SHA256),
        Remote(f"{COCO}/zips/val2017.zip", 815585330, COCO_VAL_SHA256),
        Remote(f"{COCO}/zips/train2017.zip", 19336861798, COCO_TRAIN_SHA256),
        Remote(f"{COCO}/zips/test2017.zip", 6646970404, COCO_TEST_SHA256, on_request=True),
    ],
    "clevr": [
        Remote(f"{GOOGLE}/multi-object-datasets/clevr_with_masks/clevr_with_masks_train.tfrecords"),
        # the original CLEVR, without masks
        Remote("https://dl.fbaipublicfiles.com/clevr/CLEVR_v1.0.zip", 19021600724, CLEVR_SHA256, on_request=True),
    ],
    "shapestacks": [],  # at --base-address
    FID_WEIGHTS: [],  # see fid_weights.py, which has two sources
}
SHAPESTACKS_PARTS = ("meta", "rgb", "iseg")
NO_ADDRESS = {
    "clevr-mirror": "its authors link it on https://sites.google.com/view/slate-autoencoder; `implicit-slate data "
    "render` makes such scenes, with masks",
    "folder": "it is a folder of your own images",
}


def select(kind: str, base_address: str | None, only: list[str] | None) -> list[Remote]:
    """The files to fetch for a data set. UserError for bad options, or if it has no public address, saying where to
    get it."""
    if kind in NO_ADDRESS:
        raise UserError(f"{kind}: has no stable public address; {NO_ADDRESS[kind]}")
    if kind not in KINDS:
        raise UserError(f"data download: unknown kind {kind!r}{nearest(kind, [*KINDS, *NO_ADDRESS])}")
    if base_address is not None and not re.match(r"https?://.", base_address):
        raise UserError(f"--base-address {base_address}: expected http://… or https://…")
    if kind == FID_WEIGHTS and (base_address or only):
        raise UserError(f"{kind}: --base-address and --only are for data sets")
    if kind == "shapestacks":
        if base_address is None:
            raise UserError(
                "shapestacks: give --base-address URL, the folder with shapestacks-rgb.tar.gz; its "
                "authors' page, https://shapestacks.robots.ox.ac.uk, says where that is now"
            )
        stems = [f"{base_address.rstrip('/')}/shapestacks-{part}" for part in SHAPESTACKS_PARTS]
        remotes = [Remote(f"{stem}.tar.gz", md5_address=f"{stem}.md5") for stem in stems]
    else:
        remotes = KINDS[kind]
        if base_address is not None:
            remotes = [replace(remote, address=f"{base_address.rstrip('/')}/{remote.name}") for remote in remotes]
    names = [remote.name for remote in remotes]
    for name in only or ():
        if name not in names:
            raise UserError(f"--only {name}: not a file of {kind}{nearest(name, names)}")
    return [remote for remote in remotes if (remote.name in only if only else not remote.on_request)]
