"""A test of the tests: one-line faults in the mathematics, each of which some test must notice (``make mutants``).

    python tests/mutants.py [--jobs N] [--limit SECONDS] [--list] [NAME ...]

Each fault is put into a copy of the package, and the tests that should notice it are run there. Before that they are
run on the copy as it is: a test that fails anyway notices nothing. Exits with 1 when a fault goes unnoticed.
"""

from __future__ import annotations

import argparse
import os
import queue
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("rfpp", "tests", "pyproject.toml", "book/claims.yml")


@dataclass(frozen=True)
class Fault:
    """A fault: ``old``, which occurs once in the package or in its ``file``, becomes ``new``.

    ``tests``: what to run, as one would after ``pytest`` in the folder of tests. ``hangs``: whether running out of time
    counts as being noticed.
    """

    name: str
    what: str
    old: str
    new: str
    tests: str
    file: str = "**/*.py"
    hangs: bool = False


FLOW, LOSS, ARENA = "test_flow.py", "test_premetrics.py", "test_arena.py"
FAULTS = (
    # The flow
    Fault("prop-1", "Proposition 1's noise level upside down",
          "(t / (1 - t)).flatten()", "((1 - t) / t).flatten()", FLOW, "flow.py"),
    Fault("velocity-sign", "the velocity from noise to data",
          "(x_t - self.x_prediction(x_t, t, labels)) / t", "(self.x_prediction(x_t, t, labels) - x_t) / t", FLOW),
    Fault("interpolation", "data at t = 1, noise at t = 0",
          "return (1 - t) * x + t * z", "return t * x + (1 - t) * z", FLOW),
    Fault("clamp", "times kept further inside than the paper's",
          "T_MIN, T_MAX = 1e-5, 1 - 1e-5", "T_MIN, T_MAX = 1e-4, 1 - 1e-4", "test_details.py -k times"),
    # Likelihood and few steps
    Fault("truncation", "the log-density at the data's end without the scale of the flow's state",
          "volumes + x[0].numel() * math.log(1 - start)", "volumes", "test_likelihood.py -k mixture"),
    Fault("bin-width", "bins a level too narrow",
          "+ math.log2((levels - 1) / 2)", "+ math.log2(levels / 2)", "test_likelihood.py -k bits"),
    Fault("matching-noise", "the start's noise as wide as a bin",
          "2 / (levels - 1) / math.sqrt(12)", "2 / (levels - 1)", "test_likelihood.py -k dequantisation"),
    Fault("blend-weight", "the weight of a blend on the other update",
          "x = (1 - w) * (x + (s - t) * v) + w * interpolate(x - t * v, start, s)",
          "x = w * (x + (s - t) * v) + (1 - w) * interpolate(x - t * v, start, s)", "test_few_steps.py -k bit"),
    # The arena
    Fault("meanflow-identity", "MeanFlow's identity with the other sign",
          "(z - x - expand(t - r, x) * change)", "(z - x + expand(t - r, x) * change)", ARENA),
    Fault("meanflow-change", "the derivative along another direction",
          "along=z - x)", "along=z + x)", ARENA),
    Fault("second-time", "the second time in place of the interval's length",
          "labels, (t - r).flatten())", "labels, r.flatten())", ARENA),
    Fault("still-features", "features of an interval that are not nought at length nought",
          "angles.cos() - 1", "angles.cos()", ARENA),
    Fault("second-leap", "the second leap from where the first began",
          "model(x_t - first * before, r, labels, s)", "model(x_t, r, labels, s)", ARENA),
    Fault("leaps-mean", "the mean of two leaps whatever their lengths",
          "(first * before + second * after) / (first + second)", "(before + after) / 2", ARENA),
    Fault("heun-mean", "a Heun step with its first slope alone",
          "x_t + length * mean, proposal)", "proposal, proposal)", ARENA),
    Fault("consistency-end", "a consistency target at its own time",
          "x_r - expand(r, x) * model(x_r, r, labels)", "x_r - expand(t, x) * model(x_r, r, labels)", ARENA),
    Fault("stages", "noise levels twice as far apart",
          "2.0**-stage", "2.0 ** (1 - stage)", ARENA),
    Fault("blur", "a blur that does not keep what is flat",
          "[0.25, 0.5, 0.25]", "[0.25, 0.25, 0.25]", ARENA),
    Fault("levelled", "levelled weights through which gradients pass",
          "(squared.detach() + self.offset)", "(squared + self.offset)", ARENA),
    # Timesteps
    Fault("u-shape", "the U-shape twice as steep as its density",
          "math.sinh(a / 2)", "math.sinh(a)", "test_timesteps.py"),
    Fault("quantile-sign", "quantiles of the U-shape that fall",
          "0.5 + torch.asinh(", "0.5 - torch.asinh(", "test_timesteps.py"),
    Fault("steep-quantile-sign", "quantiles of a steep U-shape that fall",
          "torch.sign(p - 0.5) * distance", "torch.sign(0.5 - p) * distance", "test_timesteps.py"),
    Fault("rescaling", "drawn times down to nought",
          "(T_MIN + (T_MAX - T_MIN) * self.icdf(p))", "(T_MAX * self.icdf(p))", "test_details.py -k times"),
    # Premetrics
    Fault("huber-constant", "pseudo-Huber's constant ten times larger",
          "HUBER_SCALE = 0.00054", "HUBER_SCALE = 0.0054", LOSS),
    Fault("huber-weight", "pseudo-Huber without its weight 1 - t",
          "(1 - times) * pseudo_huber(a, b)", "pseudo_huber(a, b)", LOSS),
    Fault("over-t", "LPIPS over t^2", "return 1 / t\n", "return 1 / t**2\n", LOSS),
    Fault("sum", "squared errors summed, not averaged",
          "(a - b).square().flatten(1).mean(dim=1)", "(a - b).square().flatten(1).sum(dim=1)", LOSS),
    # Samplers
    Fault("heun", "Heun with the second slope alone",
          "(first + slope(proposal, following)) / 2", "slope(proposal, following)",
          "test_samplers.py -k 'order or released'"),
    Fault("heun-last-step", "a Heun step to the end of the interval",
          'if solver == "heun" and index < len(grid) - 2:',
          'if solver == "heun" and index < len(grid) - 1:', "test_samplers.py -k 'evaluations'"),
    Fault("straight", "the straight update with the noise of the old time",
          "interpolate(x_t - t * v, z, s)", "interpolate(x_t - t * v, z, t)", "test_samplers.py -k 'straight'"),
    Fault("direction", "steps against the grid",
          "x_t + (s - t) * v", "x_t - (s - t) * v", "test_samplers.py -k 'order or exact'"),
    Fault("first-noise", "noise at full size whatever the first time",
          "z * min(grid[0], T_MAX)", "z", "test_samplers.py -k 'times'", "samplers.py"),
    Fault("inversion-start", "inversion from ten times the noise",
          "INVERSION_START = 1e-3", "INVERSION_START = 1e-2", "test_samplers.py -k 'inver'"),
    Fault("edm-rho", "EDM's noise levels on another curve",
          "(high + ramp * (low - high)) ** rho", "(high + ramp**2 * (low - high)) ** rho",
          "test_samplers.py -k 'teacher'"),
    Fault("heun-level", "Heun's second slope at the first time or noise level",
          "slope(proposal, following)", "slope(proposal, s)",
          "test_samplers.py -k 'teacher'"),
    # Denoisers
    Fault("c-skip", "EDM's c_skip without its square",
          "(self.sigma_data / total) ** 2", "self.sigma_data / total", "test_denoisers.py", "denoisers.py"),
    Fault("c-out", "EDM's c_out without sigma_data",
          "sigma * self.sigma_data / total", "sigma / total", "test_denoisers.py", "denoisers.py"),
    Fault("c-in", "EDM's c_in squared", ", 1 / total\n", ", 1 / total**2\n", "test_denoisers.py", "denoisers.py"),
    Fault("c-noise", "EDM's c_noise twice as large", ".log() / 4", ".log() / 2", "test_denoisers.py", "denoisers.py"),
    Fault("vp", "a VP model's noise scaled twice",
          "return x - sigma * output", "return x - alpha * sigma * output", "test_denoisers.py"),
    # Networks
    Fault("skip-scale", "residual blocks that grow",
          "skip_scale=0.5**0.5", "skip_scale=1.0", "test_networks.py -k released"),
    Fault("attention-scale", "attention without 1 / sqrt(d)",
          "F.scaled_dot_product_attention(query, key, value)",
          "F.scaled_dot_product_attention(query, key, value, scale=1.0)", "test_networks.py -k released"),
    Fault("norm-epsilon", "group norm with torch's epsilon instead of NCSN++'s",
          "skip_scale=0.5**0.5, eps=1e-6", "skip_scale=0.5**0.5, eps=1e-5", "test_networks.py -k epsilon"),
    Fault("sines-first", "cosines where checkpoints have sines",
          "reshape(emb.shape[0], 2, -1).flip(1)", "reshape(emb.shape[0], 2, -1)", "test_networks.py -k released"),
    # Training
    Fault("x-and-z", "data and noise swapped in the loss",
          "self.premetric(z - x, model(x_t, t, labels), x_t, t)",
          "self.premetric(x - z, model(x_t, t, labels), x_t, t)", "test_training.py"),
    Fault("denoising-weight", "EDM's weight without a square",
          "/ (sigma * self.sigma_data) ** 2", "/ (sigma * self.sigma_data)", "test_training.py -k denoising"),
    Fault("ema", "an average that does not forget the start",
          "min(decay, n / (n + 9)) if growing else decay", "decay", "test_engine.py -k average"),
    Fault("warm-up", "a first step that does not train",
          "(step + 1) / (warmup + 1)", "step / (warmup + 1)", "test_engine.py -k rate"),
    Fault("dropout-step", "the same dropout at every step",
          '"dropout", run.step, rows.start', '"dropout", 0, rows.start', "test_details.py -k dropout"),
    Fault("dropout-piece", "the same dropout in every piece of a step",
          '"dropout", run.step, rows.start', '"dropout", run.step, 0', "test_details.py -k dropout"),
    Fault("pieces", "gradients of pieces averaged each on its own",
          "losses.sum() * (processes.count() / self.objective.batch_size)", "losses.mean()",
          "test_engine.py -k pieces"),
    # Pairs
    Fault("noise-name", "the pairs' noise from a stream of another name",
          'rng.derive(seed, "pairs")', 'rng.derive(seed, "noise")', "test_pairs.py -k stays"),
    Fault("noise-index", "each image with its neighbour's noise",
          "z = noise(self.seed, indices, self.shape, device", "z = noise(self.seed, indices + 1, self.shape, device",
          "test_pairs.py -k 'images or items'"),
    Fault("labels", "labels that are one off",
          'stored.get("labels", indices % self.classes)', 'stored.get("labels", (indices + 1) % self.classes)',
          "test_pairs.py test_experiment.py -k 'its_shape or pairs_of_the_preset'"),
    Fault("inverted-labels", "inversion with the labels of other images",
          "None if labels is None else labels[chunk].to(device)",
          "None if labels is None else labels[chunk].flip(0).to(device)", "test_pairs.py -k inverted"),
    # Intersections
    Fault("crossing-sign", "the crossing noise on the other side",
          "(1 - t) / t * (x1 - x2)", "(1 - t) / t * (x2 - x1)", "test_intersections.py -k lines"),
    Fault("crossing-factor", "the crossing noise without its 1 / t",
          "(1 - t) / t * (x1 - x2)", "(1 - t) * (x1 - x2)", "test_intersections.py -k lines"),
    # Metrics
    Fault("straightness", "straightness that depends on the grid",
          "((b - a) / (s - t) - chord)", "((b - a) - chord)", "test_metrics.py -k straight"),
    Fault("moments", "the covariance divided by N",
          "self.scatter / (self.count - 1)", "self.scatter / self.count", "test_standard.py -k moments"),
    Fault("merge", "batches' scatter merged with another weight",
          "(self.count * other.count / total)", "(other.count / total)", "test_standard.py -k moments"),
    # Configurations
    Fault("g-rate", "G fine-tuned at the general learning rate",
          "(fine.steps, fine.lr, fine.warmup)", "(fine.steps, general.lr, fine.warmup)",
          "test_details.py -k 'own_rate or general'"),
    Fault("f-start", "F from C's weights instead of the teacher's",
          '_F = Configuration("C + LPIPS-Huber-1/t", premetric',
          '_F = Configuration("C + LPIPS-Huber-1/t", _C, premetric',
          "test_training.py -k configurations"),
    Fault("b-batch", "B with the small batch",
          "teacher's weights, larger batch\", timesteps",
          "teacher's weights, larger batch\", batch=\"small\", timesteps",
          "test_training.py -k configurations"),
    # Claims
    Fault("interval", "an interval of 90 %", "(1 + CONFIDENCE) / 2", "CONFIDENCE", "test_claims.py -k interval"),
    Fault("bound", "a verdict of no where the interval only touches the bound",
          "span[1] <= low or span[0] >= high", "span[0] <= low or span[1] >= high", "test_claims.py -k verdicts"),
)  # fmt: skip


