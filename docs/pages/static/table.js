"use strict";
// The sampler table, and the rows at work on a mixture of Gaussians whose exact denoiser is known.

const POINTS = 200, STEPS = [1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 32, 40, 50, 64, 80, 100];
const ODE = ["ddim", "2m", "heun", "unipc"];                            // compared where no noise is added
const CZ = COLUMNS.indexOf("cz"), LEARNED = ["log_min", "log_max"].map(name => COLUMNS.indexOf(name));
const tables = Object.fromEntries(Object.entries(data.alphaBar).map(([k, v]) => [k, Array.from(unpack(v, Float64Array))]));
const mixture = data.mixture;

// What the controls say: the schedule, its times, and how samplerRows shall make its table.
function chosen() {
  const sampler = $("sampler").value, read = (id, used) => used ? Number($(id).value) : Number($(id).dataset.off);
  return {kind: $("kind").value, steps: Number($("steps").value), spacing: $("spacing").value,
          shift: read("shift", $("spacing").value === "flow"), sampler, target: $("target").value,
          variance: $("variance").value, eta: read("eta", ["ddim", "2m"].includes(sampler)),
          churn: read("churn", sampler === "heun"), clip: $("clip").checked};
}

function rowsOf(choice) {
  const alphaBar = tables[choice.kind];
  return samplerRows(alphaBar, spacedTimes(alphaBar, choice.steps, choice.spacing, choice.shift), choice);
}

function noisy(rows) {
  return rows.some(row => row[CZ] !== 0);
}

// E[x0 | x_t] of the mixture, for points x0, y0, x1, y1, ...: each component's mean, weighted by how likely it is.
function meanOfMixture(xt, bar) {
  const {means, weights, std} = mixture, signal = Math.sqrt(bar), spread = bar * std ** 2 + 1 - bar;
  const gain = signal * std ** 2 / spread, result = new Array(xt.length), logs = new Array(means.length);
  for (let k = 0; k < xt.length; k += 2) {
    let most = -Infinity, total = 0, x = 0, y = 0;
    for (let i = 0; i < means.length; i++) {
      const dx = xt[k] - signal * means[i][0], dy = xt[k + 1] - signal * means[i][1];
      logs[i] = Math.log(weights[i]) - (dx * dx + dy * dy) / (2 * spread);
      most = Math.max(most, logs[i]);
    }
    for (let i = 0; i < means.length; i++) {
      const p = Math.exp(logs[i] - most);
      total += p;
      x += p * (means[i][0] + gain * (xt[k] - signal * means[i][0]));
      y += p * (means[i][1] + gain * (xt[k + 1] - signal * means[i][1]));
    }
    result[k] = x / total;
    result[k + 1] = y / total;
  }
  return result;
}

// The first x_t, then x_s after every row: the chain of these points under the exact denoiser.
function chain(kind, rows, target, count = POINTS) {
  const noise = s => Array.from({length: count}, (_, i) => normal(imageKey(0, i), s, 2)).flat();
  let xt = noise(rows[0][0]), x0Hat = null, x0Prev = null;
  const states = [xt];
  for (const row of rows) {
    const bar = alphaBarAt(tables[kind], row[0]), output = outputOf(meanOfMixture(xt, bar), xt, bar, target);
    const sigma = Math.exp((row[LEARNED[0]] + row[LEARNED[1]]) / 4);    // a learned v of 0, halfway
    const z = row[CZ] !== 0 ? noise(row[1]).map(each => sigma * each) : null, before = x0Hat;
    [xt, x0Hat] = step(row, xt, output, x0Hat, x0Prev, z);
    x0Prev = before;
    states.push(xt);
  }
  return states;
}

function distance(x, y) {
  return Math.sqrt(x.reduce((sum, each, e) => sum + (each - y[e]) ** 2, 0) / x.length);
}

// Root mean square distance between the projections of two clouds, sorted, over 32 directions.
function sliced(x, y) {
  let sum = 0;
  for (let d = 0; d < 32; d++) {
    const [c, s] = [Math.cos(d * Math.PI / 32), Math.sin(d * Math.PI / 32)];
    const along = v => Array.from({length: v.length / 2}, (_, k) => c * v[2 * k] + s * v[2 * k + 1]).sort((a, b) => a - b);
    const [a, b] = [along(x), along(y)];
    sum += a.reduce((total, each, k) => total + (each - b[k]) ** 2, 0) / a.length / 32;
  }
  return Math.sqrt(sum);
}

