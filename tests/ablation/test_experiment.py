from implicit_slate.ablation.experiment import override

CONFIG = {
    "model": {"class_path": "M", "init_args": {"a": 1, "optimization": {"clip": 1.0}}},
    "trainer": {"max_steps": 3},
}


def test_override_reaches_through_init_args():
    config = override(CONFIG, {"model.a": 2, "model.optimization.clip": None, "trainer.max_steps": 5})
    assert config["model"] == {"class_path": "M", "init_args": {"a": 2, "optimization": {"clip": None}}}
    assert config["trainer"] == {"max_steps": 5}


def test_override_leaves_its_argument_alone():
    override(CONFIG, {"model.a": 2})
    assert CONFIG["model"]["init_args"]["a"] == 1


def test_override_makes_what_is_missing():
    assert override({"data": {"class_path": "D"}}, {"data.x.y": 1, "seed": 2}) == {
        "data": {"class_path": "D", "init_args": {"x": {"y": 1}}},
        "seed": 2,
    }


def test_override_can_change_the_class():
    assert override(CONFIG, {"model.class_path": "N"})["model"]["class_path"] == "N"
