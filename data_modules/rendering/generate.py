"""Writes folders of rendered scenes in the layout of CLEVR-Mirror's authors: the command `implicit-slate data render`.

    OUT/images/CLEVR_new_<10 digits>.png   RGB
    OUT/masks/CLEVR_new_<10 digits>.png    8-bit, one channel: 0 = background or mirror, i = the i-th object
    OUT/scenes/CLEVR_new_<10 digits>.json  the scene, sufficient to render it again
    OUT/render.json                        the settings; a second run into OUT must have the same, and the same scenes

A scene depends only on the seed and its name, so the number of workers does not matter, and a stopped run can be
continued.
"""

import argparse
import io
import json
import multiprocessing
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from data_modules.processes import num_cores
from data_modules.progress import track
from data_modules.rendering import render
from data_modules.rendering.mitsuba_scene import load_mitsuba
from data_modules.rendering.scenes import Scene, check_can_be_rendered, name_scene, read_scene
from implicit_slate.errors import ArgumentParser, UserError, positive, seed
from implicit_slate.files import read_json, write_atomically
from implicit_slate.processes import end_with_parent

DEFAULT_SAMPLES = 96
MIN_SIZE = 16  # below this, objects would be smaller than a pixel
EXAMPLES = """implicit-slate data render --scenes 200 --size 64 --out scenes
implicit-slate data render --scenes 10000 --size 96 --out data/clevr_mirror
implicit-slate data render --from-scenes scenes/scenes --out again --no-mirror"""


def main(argv: Sequence[str]) -> int:
    """`implicit-slate data render`: exit status 0, 1 if a worker was killed, or UserError on bad input."""
    args = parser().parse_args(argv)
    if args.size < MIN_SIZE:
        raise UserError(f"--size {args.size}: objects would be smaller than a pixel; at least {MIN_SIZE}")
    if (possible := render.possible_samples(args.samples)) != args.samples:
        reason = f"a picture has {render.PASSES} passes, each with a grid of samples in a pixel"
        raise UserError(f"--samples {args.samples}: {reason}; the next possible number is {possible}")

    if args.from_scenes is not None:
        given, source = read_scenes(args.from_scenes), "given"
    else:
        given, source = {f"CLEVR_new_{index:010d}": index for index in range(args.scenes)}, "sampled"
    load_mitsuba()  # so that a missing Mitsuba is reported once, not by each worker
    settings = {"seed": args.seed, "size": args.size, "samples": args.samples, "mirror": args.mirror}
    _claim_folder(args.out, {"scenes": source} | settings)
    if args.from_scenes is not None:
        _check_same_scenes(args.out, given, args.from_scenes, args.size, args.mirror)
    waiting = {stem: scene for stem, scene in given.items() if not _is_whole(args.out, stem)}
    work = partial(render_to_files, out=args.out, **settings)
    results = _results(work, waiting, args.workers)
    try:
        for _ in track(results, "render", len(given), len(given) - len(waiting), "scenes"):
            pass
    except BrokenProcessPool:
        reason = "a worker was killed, perhaps for want of memory (fewer --workers need less)"
        print(f"implicit-slate: {args.out}: {reason}; the same command continues", file=sys.stderr)
        return 1
    print(f"{len(given)} scenes in {args.out}")
    return 0


def parser() -> ArgumentParser:
    parser = ArgumentParser("implicit-slate data render", "Render CLEVR-Mirror-like scenes.", EXAMPLES)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--scenes", type=positive, metavar="N", help="number of scenes to make")
    what.add_argument("--from-scenes", type=Path, metavar="DIR", help="render the scene files in DIR instead")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder, or one to continue")
    parser.add_argument("--size", type=positive, default=64, help="side of the pictures in pixels (64)")
    parser.add_argument("--mirror", action=argparse.BooleanOptionalAction, default=True, help="with the mirror (yes)")
    samples = f"samples per pixel, in {render.PASSES} passes ({DEFAULT_SAMPLES})"
    parser.add_argument("--samples", type=positive, default=DEFAULT_SAMPLES, help=samples)
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument("--workers", type=positive, default=num_cores(), help="processes (one per core)")
    return parser


