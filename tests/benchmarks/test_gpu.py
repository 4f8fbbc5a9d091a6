"""The GPU benchmark run without a GPU, and how it handles failures and its time limit."""

import json
import os
import re
import time

import pytest

from benchmarks import gpu
from benchmarks.common import make_console
from benchmarks.gpu import PAPER, SECTIONS, STARTING, TINY
from benchmarks.gpu_worker import NotHere, Section, Worker

ENOUGH = 300
"""Seconds; only sections that are meant to overrun get less."""
HERE = "tests.benchmarks.test_gpu:"


def good(scale):
    return {"a": lambda: {"ms": 1.5, "GB/s": None}, "b": lambda: {"ms": 2000.0}}


def bad(scale):
    def fail():
        raise ValueError("the first line\nand more")

    def cannot():
        raise NotHere("needs a GPU")

    return {"fails": fail, "cannot": cannot, "works": lambda: {"ms": 1.0}}


def impossible(scale):
    raise ImportError("No module named 'lightning'")


def endless(scale):
    return {"quick": lambda: {"ms": 1.0}, "slow": lambda: time.sleep(600), "after": lambda: {"ms": 1.0}}


def crash(scale):
    return {"crashes": lambda: os._exit(3), "after": lambda: {"ms": 1.0}}


def without_place(row):
    """The row, with the line of code removed from the end of its error."""
    return row | {"error": re.sub(r" \(test_gpu\.py:\d+\)$", "", row["error"])} if "error" in row else row


def test_what_fails_crashes_or_overruns_is_named_and_all_else_goes_on(tmp_path, capsys):
    sections = [
        Section(name, f"{HERE}{name}", seconds)
        for name, seconds in (("bad", ENOUGH), ("impossible", 0), ("crash", 0), ("good", 0))
    ]
    report = gpu.measure(sections, TINY, 1.0, tmp_path, make_console())
    found = {name: {key: without_place(row) for key, row in rows.items()} for name, rows in report["sections"].items()}
    assert found == {
        "bad": {
            "fails": {"error": "ValueError: the first line"},
            "cannot": {"skipped": "needs a GPU"},
            "works": {"ms": 1.0},
        },
        "impossible": {f"{HERE}impossible": {"error": "ImportError: No module named 'lightning'"}},
        "crash": dict.fromkeys(("crashes", "after"), {"skipped": "its process ended with status 3"}),
        "good": {"a": {"ms": 1.5, "GB/s": None}, "b": {"ms": 2000.0}},
    }
    assert json.loads((tmp_path / "gpu.json").read_text()) == report
    markdown = (tmp_path / "gpu.md").read_text()
    assert "|  | ms | GB/s |\n| --- | ---: | ---: |\n| a | 1.5 | – |\n| b | 2,000 | – |" in markdown
    said = ["fails: error: ValueError: the first line", "cannot: skipped: needs a GPU", "after: skipped: its process"]
    printed = capsys.readouterr().out
    assert all(line in markdown and line in printed for line in said)


def test_a_section_that_overruns_is_ended_and_what_it_did_not_come_to_is_named():
    worker = Worker()
    try:
        assert [*dict(worker.run(Section("good", f"{HERE}good", 0), TINY, ENOUGH))] == ["a", "b"]
        rows = dict(worker.run(Section("endless", f"{HERE}endless", 0), TINY, 3.0))
        over = {"skipped": "no time left: 3 s were over"}
        assert rows == {"quick": {"ms": 1.0}, "slow": over, "after": over}
        assert dict(worker.run(Section("good", f"{HERE}good", 0), TINY, -1.0)) == {
            "good": {"skipped": "no time left: 0 s were over"}
        }
    finally:
        worker.end()


def test_the_time_of_all_sections_is_eight_minutes_at_most():
    assert STARTING + sum(section.seconds for section in SECTIONS) <= 8 * 60
    assert PAPER.sizes["image_size"] == 96 and PAPER.batch_size == 50


@pytest.mark.slow
@pytest.mark.skipif(gpu.DEVICE == "cuda", reason="with a GPU it runs at the paper's scale")
def test_without_a_gpu_every_section_runs_at_a_tiny_size(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "SMALL_SHARE", 5.0)  # so that it also suffices on a busy machine
    gpu.main(["--out", str(tmp_path / "new")])
    report = json.loads((tmp_path / "new" / "gpu.json").read_text())
    markdown = (tmp_path / "new" / "gpu.md").read_text()
    assert [*report["sections"]] == [section.name for section in SECTIONS]
    needs_gpu = {"Training step as a CUDA graph"}
    for name, rows in report["sections"].items():
        assert f"\n## {name}\n" in markdown and rows
        assert all("error" not in row for row in rows.values()), rows
        measured = [row for row in rows.values() if "skipped" not in row]
        assert bool(measured) != (name in needs_gpu), rows
        numbers = [value for row in measured for key, value in row.items() if isinstance(value, float)]
        assert all(value == value for value in numbers)
    step = report["sections"]["Training step"]["float32, implicit"]
    assert min(step[key] for key in ("step ms", "TFLOP/s", "GB/s", "peak GB", "hours of 250,000 steps")) > 0
    assert step["hours of 250,000 steps"] == pytest.approx(step["step ms"] * 250 / 3600)
    assert not report["on_gpu"] and report["versions"]["torch"] and report["date"]
    assert "NO GPU WAS FOUND" in markdown[:200] and "NO GPU WAS FOUND" in capsys.readouterr().out
