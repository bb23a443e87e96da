/* Rectified flows and their solvers: rfpp.denoisers, rfpp.flow and rfpp.samplers. Data at t = 0, noise at t = 1.
 *
 * A flow is a function predict(x, t) that returns E[x | x_t]; x is a typed array of any length.
 */
"use strict";

rfpp.flow = (() => {
  const T_MIN = 1e-5, T_MAX = 1 - 1e-5;
  const single = Math.fround; // where PyTorch rounds: near t = 1 the difference is seen in 1 - t
  const inside = (t) => single(Math.min(Math.max(t, T_MIN), T_MAX));

  /* E[x | x + sigma eps = y] by a network under EDM's preconditioning. */
  function denoise(model, y, sigma, label) {
    const total = Math.hypot(sigma, model.sigma_data);
    const skip = (model.sigma_data / total) ** 2, out = (sigma * model.sigma_data) / total;
    const scaled = y.map((v) => v / total);
    const answer = rfpp.network.evaluate(model.network, scaled, Math.log(sigma) / 4, label);
    return y.map((v, i) => skip * v + out * answer[i]);
  }

  /* The flow of a denoiser (Proposition 1), for a class. */
  function ofModel(model, label) {
    return (x, t) => {
      const time = inside(t), rest = single(1 - time);
      return denoise(model, x.map((v) => v / rest), single(time / rest), label);
    };
  }

  const stepsFor = (nfe, solver) => (solver === "heun" ? (nfe + 1) / 2 : nfe);

  /* steps + 1 times from the first down to 0, uniform but for the first. */
  const times = (steps, first) => Array.from({ length: steps + 1 }, (_, i) => (i ? 1 - i / steps : first));

  /* Solve dx/dt = (x - E[x | x_t]) / t along falling times, by Euler or Heun, with the standard or the straight update.
   *
   * Returns an entry {t, state, prediction} for each step, and {t: 0, state} at the end. noise: where t = 1.
   */
  function integrate(predict, noise, times, solver, update) {
    const start = noise.map((v) => v * Math.min(times[0], T_MAX)), path = [];
    const velocity = (x, prediction, t) => x.map((v, i) => (v - prediction[i]) / inside(t));
    const move = (x, v, t, s) =>
      update === "straight"
        ? x.map((value, i) => (1 - s) * (value - t * v[i]) + s * start[i])
        : x.map((value, i) => value + (s - t) * v[i]);
    let x = start;
    for (let step = 0; step + 1 < times.length; step++) {
      const t = times[step], s = times[step + 1], prediction = predict(x, t);
      path.push({ t, state: x, prediction });
      const first = velocity(x, prediction, t), proposal = move(x, first, t, s);
      if (solver === "heun" && step + 2 < times.length) {
        const second = velocity(proposal, predict(proposal, s), s);
        x = move(x, first.map((v, i) => (v + second[i]) / 2), t, s);
      } else {
        x = proposal;
      }
    }
    return [...path, { t: times.at(-1), state: x }];
  }

  /* The root of the mean squared difference. */
  const distance = (x, y) => Math.sqrt(x.reduce((sum, v, i) => sum + (v - y[i]) ** 2, 0) / x.length);

  return { denoise, ofModel, stepsFor, times, integrate, distance };
})();
