"use strict";
// Sample here: ten pictures, the chain of one of them step by step, and below each the one that sample.py made.

let model = null, choice = {}, turn = 0, drawn = [], seconds = 0, computed = 0;
let watched = 0, states = [], follows = true;           // the picture that is watched, its chain, the slider at its end

function options(id, names, value) {
  $(id).innerHTML = names.map(([each, text]) => `<option value="${each}">${text}</option>`).join("");
  $(id).value = value;
}

// Puts a model's classes, samplers and tables into the controls, and the choices of sample.py's pictures.
function offer(next) {
  model = next;
  const {classes, tables, choice} = model, number = classes.length;
  options("label", [["each", "each once"], ...classes.map((name, k) => [k, name]), [number, "no label"]], "each");
  options("sampler", [...Object.keys(data.options).map(name => [name, name]), ...Object.entries(tables)
    .map(([name, rows]) => [name, `learned, ${rows.length} steps`])], choice.sampler);
  options("spacing", data.spacings.map(name => [name, name]), choice.spacing);
  for (const [id, value] of Object.entries(choice)) $(id).value = value;
  $("steps").max = model.alphaBar.length - 1;
}

// What the controls say. Those that the sampler has no use for are off; a learned table has its own times.
function chosen() {
  const sampler = $("sampler").value, used = data.options[sampler] ?? [], learned = sampler in model.tables;
  for (const id of ["eta", "churn"]) $(id).disabled = !used.includes(id);
  for (const id of ["steps", "spacing"]) $(id).disabled = learned;
  $("learned").hidden = !learned;
  const read = id => $(id).disabled ? undefined : number(id);
  return {sampler, steps: read("steps") && Math.round(read("steps")), spacing: learned ? undefined : $("spacing").value,
          eta: read("eta"), churn: read("churn"), guidance: number("guidance"), seed: Math.round(number("seed")),
          label: $("label").value};
}

// The label of a picture, as a number.
function labelOf(index) {
  return choice.label === "each" ? index : Number(choice.label);
}

// The command that makes these pictures: sample.py's flags, where they are not its defaults.
function command() {
  const {label, sampler, ...others} = choice, {classes, tables, name} = model;
  const flags = {checkpoint: `weights/${name}.safetensors`, n: drawn.length, ...others,
                 labels: label === "each" ? "" : classes[label] ?? "none",
                 sampler: sampler in tables ? `weights/${sampler}.csv` : sampler};
  const needed = Object.entries(flags).filter(([flag, value]) => value !== undefined && value !== data.defaults[flag]);
  const words = needed.map(([flag, value]) => `<span class="together">--${flag} ${value}</span>`);
  return ["python sample.py", ...words].join(" ");
}

// Below every picture sample.py's, where the choices are those that it was asked for.
function compare() {
  const kept = JSON.stringify(choice) === JSON.stringify({...model.choice, label: "each"}), [, H, W] = model.shape;
  let most = 0, differ = 0, count = 0;
  cells.forEach(({theirs}, index) => {
    const pixels = Array.from(model.pixels.subarray(index * H * W, (index + 1) * H * W)), ours = drawn[index];
    theirs.hidden = !kept;
    pictures(theirs, [pixels.map(each => each / 127.5 - 1)], H, W, 1);
    if (!kept || !ours) return;
    const apart = pixels.map((each, e) => Math.abs(each - ours[e]));
    most = Math.max(most, ...apart);
    differ += apart.filter(each => each > 0).length;
    count += apart.length;
  });
  $("same").className = `plain ${!count ? "" : most < 2 ? "good" : "bad"}`;
  $("same").textContent = kept ? "Above: drawn here. Below: by sample.py." +
    (count ? ` Largest difference: ${most} of 255 levels; ${differ} of ${count} pixels differ.` : "")
    : "Pictures by sample.py are shown for the choices with which a model opens. It makes these here by:";
  $("command").innerHTML = command();
}

function report(rows) {
  const evaluations = rows.length * (choice.guidance ? 2 : 1), each = seconds / computed / evaluations;
  const two = value => Number(value.toPrecision(2));
  $("speed").textContent = !computed ? "" : `${two(computed / seconds)} pictures per second\n` +
    `${evaluations} evaluations of the network per picture\n${two(1000 * each)} ms each\n` +
    `${two(model.flops / each / 1e9)} GFLOP/s`;
}

// x_t and x0_hat after so many steps of the picture that is watched.
function look(k) {
  const [, H, W] = model.shape, {xt, x0Hat, s, limit} = states[k];
  pictures($("xt"), [xt], H, W, 1, limit);
  pictures($("x0"), [x0Hat], H, W, 1);
  $("step").value = k;
  $("step-value").value = k ? `${k} of ${$("step").max}, t = ${short(s)}` : `noise, t = ${short(s)}`;
}

// Draws the picture that is watched, a step per frame, then all that are not there yet; ends when a new turn begins.
async function draw() {
  const mine = ++turn, wanted = () => mine === turn, rows = rowsOf(model, choice), [, H, W] = model.shape;
  $("step").max = rows.length;
  [states, follows] = [[], true];
  cells.forEach(({button}, index) => button.setAttribute("aria-pressed", index === watched));
  for (const index of [watched, ...cells.keys()].filter((index, k) => k === 0 || index !== watched && !drawn[index])) {
    const watch = index === watched;
    const result = await drive(chain(model, rows, {...choice, label: labelOf(index), index}), state => {
      pictures(cells[index].ours, [state.xt], H, W, 1, state.limit);
      if (!watch) return null;
      states.push(state);
      if (follows) look(states.length - 1);
      return nextFrame();
    }, wanted);
    if (!result) return;
    drawn[index] = toPixels(result.state.xt);
    [seconds, computed] = [seconds + result.seconds, computed + 1];
    report(rows);
    compare();
  }
}

// Ten pictures to choose from: a button each.
const cells = Array.from({length: 10}, (_, index) => {
  const button = document.createElement("button"), name = document.createElement("span");
  const [ours, theirs] = [0, 1].map(() => Object.assign(document.createElement("canvas"), {className: "pixels"}));
  button.type = "button";
  button.append(ours, theirs, name);
  button.addEventListener("click", () => { watched = index; draw(); });
  $("cells").append(button);
  return {button, name, ours, theirs};
});

// All anew for other choices: first the noise of every picture, then their chains.
function begin() {
  const [, H, W] = model.shape, rows = rowsOf(model, choice);
  [drawn, seconds, computed] = [cells.map(() => null), 0, 0];
  cells.forEach(({button, name, ours}, index) => {
    const text = model.classes[labelOf(index)] ?? "no label";
    name.textContent = text;
    button.setAttribute("aria-label", `picture ${index}, ${text}: watch it again`);
    pictures(ours, [normal(imageKey(choice.seed, index), rows[0].t, H * W)], H, W, 1, 3);
  });
  report(rows);
  compare();
  draw();
}

live($("controls"), async () => {
  const name = $("model").value, next = await modelOf(name);
  if (name !== $("model").value) return;                // another was chosen while this one was on its way
  const before = JSON.stringify([model?.name, choice]);
  if (next !== model) offer(next);
  choice = chosen();
  if (JSON.stringify([model.name, choice]) === before) return;
  turn++;                                               // ends the chain that runs, even if none can begin
  try {
    begin();
    $("refused").textContent = "";
  } catch (problem) {
    if (!(problem instanceof RangeError)) throw problem;
    $("refused").textContent = problem.message;
  }
});
$("step").addEventListener("input", () => {
  follows = false;
  look(Math.min($("step").value, states.length - 1));
});
$("another").addEventListener("click", nextSeed);
