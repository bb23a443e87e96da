"""What a step's key has of the code: all that it runs, and nothing that changes no result."""

import dataclasses
import json
import linecache
import shutil
import sys
import types
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from same_results import changes, differing, networks

import rfpp
from rfpp import presets
from rfpp.configurations import Configuration
from rfpp.engine import Optimisation
from rfpp.pipeline import digests
from rfpp.pipeline.digests import PRESENTATION, Package, code_digest, reached
from rfpp.pipeline.flows import InvertImages, MakePairs, OwnPairs, TrainFlow
from rfpp.pipeline.grades import DrawSamples, GradeFlow, MeasureReference
from rfpp.pipeline.identities import Unidentified, identity
from rfpp.pipeline.networks import Shipped, TrainFeatures, TrainTeacher
from rfpp.pipeline.plan import Plan
from rfpp.pipeline.sampling import Sampler
from rfpp.pipeline.steps import Step, in_order
from rfpp.pipeline.store import Store
from rfpp.premetrics import LPIPSHuberOverT, pseudo_huber, squared_l2
from rfpp.timesteps import Exponential, Uniform, UShaped

# Edits of the package

KINDS = {
    "pairs": (MakePairs, *MakePairs.code, Shipped),
    "inverted": (InvertImages, *InvertImages.code, Shipped),
    "own pairs": (OwnPairs, *OwnPairs.code, Sampler),
    "A": (TrainFlow, *TrainFlow.code, Uniform, squared_l2),
    "D": (TrainFlow, *TrainFlow.code, UShaped, pseudo_huber),
    "F": (TrainFlow, *TrainFlow.code, UShaped, LPIPSHuberOverT, Shipped),
    "grades": (GradeFlow, *GradeFlow.code, Sampler),
    "reference": (MeasureReference, *MeasureReference.code, Shipped),
    "teacher": (TrainTeacher, *TrainTeacher.code),
    "features": (TrainFeatures, *TrainFeatures.code),
}
FLOWS = {"A", "D", "F"}
TRAINED = {*FLOWS, "teacher", "features"}
DRAWN = {"pairs", "own pairs", "grades"}  # all through ``generate``, which has EDM's sampler as its default
SAMPLED = {*FLOWS, "own pairs", "grades"}  # a training draws one-step pictures
NEW_LAW = "\n\nclass Beta(TimestepDistribution):\n    def icdf(self, p):\n        return p**2\n"

EDITS = {
    # what was added, and nobody uses
    "a law": ("timesteps.py", None, NEW_LAW, set()),
    "a premetric": ("premetrics.py", None, "\n\ndef l1(a, b, x_t=None, t=None):\n    return (a - b).abs()\n", set()),
    "a configuration": ("configurations.py", None, "\nALL['H'] = Configuration('mine', 'teacher', 'small')\n", set()),
    "a solver": ("samplers.py", None, "\n\ndef midpoint_step(velocity, x, t, s):\n    return x\n", set()),
    "a step": ("pipeline/flows.py", None, "\n\nclass Other(Step):\n    name = 'other'\n", set()),
    # words
    "an error": ("timesteps.py", "is not a finite number", "must be finite", set()),
    "a docstring": ("flow.py", '"""Return ``x_t = (1 - t) x', '"""The line; Return ``x_t = (1 - t) x', set()),
    "an annotation": ("flow.py", "def interpolate(x: Tensor,", "def interpolate(x: Any,", set()),
    "a comment": ("timesteps.py", "# beyond this, 1 - exp(-a) is 1", "# steep", set()),
    "a title": ("pipeline/flows.py", 'return "invert the real images, for G"', 'return "invert"', set()),
    "a progress bar": ("pipeline/flows.py", 'desc=f"{self.title}{run.position}"', 'desc="training"', set()),
    "a refusal": ("samplers.py", 'one_of("solver", solver, SOLVERS)', 'one_of("the solver", solver, SOLVERS)', set()),
    # formulas
    "Uniform": ("timesteps.py", "def icdf(self, p: float | Tensor) -> Tensor:\n        return _tensor(p)",
                "def icdf(self, p: float | Tensor) -> Tensor:\n        return _tensor(p) ** 2", {"A"}),
    "the U-shape": ("timesteps.py", "math.sinh(a / 2)) / a", "math.sinh(a / 2)) / (2 * a)", {"D", "F"}),
    "pseudo-Huber": ("premetrics.py", "return squared / ((squared", "return 2 * squared / ((squared", {"D", "F"}),
    "its constant": ("premetrics.py", "HUBER_SCALE = 0.00054", "HUBER_SCALE = 0.0005", {"D", "F"}),
    "1/t": ("premetrics.py", "return 1 / t", "return 2 / t", {"F"}),
    "the squared distance": ("premetrics.py", "return (a - b).square().flatten(1).mean(dim=1)",
                             "return (a - b).square().flatten(1).sum(dim=1)", {"A"}),
    "reflow's loss": ("training.py", "self.premetric(z - x, model", "self.premetric(x - z, model", FLOWS),
    "a teacher's loss": ("training.py", "return weight * (denoised - x)", "return (denoised - x)", {"teacher"}),
    "a default": ("pipeline/sampling.py", "first_time: float = T_MAX", "first_time: float = 0.5", SAMPLED),
    "Proposition 1": ("flow.py", "return (x_t - self.x_prediction(x_t, t, labels)) / t",
                      "return (x_t - self.x_prediction(x_t, t, labels)) * t", set(KINDS)),
    "EDM's noise levels": ("samplers.py", "rho: float = 7.0", "rho: float = 5.0", DRAWN),
    "the mean of samples' features": ("pipeline/grades.py", "_GRADED = 128", "_GRADED = 64", {"grades", "reference"}),
}  # fmt: skip
"""A file, a text in it (``None``: the end), what stands there then, and the kinds of steps that it changes."""


