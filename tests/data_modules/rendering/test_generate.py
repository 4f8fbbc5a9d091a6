"""Rendering whole folders: independent of the number of workers, resumable, and never overwriting."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from data_modules.rendering import generate, tools
from data_modules.rendering.generate import main
from implicit_slate.errors import UserError

TINY = ("--size", "16", "--samples", "6", "--seed", "3")


def contents(folder) -> dict[str, bytes]:
    """The content of every file, by path, without files left by loading the folder."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if not name.startswith(".decoded/")}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    out = tmp_path_factory.mktemp("rendered") / "out"
    assert main(["--scenes", "4", "--out", str(out), "--workers", "1", *TINY]) == 0
    return out


def test_layout(rendered):
    stems, files = [f"CLEVR_new_{index:010d}" for index in range(4)], contents(rendered)
    kinds = {"images": "png", "masks": "png", "scenes": "json"}
    assert set(files) == {"render.json"} | {f"{kind}/{stem}.{kinds[kind]}" for stem in stems for kind in kinds}
    assert len({files[f"images/{stem}.png"] for stem in stems}) == 4
    for stem in stems:
        scene = json.loads(files[f"scenes/{stem}.json"])
        assert list(scene) == ["split", "image_index", "image_filename", "objects", "directions", "camera", "lamps",
                               "mirror_x"]  # fmt: skip
        assert list(scene["objects"][0]) == ["shape", "size", "material", "color", "rotation", "3d_coords",
                                             "pixel_coords"]  # fmt: skip
        image, mask = (Image.open(rendered / kind / f"{stem}.png") for kind in ("images", "masks"))
        assert (image.size, image.mode, mask.size, mask.mode) == ((16, 16), "RGB", (16, 16), "L")
        assert sorted(np.unique(mask)) == list(range(len(scene["objects"]) + 1))
        assert 20 < np.asarray(image).mean() < 160


def test_the_number_of_workers_does_not_matter(rendered, tmp_path):
    assert main(["--scenes", "4", "--out", str(tmp_path / "two"), "--workers", "2", *TINY]) == 0
    assert contents(tmp_path / "two") == contents(rendered)


def test_a_stopped_run_goes_on(rendered, tmp_path):
    out = tmp_path / "out"
    main(["--scenes", "2", "--out", str(out), "--workers", "1", *TINY])
    first = out / "images" / "CLEVR_new_0000000000.png"
    written = first.stat().st_mtime_ns
    (out / "images" / "CLEVR_new_0000000001.png").unlink()  # as if rendering had been stopped there
    main(["--scenes", "4", "--out", str(out), "--workers", "1", *TINY])
    assert contents(out) == contents(rendered)
    assert first.stat().st_mtime_ns == written


def test_given_scenes_are_rendered_as_they_are(rendered, tmp_path):
    out = tmp_path / "again"
    main(["--from-scenes", str(rendered / "scenes"), "--out", str(out), "--workers", "1", *TINY])
    again, before = contents(out), contents(rendered)
    for name in before:
        if name.startswith(("masks/", "scenes/", "images/")):
            assert again[name] == before[name], name


def test_other_given_scenes_of_the_same_names_are_refused(rendered, tmp_path):
    given, out, stems = tmp_path / "given", tmp_path / "out", [f"CLEVR_new_{index:010d}" for index in range(2)]
    given.mkdir()
    for stem in stems:
        shutil.copy(rendered / "scenes" / f"{stem}.json", given)
    command = ["--from-scenes", str(given), "--out", str(out), "--workers", "1", *TINY]
    main(command)
    before = contents(out)
    (out / "images" / f"{stems[0]}.png").unlink()  # as if rendering had been stopped there
    main(command)
    assert contents(out) == before
    scene = json.loads((given / f"{stems[1]}.json").read_text())
    scene["objects"][0]["3d_coords"][0] += 0.5
    (given / f"{stems[1]}.json").write_text(json.dumps(scene))
    message = f"{out}/scenes/{stems[1]}.json: is not the same scene as {given}/{stems[1]}.json; give another --out"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        main(command)
    assert contents(out) == before


