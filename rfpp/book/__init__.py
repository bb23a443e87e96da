"""Run the notebooks in batch, and build the book from their output.

``run`` executes notebooks through papermill into ``runs/<preset>/notebooks/``, after checking their parameters, and
shows their progress bars. ``build`` lays prose, results page and executed notebooks out as the book's source, and
renders it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from accelerate.utils import patch_environment

from rfpp import presets
from rfpp.base import batches, files, paths, progress
from rfpp.base.checks import counts, nearest
from rfpp.base.files import digest

_PLAIN_TYPES = {"str": str, "int": int, "float": (int, float), "bool": bool, "list": list, "dict": dict}


class NotebookFailed(RuntimeError):
    """A notebook stopped with an error; its partial copy is kept beside the finished ones."""


class BuildFailed(RuntimeError):
    """The book has warnings or errors."""


class ParameterError(ValueError):
    """A notebook parameter that does not exist or has the wrong type; the message says what is allowed."""


def notebooks(slugs: Sequence[str] = ()) -> list[Path]:
    """The notebooks in reading order, or those whose name contains one of ``slugs``.

    If the first is ``"not"``, all but those that contain one of the others.
    Raises ``ParameterError`` for a slug that fits none, and where none is left.
    """
    everything = sorted((paths.repository() / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    all_but = list(slugs[:1]) == ["not"]
    slugs = slugs[all_but:]
    for slug in slugs:
        if not slug or not any(slug in path.stem for path in everything):
            known = [path.stem.partition("_")[2] for path in everything]
            raise ParameterError(f"notebook {slug!r} is unknown; allowed: {', '.join(known)}{nearest(slug, known)}")
    chosen = [path for path in everything if all_but != (not slugs or any(slug in path.stem for slug in slugs))]
    if all_but and not chosen:
        raise ParameterError("no notebook is left; after 'not', name those to leave out, and not all of them")
    return chosen


def _literal(path: Path) -> str:
    """A path as papermill takes it: single braces would be replaced by parameters."""
    return str(path).replace("{", "{{").replace("}", "}}")


def check_parameters(notebook: Path, parameters: Mapping[str, Any]) -> None:
    """Raise :class:`ParameterError` unless the notebook's parameters cell has these names with these types.

    papermill itself only warns about an unknown name and accepts any type.
    """
    import papermill

    known = papermill.inspect_notebook(_literal(notebook))
    for name, value in parameters.items():
        if name not in known:
            raise ParameterError(
                f"{notebook.name} has no parameter {name!r}; allowed: {', '.join(known)}{nearest(name, known)}"
            )
        declared = known[name]["inferred_type_name"]
        expected = _PLAIN_TYPES.get(str(declared).partition("[")[0])
        boolean_for_number = isinstance(value, bool) and declared in ("int", "float")
        if expected is not None and (not isinstance(value, expected) or boolean_for_number):  # type: ignore[arg-type]
            raise ParameterError(
                f"{notebook.name}: {name}={value!r} is a {type(value).__name__}; a {declared} such as "
                f"{known[name]['default']} is needed"
            )


def run(
    preset: str = presets.DEFAULT,
    slugs: Sequence[str] = (),
    parameters: Mapping[str, Any] | None = None,
    *,
    write_back: bool = False,
    jobs: int | None = None,
    terminal: TextIO = sys.stderr,
) -> list[Path]:
    """Execute notebooks at a preset and return the paths of the executed copies.

    ``jobs``: how many run in parallel, after the trainings that their claims rest on; as for
    :func:`rfpp.pipeline.scheduling.jobs`. If notebooks run one after the other, so many of their trainings run in
    parallel instead. Everything is checked before the first one starts. Copies that ran with ``parameters`` are kept
    apart from those that the book shows. A notebook that fails leaves ``<name>.failed.ipynb`` and does not touch an
    earlier good copy. ``write_back`` puts the outputs into ``notebooks/`` as well, once all have run. Raises
    :class:`ParameterError`, :class:`rfpp.presets.PresetError` or :class:`NotebookFailed`.
    """
    from rfpp.pipeline import scheduling, workers

    parameters = dict(parameters or {})
    if "preset" in parameters:
        raise ParameterError(f"preset={parameters['preset']!r}: results of a preset have a folder; use --preset")
    settings, sources, count = presets.load(preset), notebooks(slugs), scheduling.jobs(jobs)
    if preset.endswith((".yaml", ".yml")):
        preset = str(Path(preset).resolve())  # the executed copy can be run again from another folder
    given = parameters | ({"preset": preset} if preset != presets.DEFAULT else {})
    for source in sources:
        check_parameters(source, given)
    try:  # what all notebooks share, before the first one trains
        presets.load(preset, parameters.get("settings"))
        if seeds := parameters.get("seeds"):
            counts("seeds", seeds, minimum=0)
    except TypeError as error:
        raise ParameterError(str(error)) from error
    if write_back and given:
        raise ParameterError(f"write_back stores the outputs of the default parameters; leave out {', '.join(given)}")
    changed = {name: value for name, value in given.items() if name != "preset"}
    folder = paths.runs() / settings.name / (f"variants/{digest(changed)[:6]}" if changed else "notebooks")
    folder.mkdir(parents=True, exist_ok=True)
    finished = [folder / source.name for source in sources]
    if count > 1 and len(sources) > 1:
        from rfpp.book import together  # imports everything that notebooks do

        together.run(sources, preset, given, count, terminal)
    else:
        asked = {} if jobs is None else {workers.VARIABLE: str(jobs)}
        for number, source in enumerate(sources, start=1):
            title = f"[{number}/{len(sources)}] {source.stem}"
            started = time.monotonic()
            with shown_progress(title, terminal), patch_environment(**asked):
                _execute(source, folder / source.name, given)
            terminal.write(f"{title}: done in {time.monotonic() - started:.0f} s, {folder / source.name}\n")
            terminal.flush()
    for source, executed in zip(sources if write_back else [], finished, strict=False):
        files.write_text(source, executed.read_text())
    return finished


def _execute(source: Path, target: Path, parameters: Mapping[str, Any]) -> None:
    import papermill
    from nbclient.exceptions import DeadKernelError

    failed = target.with_suffix(".failed.ipynb")
    partial = target.with_name(f".{target.stem}.partial.ipynb")
    failed.unlink(missing_ok=True)
    try:
        papermill.execute_notebook(
            _literal(source),
            _literal(partial),
            dict(parameters),
            kernel_name="python3",
            progress_bar=False,
            cwd=str(Path.cwd()),  # where the command was given, so that a reader's own files and modules are found
            # Hide the kernel's messages about its sockets, which an interrupted notebook causes as well.
            extra_arguments=["--log-level=CRITICAL"],
        )
    except papermill.PapermillExecutionError as error:
        os.replace(partial, failed)
        is_memory = error.ename == "OutOfMemoryError"
        advice = f"\na smaller {batches.setting(''.join(error.traceback))} takes less memory" if is_memory else ""
        raise NotebookFailed(
            f"{source.name} failed in cell {error.cell_index}: {error.ename}: {error.evalue}{advice}\n"
            f"The notebook up to there: {failed}"
        ) from None
    except DeadKernelError:
        if partial.is_file():
            os.replace(partial, failed)
        raise NotebookFailed(
            f"{source.name} failed: its process died, as it does when memory runs out\n"
            f"The notebook up to there: {failed}"
        ) from None
    else:
        files.write_text(target, _clean(partial))
    finally:
        partial.unlink(missing_ok=True)


def _clean(executed: Path) -> str:
    """An executed notebook without what differs from run to run: times, folders, widget states."""
    import nbformat

    notebook = nbformat.read(executed, as_version=4)
    for key in ("papermill", "widgets"):
        notebook.metadata.pop(key, None)
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]  # papermill adds empty ones
    return str(nbformat.writes(notebook)) + "\n"


@contextlib.contextmanager
def shown_progress(title: str, terminal: TextIO) -> Iterator[None]:
    """Show the bars that a notebook's kernel draws into a file: live on a terminal, now and then in a log."""
    live = terminal.isatty()
    period = 0.2 if live else 20.0
    stop = threading.Event()

    with tempfile.TemporaryDirectory(prefix="rfpp-") as folder:
        file = Path(folder) / "progress"
        file.touch()

        def show() -> None:
            seen = ""
            while not stop.wait(period):
                last = (
                    file.read_text(errors="replace")[-400:].replace("\n", "\r").strip("\r ").rpartition("\r")[2].strip()
                )
                if last and last != seen:
                    seen = last
                    width = shutil.get_terminal_size().columns - 1
                    terminal.write(f"\r\033[K{f'{title}: {last}'[:width]}" if live else f"{title}: {last}\n")
                    terminal.flush()

        terminal.write(f"{title}: running\n")
        terminal.flush()
        thread = threading.Thread(target=show, daemon=True)
        thread.start()
        try:
            with patch_environment(**{progress.VARIABLE: str(file)}):
                yield
        finally:
            stop.set()
            thread.join()
            if live:
                terminal.write("\r\033[K")


