"""COCO-2017 read by the real FiftyOne, on small synthetic copies in the original layouts."""

import json
import math
import subprocess
import sys
from functools import partial

import numpy as np
import pycocotools.mask
import pytest
import torch
from PIL import Image

from data_modules import COCO
from data_modules.coco import import_coco_utils, overlay
from implicit_slate.errors import UserError
from implicit_slate.evaluation.data import load_images
from tests.data_modules import made
from tests.data_modules.made import HEIGHT, TRIANGLE, WIDTH

FIRST = f"{1:012d}.jpg"


@pytest.fixture(scope="module", params=[made.coco_zoo, made.coco_plain], ids=["zoo", "plain"])
def root(request, tmp_path_factory):
    """A copy that has been read before."""
    root = request.param(tmp_path_factory.mktemp("coco"))
    module(root)
    return root


module, fails = (
    partial(function, COCO, image_size=24, batch_size=2, max_samples=100) for function in (made.loaded, made.fails)
)


@pytest.fixture(scope="module")
def masks(root) -> dict[int, np.ndarray]:
    """The label maps of the training images before cropping."""
    return label_maps(root)


def label_maps(root) -> dict[int, np.ndarray]:
    source = COCO(root, max_samples=100).sources()["train"]
    return {int(piece.image.stem): source.label_map(piece) for piece in source.stored()}


def drawn(*boxes) -> np.ndarray:
    """A label map of rectangles (label, left, top, right, bottom), later ones on top."""
    labels = np.zeros((HEIGHT, WIDTH), int)
    for label, left, top, right, bottom in boxes:
        labels[top:bottom, left:right] = label
    return labels


def test_masks_are_the_polygons_pixel_by_pixel(masks):
    assert [*masks] == [1, 2, 3, 4, 5, 6]
    assert all(mask.dtype == np.uint8 and mask.shape == (HEIGHT, WIDTH) for mask in masks.values())
    np.testing.assert_array_equal(masks[1], drawn((2, 15, 5, 45, 40), (1, 20, 10, 30, 20)))
    np.testing.assert_array_equal(masks[4], drawn((1, 50, 30, 64, 48)))
    np.testing.assert_array_equal(masks[2][:15], drawn((1, 5, 5, 10, 10), (1, 30, 5, 40, 12))[:15])
    assert not masks[5].any() and not masks[6].any()  # image 6 has only a crowd


def test_a_box_between_pixels_stays_in_its_place(masks):
    second = np.argwhere(masks[2] == 2)
    assert np.abs(second.min(0) - (20.5, 10.5)).max() <= 0.5 and np.abs(second.max(0) + 1 - (40.5, 30.5)).max() <= 0.5
    assert 19 * 19 <= len(second) <= 20 * 20


def test_slanted_edges_are_right_to_the_pixel(masks):
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    distances = []  # to each edge, positive inside
    for (x0, y0), (x1, y1) in zip(TRIANGLE, TRIANGLE[1:] + TRIANGLE[:1], strict=True):
        distances.append(((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)) / np.hypot(x1 - x0, y1 - y0))
    inside = np.min(distances, axis=0)
    assert (
        (masks[3][inside > 0.75] == 1).all() and (masks[3][inside < -0.75] == 0).all() and (inside > 0.75).sum() > 300
    )


def test_without_test_images_what_wants_them_says_so_in_a_line(tmp_path):
    root = made.coco_plain(tmp_path)
    data = {"class_path": "data_modules.COCO", "init_args": {"root": str(root), "image_size": 24, "max_samples": 100}}
    assert len(load_images(data, "val")) == 3
    with pytest.raises(UserError) as error:
        load_images(data, "test")
    assert str(error.value) == f"the test split of data_modules.COCO ({root}) is empty"


