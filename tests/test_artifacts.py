"""Finished steps on disk: computed once, found again by their inputs, never read unless whole."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import time
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rfpp.pipeline import store as artifacts
from rfpp.pipeline.store import MANIFEST, StorageError, Store, digest

REPOSITORY = Path(__file__).parents[1]


class Step:
    """A computation that writes two files and counts how often it was asked to."""

    def __init__(self, text="result"):
        self.text, self.calls = text, 0

    def __call__(self, folder):
        self.calls += 1
        (folder / "inner").mkdir(exist_ok=True)
        (folder / "result.txt").write_text(self.text)
        (folder / "inner" / "more.bin").write_bytes(bytes(range(256)))


@pytest.fixture
def root(tmp_path):
    return tmp_path / "results"


def test_computed_once_then_reused(root):
    """By the same store, and by another one after a restart."""
    step = Step()
    first = Store(root).get("fit", {"n": 1}, step)
    store = Store(root)
    assert store.get("fit", {"n": 1}, step) == store.get("fit", {"n": 1}, step) == first and step.calls == 1
    assert (first / "result.txt").read_text() == "result" and first.folder == root / "fit" / first.key


def test_the_manifest_says_what_is_there(root):
    """Checksums as hashlib has them, sizes as the file system has them, the inputs as they were."""
    found = Store(root).get("fit", {"n": 1, "what": [1, None]}, Step())
    manifest = json.loads((found / MANIFEST).read_text())
    assert manifest == found.manifest and manifest["inputs"] == {"n": 1, "what": [1, None]}
    result = subprocess.run(["sha256sum", found / "result.txt"], capture_output=True, text=True, check=False)
    if result.returncode == 0:
        assert manifest["files"]["result.txt"]["sha256"] == result.stdout.split()[0]
    assert {name: entry["bytes"] for name, entry in manifest["files"].items()} == {
        "result.txt": 6,
        "inner/more.bin": 256,
    }


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}, True),
        ({"a": [1, 2]}, {"a": (1, 2)}, True),
        ({"a": 1}, {"a": 2}, False),
        ({"a": 1}, {"a": 1.0}, False),
        ({"a": 1}, {"a": "1"}, False),
        ({"a": [1, 2]}, {"a": [2, 1]}, False),
        ({"a": 1}, {"a": 1, "b": None}, False),
        ({"a": 0.1 + 0.2}, {"a": 0.3}, False),
    ],
)
def test_the_key_depends_on_the_inputs_and_not_on_their_order(root, first, second, same):
    step, store = Step(), Store(root)
    keys = {store.get("fit", inputs, step).key for inputs in (first, second)}
    assert len(keys) == step.calls == (1 if same else 2)


def test_the_key_depends_on_the_step(root):
    store = Store(root)
    assert store.get("fit", {}, Step()).key != store.get("grade", {}, Step()).key


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, MemoryError])
def test_what_was_not_finished_is_never_read(root, error):
    def broken(folder):
        (folder / "result.txt").write_text("half a res")
        raise error

    with pytest.raises(error):
        Store(root).get("fit", {}, broken)
    assert Store(root).finished() == []
    step = Step()
    assert (Store(root).get("fit", {}, step) / "result.txt").read_text() == "result" and step.calls == 1


def test_a_step_finds_what_it_had_written(root):
    def compute(folder):
        had = (folder / "part").exists()
        (folder / "part").write_text("")
        if not had and not (folder.parent / "tried").exists():
            (folder.parent / "tried").write_text("")
            raise RuntimeError
        (folder / "had").write_text(str(had))

    with pytest.raises(RuntimeError):
        Store(root).get("fit", {}, compute)
    assert (Store(root).get("fit", {}, compute) / "had").read_text() == "True"


FORK = multiprocessing.get_context("fork")
"""Starts processes that need not import anything. They work with files alone, whatever threads there were before."""


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_killed_process_leaves_nothing_that_is_read_and_no_lock(root):
    """SIGKILL in the middle of writing: no cleaning up can happen."""

    def compute(folder):
        (folder / "result.txt").write_text("half a res")
        os.kill(os.getpid(), signal.SIGKILL)

    process = FORK.Process(target=lambda: Store(root).get("fit", {"n": 1}, compute))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL and list(root.glob("fit/.*.partial/result.txt"))
    step = Step()
    found = Store(root).get("fit", {"n": 1}, step)
    assert step.calls == 1 and (found / "result.txt").read_text() == "result" and not list(root.glob("fit/.*.partial"))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_two_processes_that_ask_for_the_same_step_compute_it_once(tmp_path, root):
    """Both report the same folder; the log has one line."""
    both = FORK.Barrier(2)

    def compute(folder):
        with open(tmp_path / "log", "a") as log:
            log.write(f"{os.getpid()}\n")
        time.sleep(0.5)  # the other asks meanwhile
        (folder / "result.txt").write_text("result")

    def ask(name):
        both.wait(60)
        (tmp_path / name).write_text(str(Store(root).get("fit", {}, compute).folder))

    processes = [FORK.Process(target=ask, args=[name]) for name in ("first", "second")]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert (tmp_path / "first").read_text() == (tmp_path / "second").read_text()
    assert len((tmp_path / "log").read_text().splitlines()) == 1


# Damage


def damage(path, how):
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[:-2])
    elif how == "altered":
        path.write_bytes(content[:1] + b"#" + content[2:])
    elif how == "emptied":
        path.write_bytes(b"")
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["truncated", "altered", "emptied", "missing"])
@pytest.mark.parametrize("name", ["result.txt", "inner/more.bin"])
def test_a_damaged_file_is_named_and_the_step_computed_anew(root, name, how):
    step = Step()
    found = Store(root).get("fit", {}, step)
    whole = (found / name).read_bytes()
    damage(found / name, how)
    with pytest.warns(UserWarning, match=f"damaged.*{found / name}.*fit is computed again"):
        again = Store(root).get("fit", {}, step)
    assert step.calls == 2 and (again / name).read_bytes() == whole
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Store(root).get("fit", {}, step) == again and step.calls == 2


@pytest.mark.parametrize("text", ['{"files": {"resu', "", "[]", "{}", '{"files": {"result.txt": {}}}', "\xff"])
def test_a_damaged_manifest_is_named_and_the_step_computed_anew(root, text):
    step = Step()
    found = Store(root).get("fit", {}, step)
    (found / MANIFEST).write_text(text, encoding="latin-1")
    with pytest.warns(UserWarning, match=rf"damaged \(it cannot be read\).*{found / MANIFEST}"):
        Store(root).get("fit", {}, step)
    assert step.calls == 2


def test_without_a_manifest_only_files_with_own_checksums_are_kept(root):
    """Nobody can tell whether the others are whole. A training takes them for its result if they are there."""
    names = ["model.safetensors", "history.json", "shard-00000.safetensors", "states/step-10.json"]

    def compute(folder):
        (folder / "states").mkdir(exist_ok=True)
        found.append({str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()})
        for name in names:
            (folder / name).write_text("whole")

    found = []
    made = Store(root).get("fit", {}, compute)
    for name in (MANIFEST, "model.safetensors"):
        (made / name).write_text('{"dam')
    with pytest.warns(UserWarning, match="damaged"):
        again = Store(root).get("fit", {}, compute)
    assert found[1] == set(names[2:]) and (again / "model.safetensors").read_text() == "whole"


def test_a_folder_without_a_manifest_is_not_a_result(root):
    """As a copy that was broken off leaves it."""
    step = Step()
    found = Store(root).get("fit", {}, step)
    (found / MANIFEST).unlink()
    assert Store(root).finished() == []
    assert (Store(root).get("fit", {}, step) / "result.txt").exists() and step.calls == 2


@pytest.mark.parametrize(
    "content", ['{"files"', "[]", '"text"', "{}", '{"step": "fit", "key": "k", "files": [], "seconds": 1}']
)
def test_one_damaged_step_does_not_hide_the_others(root, content):
    """``finished`` lists what is there, in the order it was made; a manifest that cannot be read is no result."""
    store = Store(root)
    made = [store.get("fit", {"n": n}, Step()) for n in range(3)]
    for age, artifact in enumerate(made):
        os.utime(artifact / MANIFEST, (1000 + age, 1000 + age))
    assert [artifact.key for artifact in store.finished()] == [artifact.key for artifact in made]
    (made[1] / MANIFEST).write_text(content)
    assert [artifact.key for artifact in Store(root).finished()] == [made[0].key, made[2].key]


# Places that cannot be written


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EPERM])
@pytest.mark.parametrize("moment", ["mkdir", "replace", "compute"])
def test_a_place_that_cannot_be_written_is_named_and_earlier_results_stay(root, monkeypatch, code, moment):
    """The file system's own errors, raised where it would raise them."""
    store = Store(root)
    earlier = store.get("fit", {"n": 1}, Step())

    def refuse(*arguments, **options):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        if moment == "mkdir":
            patch.setattr(Path, "mkdir", refuse)
        elif moment == "replace":
            patch.setattr(artifacts.os, "replace", refuse)
        compute = refuse if moment == "compute" else Step()
        with pytest.raises(
            StorageError, match=f"{root / 'fit'} cannot be written.*Earlier results are intact.*RFPP_RUNS"
        ):
            store.get("fit", {"n": 2}, compute)
        # What is finished needs no writing to be found.
        assert Store(root).get("fit", {"n": 1}, refuse) == earlier
    assert [artifact.key for artifact in Store(root).finished()] == [earlier.key]
    step = Step()
    Store(root).get("fit", {"n": 2}, step)
    assert step.calls == 1