def _is_code(cell: Any) -> bool:
    return bool(cell.cell_type == "code" and "injected-parameters" not in cell.metadata.get("tags", []))


def _with_outputs(source: Any, executed: Any) -> Any:
    """A notebook with the outputs of its run, and prose and captions as they are now; ``None`` if its code changed."""
    code, done = (list(filter(_is_code, notebook.cells)) for notebook in (source, executed))
    if [cell.source for cell in code] != [cell.source for cell in done]:
        return None
    for cell, finished in zip(code, done, strict=True):
        cell.outputs, cell.execution_count = finished.outputs, finished.execution_count
    given = [cell for cell in executed.cells if cell.cell_type == "code" and not _is_code(cell)]
    place = 1 + source.cells.index(code[0]) if code else 0  # the parameters, which the given ones replace
    source.cells[place:place] = given
    return source


def _executed(preset: str, slugs: Sequence[str] = ()) -> dict[str, Any]:
    """The notebooks that were executed at ``preset``, by name; those that ``slugs`` leave out only if they are whole.

    Raises ``FileNotFoundError`` for any other that was not run, failed when it was last run, was changed since, or
    printed verdicts of which there is no record, and ``ParameterError`` for an unknown slug.
    """
    import nbformat

    from rfpp.book import pages
    from rfpp.claims import records

    folder, found = paths.runs() / presets.load(preset).name, {}
    recorded, wanted = records(folder / "claims").keys(), notebooks(slugs)
    for notebook in notebooks():
        path, what = folder / "notebooks" / notebook.name, ""
        if path.with_suffix(".failed.ipynb").is_file():
            what = "failed when it was last run"
        elif not path.is_file():
            what = "was not run"
        else:
            source, executed = (nbformat.read(each, as_version=4) for each in (notebook, path))
            page = _with_outputs(source, executed)
            if lost := sorted(pages.judged(executed) - recorded):
                what = f"judged {', '.join(lost)} without a record in {folder / 'claims'}"
            elif page is None:
                what = "was changed since it was run"
        if what:
            if notebook not in wanted:
                continue
            again = f"python -m rfpp run --preset {preset} {notebook.stem}"
            raise FileNotFoundError(f"{notebook.name} {what} at preset {preset!r}; run: {again}")
        found[notebook.stem] = page
    return found


