"use strict";
// samplers.py in the browser: times, every sampler as a table, and one reverse step. Letters and columns as there.

const COLUMNS = ["t", "s", "a", "b", "clip", "c0", "ct", "cp", "cp2", "cz", "log_min", "log_max"];

// Times

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

// The samplers: a function each, from alpha_bar at both ends of every step to what row k has in its columns; others are 0

// Ancestral sampling at eta = 1, Euler's method at 0.
function ddim(barT, barS, {eta = 0, variance = "beta_tilde"} = {}) {
  const beta = k => 1 - barT[k] / barS[k], betaTilde = k => beta(k) * (1 - barS[k]) / (1 - barT[k]);
  return k => {
    const ct = Math.sqrt(Math.max(1 - barS[k] - eta ** 2 * betaTilde(k), 0) / (1 - barT[k]));
    const size = {beta_tilde: betaTilde(k), beta: beta(k), learned: 1}[variance];
    const row = {c0: Math.sqrt(barS[k]) - ct * Math.sqrt(barT[k]), ct, cz: barS[k] < 1 ? Math.sqrt(size) * eta : 0};
    if (variance !== "learned") return row;
    const floor = k > 0 ? betaTilde(k - 1) : beta(k);                   // log beta_tilde_1 would be -inf
    return {...row, log_min: Math.log(barS[k] < 1 ? betaTilde(k) : floor), log_max: Math.log(beta(k))};
  };
}

// DDPM's own: ddim at eta = 1.
function ancestral(barT, barS, options) {
  return ddim(barT, barS, {...options, eta: 1});
}

// DPM-Solver++(2M): the line through the last two x0_hat, half a step on. Its noise is always beta_tilde's.
function dpm2m(barT, barS, {eta = 0} = {}) {
  const first = ddim(barT, barS, {eta}), h = strides(barT, barS);
  return k => {
    const row = first(k), cp = secondOrder(row.c0, h, k);
    return {...row, c0: row.c0 - cp, cp};
  };
}

// UniPC-2: its x0_hat also corrects the step that led to it.
function unipc(barT, barS, {bh1 = false} = {}) {
  const first = ddim(barT, barS), h = strides(barT, barS);
  const gain = k => bh1 && Number.isFinite(h[k]) ? Math.sqrt(barS[k]) * h[k] : first(k).c0;
  return k => {
    const {c0, ct} = first(k), cp = secondOrder(gain(k), h, k);
    let w0 = k === 1 ? gain(0) / 2 : 0, w2 = 0;                         // of the first step's: the trapezoid rule
    if (k > 1) {
      const [before, last] = [h[k - 2], h[k - 1]], phi = 1 + Math.expm1(-last) / last;
      const psi = (phi - 1 + 2 * phi / last) / (1 + before / last);
      w0 = Math.sqrt(barT[k]) * (phi - psi);
      w2 = -Math.sqrt(barT[k]) * psi * last / before - secondOrder(gain(k - 1), h, k - 1);
    }
    return {c0: c0 - cp + ct * w0, ct, cp: cp - ct * (w0 + w2), cp2: ct * w2};
  };
}

// cp of a multistep method of second order; the first and the last step are of first order.
function secondOrder(gain, h, k) {
  return k > 0 && k < h.length - 1 ? -gain * h[k] / (2 * h[k - 1]) : 0;
}

// The step of every row in half the log-SNR.
function strides(barT, barS) {
  return barT.map((bar, k) => logSigma(bar) - logSigma(barS[k]));
}

// EDM's Heun, its times visited twice: DDIM's step in the even rows; in the odd ones its correction, and the next churn.
function heun(barT, barS, {s_noise: sNoise = 1}) {
  const first = ddim(barT, barS), noise = k => Math.sqrt(1 / barT[k] - 1);
  return k => {
    if (k % 2 === 0) return first(k);
    const n = noise(k), sigma = noise(k - 1);
    const w = (sigma === Infinity ? 1 / n + 1 : sigma / n - 1) / 2 * Math.sqrt(barS[k]);
    return {c0: w, ct: Math.sqrt(barS[k] / barT[k]), cp: -w,
            cz: sNoise * Math.sqrt(Math.max(1 - barS[k] / barT[k], 0))};
  };
}

// Every time but the first twice, landed on and then left, from above if churned.
function twice(alphaBar, times, {churn = 0, s_tmin: least = 0, s_tmax: most = Infinity}) {
  const last = logSigma(alphaBar.at(-1));
  const left = times.map(t => {
    const level = logSigma(alphaBarAt(alphaBar, t)), sigma = Math.exp(level);
    const churned = level + Math.log1p(Math.min(churn / times.length, Math.SQRT2 - 1));
    return churn && churned <= last && least <= sigma && sigma <= most ? timeAt(alphaBar, churned) : t;
  });
  return times.flatMap((t, k) => [t, left[k]]).slice(1);
}

function consistency(barT, barS) {
  return k => ({c0: Math.sqrt(barS[k]), cz: Math.sqrt(1 - barS[k])});
}

const SAMPLERS = {ddim, ddpm: ancestral, "2m": dpm2m, heun, unipc, consistency,
                  "unipc-bh1": (barT, barS) => unipc(barT, barS, {bh1: true})};

// The table: one row per network evaluation, an object with all columns. options: those of the sampler.
function samplerRows(alphaBar, times, {sampler = "ddim", target = "eps", clip = true, ...options} = {}) {
  const t = sampler === "heun" ? twice(alphaBar, times, options) : times, s = [...t.slice(1), 0];
  const barT = t.map(each => alphaBarAt(alphaBar, each)), barS = s.map(each => alphaBarAt(alphaBar, each));
  if (target === "eps" && barT[0] === 0) {
    throw new RangeError("alpha_bar is 0 at the first step, and eps cannot say what x0 is; use target v, x0 or flow");
  }
  const none = Object.fromEntries(COLUMNS.map(name => [name, 0])), columns = SAMPLERS[sampler](barT, barS, options);
  return t.map((each, k) => {
    const [a, b] = x0Coefficients(barT[k], target);
    return {...none, t: each, s: s[k], a, b, clip: clip ? 1 : Infinity, ...columns(k)};
  });
}

// x_t -> x_s by one row: x_s and x0_hat. All are arrays of numbers; z and what went before may be missing.
function step({a, b, clip, c0, ct, cp, cp2, cz}, xt, output, x0Prev = null, x0Prev2 = null, z = null) {
  const x0Hat = xt.map((x, e) => Math.min(Math.max(a * x + b * output[e], -clip), clip));
  const xs = x0Hat.map((x0, e) => c0 * x0 + ct * xt[e] + (x0Prev ? cp * x0Prev[e] : 0) +
                                  (x0Prev2 ? cp2 * x0Prev2[e] : 0) + (z ? cz * z[e] : 0));
  return [xs, x0Hat];
}