def test_other_errors_of_the_file_system_pass_through(root):
    """A computation that misses a file of its own is not a storage problem."""
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Store(root).get("fit", {}, lambda folder: open("/nowhere/at/all").close())


def test_a_disk_that_fills_up_under_a_safetensors_file_is_an_os_error(root):
    """safetensors raises an error of its own, which nobody handles; the file size limit stands for the disk."""
    resource = pytest.importorskip("resource")
    from rfpp import checkpoints
    from rfpp.features import Classifier

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    model = Classifier()
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError):
            Store(root).get("fit", {}, lambda folder: checkpoints.save(model, folder / "model.safetensors") and None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert Store(root).finished() == []


def test_a_step_whose_last_move_failed_is_finished_by_the_next_run(root, monkeypatch):
    """Stopped between the manifest and the renaming: everything is there but for the name."""

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(artifacts.os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            Store(root).get("fit", {}, Step())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Store(root).get("fit", {}, Step("result"))
        assert set(found.manifest["files"]) == {"result.txt", "inner/more.bin"}
        assert Store(root).get("fit", {}, Step()) == found


def test_a_file_that_torch_reads_is_kept_bit_by_bit(root):
    """Binary files of the kind the library writes."""
    found = Store(root).get("fit", {}, lambda folder: save_file({"a": torch.arange(5)}, folder / "a.safetensors"))
    assert list(found.manifest["files"]) == ["a.safetensors"]


# Hashes


def test_digest_is_sha256_of_canonical_json():
    """FIPS 180: of the text ``{"a":1}`` by coreutils' sha256sum."""
    assert digest({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"
