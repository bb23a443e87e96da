/* What both parts of the page need, and its first part: two flows that draw digits, step by step. */
"use strict";

rfpp.page = (() => {
  /* Redraw once before the next frame, however often asked. */
  function once(draw) {
    let asked = false;
    return () => {
      if (asked) return;
      asked = true;
      requestAnimationFrame(() => { asked = false; draw(); });
    };
  }

  /* What a field for a number of noise says; something, whatever was typed. */
  const whole = (field) => Math.max(0, Math.floor(Number(field.value) || 0));

  /* Show a part of the page in place of its still picture, and keep it drawn while its fields change. */
  function start(section, draw) {
    const form = section.querySelector("form"), refresh = once(draw);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", refresh);
    section.hidden = false;
    section.parentElement.classList.add("live-runs");
    refresh();
    return refresh;
  }

  const few = (number) => (number < 0.0995 ? number.toPrecision(1) : number.toFixed(2));
  const count = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

  return { start, whole, few, count };
})();

rfpp.digits = (() => {
  const { start, whole, few, count } = rfpp.page;
  const CLOSE = 31; // evaluations, by Heun, that follow an ODE closely
  const AGREES = 1e-3; // the most by which a pixel may differ from PyTorch's; damaged weights differ by more

  /* An image as ink: the darker, the larger the number. Its size on the page is the style sheet's. */
  function tile(values, name) {
    const size = Math.sqrt(values.length), canvas = document.createElement("canvas");
    canvas.width = canvas.height = size;
    canvas.className = `live-tile ${name}`;
    const context = canvas.getContext("2d"), ink = context.createImageData(size, size);
    values.forEach((v, i) => { ink.data[4 * i + 3] = 255 * Math.min(Math.max((v + 1) / 2, 0), 1); });
    context.putImageData(ink, 0, 0);
    return canvas;
  }

  /* A step of a path: its time, the state, and the prediction from there. */
  function card({ t, state, prediction }, place) {
    const box = document.createElement("div"), time = document.createElement("span");
    time.textContent = `${place ? "" : "t = "}${Number(t.toFixed(2))}`;
    box.append(time, tile(state, "live-state"), tile(prediction, "live-prediction"));
    return box;
  }

  /* Everything that one setting of the fields makes of a model, and what an evaluation took. */
  function run(model, noise, { label, nfe, solver, update }) {
    const times = rfpp.flow.times(rfpp.flow.stepsFor(nfe, solver), rfpp.data.first_time);
    const began = performance.now();
    const path = rfpp.flow.integrate(rfpp.flow.ofModel(model, label), noise, times, solver, update);
    return { path, result: path.at(-1).state, milliseconds: (performance.now() - began) / nfe };
  }

  /* The largest difference from what PyTorch computed when the book was built. */
  function check(models) {
    return Math.max(...Object.values(models).map((model) => {
      const { index, result, ...settings } = model.check;
      const found = run(model, rfpp.noise.normal(rfpp.data.key, index, result.length), settings).result;
      return Math.max(...found.map((v, i) => Math.abs(v - result[i])));
    }));
  }

  function show(panel, name, made, settings, target) {
    const away = few(rfpp.flow.distance(made.result, target));
    const result = panel.querySelector(".live-result"), path = panel.querySelector(".live-path");
    result.replaceChildren(tile(made.result, "live-large"));
    const of = settings.label < 0 ? name : `${name}, class ${settings.label}`;
    result.setAttribute("aria-label", `${of}: ${away} from the image of its pair`);
    const steps = made.path.length - 1;
    path.replaceChildren(...made.path.slice(0, steps).map(card));
    path.style.setProperty("--tile", steps < 5 ? "4.4rem" : steps < 9 ? "3.6rem" : "2.6rem");
    path.setAttribute("aria-label", `${count(steps, "step")}: above the states, below the predictions`);
    panel.querySelector(".live-number").textContent =
      `${count(settings.nfe, "evaluation")}: ${away} from the pair's image`;
  }

  function open(section) {
    if (!rfpp.data.models.teacher) {
      document.getElementById("live-digits-absent").hidden = false;
      return;
    }
    const models = Object.fromEntries(Object.entries(rfpp.data.models).map(([k, v]) => [k, rfpp.network.load(v)]));
    const differs = check(models);
    if (!(differs < AGREES)) { // NaN, too
      section.hidden = true;
      document.getElementById("live-digits-wrong").hidden = false;
      return;
    }
    const form = section.querySelector("form"), size = models.teacher.network.img_resolution ** 2;
    const classes = section.querySelector(".live-classes");
    for (let label = 0; label < models.teacher.classes; label++) {
      const checked = label === models.teacher.check.label ? "checked" : "";
      const button = `<input type="radio" name="label" value="${label}" ${checked}>`;
      classes.insertAdjacentHTML("beforeend", `<label>${button}${label}</label>`);
    }
    classes.hidden = !models.teacher.classes;
    const closely = { key: "", image: null }; // the image of the pair, kept while noise and class stay
    const weights = models.teacher.count.toLocaleString("en"), largest = differs.toExponential(0);
    const facts = `Two networks of ${weights} weights each. In this browser a pixel differs by ${largest} at most from ` +
      "what PyTorch drew. An evaluation takes";

    const refresh = start(section, () => {
      const solver = form.elements.solver.value, field = form.elements.nfe;
      field.step = solver === "heun" ? 2 : 1; // 2 N - 1 evaluations
      field.value = field.value; // to a value that the step allows
      const index = whole(form.elements.noise), nfe = Number(field.value);
      const label = classes.hidden ? -1 : Number(form.elements.label.value);
      const settings = { label, nfe, solver, update: form.elements.update.value };
      form.elements.shown.value = nfe;
      const noise = rfpp.noise.normal(rfpp.data.key, index, size);
      if (closely.key !== `${index} ${label}`) {
        const exactly = { label, nfe: CLOSE, solver: "heun", update: "standard" };
        closely.key = `${index} ${label}`;
        closely.image = run(models.teacher, noise, exactly).result;
        const both = [noise, closely.image].map((values) => tile(values, "live-state"));
        section.querySelector(".live-pair").replaceChildren(...both);
      }
      let milliseconds = 0;
      for (const panel of section.querySelectorAll(".live-panel")) {
        const made = run(models[panel.dataset.model], noise, settings);
        show(panel, panel.querySelector("figcaption").textContent, made, settings, closely.image);
        milliseconds += made.milliseconds / 2;
      }
      section.querySelector(".live-status").textContent = `${facts} ${milliseconds.toFixed(1)} ms.`;
    });
    section.querySelector("button").addEventListener("click", () => {
      form.elements.noise.stepUp();
      refresh();
    });
  }

  return { open, check };
})();