def test_crowds_are_counted_and_said_once(tmp_path, caplog):
    made.coco_plain(tmp_path)
    with caplog.at_level("INFO"):
        counted = [module(tmp_path).num_crowds for _ in range(2)]
    assert counted == [{"train": 2, "val": 1}] * 2
    assert [message.partition(".json: ")[2] for message in caplog.messages if "left out" in message] == [
        "6 images, 6 instances; 2 annotations of crowds left out",
        "3 images, 2 instances; 1 annotations of crowds left out",
    ]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches(root, num_workers):
    data = module(root, num_workers=num_workers)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (2, 3, 24, 24) and batch["image"].dtype == torch.float32
    assert batch["mask"].shape == (2, 24, 24) and batch["mask"].dtype == torch.int64
    assert [len(split) for split in data.splits[:2]] == [6, 3]
    train = data.splits.train[list(range(6))]  # by id, with their masks
    assert (train["image"].mean((1, 2, 3)) * 255 / 30 - torch.arange(1, 7)).abs().max() < 0.1
    assert [len(mask.unique()) for mask in train["mask"]] == [3, 3, 2, 2, 1, 1]


def test_what_is_kept_is_read_without_fiftyone(root):
    code = f"from data_modules import COCO; import sys; COCO({str(root)!r}, 24, max_samples=100).setup()"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'fiftyone' not in sys.modules"], check=True)


def test_the_short_side_is_resized_and_the_middle_cut_out(root):
    """Columns 8 to 56 of 64 × 48 pixels remain, at half the size."""
    mask = module(root).splits.train[[0]]["mask"][0]
    np.testing.assert_array_equal(mask, drawn((2, 15, 5, 45, 40), (1, 20, 10, 30, 20))[1::2, 9:57:2])


def test_the_test_split_has_images_only(tmp_path):
    batches = list(module(made.coco_zoo(tmp_path)).test_dataloader())
    assert [set(batch) for batch in batches] == [{"image", "index"}] * 2
    assert torch.cat([batch["image"] for batch in batches]).shape == (4, 3, 24, 24)


def test_of_two_instances_of_one_area_the_later_is_on_top():
    masks = np.zeros((3, 8, 8), bool)
    masks[0, :4, :4] = masks[1, 2:6, 2:6] = masks[2, 5:7, 5:] = True
    labels = overlay(masks, 8, 8)
    assert labels[3, 3] == labels[2, 2] == 2 and labels[0, 0] == 1 and labels[5, 5] == 3 and labels[7, 7] == 0


def test_changed_annotations_are_read_again_and_more_samples_beside(tmp_path):
    made.coco_plain(tmp_path)
    assert [len(split) for split in module(tmp_path, max_samples=2).splits] == [2, 2, 0]
    edit(tmp_path, lambda content: content["annotations"].pop(1))
    assert module(tmp_path, max_samples=2).splits.train[[0]]["mask"].unique().tolist() == [0, 1]
    assert [len(split) for split in module(tmp_path, max_samples=5).splits] == [5, 3, 0]
    assert len(list((tmp_path / ".decoded").iterdir())) == 2 + 2 + 1  # the last is a lock


def test_without_test_images_only_testing_fails(tmp_path):
    data = module(made.coco_plain(tmp_path))
    with pytest.raises(UserError, match=f"{tmp_path}/test2017: expected the test images"):
        data.test_dataloader()


def test_another_folder(tmp_path, check):
    fails(tmp_path, message := f"{tmp_path}: expected COCO-2017, either coco-2017/")
    status, (line,) = check("coco", tmp_path)
    assert status == 2 and message in line


def test_a_partial_copy_in_the_zoo_needs_max_samples(tmp_path):
    made.coco_zoo(tmp_path)
    fails(tmp_path, f"{tmp_path}/coco-2017/train/data: holds 6 of 118287 images; max_samples must", max_samples=None)
    fails(tmp_path, "max_samples=0: expected a positive whole number or null", max_samples=0)


def edit(folder, change) -> None:
    """Applies `change` to the annotations of the training split."""
    file = folder / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def segmentation(value):
    return lambda content: content["annotations"][1].update(segmentation=value)