def of_package(root):
    package = Package("rfpp", root)
    return {
        kind: package.reached({(root.__module__, root.__name__) for root in roots}) for kind, roots in KINDS.items()
    }


@pytest.fixture(scope="module")
def before():
    return of_package(Path(rfpp.__file__).parent)


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_changes_the_steps_that_use_it_and_no_others(tmp_path, before, edit):
    file, old, new, expected = EDITS[edit]
    shutil.copytree(Path(rfpp.__file__).parent, tmp_path / "rfpp", ignore=shutil.ignore_patterns("assets", "*.pyc"))
    path = find(tmp_path / "rfpp", file, old)
    text = path.read_text()
    path.write_text(text + new if old is None else text.replace(old, new, 1))
    after = of_package(tmp_path / "rfpp")
    assert {kind for kind in KINDS if before[kind] != after[kind]} == expected


def find(root, file, text):
    """The file, or of a folder the module that has the text."""
    path = root / file
    if path.is_file():
        assert text is None or path.read_text().count(text) >= 1, f"{file} has no {text!r}"
        return path
    return next(each for each in sorted(path.with_suffix("").glob("*.py")) if text is None or text in each.read_text())


def test_a_small_part_of_the_package_is_reached():
    """A law reaches itself and what it is made of; a flow does not reach what it is not trained with."""
    assert {name.partition(":")[2] for name in reached(UShaped)} >= {"UShaped", "TimestepDistribution", "_tensor"}
    assert "rfpp.timesteps:Exponential" not in reached(UShaped)
    flow = reached(TrainFlow, *TrainFlow.code)
    assert "rfpp.flow:interpolate" in flow and "rfpp.training:Reflow" in flow
    assert not {"rfpp.timesteps:LogitNormal", "rfpp.training:Denoising", "rfpp.pairs:import_released"} & set(flow)


# A small package


SMALL = {
    "__init__.py": "from small.a import f\n",
    "a.py": "from small import b\nfrom small.inner import g as inner_g\nimport small.c\n\n\n"
            "def f(x: int) -> int:\n    return b.g(x) + inner_g(x) + small.c.h(x)\n",
    "b.py": "from small.c import LIMIT as MOST\n\n\ndef g(x):\n    return min(x, MOST)\n\n\n"
            "def unused(x):\n    return x\n",
    "c.py": "LIMIT = 3\nTABLE = {}\nTABLE.update(a=LIMIT)\n\n\ndef h(x):\n    return x * len(TABLE)\n",
    "inner/__init__.py": "from small.inner.deep import g\n",
    "inner/deep.py": "class Base:\n    k = 1\n\n\nclass Derived(Base):\n    pass\n\n\ndef g(x):\n    unused = x\n"
                     "    return Derived.k + unused\n\n\ndef alone(x):\n    return 1\n",
}  # fmt: skip


