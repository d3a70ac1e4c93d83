"use strict";
// The noise of noise.py, computed here and compared with what noise.py said when this page was built.

// Expected and computed words and normals of every case, and how far apart they are.
function compare() {
  let equal = 0, count = 0, most = 0;
  for (const {seed, index, s, stream, words: expected, normals} of data.cases) {
    const key = imageKey(seed, index), w = words(key, s, expected.length, stream);
    count += expected.length;
    equal += w.filter((word, e) => word === expected[e]).length;
    normal(key, s, normals.length, stream).forEach((z, e) => { most = Math.max(most, Math.abs(z - normals[e])); });
  }
  const known = data.known.filter(({key, counter, words}) => philox(key, counter).every((w, e) => w === words[e])).length;
  return {equal, count, most, known};
}

const result = compare();
$("check").textContent = `${result.known} of ${data.known.length} known blocks of Philox4x32-10 are right; ` +
  `${result.equal} of ${result.count} words equal those of noise.py; ` +
  `the normals differ by at most ${short(result.most)}.`;
$("check").classList.add(result.equal === result.count && result.known === data.known.length && result.most < 1e-6
  ? "good" : "bad");

live($("controls"), () => {
  const key = imageKey(number("seed"), number("index")), s = number("s"), stream = number("stream");
  const z = normal(key, s, 256, stream);
  pictures($("noise"), [z], 16, 16, 1, 3);
  $("words").textContent = words(key, s, 8, stream).map(w => w.toString(16).padStart(8, "0")).join(" ");
  $("normals").textContent = z.slice(0, 8).map(each => each.toFixed(4)).join("  ");
  const mean = z.reduce((a, b) => a + b) / z.length, square = z.reduce((a, b) => a + b * b, 0) / z.length;
  $("moments").textContent = `mean ${mean.toFixed(3)}, mean square ${square.toFixed(3)} of 256 numbers`;
});
