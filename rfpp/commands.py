"""The command line: ``python -m rfpp <command> --preset laptop``; ``--set training.steps=800`` replaces a setting."""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rfpp import arena, book, configurations, presets
from rfpp.base import batches, checks, downloads, files, processes

if TYPE_CHECKING:
    from rfpp.experiment import Experiment
    from rfpp.pipeline.sampling import AnySampler


def _assignments(pairs: Sequence[str]) -> dict[str, Any]:
    """``["training.lr=1e-3"]`` as a dictionary of parsed values."""
    values = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not (name and equals):
            raise presets.PresetError(f"--set {pair!r} is not of the form NAME=VALUE")
        try:
            values[name] = presets.parse(text)
        except presets.PresetError as error:
            raise presets.PresetError(f"--set {name}: {error}") from error
    return values


def _experiment(arguments: argparse.Namespace) -> Experiment:
    overrides = _assignments(arguments.set)
    preset = presets.load(arguments.preset, overrides)  # fails before the slow imports
    from rfpp.experiment import Experiment

    return Experiment(preset, jobs=getattr(arguments, "jobs", None), scheduler=getattr(arguments, "scheduler", None))


def _seeds(arguments: argparse.Namespace, experiment: Experiment) -> Sequence[int]:
    """The seed that was given, or all of the preset's."""
    return experiment.preset.seeds if arguments.seed is None else [arguments.seed]


def _say(text: object) -> None:
    """Print, from the first of several processes only."""
    if processes.is_main():
        print(text)


def _pairs(arguments: argparse.Namespace) -> None:
    experiment = _experiment(arguments)
    for split in ("train", "held_out"):
        _say(f"{split}: {len(experiment.pairs(split))} pairs")


def _train(arguments: argparse.Namespace) -> None:
    experiment = _experiment(arguments)
    seeds = _seeds(arguments, experiment)
    experiment.train(arguments.config, seeds)
    for config in arguments.config:
        for seed in seeds:
            _say(f"{config}, seed {seed}: {experiment.flow_file(config, seed)}")


def _sampler(arguments: argparse.Namespace, experiment: Experiment) -> AnySampler:
    """The sampler that the options describe, or a reader's own."""
    said = {name: getattr(arguments, name) for name in ("nfe", "solver", "update", "times")}
    given = {name: value for name, value in said.items() if value is not None}
    if arguments.sampler is None:
        if "times" in given:
            given["inner"] = given.pop("times")
        return experiment.own_sampler(arguments.config, **given)
    if given:
        raise ValueError(
            f"--sampler={arguments.sampler} says how to sample; leave out --{', --'.join(given)}, or --sampler"
        )
    found: AnySampler = configurations.imported(arguments.sampler, "sampler")
    if isinstance(found, type) or not (callable(found) and hasattr(found, "nfe")):
        kind = f"the class {found.__name__}" if isinstance(found, type) else f"a {type(found).__name__}"
        raise ValueError(
            f"sampler={arguments.sampler!r} is {kind}; a value with nfe is needed that makes images of flow, z, labels"
        )
    return found


_PICTURES = (".png", ".jpg", ".jpeg", ".svg", ".pdf")  # matplotlib adds an ending where there is none


def _sample(arguments: argparse.Namespace) -> None:
    checks.at_least("n", arguments.n, 1)
    if arguments.out.suffix.lower() not in _PICTURES:
        raise ValueError(f"out={str(arguments.out)!r} must end in {', '.join(_PICTURES)}")
    if arguments.out.is_dir():
        raise ValueError(f"out={str(arguments.out)!r} is a folder; a picture's file is needed")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    experiment = _experiment(arguments)
    sampler = _sampler(arguments, experiment)
    import matplotlib

    matplotlib.use("Agg")
    from rfpp.book import plots

    plots.style()
    z, labels = experiment.noise(arguments.n)
    seed = arguments.seed or 0
    experiment.check([sampler], arguments.config, seed)
    images = sampler(experiment.flow(arguments.config, seed), z, labels)
    rows = {f"{start}..": images[start : start + 20] for start in range(0, len(images), 20)}
    if processes.is_main():
        plots.image_rows(rows).savefig(arguments.out)
    _say(arguments.out)


