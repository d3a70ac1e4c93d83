"use strict";
// unet.py in the browser, for one picture: the same blocks in the same order, by the same names of the weights.
// A map is {C, H, W, x}, its planes one behind the other. Numbers are kept in single precision, sums taken in double.

// A B^T + bias, (I, J), of A (I, K), B (J, K) and bias (I): all that takes time. Eight sums at once, so that every
// number that is read is used two or four times; beyond the last row, that row again.
function product(A, B, I, J, K, bias = new Float32Array(I)) {
  [I, J, K] = [I | 0, J | 0, K | 0];                    // as integers of the machine, or all indices would be doubles
  const result = new Float32Array(I * J);
  for (let j0 = 0; j0 < J; j0 += 2) {
    const j1 = Math.min(j0 + 1, J - 1), q0 = j0 * K, q1 = j1 * K;
    for (let i0 = 0; i0 < I; i0 += 4) {
      const i1 = Math.min(i0 + 1, I - 1), i2 = Math.min(i0 + 2, I - 1), i3 = Math.min(i0 + 3, I - 1);
      const p0 = i0 * K, p1 = i1 * K, p2 = i2 * K, p3 = i3 * K;
      let c00 = bias[i0], c10 = bias[i1], c20 = bias[i2], c30 = bias[i3], c01 = c00, c11 = c10, c21 = c20, c31 = c30;
      for (let k = 0; k < K; k++) {
        const b0 = B[q0 + k], b1 = B[q1 + k], a0 = A[p0 + k], a1 = A[p1 + k], a2 = A[p2 + k], a3 = A[p3 + k];
        c00 += a0 * b0; c10 += a1 * b0; c20 += a2 * b0; c30 += a3 * b0;
        c01 += a0 * b1; c11 += a1 * b1; c21 += a2 * b1; c31 += a3 * b1;
      }
      result[i0 * J + j0] = c00; result[i1 * J + j0] = c10; result[i2 * J + j0] = c20; result[i3 * J + j0] = c30;
      result[i0 * J + j1] = c01; result[i1 * J + j1] = c11; result[i2 * J + j1] = c21; result[i3 * J + j1] = c31;
    }
  }
  return result;
}

function silu(x) {
  const result = new Float32Array(x.length);
  for (let e = 0; e < x.length; e++) result[e] = x[e] / (1 + Math.exp(-x[e]));
  return result;
}

function plus(x, y) {
  const result = new Float32Array(x.length);
  for (let e = 0; e < x.length; e++) result[e] = x[e] + y[e];
  return result;
}

// The planes of one map after those of another.
function beside(h, skip) {
  const x = new Float32Array(h.x.length + skip.x.length);
  x.set(h.x);
  x.set(skip.x, h.x.length);
  return {...h, C: h.C + skip.C, x};
}

// A row for every pixel of the convolution: the size x size pixels of every plane that it weighs there.
function neighbours({C, H, W, x}, size, stride, [before, after]) {
  const wide = before + W + after, high = before + H + after, padded = new Float32Array(C * high * wide);
  for (let c = 0; c < C; c++) {
    for (let y = 0; y < H; y++) {
      padded.set(x.subarray((c * H + y) * W, (c * H + y + 1) * W), (c * high + y + before) * wide + before);
    }
  }
  const h = ((high - size) / stride | 0) + 1, w = ((wide - size) / stride | 0) + 1;
  const K = C * size * size, rows = new Float32Array(h * w * K);
  for (let y = 0, at = 0; y < h; y++) {
    for (let x = 0; x < w; x++) {
      for (let c = 0; c < C; c++) {
        for (let dy = 0; dy < size; dy++) {
          const from = (c * high + y * stride + dy) * wide + x * stride;
          for (let dx = 0; dx < size; dx++) rows[at++] = padded[from + dx];
        }
      }
    }
  }
  return {rows, K, H: h, W: w};
}

