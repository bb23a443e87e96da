/* The second part of the page: rounds of reflow in the plane, with every velocity in closed form. */
"use strict";

rfpp.plane = (() => {
  const { start, whole, few, count } = rfpp.page;
  const SHOWN = 60; // paths
  const PAIRS = 1000, BLUR = 0.1; // of a round, and the standard deviation around their noise
  const CLOSE = 24; // Heun steps that follow an ODE closely, for a picture

  const points = (n, index) => Float64Array.from(rfpp.noise.normal(rfpp.data.key, index, 2 * n));
  const line = (steps) => rfpp.flow.times(steps, 1 - 1e-5);

  /* The flow of each round, from the couplings of all rounds before. */
  const flows = [];
  function round(number) {
    if (!flows.length) {
      flows.push(rfpp.mixture.flow(rfpp.mixture.independent(rfpp.data.plane.means, rfpp.data.plane.std)));
    }
    while (flows.length < number) {
      const pairs = rfpp.mixture.reflow(flows.at(-1), points(PAIRS, 1000 + flows.length), line(CLOSE / 2), BLUR);
      flows.push(rfpp.mixture.flow(pairs));
    }
    return flows[number - 1];
  }

  /* Where a path is at a time between its own. */
  function at(path, time) {
    const after = Math.max(1, path.findIndex((entry) => entry.t <= time)), [a, b] = [path[after - 1], path[after]];
    const part = Math.min(Math.max((a.t - time) / (a.t - b.t), 0), 1);
    return a.state.map((v, i) => v + part * (b.state[i] - v));
  }

  /* SVG's commands for a line through the states of each point, and for a dot at each point; y points upwards. */
  const place = (state, i) => `${state[i].toFixed(3)} ${(-state[i + 1]).toFixed(3)}`;
  const each = (state, text) => Array.from({ length: state.length / 2 }, (_, k) => text(2 * k)).join("");
  const lines = (states) => each(states[0], (i) => `M${states.map((state) => place(state, i)).join("L")}`);
  const dots = (state) => each(state, (i) => `M${place(state, i)}h0`);

  const known = { key: "" };
  function solve(number, index, steps) {
    if (known.key !== `${number} ${index}`) {
      const noise = points(SHOWN, index);
      const exact = rfpp.flow.integrate(round(number), noise, line(CLOSE), "heun", "standard");
      Object.assign(known, { key: `${number} ${index}`, noise, exact });
    }
    return rfpp.flow.integrate(round(number), known.noise, line(steps), "euler", "standard");
  }

  function open(section) {
    const form = section.querySelector("form"), { round: rounds, steps, time, noise } = form.elements;
    const draw = (name, commands) => section.querySelector(`path.live-${name}`).setAttribute("d", commands);
    const still = matchMedia("(prefers-reduced-motion: reduce)");

    const refresh = start(section, () => {
      const number = Number(rounds.value), now = 1 - Number(time.value);
      const path = solve(number, whole(noise), Number(steps.value));
      const passed = [...path.filter((entry) => entry.t > now).map((entry) => entry.state), at(path, now)];
      draw("exact", lines(known.exact.map((entry) => entry.state)));
      draw("data", dots(Float64Array.from(rfpp.data.plane.means)));
      draw("noise", dots(known.noise));
      draw("steps", lines(passed));
      draw("points", dots(passed.at(-1)));
      // Of points: a point has two numbers.
      const away = rfpp.flow.distance(path.at(-1).state, known.exact.at(-1).state) * Math.SQRT2;
      form.elements.roundShown.value = `${number}-rectified flow`;
      form.elements.stepsShown.value = steps.value;
      form.elements.timeShown.value = `t = ${now.toFixed(2)}`;
      section.querySelector(".live-number").textContent =
        `${count(Number(steps.value), "Euler step")} of the ${number}-rectified flow: ` +
        `the end is ${few(away)} away from the curve's end (root mean square).`;
    });

    section.querySelector("[name=again]").addEventListener("click", () => { noise.stepUp(); refresh(); });
    section.querySelector("[name=play]").addEventListener("click", () => {
      const began = performance.now();
      const move = (timestamp) => {
        time.value = still.matches ? 1 : (timestamp - began) / 3000;
        refresh();
        if (Number(time.value) < 1) requestAnimationFrame(move);
      };
      requestAnimationFrame(move);
    });
  }

  return { open, round, at };
})();