@pytest.fixture
def small(tmp_path):
    def make(file="", old="", new=""):
        folder = tmp_path / f"{abs(hash((file, old, new)))}" / "small"
        for name, text in SMALL.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            assert name != file or old in text
            path.write_text(text.replace(old, new) if name == file else text)
        return Package("small", folder).reached({("small", "f")})

    return make


@pytest.mark.parametrize(
    ("file", "old", "new", "changes"),
    [
        ("b.py", "return min(x, MOST)", "return max(x, MOST)", True),
        ("c.py", "LIMIT = 3", "LIMIT = 4", True),
        ("c.py", "TABLE.update(a=LIMIT)", "TABLE.update(b=LIMIT)", True),
        ("b.py", "import LIMIT as MOST", "import h as MOST", True),
        ("inner/deep.py", "k = 1", "k = 2", True),
        ("inner/deep.py", "class Derived(Base):\n    pass", "class Derived(Base):\n    k = 1", True),
        ("inner/deep.py", "unused = x", "unused = x + 1", True),
        ("inner/deep.py", "return Derived.k", "return what.k", True),
        ("b.py", "def unused(x):\n    return x", "def unused(x):\n    return x + 1", False),
        ("inner/deep.py", "def alone(x):\n    return 1", "def alone(x):\n    return 2", False),
        ("a.py", "def f(x: int) -> int:", 'def f(x: float):\n    """Words."""', False),
        ("b.py", "    return min", "    if x < 0:\n        raise ValueError('one')\n    return min", True),
    ],
)
def test_what_is_reached_in_a_small_package(small, file, old, new, changes):
    assert (small() != small(file, old, new)) == changes


# Rewritten code that gives the same results


FASTER = {
    "b.py": ("def g(x):\n    return min(x, MOST)", "def g(x):\n    return helped(x)\n\n\ndef helped(x):\n    return x"),
    "c.py": ("return x * len(TABLE)", "return x"),
}
"""Files of the small package, each with a text and what stands in its place in another version: a definition names one
that is new and one less, another names one less."""


def version(folder, *more, rewritten=None):
    """The small package with :data:`FASTER`, and with ``more`` changes ``(file, old, new)``."""
    texts = dict(SMALL)
    for file, old, new in [*((file, *each) for file, each in FASTER.items()), *more]:
        assert old in texts[file]
        texts[file] = texts[file].replace(old, new)
    return written(folder, texts, rewritten)


def written(folder, texts, rewritten=None):
    for name, text in texts.items():
        path = folder / "small" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Package("small", folder / "small", rewritten=rewritten)


F, G, H, K = (("small", "f"), ("small.b", "g"), ("small.c", "h"), ("small.inner.deep", "g"))


@pytest.fixture
def slow(tmp_path):
    return written(tmp_path / "slow", SMALL)


@pytest.fixture
def found(tmp_path, slow):
    return changes(slow, version(tmp_path / "fast"))


def test_rewritten_definitions_count_as_what_they_were(tmp_path, slow, found):
    assert set(found) == {"small.b:g", "small.c:h"}
    assert set(found["small.b:g"].beyond) == {"small.b:helped"} and not found["small.c:h"].beyond
    assert set(found["small.b:g"].counts_as) == {"small.b:g", "small.c:LIMIT", "small.c:TABLE"}
    assert version(tmp_path / "without").reached({F}) != slow.reached({F})
    fast = version(tmp_path / "with", rewritten=found)
    for root in (F, G, H, K):
        assert fast.reached({root}) == slow.reached({root})
    assert differing(slow, fast) == [] and differing(slow, version(tmp_path / "without again"))


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (("b.py", "return helped(x)", "return helped(x) + 1"), {F, G}),  # another version again
        (("b.py", "helped(x):\n    return x", "helped(x):\n    return 2 * x"), {F, G}),  # what only it names
        (("c.py", "h(x):\n    return x", "h(x):\n    return -x"), {F, H}),
        (("inner/deep.py", "k = 1", "k = 2"), {F, K}),  # what both versions name
        (("c.py", "LIMIT = 3", "LIMIT = 4"), set()),  # what only the earlier versions named
    ],
)
def test_a_later_change_counts_even_so(tmp_path, slow, found, change, seen):
    now = version(tmp_path / "later", change, rewritten=found)
    assert {root for root in (F, G, H, K) if now.reached({root}) != slow.reached({root})} == seen


