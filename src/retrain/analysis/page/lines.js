// Curves over training: axes, bands, single runs, means, labels at their ends, and a tip.
const AXES = { step: "training step", tokens: "completion tokens of training", seconds: "training time" };
// Beyond so many conditions, bands and single seeds are drawn of the one that stands out alone.
const MANY_BANDS = 6, MANY_SEEDS = 3;
const bands = report.conditions.length <= MANY_BANDS, seeds = report.conditions.length <= MANY_SEEDS;

function lineChart(box, spec) {     // spec(): {curves, runs, percent, axis, height, labels, digits}
  watch(box, (width) => draw(box, spec(width), width));
}

function extent(spec) {
  let low = Infinity, high = -Infinity, from = Infinity, to = -Infinity;
  const take = (xs, ys) => {
    for (const y of ys) if (y !== null) { low = Math.min(low, y); high = Math.max(high, y); }
    if (xs.length) { from = Math.min(from, xs[0]); to = Math.max(to, xs[xs.length - 1]); }
  };
  spec.curves.forEach((curve, i) => {
    if (!curve || chosen.hidden.has(i)) return;
    take(curve.x, curve.y);
    // An interval from two or three runs may be far wider than the runs themselves: it is cut there.
    const band = bands && edges(curve);
    if (band) band.forEach((edge) => take([], edge.map((y, j) => (y === null ? y : Math.max(curve.lo[j], Math.min(curve.hi[j], y))))));
  });
  for (const run of spec.runs) if (chosen.runs && seeds && !chosen.hidden.has(run.c)) take(run.x, run.y);
  if (spec.paired) { low = Math.min(low, 0); high = Math.max(high, 0); }
  const pad = 0.04 * (high - low) || Math.abs(high) * 0.1 || 1;
  const floor = low >= 0 && low - pad < 0 ? 0 : low - pad, ceiling = spec.percent && high <= 1 ? Math.min(1, high + pad) : high + pad;
  return [from, to > from ? to : from + 1, floor, ceiling];
}

function edges(curve) {      // lower and upper edge of the band that was chosen
  if (!curve.lo || chosen.band === "none") return null;
  if (chosen.band === "range") return [curve.lo, curve.hi];
  return [curve.y.map((y, i) => y - curve.h[i]), curve.y.map((y, i) => y + curve.h[i])];
}

function path(xs, ys, x, y) {
  let made = "", pen = "M";
  for (let i = 0; i < xs.length; i += 1) {
    if (ys[i] === null) { pen = "M"; continue; }
    made += `${pen}${number(x(xs[i]))},${number(y(ys[i]))}`;
    pen = "L";
  }
  return made;
}

let clips = 0;
function draw(box, spec, width) {
  const drawn = spec.curves.map((curve, i) => [curve, i]).filter(([curve, i]) => curve && !chosen.hidden.has(i));
  if (!drawn.length) { box.replaceChildren(tag("p", { class: "empty" }, "No curve to draw: none was measured, or all are hidden.")); return; }
  const [from, to, low, high] = spec.extent, scale = spec.percent ? 100 : 1, height = spec.height;
  const marks = ticks(low * scale, high * scale, height > 200 ? 6 : 4), unit = spec.percent && !spec.paired ? " %" : "";
  const written = (value) => (spec.paired ? signed(value) : minus(short(value)) + unit);
  const left = Math.max(...marks.map((value) => widthOf(written(value)))) + 10;
  const fits = drawn.length * 14 <= height - 50;
  const room = spec.labels && width >= 620 && fits ? Math.min(190, Math.max(...drawn.map(([, i]) => widthOf(report.conditions[i]) * 1.08)) + 24) : 10;
  const top = 8, bottom = height - (spec.title ? 40 : 24), right = width - room;
  const x = linear(from, to, left, right), y = linear(low, high, bottom, top);
  const clip = `clip-${clips += 1}`, words = spec.axis === "seconds" ? clock : short;
  const made = picture(width, height, svg("clipPath", { id: clip }, svg("rect", { x: left, y: top - 4, width: Math.max(1, right - left + 4), height: bottom - top + 4 })));
  for (const value of marks) {
    made.append(line(left, y(value / scale), right, y(value / scale), "grid"), text(left - 6, y(value / scale) + 4, written(value), { "text-anchor": "end" }));
  }
  const gap = spec.axis === "step" ? 60 : 86;
  for (const value of spec.axis === "seconds" ? clockTicks(from, to, Math.max(2, (right - left) / gap)) : ticks(from, to, Math.max(2, Math.floor((right - left) / gap)))) {
    if (spec.axis === "step" && value % 1) continue;
    const near = right - x(value) < 14 && room < 30 ? "end" : "middle";
    made.append(line(x(value), bottom, x(value), bottom + 4, "axis"), text(x(value), bottom + 17, words(value), { "text-anchor": near }));
  }
  made.append(line(left, bottom, right, bottom, "axis"));
  if (spec.paired) {
    const base = report.conditions[report.baseline], name = cut(`difference to ${base}${spec.percent ? ", points" : ""}`, right - left - 8);
    made.append(line(left, y(0), right, y(0), "zero"), text(left + 6, bottom - 7, name));
  }
  if (spec.title) made.append(text((left + right) / 2, height - 4, spec.title, { "text-anchor": "middle" }));

  // Bands and thin lines lie below all means.
  const below = svg("g"), above = svg("g"), inside = (i) => svg("g", { class: `series ${color(i)}`, "data-c": i, "clip-path": `url(#${clip})` });
  made.append(below, above);
  for (const [curve, i] of drawn) {
    const under = inside(i), group = svg("g", { class: `series ${color(i)}`, "data-c": i });
    const band = edges(curve);
    if (band) {
      const back = [...curve.x].reverse();
      under.append(svg("path", { class: "band", d: `${path(curve.x, band[1], x, y)}${path(back, [...band[0]].reverse(), x, y).replace("M", "L")}Z` }));
    }
    if (chosen.runs) for (const run of spec.runs) {
      if (run.c === i) under.append(svg("path", { class: "thin", "stroke-dasharray": run.done ? null : "4 3", d: path(run.x, run.y, x, y) }));
    }
    below.append(under);
    group.append(svg("path", { class: "line", "stroke-dasharray": dash(i), d: path(curve.x, curve.y, x, y) }));
    const every = Math.max(1, Math.ceil(curve.x.length / (spec.labels ? 14 : 5)));
    curve.x.forEach((at, j) => {
      // Marks of different conditions stand at different places, so that equal curves show both.
      if (curve.x.length <= 14 ? spec.labels : j % every === Math.floor((i % MARKS.length) * every / MARKS.length)) group.append(mark(i, x(at), y(curve.y[j]), spec.labels ? 3.6 : 3));
    });
    above.append(group);
  }
  if (room > 30) {
    const ends = drawn.map(([curve]) => y(curve.y[curve.y.length - 1])), places = spread(ends, 14, top + 4, bottom);
    drawn.forEach(([curve, i], j) => {
      const start = x(curve.x[curve.x.length - 1]);
      above.querySelector(`[data-c="${i}"]`).append(
        svg("path", { class: "leader", d: `M${number(start + 5)},${number(ends[j])}L${right + 6},${number(places[j])}h8` }),
        text(right + 17, places[j] + 4, cut(report.conditions[i], room - 20), { class: "own" }));
    });
  }
  box.replaceChildren(made);
  box.classList.toggle("few-bands", !bands);
  box.classList.toggle("few-seeds", !seeds);
  tips(box, made, { drawn, x, y, left, right, top, bottom, scale, written, spec, width });
  if (chosen.lit !== null) light(chosen.lit);
}

