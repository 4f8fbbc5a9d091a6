"""Every argument of every module, data module, callback and trainer setting, with nonsensical values."""

import inspect
import math
import pickle
import re

import lightning as L
import pytest
from jsonargparse import ArgumentError

import callbacks
import data_modules
from implicit_slate import training
from implicit_slate.allowed import RESTRICTED
from implicit_slate.errors import UserError
from implicit_slate.models import SLATE, PropertyPredictor, SpatialBroadcast
from implicit_slate.training import Optimization
from implicit_slate.training.config_parser import ConfigParser, explain
from implicit_slate.training.trainer import Trainer
from tests.tiny import BROADCAST_SIZES, SLATE_SIZES

BAD = {"a word": "six", "null": None, "0": 0, "-1": -1, "NaN": math.nan, "infinity": math.inf}
CLASSES = {
    kind.__name__: kind
    for package in (training, data_modules, callbacks)
    for kind in (getattr(package, name) for name in package.__all__)
    if issubclass(kind, (L.LightningModule, L.LightningDataModule, L.Callback, Optimization))
    and kind not in (callbacks.Divergence, data_modules.ImageDataModule)  # without arguments; a base
} | {"Trainer": Trainer}
INNER = {"SLATEModule": SLATE, "SpatialBroadcastModule": SpatialBroadcast, "PropertyModule": PropertyPredictor}
GIVEN = {
    "FixedPointDiagnostics": {"measures": ["basins"]},
    **dict.fromkeys(("CLEVR", "CLEVRMirror", "COCO", "ImageFolder", "Shapes3D", "ShapeStacks"), {"root": "nowhere"}),
    "SLATEModule": SLATE_SIZES, "SpatialBroadcastModule": BROADCAST_SIZES, "PropertyModule": BROADCAST_SIZES,
    "DVAEModule": {"vocab_size": 12}, "Trainer": {"logger": False, "accelerator": "cpu", "devices": 1},
}  # fmt: skip
ALLOWED = {
    "0": r"dropout|tol|\w+_weight|num_workers|\w*seed|warm_start_steps|min_codes|limit_(val|test)_batches|"
    "num_sanity_val_steps",
    "-1": "devices|max_steps|max_epochs|num_sanity_val_steps",
    "null": r"tol|compile|decay|clip_norm|warmup_steps|seed|cache_dir|masks|lists|max_(objects|samples|epochs)|"
    r"precision|limit_\w+|\w+_checkpoint|val_check_interval|check_val_every_n_epoch|log_every_n_steps|"
    "num_sanity_val_steps",
    "a word": r"root|cache_dir|masks|lists|subset|\w+_checkpoint",
    "NaN": "", "infinity": "",
}  # fmt: skip
"""The arguments for which such a value is allowed."""


def arguments(kind: type) -> list[str]:
    """The names of all arguments of a constructor, including those of the constructors to which it passes options."""
    names: dict[str, None] = {}
    for one in (*kind.__mro__, INNER.get(kind.__name__)):
        if one is L.Trainer or one is None:
            break
        own = inspect.signature(one).parameters if "__init__" in vars(one) else {}
        names |= {name: None for name, parameter in own.items() if parameter.kind != parameter.VAR_KEYWORD}
        if one is not kind and one in INNER.values():
            break
    inner = INNER.get(kind.__name__)
    names |= dict.fromkeys(inspect.signature(inner).parameters) if inner else {}
    return [name for name in names if name not in ("self", "args", "kwargs")]


@pytest.mark.parametrize("name", CLASSES)
def test_a_value_is_refused_by_both_ways_in_with_its_name_or_is_a_sensible_one(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kind, given = CLASSES[name], GIVEN.get(name, {})
    parser = ConfigParser(exit_on_error=False)
    parser.add_class_arguments(kind, "x")
    for argument in arguments(kind):
        for words, value in BAD.items():
            case, config = f"{argument}={value}", given | {argument: value}
            if re.fullmatch(ALLOWED[words], argument) and (name, argument) != ("SlotJacobian", "tol"):
                assert parser.parse_object({"x": config}), case
                continue
            with pytest.raises((ArgumentError, UserError, TypeError)) as error:
                parser.instantiate(parser.parse_object({"x": config}))
            line = str(explain(error.value))
            assert re.search(rf"\b{argument}\b", line) and "\n" not in line, (case, line)
            with pytest.raises(UserError) as error:
                kind(**config)
            line = str(error.value)
            assert (argument in line or "unknown" in line) and "\n" not in line, (case, line)
    assert not list(tmp_path.iterdir())


def test_every_setting_of_the_trainer_reaches_lightning_s(monkeypatch):
    class Reached(Exception):
        pass

    def reached(trainer, **options):
        raise Reached(options)

    monkeypatch.setattr(L.Trainer, "__init__", reached)
    given = dict(accelerator="cpu", devices=2, num_nodes=3, precision="64-true", max_epochs=4, max_steps=5)
    given |= {f"limit_{split}_batches": share for split, share in (("train", 0.5), ("val", 0.25), ("test", 0.125))}
    given |= dict(val_check_interval=12, check_val_every_n_epoch=7, num_sanity_val_steps=8, log_every_n_steps=9)
    given |= dict(accumulate_grad_batches=6, max_time="1:0:0:0")
    with pytest.raises(Reached) as called:
        Trainer(**given)
    assert {*arguments(Trainer), "max_time"} == given.keys()
    assert given.items() <= called.value.args[0].items()


def test_the_types_of_arguments_reach_a_process_that_is_spawned():
    ours = [kind for kind in RESTRICTED.values() if kind.__module__.startswith("implicit_slate.")]
    assert len(ours) > 10 and all(pickle.loads(pickle.dumps(kind)) is kind for kind in ours)