def test_what_stands_in_for_a_definition_hides_no_change_of_it(tmp_path, found):
    """One root counts as what used LIMIT once, another uses it as it is now."""
    now, limit = version(tmp_path / "later", ("c.py", "LIMIT = 3", "LIMIT = 4"), rewritten=found), ("small.c", "LIMIT")
    then, today = (now.reached({root})["small.c:LIMIT"] for root in (G, limit))
    assert then != today == now.reached({G, limit})["small.c:LIMIT"]


def test_networks_are_compared_with_the_code_of_each_folder(tmp_path):
    root = Path(rfpp.__file__).parent
    shutil.copytree(root, tmp_path / "rfpp", ignore=shutil.ignore_patterns("assets", "*.pyc"))
    assert networks(tmp_path) == networks(root.parent)
    path = tmp_path / "rfpp" / "networks" / "layers.py"
    path.write_text(path.read_text().replace("self.eps = max(1, min(32, channels // 4)), eps", "self.eps = 1, eps"))
    assert networks(tmp_path) != networks(root.parent)


def test_a_definition_that_was_rewritten_twice_counts_as_the_first(tmp_path, slow, found):
    again = ("b.py", "return helped(x)", "return helped(helped(x))")
    twice = changes(version(tmp_path / "fast again", rewritten=found), version(tmp_path / "twice", again))
    assert twice["small.c:h"] == found["small.c:h"]
    now = version(tmp_path / "now", again, rewritten=twice)
    assert all(now.reached({root}) == slow.reached({root}) for root in (F, G, H, K))


def test_definitions_that_name_each_other_may_be_rewritten(tmp_path):
    before = written(tmp_path / "before", {**SMALL, "b.py": "def g(x):\n    return x\n"})
    texts = {**SMALL, "b.py": "def g(x):\n    return other(x) if x else x\n\n\ndef other(x):\n    return g(0)\n"}
    found = changes(before, written(tmp_path / "now", texts))
    assert written(tmp_path / "listed", texts, found).reached({F}) == before.reached({F})


def test_this_packages_list_is_of_its_own_definitions():
    """An entry for a version that is gone would say nothing; the reasons are for readers."""
    listed = digests.package().rewritten
    for name, entry in listed.items():
        source, _, definition = name.partition(":")
        module = digests.package().module(source)
        there = module is not None and definition in module.definitions
        now = digests.package().definition(source, definition)[0] if there else "gone"
        said = f"{name} changed: compare results (tests/same_results.py), or delete its entry for new keys"
        assert digests.package().rewriting(name, now) is entry, said
    entries = json.loads(digests.REWRITTEN.read_text())
    assert all(entry["reason"].endswith(".") and "steps" in entry["compared"] for entry in entries)
    assert sum(len(entry["definitions"]) for entry in entries) == len(listed)


def beyond():
    """The definitions that only rewritten ones name. Keys hold them to what they are without listing them."""
    package = digests.package()
    named = {tuple(each.split(":")) for entry in package.rewritten.values() for each in entry.beyond}
    return set(package.reached(named))


# Names


def test_a_name_that_cannot_be_resolved_pulls_in_its_module(small):
    found = small("inner/deep.py", "return Derived.k", "return globals_of_another[0]")
    assert "small.inner.deep:alone" in found and "small.inner.deep:alone" not in small()


def test_a_module_that_is_passed_on_is_reached_as_a_whole(small):
    assert "small.b:unused" in small("a.py", "b.g(x)", "getattr(b, 'g')(x)")


def test_words_of_an_error_do_not_count(small):
    first, second = (
        small("b.py", "    return min", f"    if x < 0:\n        raise ValueError(f'{words} {{x}}')\n    return min")
        for words in ("one", "another")
    )
    assert first == second != small()


# What is executed