function clockTicks(from, to, count) {   // round in seconds, minutes or hours
  const size = to < 180 ? 1 : to < 3 * 3600 ? 60 : 3600;
  return ticks(from / size, to / size, Math.floor(count)).map((value) => value * size);
}

function nearest(xs, at) {
  let first = 0, last = xs.length - 1;
  while (last - first > 1) { const middle = (first + last) >> 1; if (xs[middle] < at) first = middle; else last = middle; }
  return Math.abs(xs[first] - at) <= Math.abs(xs[last] - at) ? first : last;
}

function tips(box, made, view) {
  const { drawn, x, y, left, right, top, bottom, scale, written, spec, width } = view;
  const layer = svg("g"), tip = tag("div", { class: "tip", hidden: true });
  made.append(layer);
  box.append(tip);
  const fixed = (value) => (spec.paired && value > 0 ? "+" : "") + minus(value.toFixed(1)) + (spec.paired ? "" : " %");
  const places = [...new Set(drawn.flatMap(([curve]) => curve.x))].sort((a, b) => a - b);
  const hide = () => { layer.replaceChildren(); tip.hidden = true; if (chosen.lit !== chosen.pinned) light(chosen.pinned); };
  function show(event) {
    const frame = made.getBoundingClientRect(), px = (event.clientX - frame.left) * (width / frame.width), py = (event.clientY - frame.top) * (width / frame.width);
    if (px < left - 8 || px > right + 12 || py < top - 8 || py > bottom + 8) { hide(); return; }
    const at = places[nearest(places, ((px - left) / (right - left || 1)) * (spec.extent[1] - spec.extent[0]) + spec.extent[0])];
    const rows = [];
    for (const [curve, i] of drawn) {
      const j = nearest(curve.x, at);
      // On the axes that conditions do not share, each shows its own nearest place.
      if (Math.abs(x(curve.x[j]) - x(at)) <= 12) rows.push({ i, value: curve.y[j], half: curve.h?.[j], at: curve.x[j] });
    }
    if (!rows.length) { hide(); return; }
    rows.sort((a, b) => b.value - a.value);
    const near = rows.reduce((a, b) => (Math.abs(y(a.value) - py) <= Math.abs(y(b.value) - py) ? a : b));
    layer.replaceChildren(line(x(at), top, x(at), bottom, "cross"),
      ...rows.map((row) => svg("g", { class: color(row.i) }, mark(row.i, x(row.at), y(row.value), 4.5))));
    const what = { step: `step ${short(at)}`, tokens: `${short(+at.toPrecision(3))} tokens`, seconds: clock(+at.toPrecision(3)) }[spec.axis];
    tip.replaceChildren(tag("b", {}, what), ...rows.map((row) => {
      const spread = row.half === undefined || row.half === null ? "" : ` ± ${spec.percent ? (row.half * scale).toFixed(1) : short(+row.half.toPrecision(2))}`;
      return tag("span", { class: `${color(row.i)}${row === near ? " near" : ""}` }, tag("i", { class: "swatch", "data-swatch": row.i }),
        tag("u", {}, report.conditions[row.i]), tag("em", {}, `${spec.percent ? fixed(row.value * scale) : written(+row.value.toPrecision(3))}${spread}`));
    }));
    swatches();
    tip.hidden = false;
    const where = x(at) * (frame.width / width), size = tip.offsetWidth;
    tip.style.left = `${Math.max(0, where + 14 + size > frame.width ? where - size - 14 : where + 14)}px`;
    tip.style.top = `${Math.max(0, Math.min(py - 20, frame.height - tip.offsetHeight))}px`;
    if (!seeds && chosen.pinned === null && chosen.lit !== near.i) light(near.i);
  }
  box.onpointermove = show;
  box.onpointerdown = show;
  box.onpointerleave = hide;
}
