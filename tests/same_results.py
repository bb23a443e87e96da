"""Shows that a change of code changes no bit of the results, so that kept results remain those of the new code.

    python tests/same_results.py BASE --reason "..." [--preset smoke ...] [--notebooks NAME ...] [--list]

Runs notebooks at presets, once with the code of the commit BASE and once with this folder's, each from nothing, on a
CPU, and compares all files of all kept steps; likewise outputs and gradients of small networks of every kind. If
nothing differs, the definitions that were rewritten since BASE are added to ``rfpp/pipeline/rewritten.json``: they
count as what they were, so that no key changes. Entries that no longer hold are dropped.

It shows nothing about definitions that these runs do not reach, such as Inception's, and nothing about rounding on a
GPU: read the list (``--list`` names the definitions and stops), and leave a change that may matter there without an
entry. Exits with 1 when something differs.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from shrunk import LIGHTER, SHRUNK, coloured_digits

from rfpp import presets
from rfpp.base import files
from rfpp.base.files import digest
from rfpp.pipeline.digests import REWRITTEN, Package, Rewriting, rewritings
from rfpp.pipeline.store import Store

ROOT = Path(__file__).resolve().parents[1]
SHOWING = ("rfpp.book", "rfpp.commands", "rfpp.__main__")
"""Modules from which no step and no claim reaches a definition."""

NETWORKS = """
import hashlib, rfpp, torch
print(rfpp.__file__)
from rfpp.networks import DhariwalUNet, SongUNet
small = dict(img_resolution=16, in_channels=3, out_channels=3, model_channels=32, num_blocks=1, attn_resolutions=[8])
ncsnpp = dict(embedding_type="fourier", encoder_type="residual", resample_filter=[1, 3, 3, 1], channel_mult_noise=2)
for kind, options in ((SongUNet, {}), (SongUNet, ncsnpp), (DhariwalUNet, {"label_dim": 3})):
    draw = torch.Generator().manual_seed(0)
    network = kind(**small, **options, generator=draw)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=draw)
    x, t = torch.randn(2, 3, 16, 16, generator=draw), torch.rand(2, generator=draw)
    labels = torch.eye(3)[:2] if options.get("label_dim") else None
    seen = network.eval()(x, t, labels)
    seen.square().mean().backward()
    parts = [seen.detach(), *(p.grad for p in network.parameters() if p.grad is not None)]
    print(kind.__name__, [hashlib.sha256(part.numpy().tobytes()).hexdigest() for part in parts])
