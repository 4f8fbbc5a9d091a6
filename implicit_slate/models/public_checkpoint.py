"""Import of checkpoints of the public SLATE code."""

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from implicit_slate.errors import UserError
from implicit_slate.models.slate import SLATE

_NAMES = {  # replacements in public names, made in this order
    r"^dvae\.(encoder|decoder)\.(\d+)\.m\.": r"dvae.\1.\2.0.",
    r"^positional_encoder\.pe$": "positions",
    r"^dictionary\.dictionary\.": "dictionary.",
    r"^slot_attn\.slot_(mu|log_sigma)$": r"slot_attention.slot_\1",
    r"^slot_attn\.layer_norm\.": "slot_encoder.0.",
    r"^slot_attn\.mlp\.": "slot_encoder.1.",
    r"^slot_attn\.slot_attention\.": "slot_attention.",
    r"^slot_proj\.": "slot_projection.",
    r"^tf_dec\.layer_norm\.": "transformer.norm.",
    r"^tf_dec\.blocks\.(\d+)\.": r"transformer.blocks.\1.",
    r"\.self_attn_layer_norm\.": ".norm_self.",
    r"\.encoder_decoder_attn_layer_norm\.": ".norm_cross.",
    r"\.ffn_layer_norm\.": ".norm_ffn.",
    r"\.self_attn\.proj_": ".self_attention.project_",
    r"\.encoder_decoder_attn\.proj_": ".cross_attention.project_",
    r"\.project_o\.": ".project_out.",
    r"^out\.": "to_logits.",
}


def rename(public_name: str, state: Mapping[str, Tensor]) -> str | None:
    """Our name of a public parameter; None for masks. The names in `state` tell conv blocks from convolutions."""
    if public_name.endswith("self_attn_mask"):
        return None
    block = re.fullmatch(r"(dvae\.(?:encoder|decoder)\.\d+)\.(weight|bias)", public_name)
    if block:  # a block has its GroupNorm's parameters under its own name, those of its convolution under `m`
        return f"{block[1]}.1.{block[2]}" if f"{block[1]}.m.weight" in state else public_name
    name = public_name
    for pattern, replacement in _NAMES.items():
        name = re.sub(pattern, replacement, name)
    if name == public_name:
        raise UserError(f"not a parameter of the public SLATE: {public_name!r}")
    return name


def load_public_checkpoint(
    source: str | os.PathLike | Mapping[str, Tensor],
    num_slots: int,
    num_iterations: int,
    num_slot_heads: int,
    num_heads: int,
    gradient: str = "implicit",
    dropout: float = 0.1,
) -> SLATE:
    """A SLATE in evaluation mode with weights trained by the public code.

    Args:
        source: a file, or a state dict with the public names, either directly or under the key `model`.
        num_slots, num_iterations, num_slot_heads, num_heads, dropout: settings that the weights do not show; they
            must be those of the training.
        gradient: the gradient mode of the returned model.

    Raises:
        UserError: a file that cannot be read, or names or shapes that are not the public model's.
    """
    return load_public_state(
        source, num_slots=num_slots, num_iterations=num_iterations, num_slot_heads=num_slot_heads, num_heads=num_heads,
        gradient=gradient, dropout=dropout,
    )[0]  # fmt: skip


def load_public_state(source: str | os.PathLike | Mapping[str, Tensor], **given: Any) -> tuple[SLATE, dict[str, Any]]:
    """The model of `load_public_checkpoint`, and all constructor arguments of this model; for `given` see there."""
    where = "state dict" if isinstance(source, Mapping) else str(source)
    state: Mapping[str, Any] = source if isinstance(source, Mapping) else _read(Path(source))
    state = state.get("model", state)
    try:
        renamed = {ours: tensor for name, tensor in state.items() if (ours := rename(name, state))}
        side = math.isqrt(renamed["positions"].shape[1] - 1)
        settings: dict[str, Any] = dict(
            image_size=4 * side,
            image_channels=renamed["dvae.encoder.0.0.weight"].shape[1],
            vocab_size=renamed["to_logits.weight"].shape[0],
            d_model=renamed["to_logits.weight"].shape[1],
            slot_size=renamed["slot_projection.weight"].shape[1],
            slot_mlp_size=renamed["slot_attention.mlp.0.weight"].shape[0],
            num_blocks=len({name.split(".")[2] for name in renamed if name.startswith("transformer.blocks.")}),
            **given,
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except (KeyError, AttributeError, TypeError, IndexError) as error:
        raise UserError(f"{where}: not a state of the public SLATE: {error} is missing or not a tensor") from None
    model = SLATE(**settings)
    try:
        model.load_state_dict(renamed)
    except RuntimeError as error:
        raise UserError(f"{where}: {' '.join(str(error).split())}") from None
    return model.eval(), settings


def _read(path: Path) -> Mapping:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds of exceptions for files in other formats
        raise UserError(f"{path}: not a PyTorch checkpoint ({type(error).__name__})") from None
    if not isinstance(state, Mapping):
        raise UserError(f"{path}: holds a {type(state).__name__}, not a state dict")
    return state
