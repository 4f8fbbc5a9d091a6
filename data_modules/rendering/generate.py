"""Writes folders of rendered scenes in the layout of CLEVR-Mirror's authors: the command `implicit-slate data render`.

    OUT/images/CLEVR_new_<10 digits>.png   RGB
    OUT/masks/CLEVR_new_<10 digits>.png    8-bit, one channel: 0 background and mirror, i the i-th object
    OUT/scenes/CLEVR_new_<10 digits>.json  the scene, enough to render it again
    OUT/render.json                        the settings, which a second run must share

A scene is a function of the seed and its name alone, so the number of workers does not matter, and a run that was
stopped goes on where it was.
"""

import argparse
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from data_modules.processes import process_pool
from data_modules.progress import track
from data_modules.rendering import render
from data_modules.rendering.mitsuba_scene import load_mitsuba
from data_modules.rendering.scenes import Scene, check_scene, name_scene
from implicit_slate.errors import ArgumentParser, UserError
from implicit_slate.files import write_atomically

DEFAULT_SAMPLES = 96


def main(argv: list[str] | None = None) -> int:
    """`implicit-slate data render`: exit status 0, or UserError on bad input."""
    parser = ArgumentParser(prog="implicit-slate data render", description="Render CLEVR-Mirror-like scenes.")
    parser.add_argument("--scenes", type=int, metavar="N", help="how many scenes to make")
    parser.add_argument("--from-scenes", type=Path, metavar="DIR", help="render the scene files in DIR instead")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to, or to go on with")
    parser.add_argument("--size", type=int, default=64, help="side of the pictures in pixels (64)")
    parser.add_argument("--mirror", action=argparse.BooleanOptionalAction, default=True, help="with the mirror (yes)")
    parser.add_argument("--samples", type=int, default=DEFAULT_SAMPLES, help=f"paths a pixel ({DEFAULT_SAMPLES})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (one a core)")
    args = parser.parse_args(argv)
    if (args.scenes is None) == (args.from_scenes is None):
        raise UserError("give either --scenes N or --from-scenes DIR")
    for option in ("scenes", "size", "samples", "workers"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise UserError(f"--{option} {value}: must be at least 1")
    if args.size < 16:
        raise UserError(f"--size {args.size}: objects would be smaller than a pixel; at least 16")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: must not be negative")

    if args.from_scenes is not None:
        given = read_scenes(args.from_scenes)
        source = "given"
    else:
        given = {f"CLEVR_new_{index:010d}": index for index in range(args.scenes)}
        source = "sampled"
    load_mitsuba()  # a missing one is reported here, and once
    _claim_folder(
        args.out,
        {"scenes": source, "seed": args.seed, "size": args.size, "samples": args.samples, "mirror": args.mirror},
    )
    waiting = {stem: scene for stem, scene in given.items() if not _is_whole(args.out, stem)}
    work = partial(
        render_to_files, out=args.out, size=args.size, mirror=args.mirror, samples=args.samples, seed=args.seed
    )
    for _ in track(_results(work, waiting, args.workers), "render", len(given), len(given) - len(waiting), "scenes"):
        pass
    print(f"{len(given)} scenes in {args.out}")
    return 0


def render_to_files(
    stem: str, scene_or_index: Scene | int, out: Path, size: int, mirror: bool, samples: int, seed: int
) -> None:
    """Renders one scene, given or (by its index) drawn from the seed, and writes its three files, the image last."""
    mi = load_mitsuba()
    rng = np.random.default_rng([seed, zlib.crc32(stem.encode())])
    noise_seed = int(rng.integers(2**30))
    if isinstance(scene_or_index, int):
        scene, mask = render.sample_visible_scene(mi, rng, size, mirror)
        scene = name_scene(scene, scene_or_index, size)
    else:
        scene = scene_or_index if mirror else {**scene_or_index, "mirror_x": None}
        scene = name_scene(scene, scene.get("image_index", 0), size) | {"image_filename": f"{stem}.png"}
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
    """The scene files in `folder`, by stem. UserError names the file and what is wrong with it."""
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise UserError(f"{folder}: expected scene files (*.json), found none")
    found = {}
    for path in paths:
        try:
            found[path.stem] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: not a readable scene file ({error})") from None
        check_scene(found[path.stem], path)
    return found


def _claim_folder(out: Path, settings: dict) -> None:
    """Notes the settings in a new folder; refuses one that was made with others, or by something else."""
    note = out / "render.json"
    if note.exists():
        try:
            before = json.loads(note.read_text())["settings"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{note}: expected the settings of an earlier run; give another --out") from None
        for key, value in settings.items():
            if before.get(key) != value:
                raise UserError(f"{out}: was made with {key} = {before.get(key)}, not {value}; give another --out")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: not an empty folder, and not one that this command made; give another --out")
    else:
        import mitsuba

        versions = {"mitsuba": mitsuba.__version__, "numpy": np.__version__}
        write_atomically(note, json.dumps({"settings": settings, "versions": versions}, indent=1) + "\n")


def _is_whole(out: Path, stem: str) -> bool:
    names = (f"images/{stem}.png", f"masks/{stem}.png", f"scenes/{stem}.json")
    return all((out / name).exists() for name in names)


def _results(work: Callable, waiting: dict, workers: int) -> Iterator[None]:
    """Calls work(stem, scene) for all that is waiting, in some order."""
    if workers == 1 or len(waiting) < 2:
        for item in waiting.items():
            yield work(*item)
        return
    # spawn: a fork of a process that has loaded Mitsuba inherits locks held by its threads
    with process_pool(min(workers, len(waiting)), "spawn") as pool:
        for future in as_completed([pool.submit(work, *item) for item in waiting.items()]):
            yield future.result()
