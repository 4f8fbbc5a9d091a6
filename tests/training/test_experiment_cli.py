"""Experiment files, overrides, and the messages for mistakes in them."""

import errno
import os
import signal
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.cli import SaveConfigCallback

from implicit_slate.cli import main
from implicit_slate.errors import UserError
from implicit_slate.fixed_point import Solver, parse_gradient
from implicit_slate.training import SLATEModule
from implicit_slate.training.experiment_cli import LIGHTNING_KEY, ExperimentCLI
from implicit_slate.yaml_files import load_yaml, override
from tests.tiny import SLATE_SIZES, Command

EXPERIMENTS = sorted((Path(__file__).parents[2] / "experiments").glob("*.yaml"))
DEMO = Path(__file__).parents[2] / "experiments" / "demo_joint.yaml"


def build(config, *overrides):
    return ExperimentCLI(args=["--config", str(config), "--trainer.logger=false", *overrides], run=False)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_is_built_and_says_what_it_is_for(path):
    assert path.read_text().startswith("# ")
    cli = build(path, "--trainer.accelerator=cpu")
    assert cli.trainer.max_steps > 0 and cli.model is not None and cli.datamodule is not None


def test_overrides_reach_the_model_and_null_turns_a_trick_off_and_leaves_the_others():
    without = ["--model.optimization.clip_norm=null", "--model.optimization.decay", "null"]
    model = build(DEMO, *without, "--model.gradient=unrolled", "--model.num_iterations=3").model
    settings, slots = model.optimization, model.model.slot_attention
    assert settings.clip_norm is None and settings.decay is None
    assert settings.warmup_steps == 500 and settings.learning_rate == 1e-3
    assert slots.solver == Solver("picard", 3) and slots.gradient == parse_gradient("unrolled")


MISTAKES = {
    "model.num_slots": ("six", "model.num_slots=six: expected a positive whole number"),
    "model.optimization.clip_norm": ("x", "model.optimization.clip_norm=x: expected a number above 0 or null"),
    "model.optimization.decay": (
        "plato",
        "decay=plato: expected one of plateau, half_life or null; did you mean 'plateau'",
    ),
    "data.image_size": ([1], r"data.image_size=\[1\]: expected a positive multiple of 4"),
    "trainer.max_steps": ("many", "trainer.max_steps=many: expected a positive whole number, or -1 for no end"),
    "seed_everything": ("true", "seed_everything=(?i:true): expected a whole number from 0 to 4294967295$"),
    "model.gradeint": ("implicit", "unknown key 'model.gradeint'; did you mean 'model.gradient'"),
    "model.optimization.clip_nrm": (1, "did you mean 'model.optimization.clip_norm'"),
    "data.bach_size": (3, "unknown key 'data.bach_size'; did you mean 'data.batch_size'"),
    "trainer.max_stepz": (3, "unknown key 'trainer.max_stepz'; did you mean 'trainer.max_steps'"),
    "modle.gradient": ("implicit", "unknown key 'modle.gradient'; did you mean 'model'"),
    "bogus": (3, "unknown key 'bogus'; known: .*trainer, model, data"),
}


