"""The expressions of grids: which cells they define, and the messages for mistakes."""

from pathlib import Path

import pytest

from implicit_slate.ablation.matrix import cell_id, expand, load_grid, make_cells
from implicit_slate.errors import UserError
from implicit_slate.yaml_files import load_yaml

ROOT = Path(__file__).parents[2]
AXES = {
    "gradient": {"unrolled": {"model.gradient": "unrolled"}, "implicit": {"model.gradient": "implicit"}},
    "clip": {"on": {}, "off": {"model.clip": None}},
    "warmup": {"on": {}, "off": {"model.warmup": None}},
    "iterations": {1: {"model.n": 1}, 3: {"model.n": 3}, 7: {"model.n": 7}},
}


@pytest.mark.parametrize(
    "expression, choices",
    [
        ("clip", [("on",), ("off",)]),
        ({"iterations": [3, 7]}, [(3,), (7,)]),
        ({"iterations": 3}, [(3,)]),
        ({"seeds": 2}, [(0,), (1,)]),
        ({"product": ["clip", {"seeds": 2}]}, [("on", 0), ("on", 1), ("off", 0), ("off", 1)]),
        ({"zip": ["clip", "warmup"]}, [("on", "on"), ("off", "off")]),
        ({"chain": ["clip", {"seeds": [5]}]}, [("on",), ("off",), (5,)]),
        ({"leave_one_out": ["clip", {"iterations": [3, 7]}]}, [("on", 3), ("off", 3), ("on", 7)]),
        (
            {"leave_one_out": ["clip", "warmup", "iterations"]},
            [("on", "on", 1), ("off", "on", 1), ("on", "off", 1), ("on", "on", 3), ("on", "on", 7)],
        ),
    ],
)
def test_an_expression_stands_for_its_choices_in_order(expression, choices):
    assert [tuple(choice.values()) for choice in expand(AXES, expression)] == choices


def test_expressions_nest():
    tricks = {"chain": [{"leave_one_out": ["clip", "warmup"]}, {"zip": ["clip", "warmup"]}]}
    expression = {"product": ["gradient", tricks]}
    assert len(expand(AXES, expression)) == 2 * (3 + 2)
    assert len(make_cells(AXES, expression)) == 2 * 4  # "all tricks on" is in both branches, but is one cell


def test_a_cell_has_every_axis_and_a_seed():
    cells = make_cells(AXES, {"chain": ["clip", {"iterations": [3]}]})
    assert [cell.axes for cell in cells] == [
        {"clip": "on", "iterations": 1, "seed": 0},
        {"clip": "off", "iterations": 1, "seed": 0},
        {"clip": "on", "iterations": 3, "seed": 0},
    ]


def test_a_cell_sets_what_its_values_set():
    [cell] = make_cells(AXES, {"product": [{"gradient": "implicit"}, {"clip": "off"}, {"seeds": [4]}]})
    assert cell.overrides == {"seed_everything": 4, "model.gradient": "implicit", "model.clip": None}
    assert cell.id == "gradient=implicit,clip=off,seed=4"
    assert cell_id({"gradient": "phantom(5, 0.5)", "solver": "a/b"}) == "gradient=phantom-5-0.5,solver=a-b"


@pytest.mark.parametrize(
    "expression, message",
    [
        ("gradeint", "unknown axis 'gradeint'; did you mean 'gradient'?"),
        ({"prodct": ["clip"]}, "unknown axis 'prodct'; did you mean 'product'?"),
        ({"iterations": [4]}, "axis 'iterations' has no value 4; known: 1, 3, 7"),
        ({"gradient": "implict"}, "axis 'gradient' has no value 'implict'; did you mean 'implicit'?"),
        ({"product": ["clip", "clip"]}, "the axis 'clip' is combined with itself"),
        ({"zip": ["clip", "iterations"]}, "'zip' takes lists of one length, got 2, 3"),
        ({"seeds": 0}, "'seeds' takes a number of seeds or a list of them, got 0"),
        ({"seeds": [-1]}, "'seeds' takes"),
        ({"seeds": [0, 2**32]}, "'seeds' takes"),
        ({"clip": [["on"]]}, "axis 'clip' has no value ['on']"),
        ({"clip": {"on": None}}, "axis 'clip' has no value {'on': None}"),
        ({"product": "clip"}, "'product' takes a list, got 'clip'"),
        ({"leave_one_out": ["clip", {"iterations": []}]}, "axis 'iterations': no value is chosen"),
        (["clip"], "expected an axis or one of product, zip"),
        ({"product": ["clip"], "zip": ["clip"]}, "expected an axis or one of"),
    ],
)
def test_a_wrong_expression_is_named(expression, message):
    with pytest.raises(UserError) as error:
        make_cells(AXES, expression)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_what_a_grid_overrides_is_in_every_cell():
    assert [(cell.id, cell.overrides) for cell in make_cells(AXES, "clip", {"trainer.max_steps": 5})] == [
        ("clip=on,seed=0", {"trainer.max_steps": 5, "seed_everything": 0}),
        ("clip=off,seed=0", {"trainer.max_steps": 5, "seed_everything": 0, "model.clip": None}),
    ]