def _evaluate(arguments: argparse.Namespace) -> None:
    for name in ("n", "reference", "reference_count", "weights"):
        if getattr(arguments, name) is not None and not arguments.standard:
            raise ValueError(
                f"--{name.replace('_', '-')}={getattr(arguments, name)} works only with --standard; "
                "add --standard, or leave this option out"
            )
    experiment = _experiment(arguments)
    from rfpp.pipeline import standard

    seeds = _seeds(arguments, experiment)
    sampler = _sampler(arguments, experiment)
    if not arguments.standard:
        found = experiment.sweep(arguments.config, seeds, [sampler])[sampler]
        for seed, evaluation in zip(seeds, found, strict=True):
            _say(f"{arguments.config}, seed {seed}: {evaluation}")
        return
    graded = experiment.grades(
        arguments.config, seeds, sampler, n=arguments.n, reference=arguments.reference,
        reference_count=arguments.reference_count, weights=arguments.weights,
    )  # fmt: skip
    for seed, grades in zip(seeds, graded, strict=True):
        path = standard.write(grades, arguments.config, seed, experiment.folder)
        _say(f"{arguments.config}, seed {seed}: {grades}\n{path}")


def _run(arguments: argparse.Namespace) -> None:
    given = _assignments(arguments.set)
    if settings := {name: given.pop(name) for name in list(given) if "." in name}:
        given["settings"] = {**given.get("settings", {}), **settings}
    book.run(arguments.preset, arguments.notebooks, given, write_back=arguments.write_back, jobs=arguments.jobs)


def _book(arguments: argparse.Namespace) -> None:
    print(f"open {book.build(arguments.preset, arguments.notebooks, pdf=arguments.pdf)}")


def _status(arguments: argparse.Namespace) -> None:
    checks.at_least("repeats", arguments.repeats, 1)
    from rfpp.pipeline import costs
    from rfpp.pipeline.plan import Plan

    experiment, plan = _experiment(arguments), None
    if (blank := costs.expected(experiment.preset)) is not None:
        plan = Plan(experiment.preset, blank)
        images = f"{len(blank.train):,} training images of {' x '.join(map(str, blank.train.shape))}"
        _say(f"the images are not on this machine yet, so no step counts as finished; this plan assumes {images}")
    plan = plan or experiment.plan
    steps = plan.steps(arguments.config, _seeds(arguments, experiment))
    forecasts, pace = costs.forecast(plan, experiment.run, steps), None
    if not arguments.no_measuring and any(entry.done < 1 for entry in forecasts):
        for lpips in (True, False):
            try:
                pace = costs.measure(plan, arguments.repeats, lpips)
                break
            except OSError as error:  # a file that the reader must supply is missing
                what = "steps with LPIPS are timed without it" if lpips else "the time left cannot be estimated"
                print(f"{what}: {error}", file=sys.stderr)
    _say(costs.report(forecasts, pace))
    store = experiment.run.store
    finished = store.finished()
    stored = sum(entry["bytes"] for artifact in finished for entry in artifact.manifest["files"].values())
    seconds = sum(artifact.manifest["seconds"] for artifact in finished)
    _say(
        f"in {store.root}: {len(finished)} finished steps of this and other settings, {costs.size(stored)}, "
        f"{costs.duration(seconds)} of computing"
    )


