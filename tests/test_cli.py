"""The command `implicit-slate` as a person meets it."""

import re

import pytest
import torch

from implicit_slate.cli import COMMANDS, main
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


def test_the_help_of_fit_leads_to_the_options_of_models_data_and_callbacks(capsys):
    def printed(*argv):
        with pytest.raises(SystemExit) as end:
            main(list(argv))
        assert end.value.code == 0
        return capsys.readouterr().out

    text = printed("fit", "--help")
    for name in ("implicit_slate.training.SLATEModule", "data_modules.CLEVRMirror", "callbacks.SlotJacobian"):
        assert f"\n  {name} " in text
    commands = re.findall(r"implicit-slate (fit --.*\.help .*)", text)
    options = ["--model.vocab_size", "--data.image_size", "--trainer.callbacks"]
    for command, option in zip(commands, options, strict=True):
        assert option in printed(*command.split())
    assert "--model.num_slots" in printed("fit", "--model.help", "implicit_slate.training.SLATEModule")


def test_ctrl_c_is_no_traceback(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr("data_modules.checking.main", interrupted)
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
