"""The scripts for a GPU, shrunk on the CPU: each runs to its end, and says what can be checked by hand."""

import importlib
import json
import runpy
import sys
from datetime import datetime
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from truth import randn

from rfpp import book, presets

FOLDER = Path(__file__).parents[1] / "benchmarks" / "gpu"
SCRIPTS = sorted({path.stem for path in FOLDER.glob("*.py")} - {"images", "provenance", "trainings"})
alone = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


@pytest.fixture
def script(monkeypatch):
    """Imports a script, or what the scripts share, by its name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:  # names as short as these belong to nobody
        if str(FOLDER) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def shrunk(script, tmp_path):
    """Runs a script with ``--small``; its rows, and all that it wrote."""

    def run(name, *arguments):
        path = tmp_path / "found" / f"{name}.json"
        returned = script(name).main(["--small", "--out", str(path), *arguments])
        written = json.loads(path.read_text())
        assert written["rows"] and len(written["rows"]) == len(returned["rows"]) and written["script"] == name
        assert written["provenance"]["shrunk"] is True
        return written["rows"], written

    return run


def test_each_script_is_listed():
    readme = (FOLDER / "README.md").read_text()
    assert len(SCRIPTS) == 8 and all(f"| `{name}.py` |" in readme for name in SCRIPTS)


@alone
@pytest.mark.parametrize("name", SCRIPTS)
def test_without_a_gpu_it_says_so_and_writes_nothing(script, name, tmp_path, monkeypatch):
    """As from the command line, where Python shows this exception's message and ends with the status of an error."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--out", str(tmp_path / "no" / "found.json")])
    with pytest.raises(SystemExit, match=rf"\A.*{name}\.py: torch .* sees no CUDA GPU here, .* --small.*\Z"):
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert not (tmp_path / "no").exists()


def test_where_a_number_was_measured(script, tmp_path, monkeypatch):
    """Numbers that JSON lacks are words, and a file is whole after each row."""
    monkeypatch.setenv("RFPP_COMMIT", "0123abc")
    provenance = script("provenance")
    arguments = provenance.parser("").parse_args(["--small", "--out", str(tmp_path / "found.json")])
    report = provenance.Report("some/where/script.py", arguments)
    report.add(loss=float("nan"), steps=[1, 2])
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["rows"] == [{"loss": "nan", "steps": [1, 2]}] and found["options"] == {"small": True}
    made_with = found["provenance"]
    assert made_with["commit"] == "0123abc" and made_with["torch"] == torch.__version__
    assert datetime.fromisoformat(made_with["date"]).utcoffset().total_seconds() == 0
    assert {"device", "driver", "cuda", "cudnn", "gpus", "rfpp", "python", "changed files"} < made_with.keys()


