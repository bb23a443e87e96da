"""Notebooks run in batch: checked first, never half-published, with their progress shown."""

import contextlib
import datetime
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import inprocess
import nbformat
import pytest

from rfpp import book, claims, presets
from rfpp.base import paths, progress
from rfpp.book import NotebookFailed, ParameterError, together
from rfpp.pipeline import places, workers

PARAMETERS = "preset: str = 'laptop'  # scale\nsteps: int = 3\nrate: float = 0.5\nseeds: list = []\nsettings: dict = {}"


class Terminal(io.StringIO):
    """A terminal that remembers what was written to it."""

    def isatty(self):
        return True


def notebook(*cells):
    written = [nbformat.v4.new_code_cell(cell) for cell in cells]
    written[0].metadata["tags"] = ["parameters"]
    made = nbformat.v4.new_notebook(cells=written)
    made.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return made


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """An empty repository with its own runs and a function that puts notebooks into it."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "book").mkdir()
    monkeypatch.setattr(paths, "repository", lambda: tmp_path)
    monkeypatch.setenv("RFPP_RUNS", str(tmp_path / "runs"))

    def put(name, *cells):
        path = tmp_path / "notebooks" / f"{name}.ipynb"
        nbformat.write(notebook(PARAMETERS, *cells), path)
        return path

    return put


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"stepz": 3}, "no parameter 'stepz'.*did you mean 'steps'"),
        ({"steps": "3"}, "steps='3' is a str; a int such as 3"),
        ({"steps": True}, "steps=True is a bool"),
        ({"steps": 0.5}, "steps=0.5 is a float"),
        ({"seeds": 1}, "seeds=1 is a int; a list"),
    ],
)
def test_a_parameter_that_does_not_fit_is_refused(checkout, given, complaint):
    with pytest.raises(ParameterError, match=complaint):
        book.check_parameters(checkout("01_one"), given)


@pytest.mark.parametrize("given", [{}, {"steps": 4}, {"rate": 1}, {"seeds": [0, 2], "preset": "smoke"}])
def test_a_parameter_that_fits_is_accepted(checkout, given):
    book.check_parameters(checkout("01_one"), given)


def test_nothing_runs_when_the_last_notebook_refuses_a_parameter(checkout, tmp_path):
    checkout("01_one", f"open({str(tmp_path / 'ran')!r}, 'w')")
    path = checkout("02_two")
    made = nbformat.read(path, as_version=4)
    made.cells[0].source = "preset: str = 'laptop'"
    nbformat.write(made, path)
    with pytest.raises(ParameterError, match="02_two"):
        book.run("laptop", parameters={"steps": 1})
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"preset": "smoke"}, "preset='smoke': results of a preset have a folder; use --preset"),
        ({"seeds": ["a"]}, "seeds='a' is a str"),
        ({"seeds": [1, 1]}, r"seeds=\[1, 1\] has an entry twice"),
        ({"settings": {"training.stepz": 3}}, "training.stepz"),
        ({"settings": {"training.steps": datetime.date(2026, 1, 1)}}, "training.steps|date"),
    ],
)
def test_what_notebooks_share_is_checked_before_any_work(checkout, tmp_path, given, complaint):
    checkout("01_one"), checkout("02_two")
    with pytest.raises(ValueError, match=complaint):
        book.run("laptop", parameters=given, jobs=2, terminal=Terminal())
    assert not (tmp_path / "runs").exists()


def test_a_notebook_whose_process_dies_is_named(checkout):
    checkout("01_one", "print('good')", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(NotebookFailed, match="01_one.ipynb failed: its process died, as it does when memory runs out"):
        book.run("laptop", terminal=Terminal())
    (failed,) = (paths.runs() / "laptop" / "notebooks").iterdir()
    assert failed.name == "01_one.failed.ipynb" and "good" in failed.read_text()


def test_notebooks_are_chosen_by_part_of_their_name(checkout):
    checkout("01_one"), checkout("02_two")
    assert [path.stem for path in book.notebooks(["two"])] == ["02_two"]
    assert [path.stem for path in book.notebooks(["not", "two"])] == ["01_one"]
    for all_of_them in (["not"], ["not", "one", "two"]):
        with pytest.raises(ParameterError, match="no notebook is left"):
            book.notebooks(all_of_them)
    assert [path.stem for path in book.notebooks()] == ["01_one", "02_two"]
    with pytest.raises(ParameterError, match="'tow' is unknown; allowed: one, two; did you mean 'two'"):
        book.notebooks(["tow"])
    with pytest.raises(ParameterError, match="'' is unknown; allowed: one, two"):
        book.notebooks([""])


def test_a_run_uses_its_parameters_shows_progress_and_leaves_no_trace_of_the_machine(checkout, tmp_path):
    checkout(
        "01_one",
        "import time\nfrom rfpp.base import progress\n"
        "for _ in progress.bar(range(30), desc='counting'): time.sleep(0.05)",
        "print(steps + 1)",
    )
    terminal = Terminal()
    (path,) = book.run("laptop", parameters={"steps": 41}, terminal=terminal)
    made = nbformat.read(path, as_version=4)
    assert made.cells[-1].outputs[0].text == "42\n"
    assert made.cells[2].outputs == []  # the bar was drawn for the terminal, not into the notebook
    assert re.search(r"\[1/1\] 01_one: counting: +\d+% \[.*<", terminal.getvalue())
    assert "papermill" not in json.dumps(made.metadata) and str(tmp_path) not in path.read_text()
    assert (
        progress.VARIABLE not in __import__("os").environ or "rfpp-" not in __import__("os").environ[progress.VARIABLE]
    )


def test_braces_in_a_path_are_no_parameters(checkout, tmp_path, monkeypatch):
    inprocess.use(monkeypatch)
    monkeypatch.setenv("RFPP_RUNS", str(tmp_path / "a{b}{steps}c{"))
    checkout("01_one{b}")
    (path,) = book.run("laptop", parameters={"steps": 4}, terminal=Terminal())
    assert path.is_file() and [folder.name for folder in tmp_path.glob("a*")] == ["a{b}{steps}c{"]


@pytest.mark.parametrize(("jobs", "seen"), [(2, "2"), (None, None)])
def test_the_trainings_of_a_single_notebook_run_as_many_at_a_time_as_asked_for(checkout, monkeypatch, jobs, seen):
    inprocess.use(monkeypatch)
    monkeypatch.delenv(workers.VARIABLE, raising=False)
    checkout("01_one", f"import os\nprint(os.environ.get({workers.VARIABLE!r}))")
    (path,) = book.run("laptop", jobs=jobs, terminal=Terminal())
    assert printed(path) == f"{seen}\n" and workers.VARIABLE not in os.environ


def test_a_number_of_jobs_that_is_none_is_refused_before_a_notebook_starts(checkout, tmp_path, monkeypatch):
    monkeypatch.setenv(workers.VARIABLE, "abc")
    checkout("01_one")
    with pytest.raises(ValueError, match="RFPP_JOBS='abc' is not a number of jobs"):
        book.run("laptop", terminal=Terminal())
    assert not (tmp_path / "runs").exists()


def test_a_preset_file_is_found_from_the_folder_of_the_notebook(checkout, tmp_path, monkeypatch):
    inprocess.use(monkeypatch)
    checkout("01_one", "from rfpp import presets\nprint(presets.load(preset).name)")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text((presets.FOLDER / "smoke.yaml").read_text().replace("smoke", "mine"))
    (path,) = book.run("mine.yaml", terminal=Terminal())
    assert path.is_relative_to(tmp_path / "runs" / "mine" / "notebooks")
    assert nbformat.read(path, as_version=4).cells[-1].outputs[0].text == "mine\n"
    assert str(tmp_path / "mine.yaml") in path.read_text()  # the copy can be run again from any folder


def test_a_failure_is_kept_apart_from_the_last_good_copy(checkout, monkeypatch):
    inprocess.use(monkeypatch)
    checkout("01_one", "print('good')")
    (good,) = book.run("laptop", terminal=Terminal())
    checkout("01_one", "print('good')", "1 / 0")
    with pytest.raises(NotebookFailed, match="01_one.ipynb failed in cell .*ZeroDivisionError"):
        book.run("laptop", terminal=Terminal())
    assert len(nbformat.read(good, as_version=4).cells) == 2
    assert "ZeroDivisionError" in good.with_suffix(".failed.ipynb").read_text()
    assert not [other for other in good.parent.iterdir() if "partial" in other.name]
    with pytest.raises(FileNotFoundError, match="01_one.ipynb failed when it was last run at preset 'laptop'"):
        book.build("laptop", terminal=Terminal())
    good.with_suffix(".failed.ipynb").unlink()
    with pytest.raises(FileNotFoundError, match="01_one.ipynb was changed since it was run"):
        book.build("laptop", terminal=Terminal())


def test_outputs_are_written_back_for_the_defaults_only(checkout, monkeypatch):
    inprocess.use(monkeypatch)
    path = checkout("01_one", "print(steps)")
    with pytest.raises(ParameterError, match="steps"):
        book.run("laptop", parameters={"steps": 4}, write_back=True)
    book.run("laptop", write_back=True, terminal=Terminal())
    assert nbformat.read(path, as_version=4).cells[-1].outputs[0].text == "3\n"


def test_the_book_wants_notebooks_that_were_run(checkout):
    checkout("01_one")
    with pytest.raises(FileNotFoundError, match="01_one.ipynb was not run at preset 'laptop'; run: python -m rfpp run"):
        book.build("laptop", terminal=Terminal())


def test_a_chapter_that_is_left_out_need_not_have_been_run(checkout, monkeypatch):
    """A chapter that is asked for must have been; another is taken as it last ran if that was as it is now."""
    inprocess.use(monkeypatch)
    checkout("01_one")
    other = checkout("02_two", "print('then')")
    with pytest.raises(FileNotFoundError, match="01_one.ipynb was not run"):
        book.build("laptop", ["one"], terminal=Terminal())
    with pytest.raises(ParameterError, match="notebook 'three' is unknown; allowed: one, two"):
        book.build("laptop", ["three"], terminal=Terminal())
    book.run("laptop", terminal=Terminal())
    assert list(book._executed("laptop", ["one"])) == ["01_one", "02_two"]
    changed = nbformat.read(other, as_version=4)
    changed.cells[-1].source = "print('now')"
    nbformat.write(changed, other)
    assert list(book._executed("laptop", ["one"])) == ["01_one"]


def test_the_book_wants_a_record_of_each_verdict(checkout, monkeypatch):
    inprocess.use(monkeypatch)
    checkout("01_one", "print('c14 reproduced (one run): a difference; rule: below 1')\nprint('c15 not judged: none')")
    book.run("laptop", terminal=Terminal())
    with pytest.raises(FileNotFoundError, match=r"01_one.ipynb judged c14 without a record in .*claims at preset"):
        book.build("laptop", terminal=Terminal())


def test_the_book_has_the_outputs_of_the_run_and_the_prose_of_today(checkout, monkeypatch):
    """Markdown and captions need no new run; the parameters that were given stay on the page."""
    inprocess.use(monkeypatch)
    path = checkout("01_one", "steps")
    book.run("smoke", terminal=Terminal())
    newer = nbformat.read(path, as_version=4)
    newer.cells.insert(0, nbformat.v4.new_markdown_cell("# Of today"))
    newer.cells[-1].metadata["caption"] = "new"
    nbformat.write(newer, path)
    cells = book._executed("smoke")["01_one"].cells
    assert [cell.source.partition("\n")[0] for cell in cells] == [
        "# Of today", "preset: str = 'laptop'  # scale", "# Parameters", "steps"
    ]  # fmt: skip
    assert cells[-1].metadata["caption"] == "new" and cells[-1].outputs[0]["data"]["text/plain"] == "3"


FEWER = {
    "intersections": {"couples": 200, "images_used": 60, "photo_sizes": [4], "patches": 60},
    "samplers": {"euler": [1, 2, 3, 4], "heun": [1, 3], "second": [0.3, 0.8]},
    "inversion": {"images": 40},
    "few_steps": {"evaluations": [2, 3], "pairs_used": 8, "iterations": 1},
    "likelihood": {"images": 2, "probes": 2, "exact": 1, "evaluations": [8], "tolerance": 0.1},
    "exact_flow": {"images_used": 6, "noises": 6, "lines": 3, "paths": 3, "chains": 5, "patches": 6},
}
"""What makes the longest notebooks shorter, and leaves no claim out."""


@pytest.mark.every_scale
@pytest.mark.xdist_group("smoke")
@pytest.mark.parametrize("path", book.notebooks(), ids=lambda path: path.stem)
def test_a_notebook_of_the_book_runs_at_smoke_scale(path, shared_runs, monkeypatch):
    """The whole story on a handful of pairs: no error, no warning in an output, a record for each claim of its own."""
    inprocess.use(monkeypatch)
    (executed,) = book.run("smoke", [path.stem], FEWER.get(path.stem[3:]), terminal=Terminal())
    made = nbformat.read(executed, as_version=4)
    outputs = [output for cell in made.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    tested = {claim.id for claim in claims.ledger().values() if claim.notebook in path.stem}
    said = "".join(output.get("text", "") for output in outputs)
    judged = {id for id, _ in re.findall(r"^(c\d\d) (.*) \((?:\d seeds|one run)\): ", said, re.M)}
    skipped = set(re.findall(r"^(c\d\d) not judged: .{20}", said, re.M))
    assert judged | skipped == tested and not judged & skipped
    assert judged <= set(claims.records(shared_runs / "smoke" / "claims"))
    assert tested or path.stem == "08_try_your_own"


@pytest.mark.parametrize("path", book.notebooks(), ids=lambda path: path.stem)
def test_a_notebook_is_committed_as_the_house_rules_want_it(path):
    made = nbformat.read(path, as_version=4)
    code = [cell for cell in made.cells if cell.cell_type == "code"]
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
    assert 'preset: str = "laptop"' in next(
        cell.source for cell in code if "parameters" in cell.metadata.get("tags", [])
    )
    assert all(cell.execution_count for cell in code), "commit notebooks executed: make notebooks"
    pictures = [cell for cell in code if any("image/png" in output.get("data", {}) for output in cell.outputs)]
    assert pictures
    for cell in pictures:
        shown = cell.metadata["mystnb"]
        assert shown["figure"]["caption"] and shown["figure"]["name"] and shown["image"]["alt"]


def printed(executed):
    """What the cells of a notebook print, without warnings."""
    cells = nbformat.read(executed, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    streams = (output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    return "".join(streams)  # what is printed at once may come in pieces


def test_notebooks_run_side_by_side_as_one_after_the_other(tmp_path, monkeypatch):
    """The trainings that their claims rest on come first. Each line of progress says which notebook it is about."""
    monkeypatch.setattr(places, "cores", lambda: 2)
    terminal = Terminal()
    together = book.run("smoke", ["timesteps", "training"], jobs=2, terminal=terminal)
    flows = list(tmp_path.rglob("flow/*/manifest.json"))
    assert [path.stem for path in together] == ["02_timesteps", "03_training"]
    shown = terminal.getvalue()
    assert re.search(r"trainings: [2-9] steps, [\d,]+ forward passes\n", shown)
    assert shown.index("trainings: running") < min(shown.index(f"{path.stem}: running") for path in together)
    both = [printed(path) for path in together]
    inprocess.use(monkeypatch)
    alone = book.run("smoke", ["timesteps", "training"], jobs=1, terminal=Terminal())
    assert [printed(path) for path in alone] == both and list(tmp_path.rglob("flow/*/manifest.json")) == flows


def test_notebooks_side_by_side_have_gpus_of_their_own(monkeypatch):
    """Each two that run at the same time."""
    given, both = [], threading.Barrier(2, timeout=60)

    class Started(contextlib.nullcontext):
        stderr, returncode = (), 0

        def __init__(self, command, env, **_):
            super().__init__(self)
            both.wait()
            given.append(env["CUDA_VISIBLE_DEVICES"])

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    monkeypatch.setattr(together, "gather", lambda *_: None)
    monkeypatch.setattr(together.subprocess, "Popen", Started)
    together.run(book.notebooks(["timesteps", "training", "samplers", "costs"]), "smoke", {}, 2, Terminal())
    assert sorted(given[:2]) == sorted(given[2:]) == ["4", "5"]


def test_a_signal_ends_notebooks_that_run_side_by_side(checkout, tmp_path):
    """It comes while the cells of both still have minutes to go."""
    names = ["01_long", "02_longer"]
    for name in names:
        checkout(name, f"open('{name}', 'x').close()", "import time; time.sleep(600)")
    shutil.copy(paths.LEDGER, tmp_path / paths.LEDGER)
    command = [sys.executable, "-m", "rfpp", "run", "--preset", "smoke", "--jobs", "2"]
    running = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    try:
        while not all((tmp_path / name).exists() for name in names):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        running.send_signal(signal.SIGTERM)
        _, said = running.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
    assert running.returncode == 75 and "stopped by SIGTERM" in said, said


def test_a_readers_module_and_files_are_found_where_the_command_is_given(checkout, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "own_parts.py").write_text("VALUE = 3\n")
    checkout("01_own", "from own_parts import VALUE\nprint(VALUE, open('own_parts.py').read())")
    monkeypatch.chdir(tmp_path / "here")
    (executed,) = book.run("smoke", ["own"], terminal=Terminal())
    assert "3 VALUE = 3" in printed(executed)


def test_a_notebook_that_fails_beside_others_is_named(monkeypatch):
    """Its parameters are checked in its first cells, so it is the notebook that fails."""
    monkeypatch.setattr(places, "cores", lambda: 2)
    with pytest.raises(NotebookFailed, match="failed in cell .*shown=0 is too small"):
        book.run("smoke", ["training", "samplers"], {"shown": 0}, jobs=2, terminal=Terminal())