def place(fault: Fault, folder: Path) -> Path:
    """The file below ``folder`` that holds the fault's text; raises ``LookupError`` unless it occurs exactly once."""
    counts = {path: path.read_text(encoding="utf-8").count(fault.old) for path in folder.glob(fault.file)}
    if sum(counts.values()) != 1:
        where = ", ".join(f"{path.relative_to(folder)} ({n})" for path, n in counts.items() if n) or "nowhere"
        raise LookupError(f"{fault.name}: {fault.old!r} must occur once in {fault.file}; found: {where}")
    return next(path for path, n in counts.items() if n)


def copy(target: Path) -> Path:
    """What the tests need, in a folder of its own."""
    for name in COPIED:
        source, goal = ROOT / name, target / name
        goal.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, goal, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, goal)
    return target


def run(tests: str, folder: Path, limit: float) -> tuple[int | None, str]:
    """Exit status and output of pytest; ``None`` when it took longer than ``limit`` seconds."""
    # Without bytecode: the same size in the same second would pass for the same file.
    changes = {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *shlex.split(tests)]
    try:
        done = subprocess.run(
            command, cwd=folder / "tests", env={**os.environ, **changes}, timeout=limit, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None, ""
    return done.returncode, done.stdout


def judge(fault: Fault, folder: Path, limit: float) -> str:
    """``caught``, ``survived``, ``took too long`` or ``broken``: when the tests could not be run at all."""
    path = place(fault, folder / "rfpp")
    original = path.read_text(encoding="utf-8")
    path.write_text(original.replace(fault.old, fault.new), encoding="utf-8")
    try:
        status, _ = run(fault.tests, folder, limit)
    finally:
        path.write_text(original, encoding="utf-8")
    if status is None:
        return "caught" if fault.hangs else "took too long"
    return {0: "survived", 1: "caught"}.get(status, "broken")


def in_parallel(folders: Sequence[Path], jobs: Mapping[str, Callable[[Path], str]]) -> dict[str, str]:
    """What each job says, no two at once in a folder; a line for each as it is done."""
    free: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for folder in folders:
        free.put(folder)

    def one(title: str) -> tuple[str, str, float]:
        folder, start = free.get(), time.monotonic()
        try:
            return title, jobs[title](folder), time.monotonic() - start
        finally:
            free.put(folder)

    found: dict[str, str] = {}
    with ThreadPoolExecutor(len(folders)) as pool:
        for future in as_completed([pool.submit(one, title) for title in jobs]):
            title, result, seconds = future.result()
            found[title] = result
            print(f"[{len(found):2}/{len(jobs)}] {seconds:4.0f} s  {title}: {result}", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Put faults into a copy of the package and see whether tests notice.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults to try; all when empty")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="how many at a time (default: one for each core)"
    )
    parser.add_argument("--limit", type=float, default=180, help="seconds for the tests of one (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="list them, and check that each finds its text")
    options = parser.parse_args()
    known = {fault.name: fault for fault in FAULTS}
    unknown = [name for name in options.names if name not in known]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; allowed: {', '.join(known)}")
    if options.jobs < 1:
        parser.error(f"--jobs={options.jobs} is too small; at least 1 is needed")
    chosen = [known[name] for name in dict.fromkeys(options.names)] or list(FAULTS)
    lost = []
    for fault in chosen:
        try:
            place(fault, ROOT / "rfpp")
        except LookupError as error:
            lost.append(str(error))
    if lost:
        print("\n".join([*lost, "the code has changed: bring these up to date in tests/mutants.py"]), file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(f"{fault.name:20} {fault.what}" for fault in chosen))
        return 0

    with tempfile.TemporaryDirectory() as temporary:
        folders = [copy(Path(temporary) / str(number)) for number in range(options.jobs)]

        def unharmed(tests: str, folder: Path) -> str:
            status, output = run(tests, folder, options.limit)
            return "passes" if status == 0 else f"fails\n{output}"

        print("The tests without a fault")
        selections = {fault.tests: partial(unharmed, fault.tests) for fault in chosen}
        if set(in_parallel(folders, selections).values()) != {"passes"}:
            print("tests that fail without a fault cannot notice one: mend them first", file=sys.stderr)
            return 2
        print("The same with one")
        titles = {f"{fault.name} ({fault.what})": partial(judge, fault, limit=options.limit) for fault in chosen}
        found = in_parallel(folders, titles)
    missed = [title for title, result in found.items() if result != "caught"]
    print("\n".join([f"{len(chosen) - len(missed)} of {len(chosen)} caught", *(f"not: {title}" for title in missed)]))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
