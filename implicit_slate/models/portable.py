"""Models as safetensors files: the weights, and in the metadata, as JSON, how to build the model.

The metadata's only key is `implicit-slate`: `{"format": 1, "class": "SLATE", "arguments": {…}, "step": 8000}`. It has
all arguments of the constructor, so later changes of defaults do not affect saved models. No code of a file is run: its
class is looked up among those already imported.
"""

import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from implicit_slate.errors import UserError, nearest
from implicit_slate.models.dvae import DiscreteVAE
from implicit_slate.models.slot_model import SlotModel

SUFFIX = ".safetensors"
FOLDER = Path(__file__).parents[1] / "pretrained"
"""The models that come with the project; its README.md describes them."""
KEY, FORMAT = "implicit-slate", 1


def load_pretrained(name: str | os.PathLike) -> SlotModel | DiscreteVAE:
    """Load a model that comes with the project, by name, or from a file written by `implicit-slate export`.

    The model is in evaluation mode and on the CPU. `implicit_slate/pretrained/README.md` lists what comes with the
    project: models with slots, and discrete VAEs, whose names `fit --model.dvae_checkpoint` accepts, too.

    Raises:
        UserError: an unknown name, or a file that is missing, damaged or not such a model; names the file.
    """
    path = _find(name)
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get(KEY, "null"))
            weights = {weight: file.get_tensor(weight) for weight in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        remedy = "; `implicit-slate export` makes one of a checkpoint" if path.suffix == ".ckpt" else ""
        raise UserError(f"{path}: not a safetensors file, or a damaged one ({reason}){remedy}") from None
    if not isinstance(facts, dict):
        raise UserError(f"{path}: not written by `implicit-slate export`")
    if facts.get("format") != FORMAT:
        raise UserError(f"{path}: has format {facts.get('format')!r}; this version reads format {FORMAT}")
    kinds = {kind.__name__: kind for kind in (DiscreteVAE, *_descendants(SlotModel))}
    kind = kinds.get(str(facts.get("class")))
    if kind is None:
        raise UserError(f"{path}: holds a {facts.get('class')}, which is not imported; known: {', '.join(kinds)}")
    model = build(kind, facts.get("arguments"), path)
    load_weights(model, weights, path)
    return model.eval()


def to_safetensors(model: nn.Module, settings: Mapping[str, Any], step: int | None) -> bytes:
    """The content of a file for `load_pretrained`.

    Args:
        settings: those with which the model was made; any that its constructor does not have are left out.
        step: gradient steps of its training.

    Raises:
        UserError: an argument that cannot be written as JSON, such as another model.
    """
    parameters = inspect.signature(type(model)).parameters
    arguments = {name: settings.get(name, parameter.default) for name, parameter in parameters.items()}
    facts = {"format": FORMAT, "class": type(model).__name__, "arguments": arguments, "step": step}
    try:
        metadata = {KEY: json.dumps(facts)}
    except TypeError:
        raise UserError(f"a {type(model).__name__} is not made of plain numbers and words alone") from None
    return save({name: weight.contiguous() for name, weight in model.state_dict().items()}, metadata)


def build(kind: type, settings: Any, path: str | os.PathLike) -> Any:
    """`kind(**settings)`; raises `UserError`, naming the file `path`, if the class does not accept these settings."""
    try:
        return kind(**settings)
    except (TypeError, ValueError, RuntimeError) as error:  # unknown or impossible settings
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: not a checkpoint of {kind.__name__} as it is now: {reason}") from None


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], path: str | os.PathLike) -> None:
    """Load `weights`, which come from the file at `path`, into `module`.

    Raises:
        UserError: a weight is missing, unexpected, of another shape or not finite; names file and weight.
    """
    own = module.state_dict()
    for name in [*own, *(name for name in weights if name not in own)]:
        here, there = (_shape(state.get(name)) for state in (own, weights))
        if here != there:
            raise UserError(f"{path}: weights of another model: {name} has shape {there}, {here} expected")
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise UserError(f"{path}: a diverged training: {name} is not finite")
    module.load_state_dict(weights)


def _shape(weight: Any) -> str:
    return str(tuple(weight.shape)) if isinstance(weight, Tensor) else "none"


def _find(name: str | os.PathLike) -> Path:
    shipped = {file.stem: file for file in sorted(FOLDER.glob(f"*{SUFFIX}"))}
    path = shipped.get(str(name), Path(name))
    if path.is_file():
        return path
    if path.suffix or len(path.parts) > 1:
        raise UserError(f"{name}: no such file")
    raise UserError(f"{name}: no pretrained model of this name{nearest(str(name), shipped)}")


def _descendants(kind: type) -> list[type]:
    children: list[type] = kind.__subclasses__()
    return children + [found for child in children for found in _descendants(child)]
