"""Models as safetensors files: weights, and as JSON in the metadata what builds the model they belong to.

The metadata's only key is `implicit-slate`: `{"format": 1, "class": "SLATE", "arguments": {…}, "step": 8000}`, with all
arguments of the constructor, so that a later change of a default changes no model that was saved. Nothing in a file is
run: its class is looked up among those that have been imported already.
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
    """A model that comes with the project, by its name, or the one in a file of `implicit-slate export`.

    It is in evaluation mode and on the CPU. `implicit_slate/pretrained/README.md` says what there is: models with
    slots, and discrete VAEs, which `fit --model.dvae_checkpoint` takes by name, too.

    Raises:
        UserError: an unknown name, a file that is not there, is damaged or of something else; names the file.
    """
    path = _find(name)
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get(KEY, "null"))
            weights = {weight: file.get_tensor(weight) for weight in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, ValueError) as error:
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
        settings: those with which the model was made; what is not an argument of its constructor is left out.
        step: gradient steps of its training.

    Raises:
        UserError: an argument that JSON does not have, such as another model.
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
    """`kind(**settings)`; `UserError` names the file `path` if these are not settings of the class as it is now."""
    try:
        return kind(**settings)
    except (TypeError, ValueError, RuntimeError) as error:  # unknown settings, impossible ones
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: not a checkpoint of {kind.__name__} as it is now: {reason}") from None


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], path: str | os.PathLike) -> None:
    """Give `module` the weights that the file at `path` has for it.

    Raises:
        UserError: one of them is missing, is left over or has another shape; names file and weight.
    """
    own = module.state_dict()
    for name in [*own, *(name for name in weights if name not in own)]:
        here, there = (str(tuple(state[name].shape)) if name in state else "none" for state in (own, weights))
        if here != there:
            raise UserError(f"{path}: weights of another model: {name} has shape {there}, {here} expected")
    module.load_state_dict(weights)


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