// Samples of the mixture itself: its components in fair shares, with noise of another stream.
function samples(stream) {
  const ends = mixture.weights.map((_, i) => mixture.weights.slice(0, i + 1).reduce((a, b) => a + b));
  return Array.from({length: POINTS}, (_, k) => {
    const i = ends.findIndex(end => (k + 0.5) / POINTS < end), z = normal(imageKey(0, k), 0, 2, stream);
    return z.map((each, axis) => mixture.means[i][axis] + mixture.std * each);
  }).flat();
}

const fine = {};                                                        // ends of exact paths, by schedule and first t
function solution(kind, first) {
  const rows = () => samplerRows(tables[kind], timesteps(first, first), {sampler: "2m", target: "v", clip: false});
  return fine[`${kind} ${first}`] ??= chain(kind, rows(), "v").at(-1);
}

// The error at the end of a chain: without noise the distance to the exact path's end, with noise to the mixture.
function error(kind, rows, x) {
  return noisy(rows) ? sliced(x, samples(1)) : distance(x, solution(kind, rows[0][0]));
}

// Error over network evaluations, of the chosen sampler and, if it adds no noise, of the others that add none.
function errors(choice) {
  const names = noisy(rowsOf({...choice, steps: 2})) ? [] : ODE.filter(name => data.samplers.includes(name));
  return [...new Set([...names, choice.sampler])].map(sampler => ({name: sampler, strong: sampler === choice.sampler,
    points: STEPS.map(steps => {
      const rows = rowsOf({...choice, steps, sampler});
      return [rows.length, error(choice.kind, rows, chain(choice.kind, rows, choice.target).at(-1))];
    })}));
}

function fill(table, rows) {
  const shown = COLUMNS.map((_, k) => k).filter(k => k < 10 || rows.some(row => row[k] !== 0));
  table.tHead.innerHTML = `<tr>${shown.map(k => `<th scope="col">${COLUMNS[k]}</th>`).join("")}</tr>`;
  table.tBodies[0].innerHTML = rows.map(row => `<tr>${shown.map(k => `<td>${short(row[k])}</td>`).join("")}</tr>`).join("");
}

let states = [], rows = [], lines = [], shown = "";
function compute(choice) {
  rows = rowsOf(choice);
  states = chain(choice.kind, rows, choice.target);
  fill($("rows"), rows);
  const slider = $("step"), atEnd = slider.value === slider.max;
  slider.max = rows.length;
  if (atEnd) slider.value = rows.length;
  lines = errors(choice);
  const found = short(error(choice.kind, rows, states.at(-1)));
  $("error").textContent = noisy(rows)
    ? `distance to samples of the mixture ${found}; between two such clouds ${short(sliced(samples(1), samples(2)))}`
    : `root mean square distance to the end of the exact path ${found}`;
  $("legend").innerHTML = lines.map((line, k) =>
    `<span class="key l${k}${line.strong ? " strong" : ""}">${line.name}</span>`).join(" ");
}

for (const [id, names] of Object.entries({sampler: data.samplers, spacing: data.spacings, target: data.targets,
                                           variance: data.variances, kind: Object.keys(tables)})) {
  $(id).innerHTML = names.map(name => `<option>${name}</option>`).join("");
}
Object.assign($("spacing"), {value: "logsnr"});
Object.assign($("target"), {value: "v"});

live($("controls"), () => {
  const choice = chosen(), key = JSON.stringify(choice);
  $("eta").disabled = !["ddim", "2m"].includes(choice.sampler);
  $("churn").disabled = choice.sampler !== "heun";
  $("shift").disabled = choice.spacing !== "flow";
  try {
    if (key !== shown) compute(choice);
    $("refused").textContent = "";
  } catch (problem) {
    if (!(problem instanceof RangeError)) throw problem;
    $("refused").textContent = problem.message;
    return;
  }
  shown = key;

  plot($("errors"), lines, {logX: true, logY: true, mark: rows.length, label: "error over network evaluations"});
  const k = Number($("step").value);
  $("step-value").value = `${k} of ${rows.length}`;
  cloud($("points"), states[k], 2.2, color("red"), (context, place) => {
    context.strokeStyle = color("soft");
    for (const [x, y] of mixture.means) {
      context.beginPath();
      context.arc(place(x), place(-y), place(mixture.std) - place(0), 0, 7);
      context.stroke();
    }
  });
  $("where").textContent = k ? `x_s after row ${k}, s = ${short(rows[k - 1][1])}` : `x_t of the first row, t = ${short(rows[0][0])}`;
  [...$("rows").tBodies[0].rows].forEach((row, each) => row.classList.toggle("now", each === k - 1));
});
