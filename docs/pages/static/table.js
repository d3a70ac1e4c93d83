"use strict";
// The sampler table, and the rows at work on a mixture of Gaussians whose exact denoiser is known.

const POINTS = 200, STEPS = [1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 32, 40, 50, 64, 80, 100];
const ODE = ["ddim", "2m", "heun", "unipc"];                            // compared where no noise is added
const tables = Object.fromEntries(Object.entries(data.alphaBar).map(([k, v]) => [k, Array.from(unpack(v, Float64Array))]));
const mixture = data.mixture;

// What the controls say: the schedule, its times, and how samplerRows shall make its table. Others are switched off.
function chosen() {
  const value = id => $(id).type === "range" ? Number($(id).value) : $(id).value;
  const read = ids => Object.fromEntries(ids.map(id => [id, value(id)]));
  const used = [...data.options[$("sampler").value].filter(id => $(id)), ...$("spacing").value === "flow" ? ["shift"] : []];
  for (const id of ["eta", "variance", "churn", "shift"]) $(id).disabled = !used.includes(id);
  return {...read(["kind", "steps", "spacing", "sampler", "target", ...used]), clip: $("clip").checked};
}

function rowsOf(choice) {
  const alphaBar = tables[choice.kind];
  return samplerRows(alphaBar, spacedTimes(alphaBar, choice.steps, choice.spacing, choice.shift), choice);
}

function noisy(rows) {
  return rows.some(row => row.cz !== 0);
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
  let xt = noise(rows[0].t), x0Hat = null, x0Prev = null;
  const states = [xt];
  for (const row of rows) {
    const bar = alphaBarAt(tables[kind], row.t), output = outputOf(meanOfMixture(xt, bar), xt, bar, target);
    const sigma = Math.exp((row.log_min + row.log_max) / 4);    // a learned v of 0, halfway
    const z = row.cz !== 0 ? noise(row.s).map(each => sigma * each) : null, before = x0Hat;
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
  return noisy(rows) ? sliced(x, samples(1)) : distance(x, solution(kind, rows[0].t));
}

// Error over network evaluations, of the chosen sampler and, if it adds no noise, of the others that add none.
function errors(choice) {
  const names = noisy(rowsOf({...choice, steps: 2})) ? [] : ODE;
  return [...new Set([...names, choice.sampler])].map(sampler => ({name: sampler, strong: sampler === choice.sampler,
    points: STEPS.map(steps => {
      const rows = rowsOf({...choice, steps, sampler});
      return [rows.length, error(choice.kind, rows, chain(choice.kind, rows, choice.target).at(-1))];
    })}));
}

function fill(table, rows) {
  const shown = COLUMNS.filter(name => !name.startsWith("log_") || rows.some(row => row[name] !== 0));
  const line = cells => `<tr>${cells.join("")}</tr>`;
  table.tHead.innerHTML = line(shown.map(name => `<th scope="col">${name}</th>`));
  table.tBodies[0].innerHTML = rows.map(row => line(shown.map(name => `<td>${short(row[name])}</td>`))).join("");
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
  const end = short(error(choice.kind, rows, states.at(-1)));
  $("error").textContent = noisy(rows)
    ? `distance to samples of the mixture ${end}; between two such clouds ${short(sliced(samples(1), samples(2)))}`
    : `root mean square distance to the end of the exact path ${end}`;
  $("legend").innerHTML = lines.map((line, k) =>
    `<span class="key l${k}${line.strong ? " strong" : ""}">${line.name}</span>`).join(" ");
}

for (const [id, names] of Object.entries({sampler: Object.keys(data.options), spacing: data.spacings, target: data.targets,
                                           variance: data.variances, kind: Object.keys(tables)})) {
  $(id).innerHTML = names.map(name => `<option>${name}</option>`).join("");
}
$("spacing").value = "logsnr";
$("target").value = "v";

live($("controls"), () => {
  const choice = chosen(), key = JSON.stringify(choice);
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
  $("where").textContent = k ? `x_s after row ${k}, s = ${short(rows[k - 1].s)}` : `x_t of the first row, t = ${short(rows[0].t)}`;
  [...$("rows").tBodies[0].rows].forEach((row, each) => row.classList.toggle("now", each === k - 1));
});