@pytest.mark.parametrize("key", MISTAKES)
def test_a_mistake_is_one_line_that_names_it(tmp_path, key):
    """Covers every message of jsonargparse that is rewritten, wherever the mistake is."""
    value, message = MISTAKES[key]
    config = override(load_yaml(DEMO), {key: value})
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config))
    of_fit = ["fit", "--config", str(DEMO), f"--{key}={value}"], ["fit", "--config", str(tmp_path / "x.yaml")]
    for args in (*of_fit, config):
        with pytest.raises(UserError, match=message) as error:
            ExperimentCLI(args=args, run=args is not config)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.gradient=impliict", "unknown gradient mode 'impliict'; did you mean 'implicit'"),
        ("--trainer.max_step=3", "unknown key 'trainer.max_step'; did you mean 'trainer.max_steps'"),
        ("--model.image_size=30", "image_size=30: expected a positive multiple of 4"),
        ("--model.num_heads=3", "d_model=64 is not divisible by num_heads=3"),
        ("--model.dvae_checkpoint=/nowhere.ckpt", "/nowhere.ckpt: no such file"),
        ("--trainer.accelerator=abacus", "abacus"),
        ("--model.optimization.clip_norm=-1", "^model.optimization.clip_norm=-1: expected a number above 0 or null"),
        ("--model.image_size=64", "model.image_size=64 but data.image_size=32"),
        ("--model=implicit_slate.training.SLAET", "model: module 'implicit_slate.training' has no attribute 'SLAET'"),
        ("--data=data_modules.MirrorScene", "no attribute 'MirrorScene'; did you mean 'MirrorScenes'"),
        ("--trainer.callbacks=[{class_path: callbacks.SlotUsag}]", "'SlotUsag'; did you mean 'SlotUsage'"),
        ("--model=my_models.Mine", "model: No module named 'my_models'; if it is your own, PYTHONPATH must name its"),
        ("--data=data_modules.CLEVRMirror", "data: the following arguments are required: root"),
        ("--data=data_modules.ImageDataModule", "data_modules.ImageDataModule is abstract"),
        ("--trainer.callbacks=[{class_path: callbacks.Panels, init_args: {num_imags: 2}}]", "callbacks.num_images'"),
        (
            "--trainer.callbacks=[{class_path: callbacks.Panels, init_args: {num_images: x}}]",
            "^trainer.callbacks.num_images=x: expected a positive",
        ),
    ],
)
def test_a_wrong_class_or_setting_is_one_line(option, message):
    with pytest.raises(UserError, match=message) as error:
        build(DEMO, option)
    assert "\n" not in str(error.value)


def tiny_run(tmp_path, *more):
    sizes = [f"--model.{name}={value}" for name, value in SLATE_SIZES.items()]
    options = ["--data=tests.tiny.TinyImages", "--data.image_size=16", "--trainer.max_steps=1", *sizes]
    options += ["--trainer.accelerator=cpu", "--trainer.callbacks=null", "--trainer.val_check_interval=1"]
    options += ["--trainer.enable_progress_bar=false"]
    folder = f"--trainer.default_root_dir={tmp_path}"
    return ["fit", "--config", str(DEMO), *options, folder, *more]


class Terminate(L.Callback):
    def on_train_batch_end(self, *_):
        signal.raise_signal(signal.SIGTERM)


def test_a_training_that_is_terminated_has_not_succeeded(tmp_path, capsys):
    stop = f"--trainer.callbacks={Terminate.__module__}.Terminate"
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)  # another test may have left its own
    try:
        assert main(tiny_run(tmp_path, "--trainer.max_steps=9", stop)) == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err.endswith("stopped: fit\n")


def test_a_checkpoint_goes_on_and_one_of_another_model_is_refused(tmp_path):
    ExperimentCLI(args=tiny_run(tmp_path))
    checkpoint = next(tmp_path.rglob("*.ckpt"))
    ExperimentCLI(args=tiny_run(tmp_path, f"--ckpt_path={checkpoint}", "--trainer.max_steps=2"))
    with pytest.raises(UserError, match="of another model: .* expected"):
        ExperimentCLI(args=tiny_run(tmp_path, f"--ckpt_path={checkpoint}", "--model.d_model=32"))
    with pytest.raises(UserError, match="tensors of 'main'; here are .* the gradient mode or"):
        ExperimentCLI(args=tiny_run(tmp_path, f"--ckpt_path={checkpoint}", "--model.gradient=unrolled"))
    content = torch.load(checkpoint, weights_only=True)
    torch.save({key: value for key, value in content.items() if key != LIGHTNING_KEY}, checkpoint)
    with pytest.raises(UserError, match="not a checkpoint of Lightning: it holds no pytorch-lightning_version"):
        ExperimentCLI(args=tiny_run(tmp_path, f"--ckpt_path={checkpoint}"))
    checkpoint.write_bytes(checkpoint.read_bytes()[:2000])
    with pytest.raises(UserError, match="not a checkpoint, or a damaged one"):
        ExperimentCLI(args=tiny_run(tmp_path, f"--ckpt_path={checkpoint}"))
    with pytest.raises(UserError, match="nowhere.ckpt: no such file"):
        ExperimentCLI(args=tiny_run(tmp_path, "--ckpt_path=/nowhere.ckpt"))
    with pytest.raises(UserError, match="weights_only"):  # always True, so there is no such option
        ExperimentCLI(args=tiny_run(tmp_path, "--weights_only=false"))


