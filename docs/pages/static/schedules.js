"use strict";
// schedules.py in the browser. Letters as there; a table is an array of T + 1 numbers.

function fromBetas(betas) {
  const beta = [0, ...betas], alpha = beta.map(b => 1 - b), alphaBar = [1], betaTilde = [0];
  for (let t = 1; t < beta.length; t++) {
    alphaBar.push(alphaBar[t - 1] * alpha[t]);
    betaTilde.push(beta[t] * (1 - alphaBar[t - 1]) / (1 - alphaBar[t]));
  }
  return {beta, alpha, alphaBar, betaTilde};
}

function fromAlphaBar(alphaBar) {
  return fromBetas(alphaBar.slice(1).map((bar, t) => Math.min(1 - bar / alphaBar[t], 0.999)));
}

// n numbers from start to end; from both ends, as torch does.
function linspace(start, end, n) {
  const step = (end - start) / Math.max(n - 1, 1), half = n === 1 ? 1 : Math.floor(n / 2);
  return Array.from({length: n}, (_, k) => k < half ? start + k * step : end - (n - 1 - k) * step);
}

const SCHEDULES = {
  linear: (T, start = 1e-4, end = 0.02) => fromBetas(linspace(start, end, T)),
  quadratic: (T, start = 1e-4, end = 0.02) => fromBetas(linspace(Math.sqrt(start), Math.sqrt(end), T).map(b => b * b)),
  cosine: (T, s = 0.008) => fromAlphaBar(Array.from({length: T + 1},
    (_, t) => Math.cos((t / T + s) / (1 + s) * Math.PI / 2) ** 2)),
  sigmoid: (T, start = -3, end = 3, tau = 1) => {
    const u = linspace(start / tau, end / tau, T + 1).map(x => 1 / (1 + Math.exp(-x)));
    return fromAlphaBar(u.map(each => u[T] - each));
  },
  flow: T => {
    const bar = linspace(0, 1, T + 1).map(u => (1 - u) ** 2 / ((1 - u) ** 2 + u ** 2));
    return fromBetas(bar.slice(1).map((each, t) => 1 - each / bar[t]));
  },
};

// Bits/dim of unit-variance data that are left in x_T.
function bitsLeft(alphaBar) {
  return -Math.log1p(-alphaBar[alphaBar.length - 1]) / Math.LN2 / 2;
}

// Times between the whole ones

function logSigma(bar) {
  return -Math.log(bar / (1 - bar)) / 2;
}

function lerp(from, to, weight) {
  return weight < 0.5 ? from + weight * (to - from) : to - (to - from) * (1 - weight);
}

// alpha_bar at t; between two entries of the table log sigma is interpolated.
function alphaBarAt(alphaBar, t) {
  const below = Math.floor(t), above = Math.ceil(t);
  if (below === above) return alphaBar[t];
  return 1 / (1 + Math.exp(2 * lerp(logSigma(alphaBar[below]), logSigma(alphaBar[above]), t - below)));
}

// The t at which log sigma is this: the inverse of alphaBarAt.
function timeAt(alphaBar, value) {
  const table = alphaBar.map(logSigma), T = table.length - 1;
  if (value >= table[T]) return T;
  const found = table.findIndex(each => each >= value) - 1;
  const below = Math.min(Math.max(found, 1), Math.max(T - 1, 1)), above = Math.min(below + 1, T);
  const part = (value - table[below]) / (table[above] - table[below]);
  return roundHalfEven((below + Math.min(Math.max(part, 0), 1)) * 1e11) / 1e11;
}

function roundHalfEven(x) {
  const down = Math.floor(x);
  return x - down === 0.5 ? down + down % 2 : Math.round(x);
}

// What the output predicts

// a, b such that x0_hat = a xt + b output.
function x0Coefficients(bar, target) {
  const signal = Math.sqrt(bar), noise = Math.sqrt(1 - bar);
  if (target === "eps") return [1 / signal, -Math.sqrt(1 / bar - 1)];
  if (target === "x0") return [0, 1];
  return target === "flow" ? [1 / (signal + noise), -noise / (signal + noise)] : [signal, -noise];
}

// What a network that knows x0_hat would say: the inverse of x0Coefficients.
function outputOf(x0, xt, bar, target) {
  const signal = Math.sqrt(bar), noise = Math.sqrt(1 - bar);
  return xt.map((x, e) => {
    const eps = (x - signal * x0[e]) / noise;
    return {x0: x0[e], eps, v: signal * eps - noise * x0[e], flow: eps - x0[e]}[target];
  });
}
