"""Presets: what ships loads, and what does not fit is explained before anything runs."""

import re

import pytest
import yaml

from rfpp import presets
from rfpp.base import paths
from rfpp.presets import PresetError, load, parse


@pytest.fixture
def file(tmp_path):
    """A function that writes the smoke preset under a name, with some text replaced, and returns where."""

    def write(old="", new="", name="mine"):
        text = (presets.FOLDER / "smoke.yaml").read_text().replace("name: smoke", f"name: {name}", 1)
        assert old in text
        path = tmp_path / "mine.yaml"
        path.write_text(text.replace(old, new, 1))
        return path

    return write


@pytest.mark.parametrize("name", presets.names())
def test_what_ships_loads_and_says_what_its_file_says(name):
    """The file by plain YAML, setting for setting; what it leaves out is a default."""
    written = yaml.safe_load((presets.FOLDER / f"{name}.yaml").read_text())

    def agree(loaded, written):
        return all(agree(loaded[k], v) if isinstance(v, dict) else loaded[k] == v for k, v in written.items())

    assert agree(load(name).model_dump(), written) and load(name).name == name == load(name).origin
    assert load(name).model_dump(exclude_unset=True) == written


def test_the_default_ships():
    assert load() == load(presets.DEFAULT) and {"smoke", "laptop"} <= set(presets.names())


def test_a_file_of_ones_own(file):
    preset = load(str(file()))
    assert preset.name == "mine" and preset.training == load("smoke").training


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("  steps: 3", "  stpes: 3", "training.stpes is unknown; did you mean 'training.steps'"),
        ("  steps: 3", "", "training.steps is missing"),
        ("seeds: [0, 1]", "seeds: [0, 1]\nqqqq: 1", "qqqq is unknown; allowed: name, summary, data.name"),
        ("  steps: 3", "  steps: three", "training.steps='three': input should be a valid integer"),
        ("  steps: 3", "  steps: 3.5", "training.steps=3.5: input should be a valid integer"),
        ("  steps: 3", "  steps: true", "training.steps=True: input should be a valid integer"),
        ("  steps: 3", "  steps: '3'", "training.steps='3'"),
        ("  steps: 3", "  steps: 0", "training.steps=0: input should be greater than or equal to 1"),
        ("lr: 1.0e-3", "lr: -1.0e-3", "training.lr=-0.001: input should be greater than 0"),
        ("lr: 1.0e-3", "lr: 0.0", "training.lr=0.0"),
        ("lr: 1.0e-3", "lr: .nan", "training.lr=nan"),
        ("lr: 1.0e-3", "lr: .inf", "training.lr=inf"),
        ("ema: 0.9", "ema: 1.0", "training.ema=1.0: input should be less than 1"),
        ("dropout: 0.0", "dropout: -0.1", "training.dropout=-0.1"),
        ("num_steps: 4", "num_steps: 1", "pairs.num_steps=1: input should be greater than or equal to 2"),
        ("samples: 64", "samples: 1", "evaluation.samples=1"),
        ("first_time: 0.999", "first_time: 1.0", "evaluation.first_time=1.0: input should be less than or equal"),
        ("first_time: 0.999", "first_time: 0.5", "evaluation.first_time=0.5: input should be greater than or equal"),
        ("seeds: [0, 1]", "seeds: []", r"seeds=\[\]"),
        ("seeds: [0, 1]", "seeds: 0", "seeds=0"),
        ("seeds: [0, 1]", "seeds: [0, 0]", r"seeds=\[0, 0\] has an entry twice"),
        ("seeds: [0, 1]", "seeds: [0, -1]", r"seeds\.1=-1"),
        ("name: digits-teacher", "name: digit", "teacher.name='digit' is unknown.*did you mean 'digits"),
        ("name: mine", "name: ../smoke", "name='../smoke'"),
        ("name: mine", "name: a+b", r"name='a\+b'"),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_named_with_what_would(file, old, new, complaint):
    path = file(old, new)
    with pytest.raises(PresetError, match=f"^{path}: .*{complaint}"):
        load(path)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: [1, 2", "is not YAML"),
        ("a: b: c", "is not YAML"),
        ("", "holds a NoneType; a mapping"),
        ("- 1\n- 2", "holds a list; a mapping"),
        ("just words", "holds a str; a mapping"),
        ("!!python/object/apply:os.getcwd []", "is not YAML"),
        ("summary: Größe", "is not YAML in UTF-8: .*can't decode"),
        ("summary: 2024-13-01", "is not YAML.*month"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text, complaint):
    """Nothing in it is executed either."""
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(PresetError, match=f"{path} {complaint}"):
        load(path)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("lapto", "preset='lapto' is unknown; allowed: .*laptop.*, or a .yaml file; did you mean 'laptop'"),
        ("smok", "did you mean 'smoke'"),
        ("Laptop", "did you mean 'laptop'"),
        ("qqqq", "preset='qqqq' is unknown; allowed: .*smoke"),
        ("", "preset='' is unknown"),
        ("nowhere.yaml", "preset='nowhere.yaml': there is no such file"),
        ("/nowhere/at/all.yml", "there is no such file"),
    ],
)
def test_an_unknown_preset_is_refused(name, complaint):
    with pytest.raises(PresetError, match=complaint):
        load(name)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("1E3", 1e3), ("-2e+4", -2e4), (".5e1", 5.0), ("1.0e-3", 1e-3), ("1_0e1", 100.0),
        ("3", 3), ("0.5", 0.5), ("true", True), ("[0, 1e-2]", [0, 1e-2]), ("digits", "digits"), ("e-3", "e-3"),
        ("1e", "1e"), ("2020-01-01x", "2020-01-01x"),
    ],
)  # fmt: skip
def test_numbers_are_read_as_everywhere_else(text, value):
    """YAML 1.1 would take ``1e-3`` for a word."""
    assert parse(text) == value and type(parse(text)) is type(value)