def _doctor(arguments: argparse.Namespace) -> int:
    """Examine a path, or a training of a preset; return 1 if something is found."""
    if arguments.place is not None and (arguments.config, arguments.seed, arguments.set) != (None, None, []):
        raise ValueError(f"{arguments.place} and --config, --seed or --set both say what to examine; leave one out")
    if arguments.place is None and arguments.teacher is not None:
        raise ValueError(f"--teacher={arguments.teacher} needs a place with pairs; a training names its own teacher")
    checks.at_least("rows", arguments.rows, 1)
    from rfpp import doctor, pairs

    title = str(arguments.place)
    try:
        if arguments.place is not None:
            material: Any = doctor.read(arguments.place, arguments.teacher, arguments.rows)
        else:
            config, seed = arguments.config or "F", arguments.seed
            experiment = _experiment(arguments)
            seed = experiment.preset.seeds[0] if seed is None else seed
            title = f"{config}, seed {seed}, of {experiment.preset.name}"
            material = doctor.of_experiment(experiment, config, seed, arguments.rows)
        title, findings = f"{title}: {material}", doctor.examine(material)
    except pairs.Damaged as error:
        findings = [doctor.damage(error)]
    if arguments.json:
        _say(json.dumps([finding.record() for finding in findings], indent=1))
    else:
        _say("\n".join(doctor.report(title, findings)))
    return 0 if doctor.is_sound(findings) else 1


def _curves(arguments: argparse.Namespace) -> None:
    from rfpp.doctor import curves

    _say(str(curves.make(_experiment(arguments), arguments.config)))


def _import(arguments: argparse.Namespace) -> None:
    source = arguments.source
    is_url = downloads.is_address(source)
    if arguments.sha256 is not None and not is_url:
        raise ValueError(f"--sha256 works only with a URL, but source={source!r} is a path; leave --sha256 out")
    if arguments.out.suffix != ".safetensors":
        raise ValueError(f"out={str(arguments.out)!r} must end in .safetensors")
    from rfpp import checkpoints
    from rfpp.pipeline import shipped

    if source in shipped.RECIPES and not Path(source).exists():
        file = shipped.ASSETS / f"{source}.safetensors"
        raise ValueError(f"source={source!r} ships with this package in its own format: copy {file} to {arguments.out}")
    model: Any
    if is_url or Path(source).suffix in (".pkl", ".safetensors") or Path(source).is_dir():
        for name in ("network", "weights", "set"):
            if given := getattr(arguments, name):
                raise ValueError(f"--{name}={given} is for a local .pth file, but source={source!r}; leave it out")
        model = checkpoints.load_any(source, arguments.sha256)
    elif Path(source).suffix not in (".pth", ".pt") and not Path(source).exists():
        raise FileNotFoundError(f"source={source!r} does not exist; a file, a diffusers folder or a URL is needed")
    elif arguments.network is None:
        raise ValueError(
            f"source={source!r} is read as a state dict, which needs --network: a name such as cifar10, or a .json "
            "configuration"
        )
    else:
        changes = _assignments(arguments.set)
        model = checkpoints.load_released(Path(source), arguments.network, arguments.weights, **changes)
    files.follow_umask(checkpoints.save(model, arguments.out))
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"{arguments.out}: a {type(model).__name__} with {millions:.1f} million parameters")


def _import_pairs(arguments: argparse.Namespace) -> None:
    from rfpp import pairs

    folder = pairs.import_released(arguments.samples, arguments.z, arguments.out, arguments.labels)
    for path in folder.iterdir():
        files.follow_umask(path)
    print(f"{folder}: {len(pairs.PairDataset(folder))} pairs")


def _lock(arguments: argparse.Namespace) -> None:
    from rfpp import claims

    changed = claims.lock()
    print(f"locked: {', '.join(changed)}" if changed else "the ledger is locked as it stands")


def _retrain(arguments: argparse.Namespace) -> None:
    from rfpp.pipeline import shipped

    shipped.retrain(arguments.names or None)


