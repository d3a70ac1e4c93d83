"use strict";
// sample.py in the browser: a model of weights/, the table of a sampler, and the reverse chain of one picture.

const files = {}, models = {};                          // model.NAME.js puts itself into files when it is loaded

// A model of weights/: its network, alphaBar, classes, tables, and the pictures that sample.py made of it.
function modelOf(name) {
  return models[name] ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = `model.${name}.js`;
    script.onload = () => resolve(unpacked(files[name]));
    script.onerror = () => reject(new RangeError(`model is ${name}; this site has digits and fashion`));
    document.head.append(script);
  });
}

function unpacked(file) {
  const {weights, pixels, alphaBar} = file;
  return {...file, weights: readWeights(unpack(weights, Uint8Array).buffer), pixels: unpack(pixels, Uint8Array),
          alphaBar: Array.from(unpack(alphaBar, Float64Array))};
}

// The weights of a safetensors file, of float32 or bfloat16; downs.0.conv1.weight is at .downs[0].conv1.weight.
function readWeights(buffer) {
  const size = Number(new DataView(buffer).getBigUint64(0, true)), start = 8 + size, weights = {};
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, size)));
  for (const [name, {dtype, data_offsets: [from, to]}] of Object.entries(header)) {
    const bytes = buffer.slice(start + from, start + to), path = name.split("."), last = path.pop();
    const numbers = dtype === "F32" ? new Float32Array(bytes) : widened(new Uint16Array(bytes));
    path.reduce((part, key) => part[key] ??= {}, weights)[last] = numbers;
  }
  return weights;
}

// bfloat16 as float32, whose upper half it is.
function widened(halves) {
  const result = new Uint32Array(halves.length);
  for (let k = 0; k < halves.length; k++) result[k] = halves[k] << 16;
  return new Float32Array(result.buffer);
}

// Throws a RangeError for a choice that does not fit, with what would.
function check(name, value, fits, allowed) {
  if (!fits) throw new RangeError(`${name} is ${value}; it must be ${allowed}`);
}

// One row per network evaluation: those of a learned table, or of a sampler.
function rowsOf({alphaBar, target, clip, tables}, {sampler, steps, spacing, shift, eta, churn}) {
  const T = alphaBar.length - 1, names = [...Object.keys(SAMPLERS), ...Object.keys(tables)];
  check("sampler", sampler, names.includes(sampler), `one of ${names.join(", ")}`);
  if (tables[sampler]) return tables[sampler];
  check("steps", steps, Number.isInteger(steps) && 1 <= steps && steps <= T, `1 to ${T}`);
  check("spacing", spacing, data.spacings.includes(spacing), `one of ${data.spacings.join(", ")}`);
  return samplerRows(alphaBar, spacedTimes(alphaBar, steps, spacing, shift), {sampler, target, clip, eta, churn});
}

// The chain of one picture: a state {s, xt, x0Hat, limit} before the first row and after every row; nothing where it
// pauses. limit: what is shown white in x_t. label: the number of a class; that of no class comes last.
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

const nextFrame = () => new Promise(requestAnimationFrame);

// Runs a chain, about 20 ms at a time, and resolves to its last state and the seconds that it computed, or to null once
// it is not wanted any more. show: called with every state; the chain waits for the promise that it returns, if any.
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
  const none = model.classes.length;
  check("label", label, Number.isInteger(label) && 0 <= label && label <= none, `0 to ${none}, where ${none} is none`);
  return toPixels((await drive(chain(model, rowsOf(model, all), {...all, label, index}))).state.xt);
};