TRAIN = "annotations/instances_train2017.json"
FAULTS = {
    "a missing image": (lambda d: (d / "train2017" / FIRST).unlink(), f"train2017/{FIRST}: expected the image that "),
    "no JSON": (lambda d: (d / TRAIN).write_text("{"), f"{TRAIN}: expected COCO's annotations, JSON"),
    "deep JSON": (lambda d: (d / TRAIN).write_text("[" * 100_000), f"{TRAIN}: expected COCO's annotations, JSON"),
    "a list": (lambda d: (d / TRAIN).write_text("[]"), f"{TRAIN}: expected COCO's annotations, JSON"),
    "no images in it": (lambda d: edit(d, lambda c: c.pop("images")), f"{TRAIN}: expected a list of the images in "),
    "no annotations": (lambda d: (d / TRAIN).unlink(), f"{TRAIN}: expected COCO-2017's annotations of the train split"),
    "no folder": (
        lambda d: (d / "val2017").rename(d / "elsewhere"),
        "val2017: expected the folder of COCO-2017's val images",
    ),
    "no images": (
        lambda d: [path.unlink() for path in (d / "train2017").iterdir()],
        "train2017: the train split is empty; expected *.jpg",
    ),
}
SUSPICIONS = {
    "a truncated image": (
        lambda d: (d / "train2017" / FIRST).write_bytes((d / "train2017" / FIRST).read_bytes()[:300]),
        f"train2017/{FIRST}: expected an image file that can be decoded",
    ),
    "a stray image": (
        lambda d: Image.new("RGB", (4, 4)).save(d / "train2017" / "mine.jpg"),
        "train2017/mine.jpg: expected only images that ",
    ),
    "another size": (
        lambda d: Image.new("RGB", (48, 64)).save(d / "train2017" / FIRST),
        f"train2017/{FIRST}: expected 64 × 48 pixels by ",
    ),
    "an annotation of no image": (
        lambda d: edit(d, lambda content: content["annotations"][0].update(image_id=77)),
        f"{TRAIN}: annotation 100: expected an image with the id 77, found none",
    ),
    "a line for a polygon": (
        lambda d: edit(d, segmentation([[1, 1, 5, 5]])),
        f"{TRAIN}: annotation 101 of {FIRST}: expected a mask",
    ),
    "a code that is too short": (
        lambda d: edit(d, segmentation({"size": [HEIGHT, WIDTH], "counts": [5, 5]})),
        f"{TRAIN}: annotation 101 of {FIRST}: expected a mask",
    ),
    "a code of another size": (
        lambda d: edit(d, segmentation({"size": [9, 9], "counts": [81]})),
        f"{TRAIN}: annotation 101 of {FIRST}: expected a mask",
    ),
}


@pytest.mark.parametrize("fault", FAULTS | SUSPICIONS)
def test_a_fault_is_named_by_the_check_and_what_cannot_be_loaded_by_the_loader(tmp_path, blames, fault):
    make, expected = (FAULTS | SUSPICIONS)[fault]
    make(made.coco_plain(tmp_path))
    if fault in FAULTS:
        fails(tmp_path, f"{tmp_path}/{expected}", max_samples=None)
    blames("coco", tmp_path, f"{tmp_path}/{expected}")


def test_a_segmentation_that_pycocotools_refuses_is_named(tmp_path):
    edit(made.coco_plain(tmp_path), segmentation([[1, 2]]))
    fails(tmp_path, f"{tmp_path}/{TRAIN}: annotation 101 of {FIRST}: FiftyOne cannot read it (Exception(")


def test_hidden_files_are_left_out(tmp_path, check):
    (made.coco_plain(tmp_path) / "train2017" / f"._{FIRST}").write_text("attributes")
    assert check("coco", tmp_path)[1][-1] == "nothing is wrong with 9 images"


