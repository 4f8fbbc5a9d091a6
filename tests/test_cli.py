"""The command `implicit-slate` as a user sees it."""

import os
import re
import shlex
import subprocess
import sys

import pytest
import torch
from packaging.requirements import Requirement

from implicit_slate import __version__, doctor
from implicit_slate.cli import COMMANDS, main, parser
from implicit_slate.training import SLATEModule
from tests.models.conftest import reference, state  # noqa: F401 (fixtures)


@pytest.mark.parametrize("prefix", ["", "data "])
def test_help_names_every_command_and_data_its_own(prefix, capsys):
    assert main([*prefix.split(), "--help"]) == 0
    printed = capsys.readouterr().out
    assert all((f"  {name} " in printed) is name.startswith(prefix) for name in COMMANDS)
    assert main(prefix.split()) == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["fti"], "unknown command 'fti'; did you mean 'fit'?"),
        (["data", "rendr"], "unknown command 'data rendr'; did you mean 'data render'?"),
        (["ablate", "demoo"], "unknown grid 'demoo'; did you mean 'demo'?"),
        (["ablate", "demo", "--devices", "0"], "--devices: expected a positive number, got '0'"),
        (["ablate", "demo", "--list", "--storage", "sqlite:///x.db"], "unrecognized arguments: --storage"),
        (["report", "/nowhere"], "/nowhere"),
        (["import-checkpoint", "a.pt"], "import-checkpoint: the following arguments are required"),
        (["fit", "--config", "/nowhere.yaml"], "/nowhere.yaml: No such file or directory"),
    ],
)
def test_bad_usage_is_one_line_and_status_two(argv, message, capsys):
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and "Traceback" not in error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"),
        MemoryError("Unable to allocate 2.00 GiB for an array"),
        MemoryError(),
    ],
    ids=["torch", "numpy", "python"],
)
def test_too_little_memory_is_one_line(error, monkeypatch, capsys):
    def fails(argv):
        raise error

    monkeypatch.setattr("implicit_slate.cli.function", lambda name: fails)
    assert main(["generate"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("implicit-slate: not enough memory") and line.count("\n") == 1
    assert str(error) == "" or "allocate 2.00 GiB)" in line


def test_help_is_printed_without_pytorch():
    script = """
import sys
from implicit_slate.cli import COMMANDS, main
for name in COMMANDS:
    try:
        main([*name.split(), "--help"])
    except SystemExit as end:
        assert end.code == 0
    assert not {"torch", "lightning", "pandas", "matplotlib"} & {*sys.modules}, name
"""
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert [name for name in COMMANDS if f"usage: implicit-slate {name} " not in printed] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_examples_that_its_parser_takes(name):
    examples = parser(name).examples.replace("\\\n", "").splitlines()
    assert examples
    for line in examples:
        program, *argv = shlex.split(line, comments=True)
        assert program == "implicit-slate" and argv[: len(name.split())] == name.split()
        parser(name).parse_known_args(argv[len(name.split()) :])


def test_the_version_tells_the_commit_and_what_decides_about_results(capsys):
    assert main(["--version"]) == 0
    printed = capsys.readouterr().out
    assert (
        printed.startswith(f"implicit-slate {__version__}")
        and f"torch {torch.__version__.partition('+')[0]}" in printed
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("implicit-slate ex", {"export "}),
        ("implicit-slate ablate gr", {"gradients", "gradients_small"}),
        ("implicit-slate data check s", {"shapestacks", "shapes3d"}),
        ("implicit-slate fit --model implicit_slate.training.S", {"SLATEModule", "SpatialBroadcastModule"}),
        ("implicit-slate evaluate --fid", {"--fid-weights "}),
        (
            "implicit-slate fit -c experiments/sprites.yaml --model.num_",
            {f"--model.num_{what}" for what in ("blocks", "heads", "iterations", "slots")},
        ),
    ],
)
def test_the_shell_completes(line, expected, tmp_path):
    asked = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "answer"),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE_IFS": "\n",
    }
    subprocess.run([sys.executable, "-m", "implicit_slate.cli"], env=os.environ | asked, check=True)
    answers = (tmp_path / "answer").read_text().split("\n")
    assert {answer.removeprefix("implicit_slate.training.") for answer in answers} == expected


def test_the_doctor_names_what_is_missing_and_the_remedy(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ok  Python ") and lines[1].startswith("ok  packages: torch ")
    [missing] = [line for line in lines if "FID weights" in line]
    assert missing.startswith("-   ") and missing.endswith("-> implicit-slate data download fid-weights")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth").write_bytes(b"torn")
    [damaged] = doctor.fid_weights()
    assert "checksum" in damaged.what and damaged.remedy.startswith("delete the file")


def test_the_doctor_fails_where_a_package_is_too_old(monkeypatch, capsys):
    real = doctor.metadata.requires
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: [*real(name), "torch>=99", "no-such-package"])
    assert main(["doctor"]) == 1
    last = capsys.readouterr().out.splitlines()[1]
    assert "torch>=99 needed" in last and "no-such-package is missing -> make setup" in last
    assert doctor.lacking(Requirement("torch>=2")) is None


def test_the_help_of_fit_leads_to_the_options_of_models_data_and_callbacks(capsys):
    def printed(*argv):
        with pytest.raises(SystemExit) as end:
            main(list(argv))
        assert end.value.code == 0
        return capsys.readouterr().out

    assert main(["fit", "--help"]) == 0
    text = capsys.readouterr().out
    for name in ("implicit_slate.training.SLATEModule", "data_modules.CLEVRMirror", "callbacks.SlotJacobian"):
        assert f"\n  {name} " in text
    assert "ImageDataModule" not in text and "callbacks.Diverged" not in text  # a base, an error
    commands = re.findall(r"implicit-slate (fit --.*\.help .*)", text)
    options = ["--model.vocab_size", "--data.image_size", "--trainer.callbacks"]
    for command, option in zip(commands, options, strict=True):
        assert option in printed(*command.split())
    slate = printed("fit", "--model.help", "implicit_slate.training.SLATEModule")
    assert "--model.num_slots" in slate
    assert "Gradient clipping: largest infinity norm" in slate  # the tricks are explained, too


@pytest.mark.parametrize("by_lightning", [False, True])
def test_ctrl_c_is_no_traceback(monkeypatch, capsys, by_lightning):
    def interrupted(argv):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            if by_lightning:  # which turns KeyboardInterrupt into SystemExit
                sys.exit(1)
            raise

    monkeypatch.setattr("implicit_slate.evaluation.check_data.main", interrupted)
    assert main(["data", "check", "folder", "."]) == 130
    assert capsys.readouterr().err == "stopped: data check\n"


def test_a_public_checkpoint_is_imported_once(tmp_path, state, capsys):  # noqa: F811
    torch.save({"model": state}, tmp_path / "public.pt")
    sizes = ["--num-slots=3", "--num-iterations=3", "--num-slot-heads=1", "--num-heads=2"]
    command = ["import-checkpoint", str(tmp_path / "public.pt"), str(tmp_path / "ours.ckpt"), *sizes]
    assert main(command) == 0
    module = SLATEModule.load_from_checkpoint(tmp_path / "ours.ckpt", weights_only=True)
    assert torch.equal(module.model.to_logits.weight, state["out.weight"])
    before = (tmp_path / "ours.ckpt").read_bytes()
    assert main(command) == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "ours.ckpt").read_bytes() == before
