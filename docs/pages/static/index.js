"use strict";
// Ten digits come out of noise, all at once.

let turn = 0, drawn = "";

// Several chains of one length as one, whose state is the list of theirs.
function* together(chains) {
  for (;;) {
    const states = [];
    for (const each of chains) {
      let next = each.next();
      for (; !next.done && !next.value; next = each.next()) yield;
      if (next.done) return;
      states.push(next.value);
    }
    yield states;
  }
}

async function draw(seed, columns) {
  const mine = ++turn, model = await modelOf("digits");
  const rows = rowsOf(model, {...model.choice, sampler: "2m", steps: 20});
  const chains = model.classes.map((_, label) => chain(model, rows, {label, seed, index: label}));
  const result = await drive(together(chains), states => {
    pictures($("xt"), states.map(state => state.xt), 8, 8, columns, states[0].limit);
    pictures($("x0"), states.map(state => state.x0Hat), 8, 8, columns);
    $("t").textContent = `t = ${states[0].s}`;
    return nextFrame();
  }, () => mine === turn);
  if (!result) return;
  $("t").textContent = `${10 * rows.length} evaluations of the network in ${result.seconds.toPrecision(2)} s, here`;
}

live($("controls"), () => {
  const seed = number("seed"), columns = innerWidth < 600 ? 5 : 10;
  if (drawn !== `${seed} ${columns}`) draw(seed, columns);
  drawn = `${seed} ${columns}`;
});
$("another").addEventListener("click", nextSeed);
