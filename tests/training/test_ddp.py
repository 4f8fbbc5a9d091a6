"""Two CPU processes under Lightning's DDP, without `find_unused_parameters`."""

import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from implicit_slate.training import SLATEModule
from tests.fixed_point.maps import ALL_MODES
from tests.tiny import SLATE_SIZES, TinyImages
from tests.training.ddp_fit import RUNS, gradients


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    out = tmp_path_factory.mktemp("ddp")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "tests.training.ddp_fit", out]
    run = subprocess.run(
        [sys.executable, *map(str, command)], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return out


@pytest.mark.parametrize("gradient", RUNS)
def test_both_ranks_end_with_the_same_weights_which_have_changed_and_draw_different_noise(out, gradient):
    first, second = (torch.load(out / f"{gradient}-{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    L.seed_everything(0)
    before = SLATEModule(**SLATE_SIZES | RUNS[gradient]).state_dict()
    moved = {name for name in first if not torch.equal(first[name], before[name])}
    assert {f"model.slot_attention.{name}.weight" for name in ("project_q", "project_k", "project_v")} <= moved
    start = {"model.slot_attention.slot_mu", "model.slot_attention.queries"} & set(first)
    assert (start <= moved) is (gradient in ("unrolled", "bilevel", "queries"))
    noise = [torch.load(out / f"{gradient}-{rank}-noise.pt") for rank in (0, 1)]
    assert not torch.equal(*noise)


@pytest.mark.parametrize("gradient", ALL_MODES)
def test_two_processes_with_half_the_batch_each_compute_the_gradient_of_one_with_the_whole_batch(out, gradient):
    whole, halves = gradients(gradient, batch_size=8), torch.load(out / f"{gradient}-gradients.pt")
    # Broyden's and Anderson's backward solves amplify rounding, up to their tolerance.
    tolerance = 5e-3 if gradient in ("exact(broyden)", "exact(anderson)") else 1e-4
    assert halves.keys() == whole.keys()
    for name, expected in whole.items():
        assert (halves[name] - expected).norm() <= tolerance * expected.norm() + 1e-7, name


@pytest.mark.parametrize("gradient", ["unrolled", "implicit"])
def test_metrics_are_logged_once_a_step_and_validation_averages_over_the_images_of_all_ranks(out, gradient):
    """Six images on two ranks give the mean over all six."""
    events = EventAccumulator(str(out / gradient)).Reload()
    for tag in ("val/cross_entropy", "val/codes_in_use", "jacobian/spectral_norm", "grad_norm", "train/loss"):
        steps = [event.step for event in events.Scalars(tag)]
        assert steps and len(steps) == len(set(steps)), tag
    model = SLATEModule(**{**SLATE_SIZES, "gradient": gradient})
    model.load_state_dict(torch.load(out / f"{gradient}-0.pt"))
    mse = model.eval().model.losses(TinyImages().probe(6)["image"]).mse.item()
    assert events.Scalars("val/mse")[-1].value == pytest.approx(mse, rel=1e-4)


@pytest.mark.parametrize("read", ["read-at-once", "read-late"])
def test_what_is_not_finite_in_one_rank_ends_training_in_both(out, read):
    expected = "training diverged at step 2: the first evaluation of the refinement is not finite"
    assert [(out / read / f"{rank}.txt").read_text() for rank in (0, 1)] == [expected] * 2


def test_a_folder_that_is_missing_is_one_line_of_the_first_process_alone(tmp_path):
    """Lightning prepares the data in the first process; the second one loses its connection."""
    experiment = Path(__file__).parents[2] / "experiments" / "sprites.yaml"
    options = {"config": experiment, "data": "data_modules.ImageFolder", "data.root": tmp_path / "nowhere"}
    options |= {"data.image_size": 32, "trainer.default_root_dir": tmp_path / "out"}
    options |= {"trainer.accelerator": "cpu", "trainer.devices": 2, "trainer.strategy": "ddp"}
    command = ["implicit_slate.cli", "fit", *(f"--{key}={value}" for key, value in options.items())]
    run = subprocess.run([sys.executable, "-m", *command], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 2 and "Traceback" not in run.stderr, run.stderr[-3000:]
    assert run.stderr.splitlines()[-1] == f"implicit-slate: {tmp_path}/nowhere: expected a folder of images, found none"
    assert not list(tmp_path.iterdir())