function conv(h, {weight, bias}, size = 3, stride = 1, pad = [1, 1]) {
  const {rows, K, H, W} = neighbours(h, size, stride, pad), C = bias.length;
  return {C, H, W, x: product(weight, rows, C, H * W, K, bias)};
}

// GroupNorm, then * (1 + scale) + shift, then SiLU, each if asked for.
function norm({C, H, W, x}, {weight, bias}, {groups, norm_eps: eps}, {scale, shift, active = true} = {}) {
  const N = H * W, size = C / groups * N, result = new Float32Array(C * N);
  for (let from = 0; from < C * N; from += size) {
    let mean = 0, square = 0;
    for (let e = from; e < from + size; e++) mean += x[e] / size;
    for (let e = from; e < from + size; e++) square += (x[e] - mean) ** 2 / size;
    for (let c = from / N; c < (from + size) / N; c++) {
      const gain = scale ? 1 + scale[c] : 1, a = weight[c] * gain / Math.sqrt(square + eps);
      const b = bias[c] * gain + (shift ? shift[c] : 0) - a * mean;
      for (let e = c * N; e < (c + 1) * N; e++) result[e] = a * x[e] + b;
    }
  }
  return {C, H, W, x: active ? silu(result) : result};
}

// p x p pixels as one, that of plane c at (dy, dx) in channel (c p + dy) p + dx, and back.
function fold({C, H, W, x}, p) {
  return {C: C * p * p, H: H / p | 0, W: W / p | 0, x: Float32Array.from(places(C, H, W, p), place => x[place])};
}

function unfold(h, p) {
  const C = h.C / p / p | 0, H = h.H * p, W = h.W * p, x = new Float32Array(h.x.length);
  places(C, H, W, p).forEach((place, e) => { x[place] = h.x[e]; });
  return {C, H, W, x};
}

// Where each number of the folded map is in the map (C, H, W).
function places(C, H, W, p) {
  return Array.from({length: C * H * W}, (_, e) => {
    const x = e % (W / p), y = Math.floor(e / (W / p)) % (H / p), channel = Math.floor(e * p * p / H / W);
    const dx = channel % p, dy = Math.floor(channel / p) % p, c = Math.floor(channel / p / p);
    return (c * H + y * p + dy) * W + x * p + dx;
  });
}

// Every pixel as 2 x 2 pixels; and the mean of every 2 x 2 pixels.
function up({C, H, W, x}) {
  const wide = new Float32Array(4 * x.length);
  for (let row = 0, at = 0; row < 2 * C * H; row++) {
    for (let place = 0; place < 2 * W; place++) wide[at++] = x[(row >> 1) * W + (place >> 1)];
  }
  return {C, H: 2 * H, W: 2 * W, x: wide};
}

function meanDown({C, H, W, x}) {
  const first = e => 2 * Math.floor(2 * e / W) * W + 2 * e % W;
  const mean = e => (x[first(e)] + x[first(e) + 1] + x[first(e) + W] + x[first(e) + W + 1]) / 4;
  return {C, H: H >> 1, W: W >> 1, x: Float32Array.from({length: x.length / 4}, (_, e) => mean(e))};
}

function transposed(x, rows, columns) {
  return Float32Array.from({length: x.length}, (_, e) => x[e % rows * columns + Math.floor(e / rows)]);
}

// Self-attention over the N pixels, added to its input.
function attention(h, w, heads, config) {
  const {C, H, W} = h, N = H * W, d = C / heads | 0, result = new Float32Array(C * N);
  const tokens = transposed(norm(h, w.norm, config, {active: false}).x, C, N);    // N C
  const qkv = product(w.qkv.weight, tokens, 3 * C, N, C, w.qkv.bias);    // 3C N
  for (let head = 0; head < heads; head++) {
    const [q, k, v] = [0, C, 2 * C].map(from => qkv.subarray((from + head * d) * N, (from + head * d + d) * N));
    const weights = product(transposed(q, d, N), transposed(k, d, N), N, N, d);    // N N
    for (let n = 0; n < N; n++) softmax(weights.subarray(n * N, (n + 1) * N), Math.sqrt(d));
    result.set(product(v, weights, d, N, N), head * d * N);
  }
  return {C, H, W, x: plus(h.x, product(w.out.weight, transposed(result, C, N), C, N, C, w.out.bias))};
}

