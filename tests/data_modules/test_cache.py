"""The cache of decoded images: kept, made again when necessary, and never incomplete."""

import logging
import multiprocessing
import os
import pickle
import resource
import shutil
import time
from functools import partial

import numpy as np
import pytest
import torch

from data_modules import CLEVRMirror, ImageFolder, cache
from data_modules.sources import FileSource
from implicit_slate.errors import UserError
from tests.data_modules.made import clevr_mirror, grey, loaded, save


@pytest.fixture
def folder(tmp_path):
    return clevr_mirror(tmp_path / "data")


@pytest.fixture
def decoded(monkeypatch):
    """The files decoded in this process."""
    files, decode = [], FileSource.decode

    def noting(source, piece):
        files.append(piece.image)
        return decode(source, piece)

    monkeypatch.setattr(FileSource, "decode", noting)
    return files


module = partial(loaded, CLEVRMirror, image_size=16, batch_size=4)


def entries(root) -> list[str]:
    return sorted(path.name for path in (root / ".decoded").iterdir() if path.name != "lock")


def first_grey(data) -> int:
    return round(float(data.splits.train[[0]]["image"].mean() * 255))


@pytest.mark.parametrize(
    ("kind", "inside"),
    [
        (CLEVRMirror, {}),
        (ImageFolder, {}),
        (ImageFolder, {"lists": "."}),
        (ImageFolder, {"lists": "good.txt", "masks": "labels"}),
    ],
)
def test_images_are_decoded_once_in_prepare_data_and_move_with_their_folder(folder, decoded, kind, inside):
    """Also with lists and masks inside the folder."""
    if kind is ImageFolder:
        (folder / "masks").rename(folder / "images" / "labels")
        folder = folder / "images"
        names = sorted(f"{path.name}\n" for path in folder.glob("*.png"))
        for name, listed in (("good", names), ("train", names[:14]), ("val", names[14:17]), ("test", names[17:])):
            (folder / f"{name}.txt").write_text("".join(listed))

    def at(root):
        return kind(root, 16, **{option: root / place for option, place in inside.items()})

    at(folder).prepare_data()
    splits, before = [], entries(folder)
    for root in (folder, folder.with_name("moved")):
        folder = folder.rename(root)
        data = at(root)
        data.setup()
        splits.append([part[list(range(len(part)))] for part in data.splits])
    assert len(decoded) == 20 and entries(folder) == before
    for mine, other in zip(*splits):
        assert mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)


def test_a_changed_file_is_decoded_anew_and_replaces_what_was_kept(folder, decoded):
    assert first_grey(module(folder)) == 0
    before = entries(folder)
    save(folder / "images" / "CLEVR_new_0000000000.png", grey(77, 32, 32))
    assert first_grey(module(folder)) == 77
    assert len(decoded) == 20 + 14  # the validation and test splits are unchanged
    assert len(entries(folder)) == len(before) == 3 and len(set(entries(folder)) - set(before)) == 1


@pytest.mark.parametrize("what", ["images", "masks"])
def test_a_later_time_means_a_changed_file(folder, decoded, what):
    module(folder)
    path = folder / what / "CLEVR_new_0000000015.png"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    module(folder)
    assert len(decoded) == 20 + 3


def test_new_files_are_noticed(tmp_path):
    clevr_mirror(tmp_path, masks=False)
    data = module(tmp_path)
    assert len(data.splits.train) == 14 and set(data.probe(1)) == {"image", "index"}
    clevr_mirror(tmp_path, 40)
    data = module(tmp_path)
    assert len(data.splits.train) == 28 and len(entries(tmp_path)) == 3 + 3  # including the old ones without masks
    assert set(data.probe(1)) == {"image", "index", "mask"}


def test_sizes_are_kept_beside_one_another_until_the_format_changes(folder, decoded, monkeypatch):
    for size in (16, 8, 16):
        assert module(folder, image_size=size).probe(1)["image"].shape[-1] == size
    assert len(entries(folder)) == 6 and len(decoded) == 40
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    module(folder)
    assert len(decoded) == 60 and len(entries(folder)) == 6  # entries of the older version were replaced


def test_entries_of_the_first_version_are_replaced(folder, decoded):
    source = CLEVRMirror(folder, 16).sources()["val"]
    old = folder / ".decoded" / f"val-16-{cache._hash([1, source, None])[:8]}-0123456789abcdef"
    old.mkdir(parents=True)
    module(folder)
    assert not old.exists()


def test_two_data_sets_keep_their_images_in_one_folder(tmp_path, decoded):
    one, other = clevr_mirror(tmp_path / "one"), clevr_mirror(tmp_path / "other")
    save(other / "images" / "CLEVR_new_0000000000.png", grey(77, 32, 32))
    for _ in range(2):
        assert [first_grey(module(root, cache_dir=tmp_path / "cache")) for root in (one, other)] == [0, 77]
    assert len(decoded) == 40