@pytest.mark.parametrize("validating", ["--trainer.val_check_interval=2", "--trainer.limit_val_batches=0"])
def test_one_checkpoint_is_left_and_it_is_the_end_of_the_training(tmp_path, validating):
    ExperimentCLI(args=tiny_run(tmp_path, "--trainer.max_steps=3", validating))
    [checkpoint] = tmp_path.rglob("*.ckpt")
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 3
    ExperimentCLI(args=tiny_run(tmp_path / "none", "--trainer.enable_checkpointing=false"))
    assert not [*(tmp_path / "none").rglob("*.ckpt")]


AVERAGING = "[{class_path: lightning.pytorch.callbacks.EMAWeightAveraging, init_args: {decay: 0.5}}]"


@pytest.mark.parametrize("callbacks", ["null", AVERAGING], ids=["as they are", "averaged"])
def test_a_training_that_goes_on_from_its_end_is_the_one_that_did_not_end_there(tmp_path, callbacks):
    def weights(folder, steps, *more):
        options = ["--data=data_modules.Sprites", "--data.image_size=16", "--data.num_images=[40,8,8]"]
        options += [f"--trainer.max_steps={steps}", "--trainer.val_check_interval=2"]
        ExperimentCLI(args=tiny_run(folder, *options, f"--trainer.callbacks={callbacks}", *more))
        [file] = folder.rglob("*.ckpt")
        content = torch.load(file, weights_only=True)
        return file, [content["state_dict"], content.get("current_model_state", content["state_dict"])]

    half, _ = weights(tmp_path / "half", 3)
    _, resumed = weights(tmp_path / "rest", 6, f"--ckpt_path={half}")
    _, whole = weights(tmp_path / "whole", 6)
    torch.testing.assert_close(resumed, whole, atol=0, rtol=0)
    assert (callbacks == "null") == all(weight.equal(whole[1][name]) for name, weight in whole[0].items())


@pytest.mark.parametrize("command", ["validate", "test"])
def test_random_weights_are_not_measured_by_mistake(tmp_path, capsys, command):
    assert main([command, *tiny_run(tmp_path / "out")[1:]]) == 2
    message = f"implicit-slate: {command}: needs --ckpt_path, the checkpoint to measure\n"
    assert capsys.readouterr().err == message and not (tmp_path / "out").exists()