function softmax(x, temperature) {
  const most = x.reduce((a, b) => Math.max(a, b)), powers = x.map(each => Math.exp((each - most) / temperature));
  const total = powers.reduce((a, b) => a + b);
  x.set(powers.map(each => each / total));
}

// norm, SiLU, conv, + time, norm, SiLU, conv, + input; then attention, if it has heads. time takes numbers off the row.
function resBlock(h, w, time, config, heads = 0, resample = x => x) {
  const width = w.conv1.bias.length, inner = resample(norm(h, w.norm1, config)), input = resample(h);
  const first = config.scale_shift
    ? norm(conv(inner, w.conv1), w.norm2, config, {scale: time(width), shift: time(width)})
    : norm(conv(inner, {weight: w.conv1.weight, bias: plus(w.conv1.bias, time(width))}), w.norm2, config);
  const skip = w.skip ? conv(input, w.skip, 1, 1, [0, 0]) : input, second = conv(first, w.conv2);
  const result = {...second, x: plus(skip.x, second.x)};
  return w.attention ? attention(result, w.attention, heads, config) : result;
}

function sinusoid(t, D, freqShift) {
  const f = Math.fround, half = D / 2, angles = Array.from({length: half}, (_, k) =>
    f(t * f(Math.exp(f(f(f(-Math.log(10000)) * k) / (half - freqShift))))));             // t is large: rounded as there
  return Float32Array.from([...angles.map(Math.sin), ...angles.map(Math.cos)]);
}

// The row: every block's projection of the time and the class.
function embed({D, classes, freq_shift: shift, time_scale: scale}, w, t, label) {
  const linear = (x, {weight, bias}) => product(weight, x, bias.length, 1, x.length, bias);
  const h = linear(silu(linear(sinusoid(Math.fround((t - 1) * scale), D, shift), w.time_in)), w.time_out);
  return linear(silu(classes ? plus(h, w.classes.weight.subarray(4 * D * label, 4 * D * (label + 1))) : h), w.time);
}

// x_t, t (and label) -> the output. It pauses after every block, so that a page can do something else between them.
function* unet({config, weights: w}, xt, t, label) {
  const {widths, blocks, heads, patch, resample} = config, downs = Object.values(w.downs), ups = Object.values(w.ups);
  const row = embed(config, w, t, label), pad = resample === "conv_end" ? [0, 1] : [1, 1];
  let taken = 0;
  const time = width => row.subarray(taken, taken += width);
  const down = block => resample === "res" ? resBlock(h, block, time, config, 0, meanDown) : conv(h, block, 3, 2, pad);
  const upward = block => resample === "res" ? resBlock(h, block, time, config, 0, up) : conv(up(h), block);

  let h = conv(fold(xt, patch), w.first);
  const skips = [h];
  for (let level = 0; level < widths.length; level++) {
    if (level > 0) skips.push(h = down(downs.shift()));
    for (let k = 0; k < blocks; k++) {
      skips.push(h = resBlock(h, downs.shift(), time, config, heads[level]));
      yield;
    }
  }
  h = resBlock(h, w.middle[0], time, config, heads.at(-1));
  h = resBlock(h, w.middle[1], time, config);
  yield;
  for (let level = widths.length - 1; level >= 0; level--) {
    if (level < widths.length - 1) h = upward(ups.shift());
    for (let k = 0; k <= blocks; k++) {
      h = resBlock(beside(h, skips.pop()), ups.shift(), time, config, heads[level]);
      yield;
    }
  }
  return unfold(conv(norm(h, w.norm, config), w.last), patch);
}
