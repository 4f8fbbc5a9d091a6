"""Small synthetic data sets in the exact layouts of the originals."""

import gzip
import json
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from data_modules.cached import CachedDataModule
from implicit_slate.errors import UserError


def loaded(kind: type[CachedDataModule], root: Path, **options) -> CachedDataModule:
    module = kind(root, **options)
    module.setup()
    return module


def fails(kind: type[CachedDataModule], root: Path, message: str, **options) -> None:
    """Asserts that loading fails with one line that starts with `message`, and leaves nothing unfinished."""
    with pytest.raises(UserError) as error:
        loaded(kind, root, **options)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
    assert not list(root.glob(".decoded/.new*"))


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format="JPEG" if path.suffix == ".jpg" else "PNG")
    return path


def grey(value: int, height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def clevr_mirror(root: Path, count: int = 20, masks: bool = True) -> Path:
    """Image i < 25 has grey value 10 i; its mask has object 1 in the upper left quarter."""
    mask = np.zeros((32, 32), np.uint8)
    mask[:16, :16] = 1
    for i in reversed(range(count)):
        save(root / "images" / f"CLEVR_new_{i:010d}.png", grey(10 * i % 250, 32, 32))
        if masks:
            save(root / "masks" / f"CLEVR_new_{i:010d}.png", mask)
    return root


SCENARIOS = {
    "train": ["env_blocks-easy-h=2-vcom=0-vpsf=0-v=1", "env_ccs-hard-h=3-vcom=1-vpsf=0-v=12"],
    "eval": ["env_ccs-easy-h=4-vcom=0-vpsf=2-v=7"],
    "test": ["env_blocks-hard-h=5-vcom=5-vpsf=0-v=3"],
}


def shapestacks(root: Path, cameras: int = 2, iseg: str | None = "recordings/{}") -> Path:
    """Image c of a scenario of height h has grey value 10 h + c in the central 196 pixels, and a white border. Its mask
    has label 0 and, in the lower half, labels 1 to h."""
    for split, scenarios in SCENARIOS.items():
        for scenario in scenarios:
            height = int(scenario.split("h=")[1][0])
            for camera in range(1, cameras + 1):
                picture = grey(255, 224, 224)
                picture[14:210, 14:210] = 10 * height + camera
                name = f"rgb-w={camera}-f=0-l=2-c=original-cam_{camera}-mono-0.png"
                save(root / "recordings" / scenario / name, picture)
                if iseg:
                    labels = np.zeros((224, 224), np.uint8)
                    labels[112:] = 1 + np.arange(224) * height // 224
                    layers = np.stack([labels * 32, labels, labels, np.full_like(labels, 255)], -1)
                    name = f"iseg-w=0-f=0-l=0-c=original-cam_{camera}-mono-0.map"
                    save(root / iseg.format(scenario) / name, layers)
        for subset in ("default", "blocks_all", "ccs_all"):
            kept = [name for name in scenarios if subset == "default" or subset[:3] in name]
            path = root / "splits" / subset / f"{split}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{name}\n" for name in kept))
    return root


THING = {"shape": "sphere", "size": "small", "material": "rubber", "color": "yellow", "3d_coords": [-3.0, 0.0, 1.5]}


def scenes(root: Path, counts: list[int]) -> Path:
    """Scene i has counts[i] equal objects, except that the first coordinate of the last one is i / 10."""
    (root / "scenes").mkdir(parents=True)
    for i, count in enumerate(counts):
        objects = [dict(THING) for _ in range(count)]
        objects[-1]["3d_coords"] = [i / 10, *THING["3d_coords"][1:]]
        name = f"CLEVR_new_{i:010d}"
        text = json.dumps({"image_filename": f"{name}.png", "objects": objects})
        (root / "scenes" / f"{name}.json").write_text(text)
    return root


def shapes3d(root: Path, values: np.ndarray, shape: tuple[int, ...] = (480_000, 64, 64, 3)) -> Path:
    """The first images have the given grey values; the rest are black and take no space."""
    root.mkdir(parents=True, exist_ok=True)
    with h5py.File(root / "3dshapes.h5", "w") as file:
        chunks = (min(50, shape[0]), *shape[1:])
        images = file.create_dataset("images", shape, np.uint8, chunks=chunks, compression="gzip")
        images[: len(values)] = np.broadcast_to(values[:, None, None, None], (len(values), *shape[1:]))
        file.create_dataset("labels", (shape[0], 6), np.float64)
    return root


def clevr_scene(number: int, layers: int = 5) -> dict[str, np.ndarray]:
    """A scene with number % 3 + 2 objects. At row r and column c, the image's channels are r, c % 256 and the number.
    Object i is a square of 20 pixels around row 100, column 60 + 30 i."""
    image = np.zeros((240, 320, 3), np.uint8)
    image[..., 0], image[..., 1], image[..., 2] = np.arange(240)[:, None], np.arange(320) % 256, number
    mask, count = np.zeros((layers, 240, 320, 1), np.uint8), number % 3 + 2
    for i in range(1, count + 1):
        mask[i, 90:110, 50 + 30 * i : 70 + 30 * i] = 255
    mask[0] = 255 - mask[1:].max(0)
    visibility = (np.arange(layers) <= count).astype(np.float32)
    return {"image": image, "mask": mask, "visibility": visibility}