def _lay_out(preset: str, executed: Mapping[str, Any], source: Path) -> None:
    """Write all pages and pictures that are generated from the run: chapters, results, costs, status, benchmarks, the
    doctor's and the live page.

    Chapters that are not in ``executed`` are shown with the outputs that are stored in ``notebooks/``.
    """
    import nbformat

    from rfpp.book import benchmarks, doctor, live, pages, results, sizes, status
    from rfpp.claims import ledger
    from rfpp.claims.records import scales
    from rfpp.experiment import Experiment

    name = presets.load(preset).name
    run_folder, claims = paths.runs() / name, ledger()
    by_scale, experiment = scales(run_folder), Experiment(preset)
    in_colour = experiment.data.train.shape[0] > 1
    for path in notebooks():
        slug = path.stem.partition("_")[2]
        if (content := executed.get(path.stem)) is not None:
            page = pages.chapter(content, slug, name, by_scale, claims, in_colour)
        else:
            content = nbformat.read(path, as_version=4)
            page = pages.stored(content, slug, preset, claims)
        nbformat.write(page, source / "notebooks" / path.name)
        if slug == "training":
            (source / "book" / "one-step.png").write_bytes(pages.picture(content, "fig-one-step"))
    (source / "book" / "results.md").write_text(results.page(run_folder))
    (source / "book" / "tally.txt").write_text(results.tally(run_folder))
    (source / "book" / "summary.txt").write_text(pages.summary(by_scale, claims))
    (source / "book" / "asked.txt").write_text(sizes.asked()._repr_markdown_())
    (source / "book" / "taken.txt").write_text(sizes.taken()._repr_markdown_())
    (source / "book" / "status.md").write_text(
        status.page(name, run_folder, {path.stem: path.stem in executed for path in notebooks()})
    )
    if in_colour:  # pictures of photographs keep their colours on dark pages
        for text, name in (("intro.md", "fig-first"), ("live.md", "fig-live-digits")):
            written = source / "book" / text
            written.write_text(pages.with_colours(written.read_text(), name))
    results.forest(by_scale, claims).savefig(source / "book" / "forest.svg")
    benchmarks.write(source / "book")
    doctor.write(experiment, source / "book")
    live.write(experiment, source / "book")


