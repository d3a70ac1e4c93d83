"use strict";
// noise.py in the browser: standard normals as a function of (seed of the image, step, element), by Philox4x32-10.

const SAMPLE = 0;                                     // the stream of x_T and of the sampler's steps

// The upper and lower 32 bits of a * b, both in 0..2^32-1. The parts of 16 bits keep every sum below 2^53.
function multiply(a, b) {
  const low = (a & 0xFFFF) * b, high = (a >>> 16) * b + Math.floor(low / 65536);
  return [Math.floor(high / 65536), Math.imul(a, b) >>> 0];
}

// Four 32-bit words from two words of key and four of counter.
function philox([k0, k1], [c0, c1, c2, c3]) {
  for (let round = 0; round < 10; round++) {
    const [p0high, p0low] = multiply(0xD2511F53, c0), [p2high, p2low] = multiply(0xCD9E8D57, c2);
    [c0, c1, c2, c3] = [(p2high ^ c1 ^ k0) >>> 0, p2low, (p0high ^ c3 ^ k1) >>> 0, p0low];
    [k0, k1] = [(k0 + 0x9E3779B9) >>> 0, (k1 + 0xBB67AE85) >>> 0];
  }
  return [c0, c1, c2, c3];
}

// The key of an image: its index in the lower word, the run's seed in the upper.
function imageKey(seed, index) {
  return [index >>> 0, seed >>> 0];
}

// The first n words of (key, step, stream): element e is word e % 4 of counter block e / 4. The fraction of a step that
// is not whole, as float32 has it, is the counter's last word.
function words(key, s, n, stream = SAMPLE) {
  const real = Number.isInteger(s) ? s : Math.fround(s), whole = Math.floor(real), fraction = (real - whole) * 2 ** 32;
  const result = [];
  for (let block = 0; block < Math.ceil(n / 4); block++) result.push(...philox(key, [block, whole, stream, fraction]));
  return result.slice(0, n);
}

// A float32 in [0, 1] from a word, its sign bit folded away.
function unit(word) {
  return Math.fround(Math.fround(Math.min(word, 0xFFFFFFFF - word)) * Math.fround(4.6566127342e-10));
}

// Two independent standard normals from two uniforms, rounded to float32 after each operation.
function boxMuller(u1, u2) {
  const f = Math.fround, r = f(Math.sqrt(f(-2 * f(Math.log(Math.max(u1, f(1e-7)))))));
  const theta = f(f(6.2831855) * u2);
  return [f(r * f(Math.cos(theta))), f(r * f(Math.sin(theta)))];
}

// n standard normals, the noise that lands on x_s.
function normal(key, s, n, stream = SAMPLE) {
  const w = words(key, s, 4 * Math.ceil(n / 4), stream), z = [];
  for (let e = 0; e < w.length; e += 2) z.push(...boxMuller(unit(w[e]), unit(w[e + 1])));
  return z.slice(0, n);
}
