"""Measured memory compared with known cases, fits of synthetic data, and the files that the command writes."""

import csv
import re

import pytest
import torch

from benchmarks import complexity
from benchmarks.complexity import BACKWARD, SHOWN, Cell, fit, summarize
from benchmarks.memory import peak_bytes, saved_bytes
from benchmarks.refinement import Refinement

MB = 1 << 20
NUMBERS = MB // 4


def test_the_peak_counts_what_is_held_at_one_time():
    def run():
        a, b = torch.empty(NUMBERS), torch.empty(NUMBERS)
        del a
        c = torch.empty(NUMBERS)  # two at a time again
        del b, c
        return torch.empty(NUMBERS)

    assert peak_bytes(run) == 2 * MB
    x = torch.ones(512, 512)  # inside an operation: the result, and one more matrix for the intermediate A²
    assert peak_bytes(lambda: torch.linalg.matrix_power(x, 3)) == 2 * x.nbytes


def test_the_peak_of_a_chain_is_its_outputs_and_two_gradients():
    x = torch.zeros(NUMBERS, requires_grad=True)

    def run(depth):
        x.grad = None
        y = x
        for _ in range(depth):
            y = y.exp()  # saves its result
        y.backward(x.detach())

    # The peak is at the start of the backward pass: all outputs plus the first gradient; none is freed earlier.
    assert peak_bytes(lambda: run(2)) == pytest.approx(3 * MB, abs=1.1 * MB)
    assert peak_bytes(lambda: run(8)) - peak_bytes(lambda: run(2)) == pytest.approx(6 * MB, rel=0.01)


def test_saved_bytes_are_those_of_the_living_graph_and_each_storage_counts_once():
    x = torch.ones(NUMBERS, requires_grad=True)

    def forward():
        x.exp().sum()  # a graph that is freed at once
        y = x * x  # saves x twice
        y = y.exp()  # saves its result
        return y.view(2, -1) * y.view(2, -1)  # saves the same result in another shape

    saved, result = saved_bytes(forward)
    assert saved == 2 * MB
    assert saved_bytes(forward, besides=[x])[0] == MB
    result.sum().backward()  # the backward pass still works
    assert x.grad == pytest.approx(torch.full_like(x, 4 * torch.e**2))
    with torch.no_grad():
        assert saved_bytes(lambda: x.exp())[0] == 0


N = [2, 4, 8, 16, 32]


@pytest.mark.parametrize(
    ("values", "order"),
    [
        ([3.0 * n for n in N], "O(n)"),
        ([20 + 2.0 * n for n in N], "O(n)"),
        ([7.0] * 5, "O(1)"),
        ([7.0, 7.5, 6.8, 7.2, 7.6], "O(1)"),
        ([9.0, 5.0, 5.0, 5.0, 5.0], "O(1)"),
        ([5.0, 5.0, 90.0, 5.0, 20.0], "unclear"),
        ([100 + 2.0 * n for n in N], "unclear"),
    ],
)
def test_the_order_of_made_data(values, order):
    assert fit(N, values).order == order


def test_the_fit_finds_the_line_and_the_exponent():
    line = fit(N, [20 + 2.0 * n for n in N])
    assert (line.constant, line.slope, line.r_squared) == pytest.approx((20, 2, 1))
    assert line.growth == pytest.approx(84 / 24)
    assert fit(N, [5 * n**0.75 for n in N]).exponent == pytest.approx(0.75)


def test_cells_take_their_turns_and_a_slow_one_fewer(monkeypatch):
    order = []

    class Stub:
        device = "cpu"

        def forward(self, gradient, n):
            order.append((gradient, n))
            return type("Solution", (), {"adjoint": None})

        def backward(self, solution): ...

        def peak_bytes(self, gradient, n):
            return 10 * n

        saved_bytes = peak_bytes

    monkeypatch.setattr(complexity, "timed", lambda run, _: (run(), 2.0 if order[-1][0] == "slow" else 0.001)[::-1])
    cells = complexity.measure(Stub(), ["quick", "slow"], [2, 4], rounds=3)
    assert order == [("quick", 2), ("quick", 4), ("slow", 2), ("slow", 4)] + 2 * [("quick", 2), ("quick", 4)]
    assert [len(cell.backward_seconds) for cell in cells] == [3, 3, 1, 1]
    assert [cell.peak_bytes for cell in cells] == [20, 40, 20, 40]


