"""The page that runs the model: its scripts compute what PyTorch does, and it works from a folder, by keyboard."""

import base64
import json
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import browsers
import numpy as np
import pytest
import torch
from truth import network, randn, reference

import rfpp
from rfpp import configurations, intersections, pairs, samplers
from rfpp.book import live
from rfpp.denoisers import EDMPrecond, GaussianMixtureDenoiser
from rfpp.experiment import Experiment
from rfpp.flow import RectifiedFlow
from rfpp.pipeline import shipped

REPOSITORY = Path(rfpp.__file__).parents[1]
BOOK = REPOSITORY / "book"
SCRIPTS = [BOOK / "_static" / "live" / f"{name}.js" for name in ("network", "flow", "noise", "mixture")]
CLOSE = 1e-4


# What runs the scripts


def find_node():
    """Node, or the one that Playwright brings."""
    found, playwright = shutil.which("node"), find_spec("playwright")
    own = Path(playwright.origin).parent / "driver" / "node" if playwright and playwright.origin else None
    return found or (str(own) if own and own.is_file() else None)


def in_node(function, argument):
    """What a JavaScript function makes of an argument, after the page's scripts."""
    code = "".join(path.read_text() for path in SCRIPTS)
    code += f"process.stdout.write(JSON.stringify(({function})(JSON.parse(require('fs').readFileSync(0, 'utf8')))))"
    result = subprocess.run([find_node(), "-e", code], input=json.dumps(argument), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def browser():
    """Chromium without a network."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: the extra 'test'")
    with playwright.sync_playwright() as driver:
        program = browsers.chromium() or driver.chromium.executable_path
        if not Path(program).is_file():
            pytest.skip("no Chromium: apt-get install chromium, or playwright install chromium")
        opened = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(params=["node", "chromium"])
def javascript(request):
    """``javascript(function, argument)``, in Node and in the browser."""
    if request.param == "node":
        if find_node() is None:
            pytest.skip("neither Node nor Playwright, which brings one, is installed")
        yield in_node
        return
    page = request.getfixturevalue("browser").new_page(offline=True)
    for path in SCRIPTS:
        page.add_script_tag(path=path)
    yield lambda function, argument: page.evaluate(function, argument)
    page.close()


# What they are compared with


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """The smoke preset with a trained flow."""
    made = Experiment("smoke", runs=tmp_path_factory.mktemp("live") / "runs", jobs=1)
    made.train("F", made.preset.seeds[:1])
    return made


@pytest.fixture(scope="module")
def denoisers(experiment):
    """The teacher, a trained flow, and a network of another make-up: other widths, classes and heads."""
    other = network(label_dim=3, attn_resolutions=[8, 4])
    for module in other.modules():
        if getattr(module, "heads", 0):
            module.heads = 2
    return {
        "teacher": shipped.load("digits-teacher"),
        "flow": experiment.flow("F", experiment.preset.seeds[0]).denoiser,
        "other": EDMPrecond(other.eval(), sigma_data=0.4),
    }


NAMES = ("teacher", "flow", "other")


@pytest.mark.parametrize("name", NAMES)
def test_a_denoiser_is_pytorchs_at_all_noise_levels(javascript, denoisers, name):
    denoiser, sigmas = denoisers[name], [1e-3, 0.05, 0.4, 1.0, 5.0, 80.0, 999.0]
    clean, label = randn(1, 1, 8, 8).tanh(), 2
    inputs = [clean + sigma * randn(1, 1, 8, 8, seed=place) for place, sigma in enumerate(sigmas)]
    found = javascript(
        """({model, inputs, sigmas, label}) => {
          const loaded = rfpp.network.load(model);
          return inputs.map((y, i) => Array.from(rfpp.flow.denoise(loaded, Float32Array.from(y), sigmas[i], label)));
        }""",
        {
            "model": live.model(denoiser), "inputs": [y.flatten().tolist() for y in inputs], "sigmas": sigmas,
            "label": label,
        },
    )  # fmt: skip
    with torch.no_grad():
        expected = [live.rounded(denoiser)(y, s, torch.tensor([label])) for y, s in zip(inputs, sigmas, strict=True)]
    assert np.abs(np.array(found) - torch.cat(expected).flatten(1).numpy()).max() < CLOSE


SAMPLERS = [
    {"nfe": nfe, "solver": solver, "update": update}
    for (solver, counts), update in product({"euler": (1, 2, 5, 15), "heun": (1, 3, 15)}.items(), samplers.UPDATES)
    for nfe in counts
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("first", [0.999, 1 - 1e-5])
def test_samples_are_pytorchs_for_each_solver_and_update(javascript, denoisers, name, first):
    z, label = randn(1, 1, 8, 8, seed=4), 1
    found = javascript(
        """({model, z, first, label, settings}) => {
          const flow = rfpp.flow.ofModel(rfpp.network.load(model), label);
          return settings.map(({nfe, solver, update}) => {
            const times = rfpp.flow.times(rfpp.flow.stepsFor(nfe, solver), first);
            const path = rfpp.flow.integrate(flow, Float32Array.from(z), times, solver, update);
            return path.map(({state}) => Array.from(state));
          });
        }""",
        {
            "model": live.model(denoisers[name]), "z": z.flatten().tolist(), "first": first, "label": label,
            "settings": SAMPLERS,
        },
    )  # fmt: skip
    flow = RectifiedFlow(live.rounded(denoisers[name]))
    for states, how in zip(found, SAMPLERS, strict=True):
        times = samplers.generation_times(samplers.steps_for(how["nfe"], how["solver"]), first)
        start = z * min(first, 1 - 1e-5)
        with torch.no_grad():
            expected = samplers.integrate(flow, start, times, how["solver"], how["update"], torch.tensor([label]))
        assert np.abs(np.array(states) - torch.cat(expected).flatten(1).numpy()).max() < CLOSE, how


def test_numbers_in_half_precision_are_read_as_numpy_does(javascript):
    """All finite ones, with those near zero, which have no leading one."""
    numbers = np.arange(2**16, dtype="<u2").view("<f2")
    numbers = numbers[np.isfinite(numbers)]
    text = base64.b64encode(numbers.tobytes()).decode()
    assert np.array_equal(javascript("(text) => Array.from(rfpp.network.decode(text))", text), numbers.astype(float))


@pytest.mark.parametrize("size", [64, 5])
def test_noise_has_the_numbers_of_the_library(javascript, size):
    indices, seed = [0, 7, 123_456], 12
    key = json.loads(live.script({}, seed, 0.999).partition("=")[2].rstrip(";\n"))["key"]
    found = javascript(
        "({key, indices, size}) => indices.map((index) => Array.from(rfpp.noise.normal(key, index, size)))",
        {"key": key, "indices": indices, "size": size},
    )
    assert np.abs(np.array(found) - pairs.noise(seed, indices, (size,)).numpy()).max() < 1e-5


def test_the_plane_has_the_closed_forms_of_the_library(javascript):
    """The first round is the mixture's flow; its pairs are what the library's solver makes of the noise."""
    data, z, times = intersections.plane_data(), randn(50, 2, dtype=torch.float64), samplers.generation_times(6)
    asked = [0.95, 0.5, 0.1]
    found = javascript(
        """({means, std, z, times, asked}) => {
          const first = rfpp.mixture.flow(rfpp.mixture.independent(means, std)), noise = Float64Array.from(z);
          return {
            predictions: asked.map((t) => Array.from(first(noise, t))),
            ends: Array.from(rfpp.mixture.reflow(first, noise, times, 0.1).data),
          };
        }""",
        {
            "means": data.means.flatten().tolist(), "std": data.std, "z": z.flatten().tolist(),
            "times": times.tolist(), "asked": asked,
        },
    )  # fmt: skip
    flow = RectifiedFlow(data)
    predictions = np.stack([flow.x_prediction(z, t).flatten() for t in asked])
    assert np.abs(np.array(found["predictions"]) - predictions).max() < CLOSE
    assert np.abs(np.array(found["ends"]) - samplers.sample(flow, z, 11, "heun").flatten().numpy()).max() < CLOSE


def test_a_flow_of_pairs_predicts_the_mean_image_of_their_blurred_noise(javascript):
    """Against an average over draws: pairs by their number, noise blurred, those that pass near a point counted."""
    images, noise, blur, t = randn(6, 2, seed=1).double(), randn(6, 2, seed=2).double(), 0.5, 0.6
    point = torch.tensor([0.1, 0.2], dtype=torch.float64)
    found = javascript(
        """({data, noise, blur, point, t}) =>
          Array.from(rfpp.mixture.flow({data, noise, spread: 0, blur})(Float64Array.from(point), t))""",
        {
            "data": images.flatten().tolist(), "noise": noise.flatten().tolist(), "blur": blur,
            "point": point.tolist(), "t": t,
        },
    )  # fmt: skip
    chosen = torch.randint(6, (4_000_000,), generator=torch.Generator().manual_seed(3))
    x_t = (1 - t) * images[chosen] + t * (noise[chosen] + blur * randn(len(chosen), 2, seed=5))
    near = images[chosen[(x_t - point).norm(dim=1) < 0.05]]
    error = near.std(dim=0) / len(near) ** 0.5
    assert (torch.tensor(found) - near.mean(dim=0)).abs().max() < 5 * error.max() + 0.01


# What is written for them


@pytest.mark.parametrize("name", NAMES)
def test_each_weight_is_written_once_and_read_back_in_half_precision(denoisers, name):
    made, known = live.model(denoisers[name]), denoisers[name].model.state_dict()
    values = np.frombuffer(base64.b64decode(made["weights"]), "<f2")
    taken = np.zeros(len(values), int)

    def look(tree, prefix):
        for key, value in tree.items():
            if isinstance(value, dict):
                look(value, f"{prefix}{key}.")
            elif isinstance(value, list):
                start, length = value
                taken[start : start + length] += 1
                expected = known[prefix + key].half().flatten().cpu().numpy()
                assert np.array_equal(values[start : start + length], expected), prefix + key

    look(made["network"], "")
    assert (taken == 1).all() and len(values) == made["count"] == sum(p.numel() for p in denoisers[name].parameters())


def test_only_networks_whose_layers_the_scripts_know_are_written(denoisers):
    assert all(live.runs_in_a_page(denoiser) for denoiser in denoisers.values())
    large = EDMPrecond(network(model_channels=96))
    others = [reference("adm"), reference("ncsnpp"), large, GaussianMixtureDenoiser(torch.zeros(1, 2), 1.0)]
    assert not any(map(live.runs_in_a_page, others))
    with pytest.raises(KeyError):
        live.describe(torch.nn.ReLU(), [])


def test_a_flow_too_large_for_the_page_must_be_trained_before(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "runs_in_a_page", lambda denoiser: False)
    with pytest.raises(FileNotFoundError, match="run: python -m rfpp train --preset smoke --config F --seed 0"):
        live.write(Experiment("smoke", jobs=1), tmp_path)
    assert live.CONFIG in configurations.CONFIGURATIONS and not list(tmp_path.rglob("*.js"))


def test_a_network_that_is_too_large_leaves_the_plane(experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(live, "runs_in_a_page", lambda denoiser: False)
    live.write(experiment, tmp_path)
    assert '"models": {}' in (tmp_path / live.DATA).read_text()
    assert all((tmp_path / picture).is_file() for picture in live.PICTURES.values())


def test_the_scripts_ask_nothing_of_a_network():
    listed = re.findall(r'src="../_static/live/(\w+\.js)"', (BOOK / "live.md").read_text())
    assert sorted(listed) == sorted([path.name for path in (BOOK / "_static" / "live").glob("*.js")] + [live.DATA.name])
    for path in (BOOK / "_static" / "live").iterdir():
        assert not re.search(r"fetch\(|XMLHttp|\bimport\b|https?://|@import|url\(", path.read_text()), path


# The page


@pytest.fixture(scope="module")
def plain_page(experiment, tmp_path_factory):
    """The page alone, built without the book's theme."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "book").mkdir()
    shutil.copy2(BOOK / "live.md", folder / "book")
    shutil.copytree(BOOK / "_static" / "live", folder / "book" / "_static" / "live")
    live.write(experiment, folder / "book")
    (folder / "conf.py").write_text(
        "extensions, html_theme, root_doc = ['myst_parser', 'sphinx-mathjax-offline'], 'basic', 'book/live'\n"
        "html_static_path, myst_enable_extensions = ['book/_static'], ['colon_fence', 'dollarmath']\n"
    )
    command = [sys.executable, "-m", "sphinx", "-q", str(folder), str(folder / "html")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "html" / "book" / "live.html"


@pytest.fixture(params=["alone", "in the book"])
def path(request):
    """The page, alone or where ``make book`` has put it."""
    if request.param == "alone":
        return request.getfixturevalue("plain_page")
    built = REPOSITORY / "_build" / "html"
    sources = [BOOK / "_static" / "live" / name for name in ("live.css", *(path.name for path in SCRIPTS), "page.js")]
    copies = [built / "_static" / "live" / path.name for path in sources]
    same = all(a.is_file() and a.read_bytes() == b.read_bytes() for a, b in zip(copies, sources, strict=True))
    if not same:
        pytest.skip("the book is not built from these scripts: make book")
    return built / "book" / "live.html"


@pytest.fixture
def visit(browser, path):
    """``visit(**options)``: the page in a new window, once it has drawn, and the list that its complaints go to."""
    contexts = []

    def open_page(**options):
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        page, complaints = context.new_page(), []
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda asked: None if asked.url.startswith("file:") else complaints.append(asked.url))
        page.goto(path.as_uri())
        if options.get("java_script_enabled", True):
            page.wait_for_function("document.querySelector('path.live-steps').getAttribute('d')")
        return page, complaints

    yield open_page
    for context in contexts:
        context.close()


RESULTS = "[...document.querySelectorAll('#live-digits canvas')].map((tile) => tile.toDataURL())"
PLANE = "['exact', 'steps', 'points'].map((name) => document.querySelector(`path.live-${name}`).getAttribute('d'))"


def changes(page, shown, keys, focus):
    """Press keys on a field and wait until what is shown has changed."""
    before = page.evaluate(shown)
    page.focus(focus)
    for key in keys:
        page.keyboard.press(key)
    page.wait_for_function(f"(before) => JSON.stringify({shown}) !== JSON.stringify(before)", arg=before)


def test_every_field_of_the_page_works_by_keyboard(visit):
    page, complaints = visit()
    assert page.is_visible("#live-digits") and not page.is_visible(".live-still >> nth=0")
    changes(page, RESULTS, ["ArrowRight"], "#live-nfe")
    assert page.locator("#live-digits output").text_content() == "2"
    changes(page, RESULTS, ["ArrowRight"], "[name=label]:checked")
    assert page.evaluate("document.querySelector('[name=label]:checked').value") == "4"
    changes(page, RESULTS, ["ArrowRight"], "[name=solver]:checked")
    assert page.locator("#live-digits output").text_content() in "13"  # Heun's evaluations are odd
    page.press("#live-nfe", "End")
    changes(page, RESULTS, ["ArrowRight"], "[name=update]:checked")
    assert page.locator("#live-digits .live-path >> nth=0 >> css=div").count() == 8
    changes(page, RESULTS, ["Enter"], "#live-digits button")
    assert page.input_value("#live-noise") == "1"
    changes(page, PLANE, ["ArrowRight"], "#live-round")
    changes(page, PLANE, ["ArrowLeft"], "#live-steps")
    changes(page, PLANE, ["Home"], "#live-time")
    changes(page, PLANE, ["Enter"], "#live-plane [name=again]")
    page.emulate_media(reduced_motion="reduce")
    changes(page, PLANE, ["Enter"], "#live-plane [name=play]")
    assert page.input_value("#live-time") == "1"
    assert complaints == []


def test_the_page_checks_itself_against_pytorch(visit):
    page, _ = visit()
    told = page.text_content(".live-status")
    assert float(re.search(r"differs by (\S+) at most", told)[1]) < CLOSE


@pytest.mark.parametrize("damage", ["1", "NaN"])
def test_networks_that_draw_something_else_are_not_shown(visit, damage):
    page, _ = visit()
    assert page.is_visible("#live-digits") and not page.is_visible("#live-digits-wrong")
    page.evaluate(f"rfpp.data.models.flow.check.result[0] += {damage}")
    page.evaluate("rfpp.digits.open(document.getElementById('live-digits'))")
    assert not page.is_visible("#live-digits") and page.is_visible("#live-digits-wrong")


def test_weights_that_were_cut_off_are_told(visit):
    """The part in the plane, which needs none, still works."""
    page, _ = visit()
    page.evaluate("rfpp.data.models.flow.weights = '!'")
    page.evaluate(f"() => {{ {(BOOK / '_static' / 'live' / 'open.js').read_text()} }}")
    assert not page.is_visible("#live-digits") and page.is_visible("#live-digits-wrong")
    assert page.is_visible("#live-plane")


def test_without_scripts_and_on_paper_there_are_pictures(visit):
    page, _ = visit(java_script_enabled=False)
    pictures = page.locator(".live-still img")
    assert pictures.count() == 2 and all(picture.is_visible() for picture in pictures.all())
    assert not page.is_visible("#live-digits") and not page.is_visible("#live-plane")
    page, _ = visit()
    assert not any(picture.is_visible() for picture in page.locator(".live-still img").all())
    page.emulate_media(media="print")
    assert all(picture.is_visible() for picture in page.locator(".live-still img").all())
    assert not page.is_visible("#live-digits") and not page.is_visible("#live-plane")


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_no_wider_than_the_window(visit, width):
    page, _ = visit(viewport={"width": width, "height": 844})
    page.locator("#live-nfe").fill("15")
    page.wait_for_function("document.querySelectorAll('.live-path canvas').length === 60")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_each_field_has_a_name(visit):
    page, _ = visit()
    fields = page.locator(".live input, .live button").all()
    assert len(fields) > 20
    names = "(field) => field.textContent || [...field.labels].map((label) => label.textContent).join('')"
    assert all(field.evaluate(names) for field in fields)
    assert all(each.get_attribute("aria-label") for each in page.locator("#live-digits [role=img]").all())
