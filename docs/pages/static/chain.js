"use strict";
// sample.py in the browser: a model of weights/, the table of a sampler, and the reverse chain of one picture.

const files = {}, models = {};                          // model.NAME.js puts itself into files when it is loaded

// A model of weights/: its network, alphaBar, classes, tables, and the pictures that sample.py made of it.
function modelOf(name) {
  return models[name] ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = `model.${name}.js`;
    script.onload = () => resolve({...files[name], weights: readWeights(unpack(files[name].weights, Uint8Array).buffer),
      alphaBar: Array.from(unpack(files[name].alphaBar, Float64Array)), pixels: unpack(files[name].pixels, Uint8Array)});
    script.onerror = () => reject(new RangeError(`model is ${name}; the site has no ${script.src}, use digits or fashion`));
    document.head.append(script);
  });
}

// One row per network evaluation: the chosen sampler's, or those of a table that was learned.
function rowsOf(model, {sampler, steps, spacing, shift, eta, churn}) {
  const {alphaBar, target, clip, tables} = model, T = alphaBar.length - 1;
  const rows = tables[sampler] ?? (SAMPLERS[sampler] &&
    samplerRows(alphaBar, spacedTimes(alphaBar, steps, spacing, shift), {sampler, target, clip, eta, churn}));
  if (!rows) {
    throw new RangeError(`sampler is ${sampler}; use one of ${[...Object.keys(SAMPLERS), ...Object.keys(tables)].join(", ")}`);
  }
  const unknown = Object.keys(rows[0]).filter(name => !COLUMNS.includes(name) && rows.some(row => row[name]));
  if (unknown.length) throw new RangeError(`table ${sampler} has a column ${unknown[0]}, which no step here reads`);
  return rows;
}

// The chain of one picture: a state {s, xt, x0Hat, limit} before the first row and after every row, and nothing wherever it
// may be left alone for a while. limit: what is white in x_t. label: the number of a class; that of no class comes last.
function* chain(model, rows, {label, seed, index, guidance = 0}) {
  const [C, H, W] = model.shape, noise = s => Float32Array.from(normal(imageKey(seed, index), s, C * H * W));
  const limit = s => 1 + 2 * Math.sqrt(1 - alphaBarAt(model.alphaBar, s));
  let xt = noise(rows[0].t), x0Hat = null, x0Prev = null;
  yield {s: rows[0].t, xt, x0Hat: xt.map(() => 0), limit: limit(rows[0].t)};
  for (const row of rows) {
    let output = (yield* unet(model, {C, H, W, x: xt}, row.t, label)).x;
    if (guidance !== 0) {
      const without = (yield* unet(model, {C, H, W, x: xt}, row.t, model.classes.length)).x;
      output = output.map((each, e) => (1 + guidance) * each - guidance * without[e]);
    }
    const [xs, x0] = step(row, xt, output, x0Hat, x0Prev, row.cz !== 0 ? noise(row.s) : null);
    [xt, x0Hat, x0Prev] = [xs, x0, x0Hat];
    yield {s: row.s, xt, x0Hat, limit: limit(row.s)};
  }
}

// Several chains as one, whose state is the list of theirs.
function* together(chains) {
  for (let states = [[]]; states.length;) {
    states = [];
    for (const each of chains) {
      let next = each.next();
      for (; !next.done && !next.value; next = each.next()) yield;
      if (!next.done) states.push(next.value);
    }
    if (states.length) yield states;
  }
}

const nextFrame = () => new Promise(requestAnimationFrame);

// Runs a chain, at most 20 ms at a time, and resolves to its last state and the seconds that it computed; to null as soon
// as it is not wanted any more. show: called with every state; the chain waits for what it returns.
async function drive(chain, show = () => {}, wanted = () => true) {
  let state = null, seconds = 0, began = performance.now();
  for (let next = chain.next(); !next.done; next = chain.next()) {
    const now = performance.now(), shown = next.value && show(state = next.value);
    if (!shown && now < began + 20) continue;
    seconds += (now - began) / 1000;
    await (shown ?? new Promise(resume => setTimeout(resume)));
    if (!wanted()) return null;
    began = performance.now();
  }
  return {state, seconds: seconds + (performance.now() - began) / 1000};
}

// [-1, 1] as 8 bits, halves to even, as sample.py writes its pictures.
function toPixels(x) {
  const f = Math.fround;
  return Uint8Array.from(x, each => roundHalfEven(f(f(Math.min(Math.max(each, -1), 1) + 1) * f(127.5))));
}

// The picture as sample.py would write it, 8 bits per pixel: a function of the weights, the seed and the index. What is
// left out is as on the page when it opens: await samplePicture({model: "fashion", label: 9, index: 3, guidance: 1})
window.samplePicture = async ({model: name = "digits", label = 0, index = 0, ...choice} = {}) => {
  const model = await modelOf(name), all = {...model.choice, ...choice};
  if (!Number.isInteger(label) || label < 0 || label > model.classes.length) {
    throw new RangeError(`label is ${label}; it must be 0 to ${model.classes.length}, of which the last is no label`);
  }
  return toPixels((await drive(chain(model, rowsOf(model, all), {...all, label, index}))).state.xt);
};

function nextSeed() {
  $("seed").value = number("seed") + 1;
  $("controls").dispatchEvent(new Event("input"));
}