@pytest.fixture(scope="module")
def plan():
    """Every kind of step, as small as can be."""
    values = presets.load("smoke").model_dump()
    recipe = {"batch": 8, "steps": 2, "lr": 1e-3, "warmup": 0, "ema": 0.5}
    network = {"model_channels": 16, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": [8]}
    values["data"], values["teacher"] = {"name": "custom"}, {"train": {**recipe, "network": network}}
    values["features"] = {"kind": "trained", "train": {**recipe, "widths": [4, 8]}}
    from rfpp import data

    return Plan(presets.Preset.model_validate(values), data.digits())


def covered(value):
    """The definitions that a value's key has."""
    if isinstance(value, Step):
        return set(reached(type(value), *value.code)).union(
            *(covered(getattr(value, field.name)) for field in dataclasses.fields(value))
        )
    if isinstance(value, type) or (callable(value) and not dataclasses.is_dataclass(value)):
        return set(reached(value))
    return set(reached(type(value))) if dataclasses.is_dataclass(value) else set()


def executed(work):
    """The top-level definitions of the package that run during ``work()``, but for modules and what only shows."""
    root, found = str(Path(rfpp.__file__).parent), set()

    def see(frame, event, argument):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(root) and not code.co_name.startswith("<module"):
            found.add((frame.f_globals["__name__"], code.co_qualname))

    sys.setprofile(see)
    try:
        work()
    finally:
        sys.setprofile(None)
    return {
        f"{module}:{qualname.partition('.')[0]}"
        for module, qualname in found
        if module not in PRESENTATION and qualname.rpartition(".")[2] not in ("title", "cost", "__repr__", "__str__")
    }


NO_RESULT = {
    "rfpp.base.paths",
    "rfpp.pipeline.sources",
    "rfpp.data.sklearn_digits",
    "rfpp.data",
    "rfpp.data.dataset:Images",
    "rfpp.data.dataset:to_float",
    "rfpp.base.files:digest",
    "rfpp.base.batches",
    "rfpp.base.processes:place",
    "rfpp.base.processes:_carry",
}
"""Where images come from is not in a key, their content is; ``digest`` makes keys; batches join to the whole; and on a
GPU tensors are carried to the models."""


@pytest.mark.parametrize("kind", ["shipped", "trained"])
def test_all_that_a_step_runs_is_in_its_digest(tmp_path, plan, kind):
    """Every kind of step, computed under a profiler: whatever is executed is among the definitions of its key."""
    plan = plan if kind == "trained" else Plan(presets.load("smoke"))
    run = plan.run(Store(tmp_path))
    last = [plan.grade(config, 0, plan.sampler()) for config in ("A", "D", "F", "G", "third", "teacher")]
    steps = in_order([*last, plan.samples("F", 0, plan.sampler(3, "heun"), 20)])
    kinds = {type(step) for step in steps}
    assert kinds >= {MakePairs, InvertImages, OwnPairs, TrainFlow, GradeFlow, MeasureReference, DrawSamples}
    assert kind == "shipped" or kinds >= {TrainTeacher, TrainFeatures}
    _ = [step.inputs for step in steps]  # keys are made of digests, not of results
    for step in steps:
        folder = tmp_path / "work" / step.key
        folder.mkdir(parents=True)
        seen = executed(lambda step=step, folder=folder: step.compute(folder, run))
        missing = {name for name in seen - covered(step) - beyond() if not {name, name.partition(":")[0]} & NO_RESULT}
        assert not missing, f"{step.title}: {sorted(missing)}"
        run.get(step)


def test_the_guard_notices_what_is_executed():
    """What the test above rests on."""
    assert "rfpp.timesteps:UShaped" in executed(lambda: UShaped(4.0).sample(3, torch.Generator()))


# Values


def test_an_identity_has_type_parameters_and_code():
    assert identity(UShaped(4.0)) == identity(UShaped(4.0)) != identity(UShaped(3.0))
    assert identity(UShaped(4.0)) != identity(Exponential(4.0))
    assert identity(partial(pseudo_huber, t=1)) != identity(partial(pseudo_huber, t=2))
    assert identity(torch.zeros(2)) != identity(torch.zeros(3)) != identity(torch.ones(3))
    assert identity(Optimisation(3, 1e-3)) != identity(Optimisation(4, 1e-3))
    first, second = Configuration("some words"), Configuration("other words")
    assert identity(first) == identity(second) != identity(replace(first, batch=3))


# Code of a reader's own


def cell(source, name="mine", **names):
    """What a notebook's cell makes, in a ``__main__`` of its own."""
    file = f"<cell {abs(hash(source))}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    module = types.ModuleType("__main__")
    module.__dict__.update(names)
    before, sys.modules["__main__"] = sys.modules["__main__"], module
    try:
        exec(compile(source, file, "exec"), module.__dict__)
        made = module.__dict__[name]
        return identity(made() if name == "Mine" else made)
    finally:
        sys.modules["__main__"] = before


LAW = """
from dataclasses import dataclass
from rfpp.timesteps import TimestepDistribution
import rfpp.flow as flow

POWER = 2

def power(p):
    return p ** POWER

@dataclass(frozen=True)
class Mine(TimestepDistribution):
    a: float = 1.0
    def pdf(self, t): return t
    def cdf(self, t): return t
    def icdf(self, p):
        # a comment
        return power(p) * self.a * flow.T_MAX
"""


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ("# a comment", "# another", False),
        ("def power(p):", 'def power(p):\n    """Words."""', False),
        ("POWER = 2", "POWER = 3", True),
        ("p ** POWER", "p ** POWER + 1", True),
        ("a: float = 1.0", "a: float = 2.0", True),
        ("flow.T_MAX", "flow.T_MIN", True),
        ("import rfpp.flow as flow\n", "import rfpp.flow as flow\nOTHER = 3\n", False),
    ],
)
def test_a_readers_class_is_known_by_its_code_and_what_that_names(old, new, changes):
    assert (cell(LAW, "Mine") != cell(LAW.replace(old, new), "Mine")) == changes


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("mine = lambda a, b, x_t, t: a", "a lambda .* cannot be identified"),
        ("class Mine:\n    pass", "its source is not available|has no functions"),
        ("mine = open", "cannot be identified"),
        ("f = lambda x: x\ndef mine(a):\n    return f(a)", "a lambda"),
        ("thing = object()\ndef mine(a):\n    return thing", "cannot be identified"),
        ("def mine(a):\n    return nowhere", "it names nowhere, which is not defined"),
    ],
)
def test_what_cannot_be_identified_is_refused(source, complaint):
    with pytest.raises(Unidentified, match=complaint):
        cell(source, "Mine" if "class" in source else "mine")


