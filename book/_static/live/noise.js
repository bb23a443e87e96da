/* The noise of rfpp.pairs.noise: Philox4x64-10 makes random words of a key and an index, so that noise has a number.
 *
 * Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011. Words have 64 bits.
 */
"use strict";

rfpp.noise = (() => {
  const word = (value) => BigInt.asUintN(64, value);

  /* The first n words of an index; the counter's lowest word counts blocks of four from 1, the index is its highest. */
  function philox(key, index, n) {
    const words = [];
    for (let block = 1n; words.length < n; block++) {
      let a = block, b = 0n, c = 0n, d = BigInt(index), first = BigInt(key), second = 0n;
      for (let round = 0; round < 10; round++) {
        const left = a * 0xd2e7470ee14c6c93n, right = c * 0xca5a826395121157n;
        [a, b, c, d] = [(right >> 64n) ^ b ^ first, word(right), (left >> 64n) ^ d ^ second, word(left)];
        first = word(first + 0x9e3779b97f4a7c15n);
        second = word(second + 0xbb67ae8584caa73bn);
      }
      words.push(a, b, c, d);
    }
    return words.slice(0, n);
  }

  /* Standard normal numbers by the method of Box and Muller; each word has the bits of two, its lower half first. */
  function normal(key, index, size) {
    const n = Math.ceil(size / 2);
    const halves = philox(key, index, n).flatMap((w) => [w, w >> 32n]).map((w) => Number(BigInt.asIntN(32, w)));
    const values = new Float32Array(2 * n);
    for (let i = 0; i < n; i++) {
      const uniform = Math.abs(Math.fround(Math.fround(halves[i]) + 0.5)) * 2 ** -31;
      const radius = Math.sqrt(-2 * Math.log(uniform)), angle = halves[n + i] * 2 ** -31 * Math.PI;
      values[i] = Math.cos(angle) * radius;
      values[n + i] = Math.sin(angle) * radius;
    }
    return values.subarray(0, size);
  }

  return { normal };
})();
