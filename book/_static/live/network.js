/* The U-Net of rfpp.networks.SongUNet in plain JavaScript, for one image at a time.
 *
 * rfpp.book.live writes a network as a tree of layers under PyTorch's names, its weights as one text. An image is
 * {data, channels, size}: a Float32Array of channels x size x size numbers, one channel after the other.
 */
"use strict";
var rfpp = {};

rfpp.network = (() => {
  const image = (data, channels, size) => ({ data, channels, size });
  const silu = (values) => values.map((v) => v / (1 + Math.exp(-v)));
  const positions = (x) => x.size * x.size;

  /* Reading */

  /* A number of 16 bits: one for the sign, five for the exponent, ten for the fraction. */
  function half(bits) {
    const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = (bits & 1023) / 1024;
    return sign * (exponent ? (1 + fraction) * 2 ** (exponent - 15) : fraction * 2 ** -14);
  }

  /* Numbers of two bytes each, the lower first, in base64. */
  function decode(text) {
    const bytes = atob(text), values = new Float32Array(bytes.length / 2);
    for (let i = 0; i < values.length; i++) {
      values[i] = half(bytes.charCodeAt(2 * i) | (bytes.charCodeAt(2 * i + 1) << 8));
    }
    return values;
  }

  /* A model whose weights are numbers: the tree holds [where they start, how many they are]. */
  function load(model) {
    const weights = decode(model.weights);
    const fill = (tree) =>
      Array.isArray(tree) ? weights.subarray(tree[0], tree[0] + tree[1])
      : tree && typeof tree === "object" ? Object.fromEntries(Object.entries(tree).map(([k, v]) => [k, fill(v)]))
      : tree;
    return { ...model, weights: null, network: fill(model.network) };
  }

  /* Layers */

  /* Each row of a with each row of b, as scalar products: (n, inner) and (m, inner) make (n, m). */
  function products(a, b, inner) {
    const n = a.length / inner, m = b.length / inner, result = new Float32Array(n * m);
    for (let i = 0; i < n; i++) {
      const from = i * inner;
      let j = 0;
      for (; j + 4 <= m; j += 4) { // four sums at once: each number of a is fetched once for them
        let p = j * inner, q = p + inner, r = q + inner, s = r + inner, sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0;
        for (let k = from; k < from + inner; k++) {
          const v = a[k];
          sum0 += v * b[p++];
          sum1 += v * b[q++];
          sum2 += v * b[r++];
          sum3 += v * b[s++];
        }
        const to = i * m + j;
        result[to] = sum0;
        result[to + 1] = sum1;
        result[to + 2] = sum2;
        result[to + 3] = sum3;
      }
      for (; j < m; j++) {
        let sum = 0;
        for (let k = 0; k < inner; k++) sum += a[from + k] * b[j * inner + k];
        result[i * m + j] = sum;
      }
    }
    return result;
  }

  const linear = (layer, x) => products(layer.weight, x, x.length).map((v, i) => v + layer.bias[i]);

  /* The surroundings of each position, (size * size, channels * kernel * kernel), with zeros outside of the image. */
  function patches(x, kernel) {
    const { data, channels, size } = x, reach = kernel >> 1;
    const result = new Float32Array(positions(x) * channels * kernel * kernel);
    let place = 0;
    for (let row = 0; row < size; row++) {
      for (let column = 0; column < size; column++) {
        for (let channel = 0; channel < channels; channel++) {
          for (let y = row - reach; y <= row + reach; y++) {
            for (let z = column - reach; z <= column + reach; z++) {
              const inside = y >= 0 && y < size && z >= 0 && z < size;
              result[place++] = inside ? data[(channel * size + y) * size + z] : 0;
            }
          }
        }
      }
    }
    return result;
  }

  /* Twice the size by repetition, or half of it by means of 2 x 2. */
  function resample(x, up) {
    const size = up ? 2 * x.size : x.size / 2, data = new Float32Array(x.channels * size * size);
    const at = (channel, row, column) => x.data[(channel * x.size + row) * x.size + column];
    for (let i = 0; i < data.length; i++) {
      const column = i % size, row = Math.floor(i / size) % size, c = Math.floor(i / (size * size));
      data[i] = up
        ? at(c, row >> 1, column >> 1)
        : (at(c, 2 * row, 2 * column) + at(c, 2 * row, 2 * column + 1) +
           at(c, 2 * row + 1, 2 * column) + at(c, 2 * row + 1, 2 * column + 1)) / 4;
    }
    return image(data, x.channels, size);
  }

  function convolve(layer, x) {
    if (layer.up || layer.down) x = resample(x, layer.up);
    if (!layer.weight) return x;
    const channels = layer.bias.length, kernel = Math.sqrt(layer.weight.length / channels / x.channels);
    const sums = products(layer.weight, patches(x, kernel), x.channels * kernel * kernel);
    return image(addToChannels(sums, layer.bias, positions(x)), channels, x.size);
  }

  const addToChannels = (data, numbers, each) => data.map((v, i) => v + numbers[Math.floor(i / each)]);

  function normalise(layer, x) {
    const each = positions(x), members = (x.channels / layer.groups) * each, data = new Float32Array(x.data.length);
    for (let start = 0; start < data.length; start += members) {
      let sum = 0, squares = 0;
      for (let i = start; i < start + members; i++) sum += x.data[i];
      const mean = sum / members;
      for (let i = start; i < start + members; i++) squares += (x.data[i] - mean) ** 2;
      const scale = 1 / Math.sqrt(squares / members + layer.eps);
      for (let i = start; i < start + members; i++) {
        const channel = Math.floor(i / each);
        data[i] = (x.data[i] - mean) * scale * layer.weight[channel] + layer.bias[channel];
      }
    }
    return image(data, x.channels, x.size);
  }

  const activate = (x) => image(silu(x.data), x.channels, x.size);
  const mix = (x, y, scale) => image(x.data.map((v, i) => (v + y.data[i]) * scale), x.channels, x.size);

  function block(layer, x, embedding) {
    let h = convolve(layer.conv0, activate(normalise(layer.norm0, x)));
    h = image(addToChannels(h.data, linear(layer.affine, embedding), positions(h)), h.channels, h.size);
    h = convolve(layer.conv1, activate(normalise(layer.norm1, h)));
    x = mix(h, layer.skip ? convolve(layer.skip, x) : x, layer.skip_scale);
    return layer.heads ? mix(x, attend(layer, x), layer.skip_scale) : x;
  }

  /* Self-attention. The channels of qkv read (head, channel of the head, {query, key, value}). */
  function attend(layer, x) {
    const n = positions(x), width = x.channels / layer.heads, result = new Float32Array(x.data.length);
    const qkv = convolve(layer.qkv, normalise(layer.norm2, x)).data;
    const row = (channel, which) => qkv.subarray((3 * channel + which) * n, (3 * channel + which + 1) * n);
    for (let first = 0; first < x.channels; first += width) {
      for (let i = 0; i < n; i++) {
        const scores = new Float32Array(n);
        for (let c = first; c < first + width; c++) {
          const query = row(c, 0)[i] / Math.sqrt(width), keys = row(c, 1);
          for (let j = 0; j < n; j++) scores[j] += query * keys[j];
        }
        const weights = softmax(scores);
        for (let c = first; c < first + width; c++) result[c * n + i] = products(weights, row(c, 2), n)[0];
      }
    }
    return convolve(layer.proj, image(result, x.channels, x.size));
  }

  function softmax(scores) {
    const largest = Math.max(...scores), powers = scores.map((score) => Math.exp(score - largest));
    const sum = powers.reduce((a, b) => a + b, 0);
    return powers.map((power) => power / sum);
  }

  /* The network */

  /* Noise level and class as one vector: sines, then cosines, of frequencies from 1 down to 1/10000. */
  function embed(network, noiseLabel, label) {
    const half = network.map_noise.channels / 2;
    const angles = Array.from({ length: half }, (_, i) => noiseLabel * 1e-4 ** (i / (half - 1)));
    let embedding = Float32Array.from([...angles.map(Math.sin), ...angles.map(Math.cos)]);
    if (network.map_label) {
      const classes = network.map_label.weight.length / network.map_label.bias.length;
      const chosen = linear(network.map_label, new Float32Array(classes).fill(Math.sqrt(classes), label, label + 1));
      embedding = embedding.map((v, i) => v + chosen[i]);
    }
    return silu(linear(network.map_layer1, silu(linear(network.map_layer0, embedding))));
  }

  /* The channels of two images of one size. */
  function stack(x, y) {
    const data = new Float32Array(x.data.length + y.data.length);
    data.set(x.data);
    data.set(y.data, x.data.length);
    return image(data, x.channels + y.channels, x.size);
  }

  /* What the network makes of an image (data alone), its noise label and its class. */
  function evaluate(network, data, noiseLabel, label) {
    const embedding = embed(network, noiseLabel, label), skips = [];
    let x = image(data, network.in_channels, network.img_resolution);
    for (const layer of Object.values(network.enc)) {
      x = layer.norm0 ? block(layer, x, embedding) : convolve(layer, x);
      skips.push(x);
    }
    for (const [name, layer] of Object.entries(network.dec)) {
      if (layer.norm0) x = block(layer, name.includes("_block") ? stack(x, skips.pop()) : x, embedding);
      else x = layer.groups ? activate(normalise(layer, x)) : convolve(layer, x);
    }
    return x.data;
  }

  return { load, evaluate, decode };
})();
