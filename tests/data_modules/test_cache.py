"""Decoded images are kept, made anew when they must be, and never half there."""

import logging
import multiprocessing
import os
import pickle
import resource
import shutil
import time

import numpy as np
import pytest
import torch

from data_modules import CLEVRMirror, cache
from data_modules.sources import FileSource
from implicit_slate.errors import UserError
from tests.data_modules.made import clevr_mirror, grey, save


@pytest.fixture
def folder(tmp_path):
    return clevr_mirror(tmp_path / "data")


@pytest.fixture
def decoded(monkeypatch):
    """The files that were decoded, in this process."""
    files, decode = [], FileSource.decode

    def noting(source, piece):
        files.extend(item.image for item in piece)
        return decode(source, piece)

    monkeypatch.setattr(FileSource, "decode", noting)
    return files


def module(root, **options) -> CLEVRMirror:
    made = CLEVRMirror(root, **{"image_size": 16, "batch_size": 4} | options)
    made.setup()
    return made


def entries(root) -> list[str]:
    return sorted(path.name for path in (root / ".decoded").iterdir() if path.name != "lock")


def first_grey(data) -> int:
    return round(float(data.splits.train[[0]]["image"].mean() * 255))


def touch_later(path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def test_images_are_decoded_once(folder, decoded):
    first = module(folder)
    assert len(decoded) == 20
    again = module(folder)
    assert len(decoded) == 20
    for mine, other in zip(first.splits, again.splits):
        everything = list(range(len(mine)))
        assert torch.equal(mine[everything]["image"], other[everything]["image"])
        assert torch.equal(mine[everything]["mask"], other[everything]["mask"])


def test_lightning_decodes_in_prepare_data(folder, decoded):
    CLEVRMirror(folder, 16).prepare_data()
    assert len(decoded) == 20


def test_a_changed_file_is_decoded_anew_and_replaces_what_was_kept(folder, decoded):
    assert first_grey(module(folder)) == 0
    before = entries(folder)
    save(folder / "images" / "CLEVR_new_0000000000.png", grey(77, 32, 32))
    assert first_grey(module(folder)) == 77
    assert len(decoded) == 20 + 14  # the validation and the test split are as they were
    assert len(entries(folder)) == len(before) == 3 and len(set(entries(folder)) - set(before)) == 1


@pytest.mark.parametrize("what", ["images", "masks"])
def test_a_later_time_means_a_changed_file(folder, decoded, what):
    module(folder)
    touch_later(folder / what / "CLEVR_new_0000000015.png")
    module(folder)
    assert len(decoded) == 20 + 3


def test_new_files_are_noticed(folder):
    assert len(module(folder).splits.train) == 14
    clevr_mirror(folder, 40)
    assert len(module(folder).splits.train) == 28 and len(entries(folder)) == 3


def test_masks_that_come_later_are_noticed(tmp_path):
    clevr_mirror(tmp_path, masks=False)
    assert set(module(tmp_path).splits.val[[0]]) == {"image"}
    clevr_mirror(tmp_path)
    assert set(module(tmp_path).splits.val[[0]]) == {"image", "mask"}


def test_sizes_are_kept_beside_one_another(folder, decoded):
    assert module(folder, image_size=16).probe(1)["image"].shape[-1] == 16
    assert module(folder, image_size=8).probe(1)["image"].shape[-1] == 8
    assert len(entries(folder)) == 6
    module(folder, image_size=16)
    assert len(decoded) == 40


def test_another_way_of_decoding_is_noticed(folder, decoded, monkeypatch):
    module(folder)
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    module(folder)
    assert len(decoded) == 40


def test_a_data_set_moves_with_its_cache(folder, decoded):
    module(folder)
    module(folder.rename(folder.with_name("moved")))
    assert len(decoded) == 20


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
    """A limit on the size of files stands for the disk: the system fails the write in the same way."""
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
    class Interrupted:
        def __enter__(self):
            def advance(count):
                raise KeyboardInterrupt

            return advance

        def __exit__(self, *_):
            pass

    with monkeypatch.context() as patch:
        patch.setattr(cache, "meter", lambda *_, **__: Interrupted())
        with pytest.raises(KeyboardInterrupt):
            module(folder)
    assert entries(folder) == []


def test_a_damaged_image_leaves_nothing(folder):
    path = folder / "images" / "CLEVR_new_0000000003.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match=f"{path}: expected an image file that can be decoded"):
        module(folder)
    assert entries(folder) == []


def test_what_a_killed_process_left_is_removed(folder):
    left = folder / ".decoded" / ".new-killed"
    left.mkdir(parents=True)
    (left / "images.npy").write_bytes(b"half")
    module(folder)
    assert not left.exists() and len(entries(folder)) == 3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("images.npy", None),
        *((name, content) for name in ("images.npy", "masks.npy") for content in (b"", b"x", "half")),
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
    """All begin at once and are slow; every file is decoded by one of them only."""
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
        time.sleep(0.2)
        with open(notes / str(os.getpid()), "a") as file:
            file.writelines(f"{item.image.name}\n" for item in piece)
        return decode(source, piece)

    FileSource.decode = slow
    assert first_grey(module(folder)) == 0


def test_a_pickle_holds_no_images(folder):
    images = module(folder).splits.val
    text = pickle.dumps(images)
    assert len(text) < 500
    batch, again = images[[2, 0]], pickle.loads(text)[[2, 0]]
    assert torch.equal(batch["image"], again["image"]) and torch.equal(batch["mask"], again["mask"])


def test_selected_rows(folder):
    images = module(folder).splits.train.select(np.array([5, 3, 8]))
    greys = [0, 10, 20, 30, 40, 50, 60, 70, 80]
    assert len(images) == 3
    for selected in (images, pickle.loads(pickle.dumps(images))):
        assert (selected[[2, 0]]["image"].mean((1, 2, 3)) * 255).round().tolist() == [greys[8], greys[5]]
    images.move_to(torch.device("cpu"))
    assert (images[[2, 0]]["image"].mean((1, 2, 3)) * 255).round().tolist() == [greys[8], greys[5]]
    assert len(images) == 3 and images[[0]]["mask"].max() == 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_on_device_gives_the_same_batches(folder, num_workers):
    batches = [
        next(iter(module(folder, seed=1, on_device=on_device, num_workers=num_workers).train_dataloader()))
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


def test_a_batch_holds_the_images_in_the_order_asked_for(folder):
    images = module(folder).splits.train
    order = torch.randperm(14).tolist()
    expected = torch.tensor([10.0 * i for i in order])
    assert torch.equal((images[order]["image"].mean((1, 2, 3)) * 255).round(), expected)
    assert images[order]["image"].is_contiguous() and images[order]["image"].dtype == torch.float32


def test_more_than_eight_bits_are_refused_and_not_clipped(folder):
    path = save(folder / "images" / "CLEVR_new_0000000004.png", np.full((32, 32), 40_000, np.uint16))
    with pytest.raises(UserError, match=f"{path}: expected 8 bits a channel, found more"):
        module(folder)