def test_weights_alone_are_where_a_training_begins(tmp_path):
    weights = ExperimentCLI(args=tiny_run(tmp_path, "--seed_everything=1")).model.state_dict()
    torch.save({"state_dict": weights, "hyper_parameters": SLATE_SIZES}, tmp_path / "weights.ckpt")
    options = ["--model.optimization.learning_rate=1e-9", "--model.optimization.dvae_learning_rate=1e-9"]
    cli = ExperimentCLI(args=tiny_run(tmp_path, f"--ckpt_path={tmp_path / 'weights.ckpt'}", *options))
    assert cli.trainer.global_step == 1
    for name, weight in cli.model.state_dict().items():
        assert torch.allclose(weight, weights[name], atol=1e-6), name


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_a_checkpoint_that_would_run_code_is_refused_in_one_line(tmp_path, capsys, command):
    torch.save({"state_dict": {}, "callbacks": Command(tmp_path / "was_run")}, tmp_path / "evil.ckpt")
    options = tiny_run(tmp_path, f"--ckpt_path={tmp_path / 'evil.ckpt'}")[1:]
    assert main([command, *options]) == 2
    error = capsys.readouterr().err
    assert "evil.ckpt: not loaded, because it holds posix.mkdir" in error and error.count("\n") == 1
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--trainer.devices=99", "trainer.devices=99: this machine has"),
        ("--trainer.accelerator=gpu", "trainer.accelerator=gpu: this machine has none"),
        ("--trainer.gradient_clip_val=1.5", "trainer.gradient_clip_val=1.5: has no effect here"),
        ("--trainer.gradient_clip_algorithm=norm", "trainer.gradient_clip_algorithm=norm: has no effect here"),
        (
            "--trainer={max_steps: -1, max_epochs: 2}",
            "trainer.max_epochs=2: epochs of our data do not end; give max_steps, max_time or limit_train_batches",
        ),
        (
            "--trainer.callbacks=[{class_path: lightning.pytorch.callbacks.GradientAccumulationScheduler, "
            "init_args: {scheduling: {0: 2}}}]",
            "GradientAccumulationScheduler: give trainer.accumulate_grad_batches",
        ),
        (
            "--trainer.callbacks=[{class_path: callbacks.FixedPointDiagnostics, init_args: {measures: []}}]",
            "measures=[]: expected at least one",
        ),
        ("--trainer.val_check_interval=0.5", "val_check_interval"),
        ("--model.slot_init=queries", "basins"),
        ("--trainer.precision=transformer-engine", "trainer.precision: unknown precision 'transformer-engine'"),
        (
            "--trainer={limit_train_batches: 2, val_check_interval: 3, check_val_every_n_epoch: 1}",
            "trainer.val_check_interval=3: more than limit_train_batches=2",
        ),
        (
            "--trainer={accumulate_grad_batches: 2, val_check_interval: 3}",
            "trainer.val_check_interval=3: not a multiple of accumulate_grad_batches=2",
        ),
        (
            "--trainer={accumulate_grad_batches: 2, limit_train_batches: 3, val_check_interval: 2}",
            "trainer.limit_train_batches=3: not a multiple of accumulate_grad_batches=2",
        ),
        ("--model.image_channels=1", "model.image_channels=1: the images of Sprites have 3"),
        ("--model.num_heads=5", "model.d_model=16 is not divisible by num_heads=5"),
        (
            "--model.optimization.learning_rate=null",
            "optimization.learning_rate=null: expected a number above 0",
        ),
        ("--ckpt_path=last", "last: no such file"),
        (f"--model.num_slots={10**12}", "not enough memory (tried to allocate"),
        (f"--model.slot_size={10**12}", "not enough memory (tried to allocate"),
        (f"--model.slot_size={10**20}", "not enough memory (Overflow when unpacking long)"),
        (f"--model.image_size={2 * 10**9}", "not enough memory (Storage size calculation overflowed)"),
        (f"--data.batch_size={10**12}", "not enough memory (Unable to allocate 7.28 TiB)"),
        (f"--data.batch_size={10**20}", "not enough memory (Maximum allowed dimension exceeded)"),
    ],
)
def test_what_shows_late_leaves_nothing_behind_either(tmp_path, monkeypatch, capsys, option, message):
    monkeypatch.chdir(tmp_path)
    callbacks = "[{class_path: callbacks.FixedPointDiagnostics, init_args: {measures: [basins]}}]"
    options = [*tiny_run(tmp_path / "out"), "--data=data_modules.Sprites", "--data.image_size=16"]
    options += ["--data.num_images=[8,8,8]", f"--trainer.callbacks={callbacks}", option]
    if "gpu" in option and torch.cuda.is_available():
        pytest.skip("there is one")
    assert main(options) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("implicit-slate: ")]
    assert len(error) == 1 and message in error[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["GradientNorm", "SlotUsage: {num_images: 2}", "Panels"])
def test_a_callback_that_looks_at_slots_needs_a_model_with_slots(tmp_path, capsys, name):
    dvae = ["fit", "--config", str(DEMO.with_name("sprites_dvae.yaml")), "--data.num_images=[8,8,8]"]
    kind, _, options = name.partition(": ")
    callbacks = f"[{{class_path: callbacks.{kind}, init_args: {options or '{}'}}}]"
    folder = tmp_path / "out"
    assert main([*dvae, f"--trainer.callbacks={callbacks}", f"--trainer.default_root_dir={folder}"]) == 2
    message = f"implicit-slate: trainer.callbacks: {kind} needs slots, but a DVAEModule has none"
    assert capsys.readouterr().err.splitlines()[-1] == message and not folder.exists()


