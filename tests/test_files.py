"""Files are complete or absent, and on the disk before anything relies on them."""

import os
from pathlib import Path

import pytest

from implicit_slate.errors import UserError
from implicit_slate.files import (
    check_writable,
    read_json,
    replace_durably,
    sweep,
    write_atomically,
    write_together,
)


def rename(path):
    (path.parent / ".a.json.part").write_text("{}")
    replace_durably(path.parent / ".a.json.part", path)


@pytest.mark.parametrize(
    "write", [lambda path: write_atomically(path, "{}"), lambda path: write_together({path: "{}"}), rename]
)
def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_folder_after(tmp_path, monkeypatch, write):
    order, descriptors = [], os.listdir("/proc/self/fd")
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda d: (order.append(os.readlink(f"/proc/self/fd/{d}")), fsync(d)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("rename"), replace(a, b)))
    write(tmp_path / "a.json")
    content, *after = order
    assert content.startswith(str(tmp_path / ".a.json.")) and after == ["rename", str(tmp_path)]
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o644 and os.listdir("/proc/self/fd") == descriptors


def test_text_may_hold_a_file_name_that_is_not_utf_8(tmp_path):
    write_atomically(tmp_path / "a.txt", os.fsdecode(b"\xff"))
    assert (tmp_path / "a.txt").read_bytes() == b"\xff"


def test_checking_a_folder_makes_it_and_leaves_it_empty(tmp_path):
    check_writable(tmp_path / "new" / "folder")
    assert not list((tmp_path / "new" / "folder").iterdir())


def test_a_write_that_fails_leaves_nothing_and_keeps_what_was_there(tmp_path, monkeypatch):
    write_atomically(tmp_path / "a.json", "old")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"a\.json: cannot be written \(No space left on device\)"):
        write_atomically(tmp_path / "a.json", "new")
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"] and (tmp_path / "a.json").read_text() == "old"


def test_of_files_that_belong_together_either_all_are_replaced_or_none(tmp_path, monkeypatch):
    files = [tmp_path / name for name in ("numbers.csv", "picture.png", "result.json")]
    write_together(dict.fromkeys(files, "old"))
    fsync, left = os.fsync, iter((True, False))

    def fills_up(descriptor):
        if not next(left):
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fills_up)
        with pytest.raises(UserError, match=r"picture\.png: cannot be written"):
            write_together(dict.fromkeys(files, "new"))
    assert {file: file.read_text() for file in tmp_path.iterdir()} == dict.fromkeys(files, "old")
    replace, beside = os.replace, []
    monkeypatch.setattr(os, "replace", lambda a, b: (beside.append(files[-1].exists()), replace(a, b)))
    write_together(dict.fromkeys(files, "new"))
    assert {file: file.read_text() for file in tmp_path.iterdir()} == dict.fromkeys(files, "new")
    assert not any(beside)  # what describes the others is gone before the first of them changes


@pytest.mark.parametrize(
    "content, expected",
    [('{"a": 1}', {"a": 1}), ("", None), ('{"a": ', None), ("[1]", None), ("[" * 100_000, None)],
    ids=["whole", "empty", "half", "a list", "deep"],
)
def test_a_torn_json_file_counts_as_absent(tmp_path, content, expected):
    (tmp_path / "a.json").write_text(content)
    assert read_json(tmp_path / "a.json") == expected
    assert read_json(tmp_path / "b.json") is None
    with pytest.raises(UserError, match="cannot be read"):
        read_json(tmp_path)


def test_sweeping_removes_unfinished_files_only(tmp_path, monkeypatch):
    keep = ["result.json", ".lock", ".claim", "events.out.tfevents.1", "panels/40.webp"]
    keep += [".x.y", ".notes.txt", ".cache.database", ".cache.d/a.txt", ".a.folder.abcd1234/a.txt"]  # somebody's own
    for name in [*keep, ".last.ckpt.part"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with monkeypatch.context() as killed:
        killed.setattr(os, "replace", lambda *paths: 1 / 0)
        killed.setattr(Path, "unlink", lambda path, **_: None)
        for name in ("result.json", "panels/40.webp", ".claim"):
            with pytest.raises(ZeroDivisionError):
                write_atomically(tmp_path / name, "")
    sweep(tmp_path, below=False)
    assert len(files(tmp_path)) == len(keep) + 1  # that below
    sweep(tmp_path)
    assert files(tmp_path) == set(keep)


def files(folder) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