@pytest.fixture(scope="module")
def cells():
    refinement = Refinement(num_slots=2, slot_size=8, num_inputs=64, batch_size=2)
    return complexity.measure(refinement, ["unrolled", "implicit", "exact(gmres, 5)"], [2, 8], rounds=2)


def made(gradient, backward, peak, products=(0, 0, 0)):
    return [
        Cell(gradient, n, [0.001 * n] * 3, [b] * 3, peak_bytes=p, saved_bytes=p, products=count)
        for n, b, p, count in zip((2, 8, 32), backward, peak, products)
    ]


def test_rows_name_orders_and_ratios_and_judge_a_backward_solve_by_the_time_of_a_product():
    rows = summarize(
        made("unrolled", (0.02, 0.08, 0.32), (2 * MB, 8 * MB, 32 * MB))
        + made("implicit", (0.01, 0.01, 0.01), (MB, MB, MB))
        + made("exact(gmres)", (0.2, 0.8, 3.2), (MB, MB, MB), products=(10, 40, 160))
    )
    orders = [[row.order(q).order for q in SHOWN] for row in rows]
    assert orders == [["O(n)"] * 4, ["O(n)", "O(1)", "O(1)", "O(1)"], ["O(n)", "O(1)", "O(1)", "O(1)"]]
    assert (rows[1].backward_ratio, rows[1].peak_ratio) == pytest.approx((1 / 32, 1 / 32))
    assert rows[2].fits[BACKWARD.title].order == "O(n)"
    assert [row.texts()[0] for row in rows] == ["unrolled", "implicit", "exact(gmres)\n10 to 160 products"]
    assert rows[0].texts()[2] == "20 → 320\nO(n) ×16.00"


def test_the_command_writes_its_files_and_prints_the_table(monkeypatch, tmp_path, capsys, cells):
    monkeypatch.setattr(complexity, "SIZES", dict(num_slots=2, slot_size=8, num_inputs=16))
    monkeypatch.setattr(complexity, "measure", lambda refinement, rounds, say: cells)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    complexity.main(["--out", str(tmp_path / "new"), "--rounds", "1"])
    printed = capsys.readouterr().out
    first = [line.split("│")[1].strip() for line in printed.splitlines() if "→" in line and "│" in line]
    assert first == ["unrolled", "implicit", "exact(gmres, 5)"] and f"torch {torch.__version__}" in printed
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "complexity.md", "complexity.csv", "orders.csv", "complexity.png", "complexity.svg",
    }  # fmt: skip
    with (tmp_path / "new" / "complexity.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["gradient"], int(line["n"])) for line in lines] == [(cell.gradient, cell.n) for cell in cells]
    assert [int(line["peak_bytes"]) for line in lines] == [cell.peak_bytes for cell in cells]
    assert [int(line["products"]) for line in lines] == [0, 0, 0, 0, 5, 5]
    assert all(0 < float(line[f"{pass_}_seconds"]) < 5 for line in lines for pass_ in ("forward", "backward"))
    markdown = (tmp_path / "new" / "complexity.md").read_text()
    assert re.search(r"^\| unrolled \|.*<br>(O\(1\)|O\(n\)|unclear) ×", markdown, re.MULTILINE)  # times vary
    assert f"torch {torch.__version__}" in markdown and "K=2 slots of width S=8" in markdown


@pytest.mark.parametrize("rounds", ["0", "-1", "some"])
def test_bad_rounds_are_refused_before_anything_starts(rounds, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        complexity.main(["--rounds", rounds, "--out", str(tmp_path / "new")])
    assert stopped.value.code == 2 and "--rounds" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
