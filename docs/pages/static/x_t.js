"use strict";
// What is x_t: one picture, its noise, their mixture at t, and the schedule that decides it.

const SETTINGS = {linear: ["start", "end"], quadratic: ["start", "end"], cosine: ["s"],
                  sigmoid: ["begin", "finish", "tau"], flow: []};

function schedule() {
  const kind = $("kind").value;
  return SCHEDULES[kind](Math.round(number("T")), ...SETTINGS[kind].map(number));
}

live($("controls"), () => {
  const kind = $("kind").value, T = Math.round(number("T"));
  for (const id of new Set(Object.values(SETTINGS).flat())) $(id).closest("label").hidden = !SETTINGS[kind].includes(id);
  $("t").max = T;
  const t = Number($("t").value), {beta, alphaBar} = schedule();
  $("t-value").value = `${t} of ${T}`;

  const x0 = data.digits[number("digit")].map(v => v / 127.5 - 1), eps = normal(imageKey(number("seed"), 0), 0, 64, 1);
  const signal = Math.sqrt(alphaBar[t]), noise = Math.sqrt(1 - alphaBar[t]);
  pictures($("x0"), [x0], 8, 8, 1);
  pictures($("eps"), [eps], 8, 8, 1, 3);
  pictures($("xt"), [x0.map((x, e) => signal * x + noise * eps[e])], 8, 8, 1, 1 + 2 * noise);
  $("mixture").textContent = `x_t = ${signal.toFixed(4)} x0 + ${noise.toFixed(4)} eps`;

  const times = alphaBar.map((_, k) => k), snr = alphaBar.map(bar => bar / (1 - bar));
  plot($("signal"), [{points: times.map(k => [k, Math.sqrt(alphaBar[k])])},
                     {points: times.map(k => [k, Math.sqrt(1 - alphaBar[k])])},
                     {points: times.map(k => [k, alphaBar[k]])}],
       {mark: t, label: "the weights of signal and noise in x_t, and alpha_bar, over t"});
  plot($("snr"), [{points: times.slice(1).map(k => [k, snr[k]])}],
       {logY: true, mark: t, label: "signal-to-noise ratio, over t"});
  plot($("beta"), [{points: times.slice(1).map(k => [k, beta[k]])}],
       {logY: true, mark: t, label: "beta, the variance added by step t, over t"});
  $("facts").textContent = Object.entries({alpha_bar_t: alphaBar[t], SNR: snr[t], beta_t: beta[t],
                                           "bits/dim left in x_T": bitsLeft(alphaBar)})
    .map(([name, value]) => `${name} ${short(value)}`.replaceAll(" ", "\u00a0")).join("   ");
});