def render_to_files(
    stem: str, scene_or_index: Scene | int, out: Path, size: int, mirror: bool, samples: int, seed: int
) -> None:
    """Renders one scene, given or (for an index) sampled from the seed, and writes its three files, the image last."""
    mi = load_mitsuba()
    rng = np.random.default_rng([seed, zlib.crc32(stem.encode())])
    noise_seed = int(rng.integers(2**30))
    if isinstance(scene_or_index, int):
        scene, mask = render.sample_visible_scene(mi, rng, size, mirror)
        scene = name_scene(scene, scene_or_index, size)
    else:
        scene = _as_written(scene_or_index, stem, size, mirror)
        mask = render.to_mask(render.render_labels(mi, scene, size))
    image = render.render_image(mi, scene, size, samples, noise_seed)
    write_atomically(out / "masks" / f"{stem}.png", to_png(mask))
    write_atomically(out / "scenes" / f"{stem}.json", json.dumps(scene, separators=(",", ":")))
    write_atomically(out / "images" / f"{stem}.png", to_png(image))


def to_png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def read_scenes(folder: Path) -> dict[str, Scene]:
    """The scenes of the files in `folder`, by stem. UserError names the file and what is wrong with it."""
    found = {path.stem: read_scene(path) for path in sorted(folder.glob("[!.]*.json"))}
    if not found:
        raise UserError(f"{folder}: expected scene files (*.json), found none")
    for stem, scene in found.items():
        check_can_be_rendered(scene, folder / f"{stem}.json")
    return found


def _claim_folder(out: Path, settings: dict) -> None:
    """Records the settings in a new folder. UserError if the folder was made with other settings or by other means."""
    note = out / "render.json"
    if note.exists():
        before = (read_json(note) or {}).get("settings")
        if not isinstance(before, dict):
            raise UserError(f"{note}: expected the settings of an earlier run; give another --out")
        for key, value in settings.items():
            if before.get(key) != value:
                raise UserError(f"{out}: was made with {key} = {before.get(key)}, not {value}; give another --out")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: not an empty folder, and not one that this command made; give another --out")
    else:
        import mitsuba

        versions = {"mitsuba": mitsuba.__version__, "numpy": np.__version__}
        write_atomically(note, json.dumps({"settings": settings, "versions": versions}, indent=1) + "\n")


def _as_written(given: Scene, stem: str, size: int, mirror: bool) -> Scene:
    scene = given if mirror else {**given, "mirror_x": None}
    return name_scene(scene, scene.get("image_index", 0), size) | {"image_filename": f"{stem}.png"}


def _check_same_scenes(out: Path, given: dict[str, Scene], folder: Path, size: int, mirror: bool) -> None:
    """UserError if `out` has a different scene under the name of a given one: its image would be taken as done."""
    for stem, scene in given.items():
        before = read_json(path := out / "scenes" / f"{stem}.json")
        if before is not None and before != _as_written(scene, stem, size, mirror):
            raise UserError(f"{path}: is not the same scene as {folder / path.name}; give another --out")


def _is_whole(out: Path, stem: str) -> bool:
    names = (f"images/{stem}.png", f"masks/{stem}.png", f"scenes/{stem}.json")
    return all((out / name).exists() for name in names)


def _results(work: Callable, waiting: dict, workers: int) -> Iterator[None]:
    """Calls work(stem, scene) for all waiting scenes, in any order, in processes that end with this one."""
    if workers == 1 or len(waiting) < 2:
        for item in waiting.items():
            yield work(*item)
        return
    # spawn, because a forked process inherits locks that other threads hold at that moment
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(waiting)), context, initializer=end_with_parent) as pool:
        try:
            for future in as_completed([pool.submit(work, *item) for item in waiting.items()]):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)