def test_a_check_of_a_plain_copy(tmp_path, check):
    status, lines = check("coco", made.coco_plain(tmp_path), "--fix-list", tmp_path / "good.txt")
    assert status == 0 and lines[:-1] == [
        "train 6, val 3 images",
        "9 of 64 × 48 pixels",
        "objects in a mask: 0 to 2, 0.89 in the mean",
        "nothing is wrong with 9 images",
    ]
    expected = [f"{split}2017/{i:012d}.jpg" for split, count in (("train", 6), ("val", 3)) for i in range(1, count + 1)]
    assert (tmp_path / "good.txt").read_text().split() == expected
    assert not (tmp_path / ".decoded").exists()


def test_a_check_of_a_part_of_the_zoo(tmp_path, check):
    (made.coco_zoo(tmp_path) / "coco-2017" / "train" / "data" / FIRST).unlink()
    status, lines = check("coco", tmp_path)
    assert status == 0 and lines[0] == "train 5, val 3, test 4 images" and "4 stored as L, converted to RGB" in lines


@pytest.mark.parametrize("missing", ["fiftyone.utils.coco", "pycocotools"])
def test_a_missing_extra_is_named(tmp_path, check, monkeypatch, missing):
    made.coco_plain(tmp_path)
    monkeypatch.setitem(sys.modules, missing, None)
    fails(tmp_path, message := "COCO is read through FiftyOne, which needs the extra 'coco': make setup EXTRAS=coco")
    status, (line,) = check("coco", tmp_path)
    assert status == 2 and message in line


@pytest.mark.parametrize("box", [[20.0, 10.0, 0.0, 10.0], [-2.0, 10.0, 32.0, 10.0], [21.0, 11.0, 3.0, 3.0], None])
def test_a_mask_does_not_depend_on_the_box(tmp_path, box):
    edit(made.coco_plain(tmp_path), lambda content: content["annotations"][1].update(bbox=box))
    np.testing.assert_array_equal(label_maps(tmp_path)[1], drawn((2, 15, 5, 45, 40), (1, 20, 10, 30, 20)))


@pytest.mark.parametrize("empty", [[], None])
def test_an_instance_without_a_segmentation_keeps_its_number(tmp_path, blames, empty):
    edit(made.coco_plain(tmp_path), segmentation(empty))
    np.testing.assert_array_equal(label_maps(tmp_path)[1], drawn((2, 15, 5, 45, 40)))
    blames("coco", tmp_path, f"{tmp_path}/{TRAIN}: annotation 101 of {FIRST}: expected a mask of 64 × 48 pixels (no se")


def test_a_code_of_another_size_is_not_drawn(tmp_path):
    edit(made.coco_plain(tmp_path), segmentation({"size": [30, 32], "counts": [0, 960]}))
    reason = "(its run-length code has the size [30, 32], not [48, 64])"
    fails(tmp_path, f"{tmp_path}/{TRAIN}: annotation 101 of {FIRST}: expected a mask of 64 × 48 pixels {reason}")


MISREAD = {
    "no numbers": ([[math.nan] * 6], "a polygon has a corner far outside of the image"),
    "an infinite number": ([[1, 1, math.inf, 5, 5, 9]], "a polygon has a corner far outside of the image"),
    "a huge number": ([[1, 1, 1e9, 5, 5, 9]], "a polygon has a corner far outside of the image"),
    "a huge number in a short polygon": ([[1, 1, 1, 1e9]], "a polygon has a corner far outside of the image"),
    "a number too large for a float": ([[1, 1, 10**400, 5, 5, 9]], "a polygon is a list of numbers"),
    "an odd count": ([[1, 1, 5, 5, 9, 1, 3]], "a polygon has two numbers for each corner"),
    "an empty code": ({"size": [HEIGHT, WIDTH], "counts": ""}, "its run-length code has 0 pixels"),
    "an empty list of runs": ({"size": [HEIGHT, WIDTH], "counts": []}, "its run-length code has 0 pixels"),
    "too few runs": ({"size": [HEIGHT, WIDTH], "counts": [5, 5]}, "its run-length code has 10 pixels"),
    "too short a code": ({"size": [HEIGHT, WIDTH], "counts": "55"}, "its run-length code has 10 pixels"),
    "half a code": ({"size": [HEIGHT, WIDTH], "counts": "5o"}, "its run-length code is malformed"),
    "a huge size": ({"size": [10**7, 10**7], "counts": [0, 10**14]}, "its run-length code has the size [10000000, "),
}


