"use strict";
// samplers.py in the browser: times, the table of a sampler, and one reverse step. Letters and columns as there.

const COLUMNS = ["t", "s", "a", "b", "clip", "c0", "ct", "cp", "cp2", "cz", "log_min", "log_max"];

// Times, whole or between the whole ones

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

function timesteps(T, steps, spacing = "trailing") {
  if (spacing === "trailing") return Array.from({length: steps}, (_, k) => roundHalfEven(T - k * T / steps));
  if (spacing === "leading") return Array.from({length: steps}, (_, k) => (steps - 1 - k) * Math.floor(T / steps) + 1);
  return linspace(T - 1, 0, steps).map(t => roundHalfEven(t) + 1);
}

// `steps` times of a schedule: whole ones, or real ones that are even in a function of the noise.
function spacedTimes(alphaBar, steps, spacing = "trailing", shift = 1) {
  const T = alphaBar.length - 1, most = logSigma(alphaBar[T]), least = logSigma(alphaBar[1]);
  if (!["karras", "logsnr", "flow"].includes(spacing)) return timesteps(T, steps, spacing);
  if (spacing === "flow") {
    return Array.from({length: steps}, (_, k) => {
      const left = 1 - k / steps, u = shift * left / (1 + (shift - 1) * left) / (1 + Math.exp(-most));
      return timeAt(alphaBar, Math.log(u / (1 - u)));
    });
  }
  if (most === Infinity) throw new RangeError(`alpha_bar is 0 at T; spacing ${spacing} needs a finite sigma, use trailing or flow`);
  const even = spacing === "logsnr" ? w => lerp(most, least, w)
    : w => 7 * Math.log(lerp(Math.exp(most / 7), Math.exp(least / 7), w));
  return linspace(0, 1, steps).map(w => timeAt(alphaBar, even(w)));
}

// The table of a sampler: one row per network evaluation

// a, b such that x0_hat = a xt + b output.
function x0Coefficients(bar, target) {
  const signal = Math.sqrt(bar), noise = Math.sqrt(1 - bar);
  if (target === "eps") return [1 / signal, -Math.sqrt(1 / bar - 1)];
  if (target === "x0") return [0, 1];
  return target === "flow" ? [1 / (signal + noise), -noise / (signal + noise)] : [signal, -noise];
}

function samplerRows(alphaBar, times, {sampler = "ddim", target = "eps", variance = "beta_tilde", eta = 0,
                                       clip = true, churn = 0} = {}) {
  const t = sampler === "heun" ? withCorrections(alphaBar, times, churn) : times, s = [...t.slice(1), 0];
  const barT = t.map(each => alphaBarAt(alphaBar, each)), barS = s.map(each => alphaBarAt(alphaBar, each));
  if (target === "eps" && barT[0] === 0) {
    throw new RangeError("alpha_bar is 0 at the first step, and eps cannot say what x0 is; use target v, x0 or flow");
  }
  const w = ddimWeights(barT, barS, variance, ["ddim", "2m"].includes(sampler) ? eta : 0);
  const none = t.map(() => 0);
  if (!(sampler === "ddim" || sampler === "2m")) Object.assign(w, {cz: none, logMin: none, logMax: none});
  if (["2m", "unipc", "unipc-bh1"].includes(sampler)) Object.assign(w, multistepWeights(barT, barS, w, sampler));
  if (sampler === "heun") Object.assign(w, heunWeights(barT, barS, w));
  if (sampler === "consistency") {
    Object.assign(w, {c0: barS.map(Math.sqrt), ct: none, cz: barS.map(bar => Math.sqrt(1 - bar))});
  }
  return t.map((each, k) => {
    const [a, b] = x0Coefficients(barT[k], target);
    return [each, s[k], a, b, clip ? 1 : Infinity, w.c0[k], w.ct[k], w.cp[k], w.cp2[k], w.cz[k], w.logMin[k], w.logMax[k]];
  });
}

// The weights of DDIM; ancestral sampling at eta = 1.
function ddimWeights(barT, barS, variance, eta) {
  const beta = barT.map((bar, k) => 1 - bar / barS[k]), last = beta.length - 1, none = beta.map(() => 0);
  const tilde = beta.map((each, k) => each * (1 - barS[k]) / (1 - barT[k]));
  const ct = barS.map((bar, k) => Math.sqrt(Math.max(1 - bar - eta ** 2 * tilde[k], 0) / (1 - barT[k])));
  const c0 = barS.map((bar, k) => Math.sqrt(bar) - ct[k] * Math.sqrt(barT[k]));
  const size = {beta_tilde: tilde, beta, learned: none.map(() => 1)}[variance];
  const cz = size.map((each, k) => barS[k] < 1 ? Math.sqrt(each) * eta : 0);
  if (variance !== "learned") return {c0, ct, cz, cp: none, cp2: none, logMin: none, logMax: none};
  const floor = last > 0 ? tilde[last - 1] : beta[last];                // log beta_tilde_1 would be -inf
  return {c0, ct, cz, cp: none, cp2: none, logMin: tilde.map((each, k) => Math.log(barS[k] < 1 ? each : floor)),
          logMax: beta.map(Math.log)};
}

