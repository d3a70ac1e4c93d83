"use strict";
// The schedules of ddpm.py in the browser. Letters as there; a table is an array of T + 1 numbers.

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