@pytest.mark.parametrize("fault", MISREAD)
def test_what_pycocotools_would_misread_or_take_all_memory_for_is_not_given_to_it(tmp_path, blames, monkeypatch, fault):
    value, reason = MISREAD[fault]
    edit(made.coco_plain(tmp_path), segmentation(value))
    message = f"{tmp_path}/{TRAIN}: annotation 101 of {FIRST}: expected a mask of 64 × 48 pixels ({reason}"
    for place in (import_coco_utils().mask_utils, pycocotools.mask):  # FiftyOne has its own copies of the functions
        for name in ("frPyObjects", "decode"):
            monkeypatch.setattr(place, name, refuse(getattr(place, name), value))
    fails(tmp_path, message)
    blames("coco", tmp_path, message)


def refuse(function, value):
    """`function`, but the test fails before it is given `value`, which may take all memory."""
    inner = repr(value).removeprefix("[[").removesuffix("]]")  # FiftyOne repeats four numbers; NaN != NaN

    def guarded(segmentation, *size):
        if inner in repr(segmentation):
            pytest.fail(f"{function.__name__} was given {value!r}")
        return function(segmentation, *size)

    return guarded


def test_polygons_may_end_outside_of_the_image(tmp_path, check):
    edit(made.coco_plain(tmp_path), segmentation([[-60.0, -40.0, 120.0, -40.0, 120.0, 90.0, -60.0, 90.0]]))
    np.testing.assert_array_equal(label_maps(tmp_path)[1], drawn((1, 0, 0, 64, 48), (2, 15, 5, 45, 40)))
    assert check("coco", tmp_path)[1][-1] == "nothing is wrong with 9 images"


@pytest.mark.parametrize("size", [1, 16])
def test_compressed_codes_are_drawn(tmp_path, check, size):
    """Of noise, whose code has many runs, and of blocks, whose runs are long and differ much."""
    noise = np.random.default_rng(0).random((HEIGHT // size, WIDTH // size)) < 0.5
    wanted = np.kron(noise, np.ones((size, size))).astype(np.uint8)
    code = pycocotools.mask.encode(np.asfortranarray(wanted))
    code["counts"] = code["counts"].decode()
    edit(made.coco_plain(tmp_path), lambda content: content["annotations"][6].update(segmentation=code))
    np.testing.assert_array_equal(label_maps(tmp_path)[4], wanted)
    assert check("coco", tmp_path)[1][-1] == "nothing is wrong with 9 images"


def test_a_size_written_with_a_fraction_of_zero_is_a_size(tmp_path, check):
    edit(made.coco_plain(tmp_path), lambda content: content["images"][-1].update(width=64.0, height=48.0))
    assert len(module(tmp_path).splits.train) == 6
    assert check("coco", tmp_path)[1][-1] == "nothing is wrong with 9 images"


@pytest.mark.parametrize("value", [None, "64", 64.5, 0, -64, True, math.nan, math.inf])
def test_what_is_no_size_is_named_with_its_image(tmp_path, blames, value):
    edit(made.coco_plain(tmp_path), lambda content: content["images"][-1].update(width=value))
    expected = f"expected a width in whole pixels by {tmp_path}/{TRAIN}, found {value!r}"
    fails(tmp_path, f"{tmp_path}/train2017/{FIRST}: {expected}")
    blames("coco", tmp_path, f"{tmp_path}/train2017/{FIRST}: {expected}")


def test_a_size_that_is_not_the_images_is_not_drawn(tmp_path, blames):
    edit(made.coco_plain(tmp_path), lambda content: content["images"][-1].update(width=10**5))
    message = f"{tmp_path}/train2017/{FIRST}: expected {10**5} × 48 pixels by "
    fails(tmp_path, message)
    assert len(blames("coco", tmp_path, message)) == 5  # nothing about its masks