def test_without_mirror(tmp_path):
    main(["--scenes", "1", "--out", str(tmp_path / "out"), "--no-mirror", "--workers", "1", *TINY])
    assert json.loads((tmp_path / "out" / "scenes" / "CLEVR_new_0000000000.json").read_text())["mirror_x"] is None


def test_maintainers_tools(rendered, tmp_path, capsys):
    for name in ("a.zip", "b.zip"):
        tools.pack(rendered, tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    tools.card(tmp_path / "a.zip", tmp_path / "card.jpg")
    assert "| scenes | 4 |" in capsys.readouterr().out
    assert Image.open(tmp_path / "card.jpg").size == (12 * 128, 2 * 128)  # one column per scene, the last 8 empty


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "4"], "was made with seed = 3, not 4"),
        (["--size", "32"], "was made with size = 16, not 32"),
        (["--no-mirror"], "was made with mirror = True, not False"),
    ],
)
def test_a_folder_of_other_settings_is_left_alone(rendered, arguments, message):
    before = contents(rendered)
    with pytest.raises(UserError, match=message):
        main(["--scenes", "6", "--out", str(rendered), "--workers", "1", *TINY, *arguments])
    assert contents(rendered) == before


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("words")
    with pytest.raises(UserError, match=f"{tmp_path}: not an empty folder"):
        main(["--scenes", "1", "--out", str(tmp_path), *TINY])
    assert list(contents(tmp_path)) == ["thesis.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of the arguments --scenes --from-scenes is required"),
        (["--scenes", "1", "--from-scenes", "x"], "--from-scenes: not allowed with argument --scenes"),
        (["--scenes", "0"], "--scenes: expected a positive number, got '0'"),
        (["--scenes", "1", "--size", "8"], "--size 8: .*at least 16"),
        (["--scenes", "1", "--samples", "100"], "--samples 100: .*; the next possible number is 120"),
        (["--scenes", "1", "--seed", "-1"], "--seed: expected a whole number from 0 to 4294967295, got '-1'"),
        (["--from-scenes", "nowhere"], "nowhere: expected scene files"),
        (["--from-scenes", "{}"], "a.json: expected a scene in JSON"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    (tmp_path / "a.json").write_text('{"objects": ')
    with pytest.raises(UserError, match=message):
        main(["--out", str(tmp_path / "out"), *(word.format(tmp_path) for word in arguments)])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_full_disk_is_one_line_and_no_half_file(rendered, tmp_path, workers):
    """A limit on file size stands in for a full disk: both make writes fail."""
    out = tmp_path / "out"
    limit = 500  # bytes: enough for a mask, too little for a scene file
    program = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        "from implicit_slate.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = ["data", "render", "--scenes", "4", "--out", str(out), "--workers", str(workers), *TINY]
    done = subprocess.run([sys.executable, "-c", program, *command], capture_output=True, text=True)
    assert done.returncode == 2
    assert re.fullmatch(f"implicit-slate: {out}/scenes/.*json: cannot be written \\(File too large\\)\n", done.stderr)
    written, whole = contents(out), contents(rendered)
    assert written and all(whole[name] == data for name, data in written.items())
    assert main(command[2:]) == 0  # once there is space, it continues
    assert contents(out) == whole


def killed(*_, **__) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_one_line_and_the_same_command_goes_on(rendered, tmp_path, capsys, monkeypatch):
    command = ["--scenes", "4", "--out", str(tmp_path / "out"), *TINY]
    with monkeypatch.context() as patch:
        patch.setattr(generate, "render_to_files", killed)
        assert main([*command, "--workers", "2"]) == 1
    *_, last = capsys.readouterr().err.splitlines()
    assert last == (
        f"implicit-slate: {tmp_path}/out: a worker was killed, perhaps for want of memory (fewer --workers need less); "
        "the same command continues"
    )
    assert main([*command, "--workers", "1"]) == 0
    assert contents(tmp_path / "out") == contents(rendered)


def test_missing_mitsuba_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mitsuba", None)
    with pytest.raises(UserError, match="extra 'render'"):
        main(["--scenes", "1", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