def test_kept_elsewhere(folder, tmp_path, decoded):
    for _ in range(2):
        module(folder, cache_dir=tmp_path / "a" / "b")
    assert len(decoded) == 20 and not (folder / ".decoded").exists() and (tmp_path / "a" / "b" / "lock").exists()


def test_a_folder_that_cannot_be_written(folder):
    (folder / ".decoded").write_text("in the way")
    with pytest.raises(UserError) as error:
        module(folder)
    assert str(error.value).startswith(f"{folder}/.decoded: decoded images cannot be kept there (")
    assert str(error.value).endswith("cache_dir names another folder") and "\n" not in str(error.value)


def test_a_full_disk_leaves_nothing(folder):
    """A limit on file size stands in for a full disk: both make writes fail."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(UserError, match=f"{folder}/.decoded: decoded images cannot be kept there"):
            module(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert entries(folder) == []
    assert len(module(folder).splits.train) == 14


def test_too_little_room_is_said_before_anything_is_decoded(folder, decoded, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 9000, 9000))
    with pytest.raises(UserError, match="No space left on device"):
        module(folder)
    assert decoded == [] and entries(folder) == []


def test_an_interruption_leaves_nothing(folder, monkeypatch):
    def interrupted(entry, values):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache._Appended, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        module(folder)
    assert entries(folder) == []


def test_what_a_killed_process_left_is_removed(folder):
    left = folder / ".decoded" / ".new-killed"
    left.mkdir(parents=True)
    (left / "images.npy").write_bytes(b"half")
    module(folder)
    assert not left.exists() and len(entries(folder)) == 3


UNCLOSED = b"\x93NUMPY\x01\x00\x10\x00{'descr': ('|u1',"  # a header for which numpy raises tokenize.TokenError


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((name, content) for name in ("images.npy", "masks.npy") for content in (None, b"", b"x", "half", UNCLOSED)),
        *(("entry.json", content) for content in (None, b"", b"[]", b"{}")),
    ],
)
def test_a_damaged_entry_is_made_anew(folder, decoded, caplog, name, content):
    module(folder)
    (path,) = (folder / ".decoded").glob(f"val-*/{name}")
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content == "half" else content)
    with caplog.at_level(logging.INFO):
        data = module(folder)
    assert f"{path.parent}: is damaged; its images are decoded anew" in caplog.text
    assert len(decoded) == 20 + 3 and len(entries(folder)) == 3
    assert data.splits.val[[0, 1, 2]]["mask"].max() == 1


def test_of_several_processes_one_decodes(folder, tmp_path):
    """All start at once and are slow; every file is decoded by only one of them."""
    notes = tmp_path / "notes"
    notes.mkdir()
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_slow, args=(folder, notes)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sum(len(path.read_text().split()) for path in notes.iterdir()) == 20


def _slow(folder, notes) -> None:
    decode = FileSource.decode

    def slow(source, piece):
        time.sleep(0.02)
        with open(notes / str(os.getpid()), "a") as file:
            file.write(f"{piece.image.name}\n")
        return decode(source, piece)

    FileSource.decode = slow
    assert first_grey(module(folder)) == 0


def test_a_selection_of_images_counts_them_from_0(folder):
    mapped, in_memory = (module(folder).splits.train.select(np.array([5, 3, 8])) for _ in range(2))
    assert len(pickle.dumps(mapped)) < 500  # contains no images
    in_memory.move_to(torch.device("cpu"))
    for images in (mapped, pickle.loads(pickle.dumps(mapped)), in_memory):
        batch = images[[2, 0]]
        assert len(images) == 3 and batch["index"].tolist() == [2, 0] and batch["mask"].amax((1, 2)).tolist() == [1, 1]
        assert (batch["image"].mean((1, 2, 3)) * 255).round().tolist() == [80, 50]  # image i has the grey value 10 i


def test_on_device_gives_the_same_batches(folder):
    batches = [
        next(iter(module(folder, seed=1, on_device=on_device, num_workers=2).train_dataloader()))
        for on_device in (False, True)
    ]
    assert torch.equal(batches[0]["image"], batches[1]["image"])
    assert torch.equal(batches[0]["mask"], batches[1]["mask"])


def test_grey_and_transparent_images_are_converted_and_said_once(folder, caplog):
    pixels = np.full((32, 32), 90, np.uint8)
    path = save(folder / "images" / "CLEVR_new_0000000000.png", pixels)
    save(folder / "images" / "CLEVR_new_0000000001.png", np.stack([pixels, pixels // 2, pixels // 3, pixels], -1))
    save(folder / "images" / "CLEVR_new_0000000002.png", pixels)
    with caplog.at_level(logging.INFO):
        data = module(folder)
        module(folder)
    assert [record.message for record in caplog.records] == [
        f"{path}: not an RGB image; converted, like all such images of train (2 L, 1 RGBA)"
    ]
    assert (data.splits.train[[0, 1]]["image"].mean((2, 3)) * 255).round().tolist() == [[90, 90, 90], [90, 45, 30]]
