/* Rectified flows in the plane whose velocity is known in closed form, and reflow of them.
 *
 * A coupling is a list of components, each a Gaussian of data around an image with one of noise around another point:
 * {data, noise}: Float64Arrays of x, y, x, y, ...; spread, blur: their standard deviations. Independent data and noise
 * are the components of the data, with standard normal noise each. The pairs of reflow are a component each, whose data
 * is a point and whose noise is blurred a little, for that makes a density of the pairs.
 */
"use strict";

rfpp.mixture = (() => {
  const independent = (means, spread) => ({
    data: Float64Array.from(means), noise: new Float64Array(means.length), spread, blur: 1,
  });

  /* The flow of a coupling: E[x | x_t], the mean over components of what each expects, weighted by its likelihood. */
  function flow(coupling) {
    const { data, noise, spread, blur } = coupling, n = data.length / 2;
    const squares = new Float64Array(n); // of the distances from the components' centres
    return (x, t) => {
      const variance = ((1 - t) * spread) ** 2 + (t * blur) ** 2, shrink = ((1 - t) * spread ** 2) / variance;
      const result = new Float64Array(x.length);
      for (let i = 0; i < x.length; i += 2) {
        let least = Infinity;
        for (let k = 0; k < n; k++) {
          const dx = x[i] - (1 - t) * data[2 * k] - t * noise[2 * k];
          const dy = x[i + 1] - (1 - t) * data[2 * k + 1] - t * noise[2 * k + 1];
          squares[k] = dx * dx + dy * dy;
          if (squares[k] < least) least = squares[k];
        }
        let total = 0;
        for (let k = 0; k < n; k++) {
          const exponent = (least - squares[k]) / (2 * variance);
          if (exponent < -40) continue; // less than one part in 10^17
          const weight = Math.exp(exponent);
          total += weight;
          for (let axis = 0; axis < 2; axis++) {
            const away = x[i + axis] - (1 - t) * data[2 * k + axis] - t * noise[2 * k + axis];
            result[i + axis] += weight * (data[2 * k + axis] + shrink * away);
          }
        }
        result[i] /= total;
        result[i + 1] /= total;
      }
      return result;
    };
  }

  /* The next round: pairs of noise and where the flow takes it. */
  function reflow(predict, noise, times, blur) {
    const path = rfpp.flow.integrate(predict, noise, times, "heun", "standard");
    return { data: path.at(-1).state, noise, spread: 0, blur };
  }

  return { independent, flow, reflow };
})();