def clevr_hdf5(root: Path, count: int = 12) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    scenes = [clevr_scene(number) for number in range(count)]
    with h5py.File(root / "clevr.h5", "w") as file:
        for name in scenes[0]:
            file.create_dataset(name, data=np.stack([scene[name] for scene in scenes]), compression="gzip")
    return root / "clevr.h5"


def clevr_tfrecords(root: Path, count: int = 12, compress: bool = True) -> Path:
    """As distributed: GZIP-compressed, with every byte of an image as a separate value."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / "clevr_with_masks_train.tfrecords"
    with gzip.open(path, "wb", 1) if compress else open(path, "wb") as file:
        for number in range(count):
            file.write(framed(example(clevr_scene(number))))
    return path


WIDTH, HEIGHT = 64, 48


def rectangle(left, top, right, bottom) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


def annotation(image_id: int, segmentation, box, **more) -> dict:
    left, top, right, bottom = box
    return {
        "image_id": image_id,
        "category_id": 18,
        "iscrowd": 0,
        "area": (right - left) * (bottom - top),
        "bbox": [left, top, right - left, bottom - top],
        "segmentation": segmentation,
    } | more


def crowd(image_id: int) -> dict:
    """The upper left 10 × 12 pixels as an uncompressed, column-wise run-length code."""
    counts = [0] + [12, HEIGHT - 12] * 10
    counts[-1] += HEIGHT * (WIDTH - 10)
    return annotation(image_id, {"size": [HEIGHT, WIDTH], "counts": counts}, (0, 0, 10, 12), iscrowd=1)


TRIANGLE = [(20.0, 4.0), (50.0, 10.0), (28.0, 40.0)]


def annotations() -> list[dict]:
    """Annotations of images 1 to 6; image 5 has none."""
    made = [
        # 1: a crowd, then a small rectangle, then a large one that would hide it
        crowd(1),
        annotation(1, [rectangle(20, 10, 30, 20)], (20, 10, 30, 20)),
        annotation(1, [rectangle(15, 5, 45, 40)], (15, 5, 45, 40)),
        # 2: an instance of two parts, and one with a corner between pixels
        annotation(2, [rectangle(5, 5, 10, 10), rectangle(30, 5, 40, 12)], (5, 5, 40, 12)),
        annotation(2, [rectangle(10.5, 20.5, 30.5, 40.5)], (10.5, 20.5, 30.5, 40.5)),
        # 3: a triangle
        annotation(3, [[c for point in TRIANGLE for c in point]], (20, 4, 50, 40)),
        # 4: an instance cut off by the right and lower edges of the image
        annotation(4, [rectangle(50, 30, 64, 48)], (50, 30, 64, 48)),
        # 6: only a crowd
        crowd(6),
    ]
    return [entry | {"id": 100 + i} for i, entry in enumerate(made)]


def write_split(images: Path, file: Path, count: int, annotated: list[dict]) -> None:
    """Writes `count` images, image i with grey value 30 i, and their annotations, which list them in another order."""
    file.parent.mkdir(parents=True, exist_ok=True)
    entries = []
    for i in range(1, count + 1):
        save(images / f"{i:012d}.jpg", grey(30 * i, HEIGHT, WIDTH))
        address = f"http://localhost:9/{i:012d}.jpg"
        entries.append({"id": i, "file_name": f"{i:012d}.jpg", "width": WIDTH, "height": HEIGHT, "coco_url": address})
    content = {"info": {"year": 2017}, "licenses": [{"id": 1, "name": "none", "url": ""}], "images": entries[::-1]}
    content |= {"annotations": annotated, "categories": [{"id": 18, "name": "dog", "supercategory": "animal"}]}
    file.write_text(json.dumps(content))


def coco_zoo(root: Path) -> Path:
    copy = root / "coco-2017"
    write_split(copy / "train" / "data", copy / "raw" / "instances_train2017.json", 6, annotations())
    write_split(copy / "validation" / "data", copy / "raw" / "instances_val2017.json", 3, annotations()[:3])
    for i in range(4):
        save(copy / "test" / "data" / f"{i:012d}.jpg", np.full((HEIGHT, WIDTH), 9 * i, np.uint8))
    return root


def coco_plain(root: Path) -> Path:
    write_split(root / "train2017", root / "annotations" / "instances_train2017.json", 6, annotations())
    write_split(root / "val2017", root / "annotations" / "instances_val2017.json", 3, annotations()[:3])
    return root


def framed(message: bytes) -> bytes:
    length = struct.pack("<Q", len(message))
    return length + struct.pack("<I", masked_crc32c(length)) + message + struct.pack("<I", 0)


def example(features: dict[str, np.ndarray], joined: bool = False) -> bytes:
    """A tf.train.Example as TensorFlow serialises it.

    Args:
        joined: store all bytes of a feature as one value, as other writers do.
    """
    entries = b""
    for name, values in features.items():
        if values.dtype == np.uint8:
            flat = values.tobytes()
            feature = field(
                1, field(1, flat) if joined else b"".join(field(1, flat[i : i + 1]) for i in range(len(flat)))
            )
        else:
            feature = field(2, field(1, values.astype("<f4").tobytes()))
        entries += field(1, field(1, name.encode()) + field(2, feature))
    return field(1, entries)


def field(number: int, content: bytes) -> bytes:
    """A field of a protocol buffer: field number with wire type 2, length as a varint, content."""
    length, groups = len(content), []
    while length >= 128:
        length, group = divmod(length, 128)
        groups.append(group | 128)
    return bytes([number << 3 | 2, *groups, length]) + content
