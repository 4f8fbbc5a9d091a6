"""Every example runs and prints its table."""

import importlib

import pytest


@pytest.mark.parametrize(
    ("name", "steps", "printed"),
    [
        ("deep_equilibrium", 1, {"anderson": 3, "broyden": 3, "phantom(5, 0.5)": 1}),
        ("gaussian_mixture", 1, {"unrolled": 1, "implicit": 1, "neumann(3)": 1, "exact(gmres)": 1, "(best)": 1}),
        ("iterative_inference", 2, {"unrolled": 2, "implicit": 2, "6.0 nats": 1}),
    ],
)
def test_the_table_has_a_row_for_each_setting(name, steps, printed, capsys):
    importlib.import_module(f"examples.{name}").main(steps=steps)
    table = capsys.readouterr().out
    assert {text: table.count(text) for text in printed} == printed
