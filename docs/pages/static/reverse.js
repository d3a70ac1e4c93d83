"use strict";
// The reverse chains, computed when this page was built: x_t and x0_hat at every kept time.

const scale = 1 / 4096, roll = data.roll, digits = data.digits;
for (const chain of [roll, digits]) {
  chain.xt = unpack(chain.xt, chain === roll ? Int16Array : Int8Array);
  chain.x0 = unpack(chain.x0, chain === roll ? Int16Array : Int8Array);
}

// Frame k of a chain, size numbers of it.
function frame(chain, name, k, size) {
  return Array.from(chain[name].subarray(k * size, (k + 1) * size));
}

live($("roll"), () => {
  const k = Number($("roll-step").value), size = 2 * roll.points;
  const [xt, x0] = ["xt", "x0"].map(name => frame(roll, name, k, size).map(v => v * scale));
  cloud($("roll-xt"), xt, 2.6, color("red"));
  cloud($("roll-x0"), x0, 2.6, color("blue"));
  $("roll-t").value = `t = ${roll.times[k]}`;
});
live($("digits"), () => {
  const k = Number($("digits-step").value), images = name => {
    const values = frame(digits, name, k, 64 * digits.count).map(v => v / 127);
    return Array.from({length: digits.count}, (_, i) => values.slice(64 * i, 64 * i + 64));
  };
  pictures($("digits-xt"), images("xt"), 8, 8, 5, 1 / 2);
  pictures($("digits-x0"), images("x0"), 8, 8, 5);
  $("digits-t").value = `t = ${digits.times[k]}`;
});
film($("roll-play"), $("roll-step"));
film($("digits-play"), $("digits-step"));