class Convolution(nn.Module):
    """A denoiser of one layer, and a matrix product over the channels."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.Linear(5, 3, bias=False)

    def forward(self, x, sigma):
        return self.second(self.first(x).permute(0, 2, 3, 1))


def test_operations_are_counted_as_by_hand(script):
    """Two for each multiplication: once forwards, once for each weight's gradient, once for what is passed on, which
    the first layer does not."""
    first, second = 2 * 9 * 3 * 5 * 64, 2 * 5 * 3 * 64
    assert script("rates").operations(Convolution(), (3, 8, 8)) == 2 * first + 3 * second


def test_rates(shrunk):
    rows, _ = shrunk("rates")
    measured, paces = [row for row in rows if "network" in row], rows[-1]
    assert [(row["network"], row["precision"]) for row in measured] == [
        (network, precision) for network in ("cifar10", "imagenet64") for precision in ("bf16", "fp16", "fp32")
    ]
    for row in measured:
        assert row["operations a second"] == pytest.approx(
            row["operations an image"] * row["batch"] / row["seconds a step"]
        )
        assert row["share"] == pytest.approx(row["operations a second"] / row["matrix rate"]) and row["share"] > 0
        # at one resolution every weight of a convolution is used at each of 64 places, forwards and twice backwards
        assert 0.3 < row["operations an image"] / (6 * 64 * row["parameters"]) < 1.2
        assert not row["compiled"] and not row["layout kept"]
        assert row.get("goal") == (0.45 if row["precision"] == "bf16" else None)
    assert paces["preset"] == "cifar10" and paces["without LPIPS"] > 0


@alone
def test_attention(shrunk):
    """How many blocks attend is counted by hand: ADM in all at this resolution, NCSN++ where its decoder begins."""
    rows, _ = shrunk("attention")
    assert {(row["network"], row["compiled"], row["calls"]) for row in rows} == {
        ("imagenet64", True, 4), ("imagenet64", False, 4), ("cifar10", True, 1), ("cifar10", False, 1)
    }  # fmt: skip
    for row in rows:
        assert (row["resolution"], row["heads"], row["head width"]) == (8, 1, 64) and row["fused"]
        assert all("flash" in name for name in row["forward"] + row["backward"])


def test_attention_that_is_not_fused_is_seen(script):
    query = randn(2, 3, 16, 8).requires_grad_()

    def work():
        with sdpa_kernel(SDPBackend.MATH):
            nn.functional.scaled_dot_product_attention(query, query, query).sum().backward()

    (row,) = script("attention").kernels(work)
    assert (row["resolution"], row["heads"], row["head width"], row["calls"], row["fused"]) == (4, 3, 8, 1, False)
    assert row["forward"] == ["_scaled_dot_product_attention_math"]


def test_norms(shrunk):
    (one, other), _ = shrunk("norms")
    assert (one["way"], other["way"]) == ("torch's", "by channel")
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_compiled(shrunk):
    """Traced without inductor, the graph computes what the plain network does, and dropout follows its seed."""
    rows, _ = shrunk("compiled")
    assert [row["dropout"] for row in rows] == [0.0, 0.1]
    for row in rows:
        assert row["graphs"] == 1 and not row["breaks"] and row["finite"] and row["LPIPS"]
        assert row["from plain"] < 1e-3 and row["same seed again"] == 0
        assert (row["another seed"] > 0) == (row["dropout"] > 0)


def test_loading(shrunk):
    rows, _ = shrunk("loading")
    assert [(row["training"], row["batch"], row["workers"]) for row in rows] == [
        ("teacher", 8, 1),
        ("A", 2, 1),
        ("F", 4, 1),
    ]
    for row in rows:
        assert 0 < row["seconds waited"] < row["seconds a step"]
        assert row["share waited"] == pytest.approx(row["seconds waited"] / row["seconds a step"])


def test_a_slow_loader_is_seen(script):
    """A second a batch is waited for when a batch takes a second."""
    loading = script("loading")

    class Slow(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, place):
            loading.time.sleep(0.05)
            return torch.zeros(1)

    assert len(list(loading.Timed(Slow(), batch_size=None))) == 2
    assert all(0.05 <= wait < 1 for wait in loading.Timed.waits) and len(loading.Timed.waits) == 2


def test_resume(shrunk):
    """On a CPU bit for bit; the stopped run had a checkpoint half way."""
    rows, _ = shrunk("resume")
    assert [row["deterministic kernels"] for row in rows] == [False, True]
    for row in rows:
        assert row["ends"] == ["finished", "finished", "stopped", "finished"] and row["stopped at"] == [2]
        assert row["exact"] and {"model", "average", "optimiser"} <= row["resumed apart"].keys()
        assert not any(row["resumed apart"].values()) and not any(row["two runs apart"].values())


def test_deviations_are_the_largest(script, tmp_path):
    resume = script("resume")
    for name, moved in (("a", 0.0), ("b", 0.25)):
        tensors = {"model/x": torch.tensor([1.0, 2.0 + moved]), "model/y": torch.zeros(2), "average/x": torch.ones(1)}
        resume.engine.Checkpoints(tmp_path / name).save(3, tensors, {})
    assert resume.deviation(tmp_path / "a", tmp_path / "b", 3) == {"model": 0.25, "average": 0.0}


def test_at_size(shrunk):
    """From nothing to a graded flow, by the command line."""
    rows, written = shrunk("at_size")
    (command,) = written["commands"]
    assert command["status"] == 0 and command["said"].startswith("A, seed 0: Evaluation(frechet=")
    assert {row["state"] for row in rows} == {"finished"} and rows[0]["step"] == "train the teacher"
    assert rows[-1]["step"] == "grade A, seed 0, 1 NFE" and f"frechet={rows[-1]['frechet']!r}" in command["said"]


def test_at_size_stops_when_the_time_is_over(shrunk):
    rows, written = shrunk("at_size", "--minutes", "0.01")
    (command,) = written["commands"]
    assert command["status"] != 0 and command["seconds"] < 30
    assert {row["state"] for row in rows} == {"to do"} and not any("frechet" in row for row in rows)


def test_notebooks_are_given_what_they_take(shrunk, script, monkeypatch):
    """All eight, with settings that fit; one that fails is told and does not keep the others."""
    asked = []

    def run(preset, slugs, parameters, terminal):
        (notebook,) = book.notebooks(slugs)
        book.check_parameters(notebook, parameters)
        assert presets.load(preset, parameters["settings"]).training.steps == 2
        assert len(list(Path(parameters["settings"]["data.path"]).glob("*.bin"))) == 6
        asked.append(notebook.stem)
        if slugs == ["training"]:
            raise book.NotebookFailed("03_training.ipynb failed in cell 4: ValueError: no\nThe notebook up to there: x")

    monkeypatch.setattr(book, "run", run)
    rows, _ = shrunk("notebooks", *script("notebooks").LIGHT)
    assert asked == [notebook.stem for notebook in book.notebooks()]
    ends = {row["notebook"]: row["end"] for row in rows}
    assert ends.pop("training") == "03_training.ipynb failed in cell 4: ValueError: no"
    assert set(ends.values()) == {"finished"}


def test_images_of_either_kind(script, tmp_path, monkeypatch):
    """CIFAR-10's binary version in the folder of datasets or named, and archives of images."""
    images = script("images")
    (tmp_path / "cifar").mkdir()
    (tmp_path / "cifar" / "data_batch_1.bin").touch()
    (tmp_path / "images.tar").touch()
    monkeypatch.setenv("RFPP_DATA", str(tmp_path))

    def chosen(*arguments):
        parser = images.options(script("provenance").parser(""))
        return images.settings(parser.parse_args(list(arguments)), tmp_path)

    assert chosen() == {"data.path": str(tmp_path / "cifar")}
    archive = str(tmp_path / "images.tar")
    assert chosen("--data", archive) == {"data.path": archive, "data.name": "images"}
    with pytest.raises(SystemExit, match="--data=.*nowhere does not exist"):
        chosen("--data", str(tmp_path / "nowhere"))