def test_a_short_float_in_a_file(file):
    assert load(file("lr: 1.0e-3", "lr: 2e-4")).training.lr == 2e-4


def test_a_file_may_not_take_the_name_of_a_shipped_preset(file):
    """Both would keep results and claims under one name."""
    assert load(file(name="smoke")) == load("smoke")
    with pytest.raises(PresetError, match=r"mine.yaml: name='smoke' belongs to a preset of this library.*another name"):
        load(file("lr: 1.0e-3", "lr: 2e-4", name="smoke"))


def test_the_reader_of_others_is_left_alone():
    """The rule for floats is the library's own."""
    assert yaml.safe_load("1e-3") == "1e-3"


# Overrides


def test_overrides_replace_one_setting_each():
    plain, changed = load("smoke"), load("smoke", {"training.steps": 800, "pairs.train": 100})
    assert (changed.training.steps, changed.pairs.train) == (800, 100)
    expected = plain.model_dump()
    expected["training"]["steps"], expected["pairs"]["train"] = 800, 100
    assert {**changed.model_dump(), "name": None} == {**expected, "name": None}


def test_a_changed_preset_has_a_name_of_its_own():
    """A function of the changes, whatever their order; the origin is kept."""
    changes = {"training.steps": 800, "training.lr": 1e-4}
    changed = load("smoke", changes)
    assert changed.name.startswith("smoke+") and changed.origin == "smoke"
    assert load("smoke", dict(reversed(changes.items()))).name == changed.name
    assert load("smoke", {"training.steps": 801}).name != load("smoke", {"training.steps": 800}).name
    assert load("smoke", {"training.steps": 800}).name != changed.name


@pytest.mark.parametrize("changes", [None, {}, {"training.steps": 3}])
def test_an_unchanged_preset_keeps_its_name(changes):
    assert load("smoke", changes) == load("smoke")


def test_the_preset_of_the_guide_can_be_read(tmp_path):
    text = (paths.repository() / "book" / "scales.md").read_text()
    (block,) = re.findall(r"```yaml\n(name: mine.*?)```", text, re.S)
    (tmp_path / "mine.yaml").write_text(block)
    assert load(tmp_path / "mine.yaml").features.kind == "trained"


def test_a_preset_tells_how_to_ask_for_it():
    assert load("smoke").option == "--preset smoke"
    assert load("smoke", {"training.steps": 2}).option == "<the same --preset and --set>"


def test_a_preset_can_be_changed_again():
    """The name tells what is changed in all, not in how many turns."""
    once = load("laptop", {"training.steps": 800, "training.lr": 1e-3 / 2})
    first = load("laptop", {"training.steps": 800})
    assert load(first, {"training.lr": 1e-3 / 2}) == once and once.origin == "laptop"
    assert load(first) is first and load(first, {"training.steps": 800}) is first
    assert load(once, {"training.steps": 150, "training.lr": 1e-3}).model_dump(exclude={"name"}) == (
        load("laptop").model_dump(exclude={"name"})
    )


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"training.step": 3}, "setting 'training.step' is unknown; did you mean 'training.steps'"),
        ({"steps": 3}, "setting 'steps' is unknown; did you mean 'seeds'|training.steps"),
        ({"qqqq": 3}, "setting 'qqqq' is unknown; allowed: name, summary, data.name"),
        ({"training": {}}, "preset 'smoke' as changed: training.steps is missing"),
        ({"training.steps": "3"}, "preset 'smoke' as changed: training.steps='3'"),
        ({"training.steps": 0}, "training.steps=0: input should be greater than or equal to 1"),
        ({"training.lr": 1e-3, "training.ema": 2.0}, "training.ema=2.0"),
        ({"name": "a b"}, "name='a b'"),
    ],
)
def test_an_override_that_does_not_fit_is_refused(changes, complaint):
    with pytest.raises(PresetError, match=complaint):
        load("smoke", changes)


def test_a_preset_is_not_changed_by_accident():
    with pytest.raises(ValueError, match="frozen"):
        load("smoke").training.steps = 5