def _add_imports(commands: Any) -> None:
    """The commands that import published models and pairs, update the lock, and retrain the shipped networks."""
    text = "convert a published checkpoint to this library's format, without executing anything in it"
    sub = commands.add_parser("import", help=text, description=text)
    sub.add_argument("source", help="EDM's .pkl, a released .pth, the folder of a diffusers model, or a URL")
    sub.add_argument("out", type=Path, help="the .safetensors file to write")
    sub.add_argument("--network", help="for a .pth: cifar10, afhq, ffhq, imagenet64, or a .json configuration")
    sub.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="for a .pth: set an argument of its network"
    )
    sub.add_argument("--weights", help="for a training state: ema or model; by default ema, if the file has it")
    sub.add_argument("--sha256", help="for a URL: the SHA-256 that the file must have")
    sub.set_defaults(function=_import)
    text = "import pairs that the paper's released code made"
    sub = commands.add_parser("import-pairs", help=text, description=text)
    sub.add_argument("samples", type=Path, help="samples.zip")
    sub.add_argument("z", type=Path, help="z.zip")
    sub.add_argument("out", type=Path, help="the folder to write")
    sub.add_argument("--labels", type=Path, help="images_labels.csv")
    sub.set_defaults(function=_import_pairs)
    text = "add new claims and amendments to the ledger's lock"
    commands.add_parser("lock", help=text, description=text).set_defaults(function=_lock)
    sub = commands.add_parser("retrain", help="train the shipped networks again")
    sub.add_argument("names", nargs="*", help="names of these networks; all by default")
    sub.set_defaults(function=_retrain)


def _add_standard(sub: argparse.ArgumentParser) -> None:
    """The options of the standard evaluation."""
    sub.add_argument("--standard", action="store_true", help="FID, inception score, precision, recall on Inception")
    sub.add_argument("--n", type=int, default=None, help="with --standard: number of images; the preset's by default")
    sub.add_argument("--reference", type=Path, help="with --standard: EDM's .npz; by default the dataset's images")
    sub.add_argument("--reference-count", type=int, help="with --reference: its number of images, if it does not say")
    sub.add_argument("--weights", help="with --standard: file or URL of Inception's weights; downloaded by default")


def _add_jobs(sub: argparse.ArgumentParser) -> None:
    """The options of commands that compute steps in parallel."""
    sub.add_argument("--jobs", type=int, help="steps to compute side by side; one for each core or GPU by default")
    sub.add_argument("--scheduler", metavar="ADDRESS", help="a dask cluster that computes them instead")


def _add_sampler(sub: argparse.ArgumentParser) -> None:
    """The options of :func:`_sampler`."""
    sub.add_argument("--nfe", type=int, help="number of evaluations, 1 by default; odd with --solver heun")
    sub.add_argument("--solver", help="euler, the default, or heun")
    sub.add_argument("--update", help="standard, the default, or straight")
    sub.add_argument(
        "--times", type=float, nargs="+", metavar="T", help="start times of the steps after the first; in the paper 0.8"
    )
    sub.add_argument("--sampler", metavar="MODULE:NAME", help="the import path of a sampler, in place of these options")


def _add_doctor(command: Callable[..., Any], model: Callable[..., None]) -> None:
    """The commands that examine pairs and trainings, and that record the curves for comparison."""
    sub = command("doctor", _doctor, "examine pairs or a training: what may be wrong with a reflow, and what to do")
    model(sub, seeds="the preset's first")
    sub.add_argument("place", nargs="?", type=Path, help="pairs, or a step of the store; else the training of --config")
    sub.add_argument("--teacher", help="with pairs: the denoiser that made them, a file or the name of a shipped one")
    sub.add_argument("--rows", type=int, default=4096, help="how many pairs to read from a larger set")
    sub.add_argument("--json", action="store_true", help="print records instead of lines")
    sub.set_defaults(config=None)
    sub = command("curves", _curves, "record how good trainings are along the way, for doctor to compare others with")
    sub.add_argument("--config", nargs="+", default=["A", "F"], help="A and F of Table 1 by default")
    _add_jobs(sub)


