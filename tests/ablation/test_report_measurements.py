"""What the report calls the measurements of other models than SLATE, and of how slots are used."""

import csv
import itertools
import json

import pytest
from torch.utils.tensorboard import SummaryWriter

from implicit_slate.ablation.report import write_report
from implicit_slate.ablation.report.reading import read_run
from implicit_slate.ablation.report.run import LOSS, MSE
from implicit_slate.ablation.report.summary import measurements, summarise
from tests.ablation.test_report import write_cell, write_results

PRECISION = {"val/ap_inf": 0.5, "val/ap_1": 0.4, "val/ap_0.5": 0.3, "val/ap_0.25": 0.2, "val/ap_0.125": 0.1}
USAGE = {"slots/attention_entropy": 0.75, "slots/in_use": 3.5, "slots/information": 0.125, "slots/fg_ari": 0.25}


@pytest.fixture(scope="module")
def properties(tmp_path_factory):
    """A finished grid of property prediction, with its report: a loss and average precisions, nothing reconstructed."""
    run = tmp_path_factory.mktemp("runs") / "properties"
    rows = []
    for mode, seed in itertools.product(("unrolled", "implicit"), (0, 1)):
        row = write_cell(run, mode, seed, tag=LOSS, loss=0.5 + seed) | PRECISION | {MSE: None}
        (run / "cells" / row["cell"] / "result.json").write_text(json.dumps(row))
        rows.append(row)
    write_report(write_results(run, rows))
    return run


def test_property_prediction_is_compared_by_its_own_loss(properties):
    run = read_run(properties)
    assert (run.loss, run.loss_name) == (LOSS, "validation loss")
    markdown = (properties / "report" / "report.md").read_text()
    assert "Final validation loss: 0.500 to 1.50 when unrolled" in markdown
    assert "cross-entropy" not in markdown.split("## Results")[1]
    assert (properties / "report" / "loss.png").exists()


def test_average_precisions_have_columns(properties):
    lines = (properties / "report" / "report.md").read_text().splitlines()
    header = next(line for line in lines if line.startswith("| setting |"))
    assert "| validation loss | AP at any distance | AP within distance 1 | AP within 0.5 |" in header
    [unrolled, implicit] = summarise(read_run(properties))
    assert {key: implicit.spreads[key].mean for key in PRECISION} == pytest.approx(PRECISION)


def test_the_sum_of_losses_is_not_shown_beside_its_parts(tmp_path):
    row = write_cell(tmp_path) | {LOSS: 92.0}
    run = read_run(write_results(tmp_path, [row]))
    assert run.loss == "val/cross_entropy" and LOSS not in measurements(run)
    [line] = summarise(run)
    assert LOSS not in line.spreads


def test_how_slots_are_used_has_a_curve_and_a_column_where_it_was_logged(tmp_path):
    row = write_cell(tmp_path) | {f"{tag}_final": value for tag, value in USAGE.items()}
    (tmp_path / "cells" / row["cell"] / "result.json").write_text(json.dumps(row))
    writer = SummaryWriter(str(tmp_path / "cells" / row["cell"]))
    for (tag, value), step in itertools.product(USAGE.items(), (0, 10)):
        writer.add_scalar(tag, value, step)
    writer.close()
    write_report(write_results(tmp_path, [row]))
    for tag, name in zip(USAGE, ("attention_entropy", "slots_in_use", "slots_information", "fg_ari")):
        with open(tmp_path / "report" / f"{name}.csv") as file:
            assert [(r["step"], float(r["value"])) for r in csv.DictReader(file)] == [
                ("0", USAGE[tag]),
                ("10", USAGE[tag]),
            ]
    markdown = (tmp_path / "report" / "report.md").read_text()
    assert "| last attention entropy | last slots in use | last information on slots | last FG-ARI |" in markdown
    assert "| 0.750 | 3.50 | 0.125 | 0.250 |" in markdown