def test_code_of_installed_packages_stands_by_its_name():
    assert cell("from math import sqrt\ndef mine(a):\n    return sqrt(a)") != cell(
        "from math import sin as sqrt\ndef mine(a):\n    return sqrt(a)"
    )


@dataclass(frozen=True)
class OfAFile:
    """A reader's class in a module."""

    k: int = 3

    def f(self):
        return self.k


def test_a_class_of_a_module_is_known():
    assert identity(OfAFile(2)) != identity(OfAFile(3)) and len(code_digest(OfAFile)) == 64
    assert digests.is_own(UShaped) and not digests.is_own(OfAFile)


# Source code

ORIGINAL = '''
"""A module."""
import math

FACTOR = 3.0


def area(radius, scale=1):
    """The area."""
    if radius:  # not nought
        return math.pi * radius**2 * FACTOR
    return None


class Thing:
    """A thing."""

    size: int = 0
'''


def code(folder, source):
    """The digest of a module with this source."""
    path = folder / f"{abs(hash(source))}" / "original"
    path.mkdir(parents=True, exist_ok=True)
    (path / "__init__.py").write_text(source)
    return Package("original", path).reached({("original", "*")})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  # not nought", "  # quite another remark"),
        ("  # not nought", ""),
        ('"""The area."""', '"""Something else, on\n    two lines."""'),
        ('    """A thing."""\n\n', ""),
        ('"""A module."""\n', ""),
        ("math.pi * radius**2 * FACTOR", "(\n            math.pi * radius ** 2\n            * FACTOR\n        )"),
        ("def area", "\n\n\ndef area"),
        ("3.0", "3.00"),
        ("size: int", "size: float"),
        ("import math", "import math, cmath"),
    ],
)
def test_comments_docstrings_annotations_and_layout_do_not_count(tmp_path, old, new):
    assert old in ORIGINAL
    assert code(tmp_path, ORIGINAL) == code(tmp_path, ORIGINAL.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("3.0", "3.5"),
        ("3.0", "3"),
        ("3.0", '"3.0"'),
        ("radius**2", "radius**3"),
        ("radius**2 *", "radius**2 +"),
        ("if radius", "if not radius"),
        ("scale=1", "scale=2"),
        ("scale=1", "scale=True"),
        ("scale=1", "scale=None"),
        ("return None", "return 0"),
        ("return None", "return False"),
        ("return None", "pass"),
        ("def area", "def volume"),
        ("    size: int = 0", "    size: int = 0\n    other = size"),
        ("math.pi * radius**2 * FACTOR", "math.pi * (radius**2 * FACTOR)"),
    ],
)
def test_code_counts(tmp_path, old, new):
    assert old in ORIGINAL
    assert code(tmp_path, ORIGINAL) != code(tmp_path, ORIGINAL.replace(old, new))