"""


# Code


def of_tree(tree: Path, rewritten: Mapping[str, Rewriting] | None = None) -> Package:
    """The package in a folder, by default with its own list of rewritten definitions."""
    listed = rewritings(tree / REWRITTEN.relative_to(ROOT)) if rewritten is None else rewritten
    return Package("rfpp", tree / "rfpp", rewritten=listed)


def definitions(package: Package) -> Iterator[tuple[str, str]]:
    """All definitions of a package that a result may depend on."""
    for path in sorted(package.root.rglob("*.py")):
        parts = path.relative_to(package.root.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        module = package.module(name)
        if module is None or name in package.silent or name.startswith(SHOWING):
            continue
        yield from ((name, each) for each in module.definitions)


def _counted(package: Package, source: str, name: str) -> tuple[dict[str, str], set[tuple[str, str]]]:
    """What a definition itself adds to a digest, and the definitions that are followed from it."""
    now, names = package.definition(source, name)
    rewriting = package.rewriting(f"{source}:{name}", now)
    if rewriting is None:
        return {f"{source}:{name}": now}, names
    return dict(rewriting.counts_as), {each for each in names if ":".join(each) not in rewriting.beyond}


class _Assumed(Package):
    """A package whose rewritten definitions count as earlier ones whatever they name beyond these."""

    def rewriting(self, name: str, now: str) -> Rewriting | None:
        return self.rewritten.get(name)


def changes(before: Package, now: Package) -> dict[str, Rewriting]:
    """The definitions of ``now`` that were rewritten since ``before``, or earlier, and what they count as."""
    known = set(definitions(before))
    found: dict[str, Rewriting] = {}
    for source, name in definitions(now):
        if (source, name) not in known:
            continue
        own, names = now.definition(source, name)
        counted, followed = _counted(before, source, name)
        if counted == {f"{source}:{name}": own} and names == followed:
            continue
        beyond = {":".join(each): "" for each in sorted(names - followed)}
        found[f"{source}:{name}"] = Rewriting(own, {**before.reached(followed - names), **counted}, beyond)
    assumed = _Assumed(now.name, now.root, now.silent, found)
    return {
        name: dataclasses.replace(entry, beyond={each: assumed.digest([each]) for each in entry.beyond})
        for name, entry in found.items()
    }


def differing(before: Package, now: Package) -> list[str]:
    """The definitions, in both packages, from which the two reach different code."""
    both = sorted(set(definitions(before)) & set(definitions(now)))
    return [":".join(each) for each in both if before.reached({each}) != now.reached({each})]


# Results


def networks(tree: Path) -> str:
    """Digests of what small networks of every kind give with the code in a folder."""
    command = [sys.executable, "-c", NETWORKS]  # which imports from the current folder first
    run = subprocess.run(command, cwd=tree, env=_environment(tree), capture_output=True, text=True)
    place, _, found = run.stdout.partition("\n")
    if run.returncode or Path(place).resolve().parents[1] != tree.resolve():
        sys.exit(f"the networks of {tree} do not run: {place}\n{run.stderr}")
    return found


def _environment(tree: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}


def results(tree: Path, preset: str, notebooks: Sequence[str], runs: Path) -> Counter[tuple[str, str]]:
    """The kept steps of notebooks at a preset, each by its name and the digest of its files."""
    command = [sys.executable, "-m", "rfpp", "run", "--preset", preset, *notebooks]
    if subprocess.run(command, cwd=tree, env=_environment(tree, RFPP_RUNS=str(runs))).returncode:
        sys.exit(f"the notebooks do not run at {preset} with the code in {tree}")
    (folder,) = [path for path in runs.iterdir() if path.is_dir() and any(path.glob("*/*/manifest.json"))]
    return Counter((each.step, digest(each.manifest["files"])) for each in Store(folder).finished())


def shrunk(folder: Path) -> str:
    """Write the ``cifar10`` preset, made small, into a file; its path."""
    images = folder / "cifar-10-batches-bin"
    images.mkdir()
    enough = {"pairs.held_out": 64}  # of which the chapter on samplers leaves 16 to judge by
    values = presets.load("cifar10", {**SHRUNK, **LIGHTER, **enough, "data.path": coloured_digits(images)})
    path = folder / "shrunk.yaml"
    files.write_text(path, json.dumps({**values.model_dump(mode="json", exclude_none=True), "name": "shrunk"}))
    return str(path)


def main() -> None:
    """The command."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("base", help="the commit to compare with")
    arguments.add_argument("--reason", help="why the code changed; needed unless --list is given")
    arguments.add_argument("--preset", nargs="+", default=["smoke", "cifar10"], help="cifar10 is shrunk")
    arguments.add_argument("--notebooks", nargs="+", default=[], help="parts of their names; all by default")
    arguments.add_argument("--list", action="store_true", help="only name the rewritten definitions")
    given = arguments.parse_args()
    if not (given.list or given.reason):
        arguments.error("--reason is needed: it is stored beside the rewritten definitions")
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        base = work / "base"
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "--quiet", "--detach", base, given.base], check=True)
        try:
            compare(base, work, given)
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", base], check=True)


def compare(base: Path, work: Path, given: argparse.Namespace) -> None:
    """Compare, and add to the list what is the same."""
    before = of_tree(base)
    found = changes(before, of_tree(ROOT, {}))
    print(f"{len(found)} definitions count as earlier ones:", *sorted(found), sep="\n  ")
    if other := differing(before, of_tree(ROOT, found)):
        sys.exit(f"these reach other code even so: {', '.join(other)}")
    if given.list:
        return
    if networks(base) != networks(ROOT):
        sys.exit("outputs or gradients of small networks differ")
    compared = []
    for preset in given.preset:
        chosen = shrunk(work) if preset == "cifar10" else preset
        theirs, own = (results(tree, chosen, given.notebooks, work / f"{preset}-{tree.name}") for tree in (base, ROOT))
        if theirs != own:
            named = [f"{count} of {step}" for (step, _), count in sorted((theirs - own).items())]
            sys.exit(f"{preset}: results differ: {', '.join(named)}")
        which = f"{', '.join(given.notebooks)} at " if given.notebooks else ""
        compared.append(f"{which}{preset}{' (shrunk)' if chosen != preset else ''}: {sum(own.values())} steps")
    _add(found, given.reason, "; ".join(compared))


def _add(found: Mapping[str, Rewriting], reason: str, compared: str) -> None:
    listed = rewritings(REWRITTEN)
    fresh = {name: dataclasses.asdict(each) for name, each in sorted(found.items()) if listed.get(name) != each}
    entries = json.loads(REWRITTEN.read_text()) if REWRITTEN.is_file() else []
    for entry in entries:  # each definition has one place, that of its newest version, as long as it holds
        kept = {name: each for name, each in entry["definitions"].items() if name in found and name not in fresh}
        entry["definitions"] = kept
    today = f"{datetime.date.today()}"
    entries.append({"date": today, "reason": reason, "compared": compared, "definitions": fresh})
    files.write_text(REWRITTEN, json.dumps([entry for entry in entries if entry["definitions"]], indent=1) + "\n")
    print(f"nothing differs ({compared}); added to {REWRITTEN.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