def parser() -> argparse.ArgumentParser:
    """All commands and options."""
    top = argparse.ArgumentParser(prog="python -m rfpp", description="2-rectified flow++ at any scale.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Callable[[argparse.Namespace], Any], text: str, settings: bool = True) -> Any:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(function=function)
        sub.add_argument(
            "--preset", default=presets.DEFAULT, help=f"one of {', '.join(presets.names())}, or a .yaml file"
        )
        if settings:
            sub.add_argument(
                "--set", action="append", default=[], metavar="NAME=VALUE", help="replace a setting of the preset"
            )
        return sub

    def model(sub: Any, many: bool = False, seeds: str = "all of the preset's") -> None:
        names = (
            f"{', '.join((*configurations.ALL, *arena.METHODS, *arena.SIMPLE_REFLOW))}, or an import path module:NAME"
        )
        names += "" if many else "; or teacher"
        sub.add_argument("--config", default="F", nargs="+" if many else None, help=names)
        sub.add_argument("--seed", type=int, default=None, help=f"training seed; {seeds} by default")

    command("pairs", _pairs, "make the pairs of the 1-rectified flow")
    sub = command("train", _train, "train 2-rectified flows")
    model(sub, many=True)
    _add_jobs(sub)
    sub = command("sample", _sample, "draw a picture of samples")
    model(sub, seeds="0")
    _add_sampler(sub)
    sub.add_argument("--n", type=int, default=100, help="number of samples")
    sub.add_argument("--out", type=Path, default=Path("samples.png"), help=f"the picture: {', '.join(_PICTURES)}")
    sub = command("evaluate", _evaluate, "grade a flow with a sampler")
    model(sub)
    _add_jobs(sub)
    _add_sampler(sub)
    _add_standard(sub)
    sub = command("run", _run, "run notebooks", settings=False)
    chosen = "parts of the names of notebooks, all by default; after 'not', those to leave out"
    sub.add_argument("notebooks", nargs="*", help=chosen)
    help = "set a parameter of the notebooks, or a setting of the preset such as training.steps"
    sub.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=help)
    sub.add_argument("--jobs", type=int, help="notebooks to run side by side; of a single notebook, its trainings")
    sub.add_argument("--write-back", action="store_true", help="put the outputs into notebooks/ as well")
    sub = command("book", _book, "build the book from the notebooks that were run", settings=False)
    sub.add_argument("notebooks", nargs="*", help=f"{chosen}; others that were not run are shown as stored")
    sub.add_argument("--pdf", action="store_true", help="build one PDF, which Chromium prints")
    sub = command("status", _status, "show what is finished of a preset, what is left, and what it costs here")
    sub.add_argument("--config", nargs="+", default=None, help="A to G by default, or names as for train")
    sub.add_argument("--seed", type=int, default=None, help="training seed; all of the preset's by default")
    sub.add_argument("--repeats", type=int, default=5, help="steps that are timed")
    sub.add_argument("--no-measuring", action="store_true", help="do not time anything")
    _add_doctor(command, model)
    _add_imports(commands)
    return top


def _is_read() -> bool:
    """Whether somebody still reads what is printed; ``head`` does not, after its lines."""
    try:
        output = sys.stdout.fileno()
    except OSError:  # it goes to no file
        return True
    poll = select.poll()
    poll.register(output, 0)
    return not any(event & select.POLLERR for _, event in poll.poll(0))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its status: 0, or 1 where an examination found something.

    Bad input ends it with one line on stderr and status 2.

    Ctrl-C and SIGTERM end it with status 75; the same command resumes the work. Where the reader of its output has
    gone, as ``head`` does after its lines, it ends without a word.
    """
    arguments = parser().parse_args(argv)
    try:
        with processes.terminable(), processes.alone_after_errors():
            status = arguments.function(arguments)
            sys.stdout.flush()
    except torch.OutOfMemoryError as error:
        trace = "".join(traceback.format_exception(error))  # with that of a worker
        print(f"error: {error}\na smaller {batches.setting(trace)} takes less memory", file=sys.stderr)
        return 2
    except BrokenPipeError as error:
        if _is_read():
            print(f"error: {error}", file=sys.stderr)
            return 2
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left would raise again at the end
        return 128 + signal.SIGPIPE  # as a shell reports it of other commands
    except (ValueError, ImportError, OSError, ArithmeticError, processes.WorkerLost,
            book.NotebookFailed, book.BuildFailed) as error:  # fmt: skip
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        print(str(stopped) or "interrupted; finished steps are kept. Run the same command to go on", file=sys.stderr)
        return processes.Stopped.EXIT
    return status or 0
