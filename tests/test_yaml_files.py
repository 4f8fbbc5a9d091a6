"""Reading YAML, and the messages for malformed files."""

import pytest

from implicit_slate.errors import UserError
from implicit_slate.yaml_files import load_yaml


def test_yaml_keeps_on_and_off_and_reads_numbers(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("a: on\nb: no\nc: 5e-3\nd: 1.e-4\ne: true\nf: 7\ng: null\nh: 1e5x\n")
    values = {"a": "on", "b": "no", "c": 0.005, "d": 1e-4, "e": True, "f": 7, "g": None, "h": "1e5x"}
    assert load_yaml(file) == values


def test_anchors_are_merged_with_what_a_mapping_has_itself_and_dates_are_texts(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("one: &one {a: 1, b: 2}\ntwo: {c: &two {<<: *one, b: 3}}\nthree: {<<: *two, a: 2024-13-45}\n")
    three = {"a": "2024-13-45", "b": 3}
    assert load_yaml(file) == {"one": {"a": 1, "b": 2}, "two": {"c": {"a": 1, "b": 3}}, "three": three}


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: 1\nb: x: y\nc: 2\n", "line 2: malformed YAML"),
        ("a: 1\nb: 2\na: 3\n", "line 3: malformed YAML: the key 'a' is there twice"),
        ("- a\n", "expected a mapping"),
        ("", "expected a mapping"),
        ("a: !!python/object:os.system x\n", "line 1: malformed YAML"),
        ("a: 1\nb: !!binary aGVsbG8=\n", "line 2: malformed YAML"),
        ("a: &a {b: *a}\n", "malformed YAML: a section contains itself"),
        (f"a: {5000 * '1'}\n", "malformed YAML: Exceeds the limit"),
        ("a: 0x_\n", "malformed YAML: invalid literal"),
        ("a: !!bool x\n", "malformed YAML: 'x'"),
        (f"a: {2000 * '['}\n", "malformed YAML: a section contains itself, or too many others"),
    ],
)
def test_malformed_yaml_is_one_line_with_file_and_line(tmp_path, text, message):
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        load_yaml(file)
    assert str(file) in str(error.value) and message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("trainer:\n- max_steps: 3\n", "trainer=[{'max_steps': 3}]: expected a group of settings"),
        ("model: {class_path: a.B, init_args: }\n", "model.init_args=null: expected a group of settings"),
        ("model: {class_path: a.B, size: 3}\n", "model.size: expected below model.init_args"),
        ("model: {class_path: }\n", "model.class_path=null: expected the name of a class"),
        (
            "trainer: {callbacks: [{class_path: a.B, size: 3}]}\n",
            "trainer.callbacks.size: expected below trainer.callbacks.init_args",
        ),
    ],
)
def test_what_stands_in_a_wrong_place_is_named(tmp_path, text, message):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        load_yaml(file)
    assert str(error.value) == f"{file}: {message}"