def test_a_monitor_that_nobody_logs_is_one_line(tmp_path, capsys):
    stopping = "[{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: {monitor: val/los}}]"
    assert main([*tiny_run(tmp_path), f"--trainer.callbacks={stopping}"]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("implicit-slate: ")]
    assert "Early stopping conditioned on metric `val/los`" in line


def test_a_time_is_an_end_too(tmp_path):
    options = ["--data=data_modules.Sprites", "--data.num_images=[8,8,8]", "--trainer.max_steps=-1"]
    cli = ExperimentCLI(args=tiny_run(tmp_path, *options, "--trainer.max_time=00:00:00:01"))
    [checkpoint] = tmp_path.rglob("*.ckpt")
    assert torch.load(checkpoint, weights_only=True)["global_step"] == cli.trainer.global_step > 0


def test_the_file_of_the_run_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "config.yaml").write_bytes(DEMO.read_bytes())
    options = tiny_run(tmp_path, "--trainer.logger=false")
    options[options.index(str(DEMO))] = str(tmp_path / "config.yaml")
    assert main(options) == 2
    assert f"{tmp_path}/config.yaml: the run would overwrite it" in capsys.readouterr().err.splitlines()[-1]
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [DEMO.read_bytes()]


def test_a_measurement_of_a_run_leaves_its_config_as_it_is(tmp_path):
    ExperimentCLI(args=tiny_run(tmp_path, "--trainer.logger=false"))
    [checkpoint] = tmp_path.rglob("*.ckpt")
    before = (tmp_path / "config.yaml").read_bytes()
    assert main(["validate", f"--config={tmp_path / 'config.yaml'}", f"--ckpt_path={checkpoint}"]) == 0
    assert (tmp_path / "config.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{}['width']", "^'width' \\(KeyError at mine.py, line 4\\)$"),
        ("torch.zeros(2) + torch.zeros(3)", "^The size of tensor a .* \\(RuntimeError at mine.py, line 4\\)$"),
        ("self.num_slots", "'Mine' object has no attribute 'num_slots' \\(AttributeError at mine.py, line 4\\)$"),
    ],
)
def test_a_mistake_in_a_model_of_one_s_own_says_where_it_is(tmp_path, monkeypatch, line, message):
    init = f"class Mine(SLATEModule):\n def __init__(self, **slate):\n  super().__init__(**slate); {line}\n"
    (tmp_path / "mine.py").write_text(f"import torch; from implicit_slate.training import SLATEModule\n{init}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    with pytest.raises(UserError, match=message):
        build(DEMO, "--model=mine.Mine")


def test_a_full_disk_is_one_line(tmp_path, monkeypatch, capsys):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(SaveConfigCallback, "setup", full)
    assert main(tiny_run(tmp_path / "out")) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "implicit-slate: fit: No space left on device"


def test_the_file_that_has_a_wrong_value_is_named(tmp_path):
    config = override(load_yaml(DEMO), {"model.num_slots": 0})
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config))
    both = ["fit", "--config", str(DEMO), "-c", str(tmp_path / "x.yaml")]
    with pytest.raises(UserError, match=f"^{tmp_path}/x.yaml: model.num_slots=0: expected a positive whole number$"):
        ExperimentCLI(args=both)
    with pytest.raises(UserError, match="^model.num_slots=-1: "):
        ExperimentCLI(args=["fit", "--config", str(DEMO), "--model.num_slots=-1"])


def test_a_refinement_that_starts_from_nan_ends_with_the_step(tmp_path, monkeypatch, capsys):
    def spoilt(module, batch, batch_idx):
        with torch.no_grad():
            module.model.slot_attention.project_q.weight.fill_(torch.nan)
        return train(module, batch, batch_idx)

    train = SLATEModule.training_step
    monkeypatch.setattr(SLATEModule, "training_step", spoilt)
    assert main(tiny_run(tmp_path / "out")) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == ("implicit-slate: training diverged at step 0: the first evaluation of the refinement is not finite")
