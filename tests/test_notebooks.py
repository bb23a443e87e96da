"""Notebooks hold: cells that can be read at a glance, and parameters that are refused at once or run to the end."""

import io
import math
import statistics

import inprocess
import nbformat
import pytest
from truth import network

from rfpp import book, checkpoints
from rfpp.base import paths
from rfpp.denoisers import EDMPrecond

NOTEBOOKS = sorted((paths.repository() / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def code(path):
    """The sources of the code cells, the parameters' first."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    return [cell.source for cell in cells]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_can_be_read_at_a_glance(path):
    """Twelve lines at most, five as a rule, and no Markdown put together from strings."""
    cells = code(path)[1:]
    lengths = [sum(bool(line.strip()) for line in cell.splitlines()) for cell in cells]
    assert max(lengths) <= 12
    assert statistics.median(lengths) <= 5
    assert not any("IPython" in cell or "Markdown(" in cell for cell in cells)


TRAINED = {"train": {"batch": 8, "steps": 1, "lr": 1e-3, "warmup": 0, "ema": 0.9, "network": {"model_channels": 8}}}
"""A teacher that would have to be trained first."""
REFUSED = [
    ("intersections", {"couples": 1}, ValueError, "couples=1 is too small; an integer of at least 2"),
    ("intersections", {"images_used": 10}, ValueError, "images_used=10 is too small; an integer of at least 11"),
    ("intersections", {"samples": "x"}, TypeError, "samples='x' is a str"),
    ("intersections", {"settings": {"pairs.train": 12}}, ValueError, "pairs.train=12 is too small; .* at least 20"),
    ("intersections", {"settings": {"pairs.train": 13, "teacher": TRAINED}}, ValueError, "pairs.train=13 is too small"),
    ("intersections", {"seeds": [1, 1]}, ValueError, r"seeds=\[1, 1\] has an entry twice"),
    ("intersections", {"photo_sizes": []}, ValueError, r"photo_sizes=\[\] is empty"),
    ("intersections", {"photo_sizes": [0]}, ValueError, "an entry of photo_sizes=0 is too small"),
    ("intersections", {"photo_sizes": [107]}, ValueError, r"size \(data.resolution\)=107 is too large; at most 106"),
    ("intersections", {"patches": 1}, ValueError, "patches=1 is too small; an integer of at least 2"),
    ("intersections", {"patches": 20_000}, ValueError, "patches=20000 with .*=16, .* and there are 2116"),
    ("timesteps", {"pairs_used": 1}, ValueError, "pairs_used=1 is too small"),
    ("timesteps", {"a": math.nan}, ValueError, "a=nan is not a finite number"),
    ("timesteps", {"seeds": [-3]}, ValueError, "an entry of seeds=-3"),
    ("training", {"shown": 0}, ValueError, "shown=0 is too small"),
    ("training", {"seeds": "0"}, TypeError, "seeds='0' is a str"),
    ("samplers", {"euler": []}, ValueError, r"euler=\[\] is empty"),
    ("samplers", {"euler": "abc"}, TypeError, "euler='abc' is a str; a list of integers"),
    ("samplers", {"euler": [1, 1]}, ValueError, r"euler=\[1, 1\] has an entry twice"),
    ("samplers", {"euler": [1, 2000]}, ValueError, r"euler=\[1, 2000\]: first_time=0.999 leaves no room for 2000"),
    ("samplers", {"heun": [2]}, ValueError, r"heun=\[2\]: nfe=2 is even"),
    ("samplers", {"heun": [0]}, ValueError, "an entry of heun=0 is too small"),
    ("samplers", {"second": []}, ValueError, r"second=\[\] is empty; a list of at least one time"),
    ("samplers", {"second": [0.5, 1]}, ValueError, "second=1 is out of range; .* below evaluation.first_time=0.999"),
    ("samplers", {"second": [0.5, 0.5]}, ValueError, r"second=\[0.5, 0.5\] has an entry twice"),
    ("samplers", {"second": 0.5}, TypeError, "second=0.5 is a float"),
    ("samplers", {"second": ["x"]}, TypeError, "an entry of second='x' is a str"),
    ("samplers", {"config": "H"}, ValueError, "'H'"),
    ("arena", {"entered": ["gan"]}, ValueError, r"entered=\['gan'\]: 'gan' is no contender; allowed: A, B"),
    ("arena", {"entered": "F"}, TypeError, "entered='F' is a str"),
    ("arena", {"evaluations": []}, ValueError, r"evaluations=\[\] is empty"),
    ("arena", {"covered": [0]}, ValueError, "an entry of covered=0 is too small"),
    ("pairs_help", {"batches": 1}, ValueError, "batches=1 is too small"),
    ("pairs_help", {"couples": 4}, ValueError, "couples=4 is too small; an integer of at least 20"),
    ("pairs_help", {"powers": [2]}, ValueError, r"powers=\[2\]: numbers from 0 to 1"),
    ("few_steps", {"evaluations": [2, 2]}, ValueError, r"evaluations=\[2, 2\] has an entry twice"),
    ("few_steps", {"evaluations": [2000]}, ValueError, r"evaluations=\[2000\]: first_time=0.999 leaves no room"),
    ("few_steps", {"pairs_used": 0}, ValueError, "pairs_used=0 is too small"),
    ("few_steps", {"iterations": 0}, ValueError, "iterations=0 is too small"),
    ("few_steps", {"shown": 0}, ValueError, "shown=0 is too small"),
    ("likelihood", {"images": 1}, ValueError, "images=1 is too small; an integer of at least 2"),
    ("likelihood", {"tolerance": 0}, ValueError, "tolerance=0 is out of range; a number above 0 and below 1"),
    ("likelihood", {"probes": 1}, ValueError, "probes=1 is too small"),
    ("likelihood", {"exact": 0}, ValueError, "exact=0 is too small"),
    ("likelihood", {"evaluations": []}, ValueError, r"evaluations=\[\] is empty"),
    ("likelihood", {"seeds": [-1]}, ValueError, "an entry of seeds=-1"),
    ("try_your_own", {"steps": 0}, ValueError, "steps=0 is too small"),
    ("try_your_own", {"seed": -1}, ValueError, "seed=-1 is too small"),
    ("ablation", {"seeds": [0, 0]}, ValueError, r"seeds=\[0, 0\] has an entry twice"),
    ("ablation", {"seeds": [-1]}, ValueError, "an entry of seeds=-1 is too small; an integer of at least 0"),
    ("ablation", {"seeds": "abc"}, TypeError, "seeds='abc' is a str; a list of integers"),
    ("ablation", {"second_time": "abc"}, TypeError, "second_time='abc' is a str; a number"),
    ("ablation", {"second_time": 0.9995}, ValueError, "second_time=0.9995 is .*below evaluation.first_time=0.999"),
    ("ablation", {"second_time": 0}, ValueError, "second_time=0 is out of range; a number above 0"),
    ("ablation", {"shown": 0}, ValueError, "shown=0 is too small; an integer of at least 1"),
    ("ablation", {"uncurated": 7}, ValueError, "uncurated=7 is too small; an integer of at least 8"),
    ("inversion", {"preset": "smok"}, ValueError, "preset='smok' is unknown; .*did you mean 'smoke'"),
    ("inversion", {"settings": {"pears": 1}}, ValueError, "setting 'pears' is unknown"),
    ("inversion", {"seeds": [0.5]}, TypeError, "an entry of seeds=0.5 is a float"),
    ("inversion", {"evaluations": []}, ValueError, r"evaluations=\[\] is empty; a list of at least one integer"),
    ("inversion", {"evaluations": [2, 2]}, ValueError, r"evaluations=\[2, 2\] has an entry twice"),
    ("inversion", {"evaluations": [0, 2]}, ValueError, "an entry of evaluations=0 is too small"),
    ("inversion", {"evaluations": "abc"}, TypeError, "evaluations='abc' is a str; a list of integers"),
    ("inversion", {"evaluations": [2, 1000]}, ValueError, r"evaluations=\[2, 1000\]: .*first_time=0.999"),
    ("inversion", {"images": 19}, ValueError, "images=19 is too small; an integer of at least 20"),
    ("inversion", {"gaussian_nfe": 0}, ValueError, "gaussian_nfe=0 is too small"),
    ("inversion", {"shown": 3}, ValueError, "shown=3 is too small; an integer of at least 4"),
    ("exact_flow", {"images_used": 1}, ValueError, "images_used=1 is too small; an integer of at least 2"),
    ("exact_flow", {"noises": 1}, ValueError, "noises=1 is too small; an integer of at least 2"),
    ("exact_flow", {"lines": "x"}, TypeError, "lines='x' is a str"),
    ("exact_flow", {"width": 0}, ValueError, "width=0 is out of range; a number above 0 and at most 1"),
    ("exact_flow", {"width": "x"}, TypeError, "width='x' is a str; a number"),
    ("exact_flow", {"samples": 5}, ValueError, "samples=5 is too small; an integer of at least 6"),
    ("costs", {"passes": 0}, ValueError, "passes=0 is too small; an integer of at least 1"),
    ("costs", {"passes": 2.5}, TypeError, "passes=2.5 is a float"),
    ("costs", {"graded": "AFG"}, TypeError, "graded='AFG' is a str; a list of configurations"),
    ("costs", {"graded": ["A", "H"]}, ValueError, "config='H' is unknown"),
    ("costs", {"graded": ["A", "A"]}, ValueError, r"graded=\['A', 'A'\] has an entry twice"),
]


@pytest.mark.parametrize(("slug", "given", "error", "complaint"), REFUSED, ids=lambda value: str(value)[:40])
def test_a_value_that_is_not_allowed_is_refused_before_any_work(slug, given, error, complaint, runs):
    (path,) = book.notebooks([slug])
    parameters, imports, checks = code(path)[:3]
    namespace = {}
    exec(parameters, namespace)
    namespace |= {"preset": "smoke", **given}
    with pytest.raises(error, match=complaint):
        exec(f"{imports}\n{checks if slug != 'costs' else ''}", namespace)
    assert not runs.exists()


def unconditional(folder):
    """Settings for digits and a teacher that knows no classes."""
    file = checkpoints.save(EDMPrecond(network(label_dim=0)), folder / "teacher.safetensors")
    return {"data": {"name": "custom", "function": "rfpp.data:digits"}, "teacher": {"file": str(file)}}


ALLOWED = [
    (
        "intersections",
        {
            **{"couples": 2, "samples": 20, "images_used": 11, "shown": 1, "seeds": [4]},
            **{"photo_sizes": [4, 1], "patches": 2},
        },
        ["c01 ", "c04 "],
    ),
    ("timesteps", {"pairs_used": 2, "a": 0.0, "seeds": [4]}, ["c05 "]),
    ("training", {"shown": 1, "seeds": [4]}, ["c13 ", "c14 reproduced"]),
    (
        "samplers",
        {"euler": [1, 2], "heun": [1], "second": [0.3]},
        [
            "c15 ",
            "c16 not judged: it needs an NFE above 1",
            "c17 not judged: it needs 3, 4 and 5 in euler=[1, 2]",
        ],
    ),
    (
        "samplers",
        {"euler": [3], "heun": [5, 3], "second": [0.3, 0.5], "seeds": [4]},
        [
            "c15 not judged: it needs 1 and a larger NFE in euler=[3]",
            "c16 ",
            "c17 not judged: it needs 3, 4 and 5 in euler=[3]",
        ],
    ),
    (
        "samplers",
        {"config": "B", "euler": [8, 1], "shown": 100},
        [
            "c15 not judged: it is about configuration F, and config='B'",
            "c17 not judged",
        ],
    ),
    ("try_your_own", {"steps": 1, "shown": 1, "seed": 7}, []),
    (
        "few_steps",
        {"evaluations": [3, 1], "pairs_used": 20, "iterations": 1, "shown": 1, "seeds": [3]},
        ["c43 ", "c44 ", "c45 "],
    ),
    (
        "likelihood",
        {"images": 3, "probes": 2, "exact": 1, "evaluations": [2], "tolerance": 0.1, "seeds": [3]},
        ["c40 not judged: it needs 8 in evaluations=[2]", "c41 ", "c42 "],
    ),
    (
        "ablation",
        {"seeds": [3], "second_time": 1e-3, "shown": 100, "uncurated": 8},
        ["c06 ", "c23 ", "c24 not judged: it is about 0.8, and second_time=0.001"],
    ),
    (
        "inversion",
        {"evaluations": [4, 1], "gaussian_nfe": 3, "images": 20, "shown": 4, "seeds": [3]},
        [
            "c18 not judged: it needs 2 and 16 in evaluations=[1, 4]",
            "c19 not judged: it is about 8 evaluations",
            "c20 ",
        ],
    ),
    (
        "inversion",
        {"settings": unconditional, "evaluations": [16, 2], "images": 20, "shown": 500, "seeds": [0]},
        ["c18 ", "c19 ", "knows no classes, so there is nothing", "c20 not judged: the teacher knows no classes"],
    ),
    (
        "exact_flow",
        {"images_used": 2, "noises": 2, "lines": 2, "paths": 2, "chains": 2, "samples": 6, "patches": 2, "seeds": [4]},
        ["c37 ", "c38 ", "c39 "],
    ),
    ("costs", {"passes": 1}, ["c21 reproduced", "c22 not judged: ", "64 samples of seed 0 against 64 training images"]),
    ("costs", {"passes": 1, "graded": []}, ["c21 reproduced"]),
]


@pytest.mark.parametrize(("slug", "given", "printed"), ALLOWED, ids=lambda value: str(value)[:40])
def test_a_value_that_is_allowed_runs_to_the_end(slug, given, printed, tmp_path, shared_runs, monkeypatch):
    inprocess.use(monkeypatch)
    given = {name: value(tmp_path) if callable(value) else value for name, value in given.items()}
    (executed,) = book.run("smoke", [slug], given, terminal=io.StringIO())
    cells = nbformat.read(executed, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    text = "".join(output["text"] for output in outputs if output.output_type == "stream")
    assert all(sentence in text for sentence in printed), text