def build(
    preset: str = presets.DEFAULT, slugs: Sequence[str] = (), *, pdf: bool = False, terminal: TextIO = sys.stderr
) -> Path:
    """Render the book from the notebooks executed at ``preset`` and return its first page, or the whole as a ``pdf``.

    ``slugs``: the chapters that must have been run, all by default. Others that were not are shown, with a note, as
    they are stored in ``notebooks/``.
    Warnings are errors, and a book that did not build does not replace one that did. Raises ``FileNotFoundError`` when
    a notebook was not run at this preset, or was changed since, or when the flow for the live page is missing;
    :class:`ParameterError` for an unknown slug; :class:`BuildFailed` for any warning, or when there is no Chromium to
    print a PDF.
    """
    from rfpp.book import printing

    if pdf:
        printing.chromium()  # raises before any work
    executed, repository = _executed(preset, slugs), paths.repository()
    if left_out := [path.stem for path in notebooks() if path.stem not in executed]:
        terminal.write(f"not run at {preset!r}, so shown as stored in notebooks/: {', '.join(left_out)}\n")
    source, new = (repository / "_build" / name for name in ("source", "new"))
    for leftover in (source, new):
        shutil.rmtree(leftover, ignore_errors=True)
    (source / "notebooks").mkdir(parents=True)
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy2(repository / name, source / name)
    shutil.copytree(repository / "book", source / "book")
    _lay_out(preset, executed, source)

    # Jupyter Book has no module to run with -m, and the script beside the interpreter need not be on the path.
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build"]
    command += ["-W", "--keep-going", "--all", "--builder", "singlehtml" if pdf else "html"]
    command += ["--path-output", str(new), str(source)]
    terminal.write("building the book\n")
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode:
        complaints = [line for line in result.stdout.splitlines() if re.search("WARNING|ERROR|exception:", line)]
        raise BuildFailed("the book did not build:\n" + "\n".join(complaints or result.stdout.splitlines()[-20:]))
    if pdf:
        terminal.write("printing it\n")
        return printing.write(new / "_build" / "singlehtml" / "book" / "intro.html", repository / "_build" / "rfpp.pdf")
    shutil.rmtree(repository / "_build" / "html", ignore_errors=True)  # the new one is complete
    (new / "_build" / "html").rename(repository / "_build" / "html")
    return repository / "_build" / "html" / "index.html"
