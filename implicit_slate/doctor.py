"""`implicit-slate doctor`: what this machine has for the project, what is missing, and how to fix it, one line each.

Exit status: 0 training works here, 1 something that every training needs is missing.
"""

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import psutil
from packaging.requirements import Requirement

from implicit_slate.errors import ArgumentParser, UserError

NAME = "implicit-slate"
FEW_GIGABYTES = 5
"""Warn if less disk space is free: checkpoints and caches of decoded images need more."""


class Finding(NamedTuple):
    state: str
    """`ok`; `-` if something optional is missing; `BAD` if something is missing that all training needs."""
    what: str
    remedy: str = ""


def parser() -> ArgumentParser:
    return ArgumentParser("implicit-slate doctor", __doc__, "implicit-slate doctor")


def main(argv: Sequence[str]) -> int:
    parser().parse_args(argv)
    broken = False
    for check in (python, packages, devices, precision, fid_weights, disk):
        for state, what, remedy in check():
            print(f"{state:<4}{what}" + (f" -> {remedy}" if remedy else ""), flush=True)
            broken |= state == "BAD"
        if broken:  # the remaining checks would fail because of it
            return 1
    return 0


def python() -> Iterator[Finding]:
    """The Python version and its environment."""
    required = Requirement(f"python{metadata.metadata(NAME)['Requires-Python']}").specifier
    found = sys.version.split()[0]
    bad = not required.contains(found, prereleases=True)
    yield Finding("BAD" if bad else "ok", f"Python {found}, {sys.prefix}", f"Python {required}" if bad else "")


def packages() -> Iterator[Finding]:
    """The packages that `pyproject.toml` requires: first the general ones, then those of each extra."""
    needed = [Requirement(line) for line in metadata.requires(NAME) or []]
    for extra in ("", *(metadata.metadata(NAME).get_all("Provides-Extra") or [])):
        of_it = [line for line in needed if (line.marker.evaluate({"extra": extra}) if line.marker else not extra)]
        wrong = [line for line in map(lacking, of_it) if line]
        what = f"extra {extra}" if extra else "packages"
        if wrong:
            remedy = f"make setup EXTRAS={extra}" if extra else "make setup"
            yield Finding("-" if extra else "BAD", f"{what}: {', '.join(wrong)}", remedy)
        else:
            names = [requirement.name for requirement in of_it[:3]]
            yield Finding("ok", f"{what}: {', '.join(f'{n} {metadata.version(n)}' for n in names)}"
                          + (f" and {len(of_it) - 3} more" if len(of_it) > 3 else ""))  # fmt: skip


def lacking(requirement: Requirement) -> str | None:
    """The problem with the installed package of a requirement; None if there is none."""
    try:
        found = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is missing"
    return None if requirement.specifier.contains(found, prereleases=True) else f"{requirement} needed, {found} is here"


def devices() -> Iterator[Finding]:
    """The cores, memory and GPUs that this process can use."""
    import torch

    from data_modules.processes import num_cores

    memory = psutil.virtual_memory()
    free, total = memory.available / 2**30, memory.total / 2**30
    yield Finding("ok", f"CPU: {num_cores()} cores, {free:.0f} of {total:.0f} GiB of memory free")
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        yield Finding("ok", f"GPU {index}: {device.name}, {device.total_memory / 2**30:.0f} GiB")
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        remedy = ""
        if shutil.which("nvidia-smi"):
            remedy = "there is a driver: see `nvidia-smi` and CUDA_VISIBLE_DEVICES, or install another build of torch"
        yield Finding("-", f"GPU: none; torch {torch.__version__} is {built}", remedy)


def precision() -> Iterator[Finding]:
    """The default floating-point precision of training."""
    from implicit_slate.training.precision import fastest_precision

    if (chosen := fastest_precision()) == "bf16-mixed":
        yield Finding("ok", "bfloat16: multiplied by the hardware; trainings use it")
    else:
        yield Finding("-", f"bfloat16: not multiplied by this hardware; trainings use {chosen}")


def fid_weights() -> Iterator[Finding]:
    from implicit_slate.metrics.inception import COMMAND, WeightsMissing, default_folder, find_weights, read_weights

    try:
        read_weights(path := find_weights())
        yield Finding("ok", f"FID weights: {path}")
    except WeightsMissing:
        yield Finding("-", f"FID weights: none in {default_folder()}; FID and KID need them", COMMAND)
    except UserError as damaged:
        yield Finding("-", f"FID weights: {damaged}", f"delete the file, then {COMMAND}")


def disk() -> Iterator[Finding]:
    """Free disk space for runs and for PyTorch's caches."""
    import torch

    for what, path in (("runs", Path("runs")), ("caches", Path(torch.hub.get_dir()))):
        while not path.exists():
            path = path.absolute().parent
        free = shutil.disk_usage(path).free / 1e9
        writable = os.access(path, os.W_OK)
        few = free < FEW_GIGABYTES
        remedy = "make room, or give --out on another disk" if few else ""
        if not writable:
            remedy = "may not be written to: change its permissions, or work in another folder"
        yield Finding("-" if remedy else "ok", f"disk for {what}: {free:.0f} GB free at {path.absolute()}", remedy)