@pytest.mark.parametrize(
    "axes, overrides, message",
    [
        ({"a": {1: {"model.x": 1}}, "b": {1: {"model.x": 2}}}, {}, "the axis 'a' and the axis 'b' both set 'model.x'"),
        ({"clip": AXES["clip"]}, {"model.clip": 1.0}, "'overrides' and the axis 'clip' both set 'model.clip'"),
        ({"clip": AXES["clip"]}, {"seed_everything": 1}, "'overrides' and the axis 'seed' both set 'seed_everything'"),
        ({"a": {"x/y": {}, "x y": {}}}, {}, "rename a value"),
        ({"a": {1: {"model.x": {"y": 1}}}, "b": {1: {"model.x.y": 2}}}, {}, "the axis 'a' and the axis 'b' both set"),
        ({"a": {1: {"model.x": 1}}, "b": {1: {"model.init_args.x": 2}}}, {}, "the axis 'a' and the axis 'b' both set"),
        ({"a": {1: {"model.dvae_checkpoint": "mine"}}}, {}, "'pretrain' and the axis 'a' both set"),
        ({}, {"trainer.devices": 2}, "`ablate` itself and 'overrides' both set 'trainer.devices'"),
    ],
)
def test_two_may_not_set_one_key_nor_share_a_folder(axes, overrides, message):
    with pytest.raises(UserError, match=message):
        make_cells(axes, {"product": [*axes, {"seeds": 1}]}, overrides, ("model.dvae_checkpoint",))


@pytest.mark.parametrize(
    "grid, message",
    [
        ("{experiment: e.yaml, cell: clip}", "grid 'g': unknown key 'cell'; did you mean 'cells'?"),
        ("{experiment: e.yaml}", "the key 'cells' is missing"),
        ("{experiment: none.yaml, cells: clip}", "no experiment file"),
        ("{experiment: e.yaml, cells: clip, pretrain: {experiment: e.yaml}}", "the key 'checkpoint' is missing"),
        (
            "{experiment: e.yaml, cells: clip, pretrain: {experiment: e.yaml, checkpoint: null}}",
            "'pretrain': checkpoint=None is not a dotted key",
        ),
        ("{experiment: e.yaml, cells: clip, overrides: 5}", "grid 'g', 'overrides': expected a mapping, got 5"),
        ("{experiment: e.yaml, cells: clip, overrides: {3: 5}}", "grid 'g', 'overrides': 3 is not a dotted key"),
        ("{experiment: e.yaml, cells: {clip: [of]}}", "axis 'clip' has no value 'of'; did you mean 'off'?"),
        ("nothing", "expected a mapping"),
    ],
)
def test_a_wrong_grid_is_named(tmp_path, grid, message):
    (tmp_path / "e.yaml").write_text("trainer: {}\n")
    file = tmp_path / "ablations.yaml"
    file.write_text(f"axes: {{clip: {{on: {{}}, off: {{a: 1}}}}}}\ngrids: {{g: {grid}}}\n")
    with pytest.raises(UserError) as error:
        load_grid(file, "g")
    assert str(file) in str(error.value) and message in str(error.value)


@pytest.mark.parametrize(
    "name", ["status", "step", "method", "evaluations", "val/cross_entropy", "seed", "error", "fid"]
)
def test_an_axis_may_not_have_the_name_of_a_column_of_the_results(tmp_path, name):
    (tmp_path / "ablations.yaml").write_text(f"axes: {{{name}: {{on: {{}}}}}}\ngrids: {{}}\n")
    with pytest.raises(UserError, match=f"axis '{name}': this name is taken, or is not a plain word"):
        load_grid(tmp_path / "ablations.yaml", "g")


@pytest.mark.parametrize("value", [".inf", ".nan"])
def test_an_axis_value_that_results_cannot_hold_is_refused(tmp_path, value):
    (tmp_path / "ablations.yaml").write_text(f"axes: {{snapshot: {{{value}: {{}}}}}}\ngrids: {{}}\n")
    with pytest.raises(UserError, match="axis 'snapshot', value .*: neither text nor a finite number"):
        load_grid(tmp_path / "ablations.yaml", "g")