// The step of every row in half the log-SNR.
function strides(barT, barS) {
  return barT.map((bar, k) => logSigma(bar) - logSigma(barS[k]));
}

// DPM-Solver++(2M) and UniPC-2: the line through the last two x0_hat, half a step on; the first and the last step are of
// first order. UniPC's x0_hat also corrects the step that led to it.
function multistepWeights(barT, barS, {c0, ct}, sampler) {
  const h = strides(barT, barS), last = h.length - 1, none = h.map(() => 0);
  const gain = sampler === "unipc-bh1" ? h.map((each, k) => Number.isFinite(each) ? Math.sqrt(barS[k]) * each : c0[k]) : c0;
  const cp = h.map((each, k) => k > 0 && k < last ? -gain[k] * each / (2 * h[k - 1]) : 0), w0 = [...none], w2 = [...none];
  for (let k = 1; k <= last && sampler !== "2m"; k++) {
    if (k === 1) {
      w0[k] = gain[0] / 2;                                              // the first step's: the trapezoid rule
      continue;
    }
    const [before, led] = [h[k - 2], h[k - 1]], phi = 1 + Math.expm1(-led) / led;
    const psi = (phi - 1 + 2 * phi / led) / (1 + before / led);
    w0[k] = Math.sqrt(barT[k]) * (phi - psi);
    w2[k] = -Math.sqrt(barT[k]) * psi * led / before - cp[k - 1];
  }
  return {c0: c0.map((each, k) => each - cp[k] + ct[k] * w0[k]), cp: cp.map((each, k) => each - ct[k] * (w0[k] + w2[k])),
          cp2: ct.map((each, k) => each * w2[k])};
}

// Every time but the first twice, landed on and then left, from above if churned.
function withCorrections(alphaBar, times, churn) {
  const first = logSigma(alphaBarAt(alphaBar, times[0]));
  const left = times.map(t => {
    const churned = logSigma(alphaBarAt(alphaBar, t)) + Math.log1p(Math.min(churn / times.length, Math.SQRT2 - 1));
    return churn && churned < first ? timeAt(alphaBar, churned) : t;
  });
  return times.flatMap((t, k) => [t, left[k]]).slice(1);
}

// EDM's Heun: DDIM's step in the even rows; in the odd ones its correction, and the churn of the next step.
function heunWeights(barT, barS, {c0, ct}) {
  const n = barT.map(bar => Math.sqrt(1 / bar - 1)), pick = (odd, even) => n.map((_, k) => k % 2 ? odd(k) : even(k));
  const w = k => (n[k - 1] === Infinity ? 1 / n[k] + 1 : n[k - 1] / n[k] - 1) / 2 * Math.sqrt(barS[k]);
  return {c0: pick(w, k => c0[k]), ct: pick(k => Math.sqrt(barS[k] / barT[k]), k => ct[k]),
          cp: pick(k => -w(k), () => 0), cz: pick(k => Math.sqrt(Math.max(1 - barS[k] / barT[k], 0)), () => 0)};
}

// x_t -> x_s by one row: x_s and x0_hat. All are arrays of numbers; z and what went before may be missing.
function step(row, xt, output, x0Prev = null, x0Prev2 = null, z = null) {
  const [, , a, b, clip, c0, ct, cp, cp2, cz] = row;
  const x0Hat = xt.map((x, e) => Math.min(Math.max(a * x + b * output[e], -clip), clip));
  const xs = x0Hat.map((x0, e) => c0 * x0 + ct * xt[e] + (x0Prev ? cp * x0Prev[e] : 0) +
                                  (x0Prev2 ? cp2 * x0Prev2[e] : 0) + (z ? cz * z[e] : 0));
  return [xs, x0Hat];
}

// What a network that knows x0_hat would say: the inverse of x0Coefficients.
function outputOf(x0, xt, bar, target) {
  const signal = Math.sqrt(bar), noise = Math.sqrt(1 - bar);
  return xt.map((x, e) => {
    const eps = (x - signal * x0[e]) / noise;
    return {x0: x0[e], eps, v: signal * eps - noise * x0[e], flow: eps - x0[e]}[target];
  });
}
