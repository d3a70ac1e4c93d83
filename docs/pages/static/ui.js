"use strict";
// What the interactive pages share: controls, pictures, clouds of points, plots and films.

const $ = id => document.getElementById(id);
const data = JSON.parse($("data").textContent);

// Numbers of a base64 string, little-endian as Python packed them.
function unpack(text, Type) {
  const characters = atob(text), bytes = new Uint8Array(characters.length);
  for (let k = 0; k < bytes.length; k++) bytes[k] = characters.charCodeAt(k);
  return new Type(bytes.buffer);
}

// A colour of the style sheet, which differs between light and dark.
function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

// Calls render now, whenever a control of the form changes, and when the window or its colours do.
function live(form, render) {
  const update = () => {
    for (const output of form.querySelectorAll("output[for]")) output.value = $(output.htmlFor.value).value;
    render();
  };
  form.addEventListener("input", update);
  form.addEventListener("submit", event => event.preventDefault());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", update);
  addEventListener("resize", update);
  update();
}

// The number in an input; while it is not one, or out of bounds, the nearest that is.
function number(id) {
  const input = $(id), value = input.valueAsNumber;
  if (Number.isNaN(value)) return Number(input.defaultValue);
  return Math.min(Math.max(value, input.min === "" ? -Infinity : input.min), input.max === "" ? Infinity : input.max);
}

// Adds one to the seed, as if by hand.
function nextSeed() {
  $("seed").value = number("seed") + 1;
  $("controls").dispatchEvent(new Event("input"));
}

// A play button that moves a slider from its least value to its greatest.
function film(button, slider) {
  let timer = null;
  const stop = () => { clearInterval(timer); timer = null; button.textContent = "play"; };
  button.addEventListener("click", () => {
    if (timer) return stop();
    if (slider.value === slider.max) slider.value = slider.min;
    button.textContent = "stop";
    timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      slider.dispatchEvent(new Event("input", {bubbles: true}));
      if (slider.value === slider.max) stop();
    }, 70);
  });
}

// Pictures side by side in a canvas: each H x W numbers, of which -limit is black and limit white.
function pictures(canvas, images, H, W, columns, limit = 1) {
  const gap = columns > 1 ? 1 : 0, rows = Math.ceil(images.length / columns), context = canvas.getContext("2d");
  canvas.width = columns * (W + gap) - gap;
  canvas.height = rows * (H + gap) - gap;
  const frame = context.createImageData(canvas.width, canvas.height);
  images.forEach((image, k) => image.forEach((value, e) => {
    const x = k % columns * (W + gap) + e % W, y = Math.floor(k / columns) * (H + gap) + Math.floor(e / W);
    const grey = (value / limit + 1) * 127.5;
    frame.data.set([grey, grey, grey, 255], 4 * (y * canvas.width + x));
  }));
  context.putImageData(frame, 0, 0);
}

// A cloud of points x0, y0, x1, y1, ... within -limit..limit, after what `under` paints.
function cloud(canvas, points, limit, paint, under = () => {}) {
  const size = canvas.width = canvas.height = 2 * canvas.clientWidth || 600, context = canvas.getContext("2d");
  const place = v => (v / limit + 1) / 2 * size, r = size / 220;
  under(context, place);
  context.fillStyle = paint;
  for (let k = 0; k < points.length; k += 2) {
    context.beginPath();
    context.arc(place(points[k]), size - place(points[k + 1]), r, 0, 7);
    context.fill();
  }
}

// A plot in an svg. lines: {name, points [[x, y], ...], strong}. logX, logY: logarithmic axes. mark: an x to point out.
function plot(svg, lines, {logX = false, logY = false, mark = null, label = ""}) {
  const W = svg.clientWidth || 360, H = Math.max(150, 0.55 * W), left = 46, bottom = 26, top = 12, right = 18;
  const along = {x: logX ? Math.log10 : v => v, y: logY ? Math.log10 : v => v};
  const all = lines.flatMap(line => line.points).filter(p => Number.isFinite(along.x(p[0]) + along.y(p[1])));
  const range = (k, f) => [Math.min(...all.map(p => f(p[k]))), Math.max(...all.map(p => f(p[k])))];
  const [x0, x1] = range(0, along.x), [y0, y1] = range(1, along.y);
  const X = v => left + (along.x(v) - x0) / (x1 - x0 || 1) * (W - left - right);
  const Y = v => H - bottom - (along.y(v) - y0) / (y1 - y0 || 1) * (H - bottom - top);
  const grid = ticks(y0, y1, logY, 4).map(v => `<path class="grid" d="M${left} ${Y(v)}H${W - right}"/>` +
    `<text x="${left - 5}" y="${Y(v) + 4}" text-anchor="end">${short(v)}</text>`).join("");
  const marks = ticks(x0, x1, logX, W < 260 ? 3 : 5).map(v => `<text x="${X(v)}" y="${H - 8}" text-anchor="middle">${short(v)}</text>`);
  const paths = lines.map((line, k) => {
    const points = line.points.filter(p => all.includes(p)).map(p => `${X(p[0]).toFixed(1)} ${Y(p[1]).toFixed(1)}`);
    return `<path class="line l${k}${line.strong ? " strong" : ""}" d="M${points.join("L")}"/>`;
  });
  const at = mark === null ? "" : `<path class="mark" d="M${X(mark)} ${top}V${H - bottom}"/>`;
  svg.setAttribute("viewBox", `0 0 ${W} ${H}`);
  svg.setAttribute("aria-label", label);
  svg.innerHTML = grid + marks.join("") + at + paths.join("");
}

// Round numbers within low..high, which are logarithms if log.
function ticks(low, high, log, count) {
  if (log) {
    const stride = Math.max(1, Math.ceil((high - low) / count)), first = Math.ceil(low - 1e-9);
    const whole = Array.from({length: Math.max(0, Math.floor(high + 1e-9) - first + 1)}, (_, k) => first + k);
    return whole.filter(k => k % stride === 0).map(k => 10 ** k);
  }
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough || 1));
  const stride = [1, 2, 5, 10].map(f => f * power).find(each => each >= rough);
  const first = Math.ceil(low / stride - 1e-9), last = Math.floor(high / stride + 1e-9);
  return Array.from({length: last - first + 1}, (_, k) => (first + k) * stride);
}

// A number in few characters.
function short(v) {
  if (v === 0 || !Number.isFinite(v)) return v === Infinity ? "inf" : String(v);
  const size = Math.abs(v);
  return size >= 1e5 || size < 1e-3 ? v.toExponential(1).replace(".0e", "e").replace("e+", "e") : String(+v.toPrecision(4));
}