def test_the_name_of_a_grid_may_be_a_number(tmp_path):
    (tmp_path / "e.yaml").write_text("trainer: {}\n")
    (tmp_path / "ablations.yaml").write_text("axes: {}\ngrids: {3: {experiment: e.yaml, cells: {seeds: [0]}}}\n")
    assert load_grid(tmp_path / "ablations.yaml", "3").name == "3"


def test_an_unknown_grid_is_named():
    with pytest.raises(UserError, match="unknown grid 'trick'; did you mean 'tricks'?"):
        load_grid(ROOT / "ablations.yaml", "trick")


SHIPPED = [
    ("demo", 2 * 4 * 2, "gradient=unrolled,clip=on,warmup=on,decay=on,seed=0"),
    ("evening", 2 * (4 + 2) * 4, "gradient=unrolled,rate=0.002,iterations=7,seed=0"),
    ("evening_mirror", 2 * 2 * 2, "rate=0.001,gradient=unrolled,seed=0"),
    ("exact", (5 + 2 + 1 + 1) * 2, "gradient=unrolled,depth=7,regularizer=off,rate=0.001,seed=0"),
    ("queries", 4 * 5, "gradient=unrolled,seed=0"),
    ("objects", 5 * 3 * 2, "rate=0.002,gradient=unrolled,seed=0"),
    ("broadcast", 5 * 2, "gradient=unrolled,seed=0"),
    ("stress", 2 * 4 * 2, "gradient=unrolled,clip=on,warmup=on,decay=on,seed=0"),
    ("tricks", 2 * 4 * 3, "gradient=unrolled,clip=on,warmup=on,decay=on,seed=0"),
    ("paper_slice", 2 * 4, "gradient=unrolled,seed=0"),
    ("tricks_full", 2 * 8 * 2 * 3, "gradient=unrolled,clip=on,warmup=on,decay=on,iterations=3,seed=0"),
    ("solvers", 5 * 4, "gradient=unrolled,solver=picard,seed=0"),
    ("solvers_small", 5 * 4, "gradient=unrolled,solver=picard,seed=0"),
    ("gradients", 10 * 3, "gradient=unrolled,seed=0"),
    ("gradients_small", 11 * 2, "gradient=unrolled,seed=0"),
    ("iterations", 4 * 6 * 3, "gradient=unrolled,solver=picard,iterations=1,seed=0"),
    ("iterations_small", 4 * 4 * 2, "gradient=unrolled,solver=picard,iterations=1,seed=0"),
    ("architecture", 2 * 3, "gradient=unrolled,seed=0"),
    ("precision_small", 2 * 2 * 3, "gradient=unrolled,precision=32-true,seed=0"),
    ("architecture_small", 2 * 2, "gradient=unrolled,seed=0"),
    ("properties", 2 * 3, "gradient=unrolled,seed=0"),
    ("properties_small", 2 * 2, "gradient=unrolled,seed=0"),
    ("tuning_small", 2, "gradient=unrolled,seed=0"),
    ("datasets", 2 * 3 * 3, "gradient=unrolled,data=clevr_mirror,seed=0"),
]


@pytest.mark.parametrize("name, count, first", SHIPPED)
def test_the_shipped_grids(name, count, first):
    assert {name for name, *_ in SHIPPED} == set(load_yaml(ROOT / "ablations.yaml")["grids"])
    grid = load_grid(ROOT / "ablations.yaml", name)
    assert len(grid.cells) == count and grid.cells[0].id == first and grid.description
    for cell in grid.cells:
        assert {cell.axes[trick] for trick in ("clip", "warmup", "decay") if trick in cell.axes} <= {"on", "off"}
        assert cell.axes["gradient"] != "unrolled" or cell.axes.get("solver", "picard") == "picard"


def test_the_solvers_grid_is_the_papers_five_variants():
    cells = load_grid(ROOT / "ablations.yaml", "solvers").cells
    forward_and_backward = {
        (cell.overrides["model.solver"], cell.overrides["model.gradient"]): cell.overrides["model.tol"]
        for cell in cells
    }
    assert forward_and_backward == {
        ("picard", "unrolled"): None,
        ("picard", "implicit"): None,
        ("picard", "exact(broyden, 7)"): None,
        ("broyden", "implicit"): 1e-3,
        ("broyden", "exact(broyden, 7)"): 1e-3,
    }
