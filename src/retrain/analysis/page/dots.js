// Pictures of one number a run: the forest plot, outcomes, slopes.
const arrow = (x, y, way, css) => svg("path", { class: css, d: `M${number(x)},${number(y)}l${-7 * way},-4v8z` });

function forest() {
  const data = read("data-verdicts"), box = $("forest");
  if (!data || !box) return;
  const scroll = document.querySelector(".verdicts").parentNode, table = document.querySelector(".verdicts");
  // One wild seed must not press all others into a line: the axis ends a little beyond what most
  // seeds and most intervals need, and what lies outside is drawn as an arrow at its end.
  const share = (values, q) => [...values].sort((a, b) => a - b)[Math.min(values.length - 1, Math.floor(q * values.length))] ?? 0;
  const seeds = data.rows.flatMap((row) => row.d), means = data.rows.map((row) => row.m[0]).filter((x) => x !== null);
  const ends = data.rows.flatMap((row) => row.m.slice(1)).filter((x) => x !== null);
  const most = Math.max(1.4 * data.margin, 1.4 * share(seeds.map(Math.abs), 0.9), 1.1 * share(ends.map(Math.abs), 0.75), 1.1 * share(means.map(Math.abs), 0.9));
  const farthest = Math.max(...seeds.map(Math.abs), ...ends.map(Math.abs), 0), reach = farthest <= 2 * most ? Math.max(most, farthest) : most;
  const all = [...seeds, ...ends, -1.2 * data.margin, 1.2 * data.margin], pad = 0.06 * reach;
  const low = Math.max(-reach, Math.min(...all)) - pad, high = Math.min(reach, Math.max(...all)) + pad;
  const inside = (x) => Math.max(low, Math.min(high, x));

  function row(entry, x, y) {
    const [mean, from, to] = entry.m, group = svg("g", { class: `k-${entry.kind}` });
    entry.d.forEach((value, i) => {
      const out = value !== inside(value), at = x(inside(value));
      const dot = out ? arrow(at, y + 9, Math.sign(value), "dot") : svg("circle", { cx: number(at), cy: number(y + 9), r: 2.4, class: "dot" });
      dot.append(svg("title", {}, `seed ${entry.seeds[i]}: ${signed(value)}`));
      group.append(dot);
    });
    if (from !== null) {
      group.append(line(x(inside(from)), y, x(inside(to)), y, "bar"));
      for (const [end, way] of [[from, -1], [to, 1]]) {
        if (end === inside(end)) group.append(line(x(end), y - 4, x(end), y + 4, "bar"));
        else group.append(arrow(x(inside(end)), y, way, "point"));
      }
    }
    if (mean !== null) group.append(svg("rect", { x: number(x(inside(mean)) - 4.5), y: y - 4.5, width: 9, height: 9, class: "point" }));
    return group;
  }
  function ground(x, top, bottom) {
    return [svg("rect", { x: number(x(-data.margin)), width: number(x(data.margin) - x(-data.margin)), y: top, height: bottom - top, class: "margin" }),
      line(x(0), top, x(0), bottom, "zero")];
  }
  function axis(x, y, width) {
    return ticks(low, high, Math.max(2, Math.floor(width / 60))).flatMap((value) => [
      line(x(value), y, x(value), y + 4, "axis"), text(x(value), y + 16, signed(value), { "text-anchor": "middle" })]);
  }

  function beside() {       // in the table's own column, row by row
    const width = 270, x = linear(low, high, 12, width - 12), cells = [...table.tBodies[0].rows].map((r) => r.cells[2]);
    cells.forEach((cell) => cell.replaceChildren());
    const heights = cells.map((cell) => cell.getBoundingClientRect().height);
    cells.forEach((cell, i) => cell.append(picture(width, heights[i], ...ground(x, 0, heights[i]), row(data.rows[i], x, 17))));
    const head = table.tHead.rows[0].cells[2];
    head.className = "forest";
    head.replaceChildren(picture(width, 34, text(x(0) - 6, 10, "lower", { "text-anchor": "end" }), text(x(0) + 6, 10, "higher"),
      ...ticks(low, high, 4).map((value) => text(x(value), 28, signed(value), { "text-anchor": "middle" }))));
    cells.forEach((cell) => { cell.className = "forest"; });
  }
  const plus = (x) => (x < 0 ? "" : "+") + minus(x.toFixed(data.digits));
  function below(width) {   // on its own, with labels above the bars
    const each = 46, height = data.rows.length * each + 34, x = linear(low, high, 12, width - 12);
    const made = picture(width, height, ...ground(x, 6, height - 26), ...axis(x, height - 26, width));
    data.rows.forEach((entry, i) => {
      const y = 6 + i * each + 27, [mean, from, to] = entry.m;
      const said = mean === null ? "" : plus(mean) + (from === null ? "" : ` [${plus(from)}, ${plus(to)}]`);
      made.append(text(2, y - 13, cut(`${report.conditions[entry.t]} vs ${report.conditions[entry.b]}`, width - widthOf(said) - 14), { class: "label" }),
        text(width - 2, y - 13, said, { "text-anchor": "end" }), row(entry, x, y));
    });
    box.replaceChildren(made);
  }
  function draw() {
    let wide = scroll.parentNode.clientWidth >= 820;
    root.classList.toggle("wide", wide);
    if (wide) {             // unless the table would have to be scrolled
      beside();
      wide = scroll.scrollWidth <= scroll.clientWidth;
      root.classList.toggle("wide", wide);
    }
    box.hidden = wide;
    if (!wide) below(Math.max(220, Math.floor(scroll.parentNode.clientWidth)));
  }
  watch(scroll.parentNode, draw);
}

function outcomes() {
  const data = read("data-conditions"), box = $("outcomes");
  if (!data || !box) return;
  // Diverged runs, and intervals that two or three runs leave wide, may end beyond the axis.
  const dots = data.o.flatMap((row) => row.v.filter((_, j) => !row.floor[j])), ends = data.o.flatMap((row) => row.m).filter((x) => x !== null);
  if (!ends.length) { box.replaceChildren(tag("p", { class: "empty" }, "No run has a result yet.")); return; }
  const kept = dots.length ? dots : ends, spreads = Math.max(...kept) - Math.min(...kept) || Math.abs(kept[0]) * 0.1 || 1;
  const low = Math.max(Math.min(...kept, ...ends), Math.min(...kept) - 0.5 * spreads) - 0.04 * spreads;
  const high = Math.min(Math.max(...kept, ...ends), Math.max(...kept) + 0.5 * spreads) + 0.04 * spreads;
  const inside = (x) => Math.max(low, Math.min(high, x));
  watch(box, (width) => {
    const beside = width >= 560, room = beside ? Math.min(240, Math.max(...report.conditions.map((l) => widthOf(l))) + 12) : 0;
    const each = beside ? 36 : 52, height = data.o.length * each + 36, x = linear(low, high, room + 12, width - 12);
    const made = picture(width, height);
    for (const value of ticks(low, high, Math.max(2, Math.floor((width - room) / 90)))) {
      made.append(line(x(value), 4, x(value), height - 24, "grid"), text(x(value), height - 8, `${minus(short(value))}${data.unit && " %"}`, { "text-anchor": "middle" }));
    }
    data.o.forEach((entry, i) => {
      const y = 4 + i * each + (beside ? 12 : 28), group = svg("g", { class: color(i), "data-c": i });
      group.append(beside ? text(0, y + 4, cut(report.conditions[i], room), { class: "label" }) : text(2, y - 13, cut(report.conditions[i], width - 4), { class: "label" }));
      entry.v.forEach((value, j) => group.append(svg("circle", {
        // Below the bar, at different heights, so that dots of equal values are told apart.
        cx: number(x(inside(value))), cy: number(y + 12 + ((j * 2) % 5 - 2) * 1.7), r: 3, class: entry.floor[j] ? "hollow" : "dot" },
        svg("title", {}, `seed ${entry.seeds[j]}: ${short(value)}${data.unit}${entry.floor[j] ? " (diverged)" : ""}`))));
      const [mean, from, to] = entry.m;
      if (from !== null) {
        group.append(line(x(inside(from)), y, x(inside(to)), y, "own-bar"));
        if (from < low) group.append(arrow(x(low) - 5, y, -1, "own-point"));
        if (to > high) group.append(arrow(x(high) + 5, y, 1, "own-point"));
      }
      if (mean !== null) group.append(mark(i, x(inside(mean)), y, 6, "own-point"));
      made.append(group);
    });
    box.replaceChildren(made);
  });
}

function slopes() {
  const data = read("data-conditions"), box = $("slopes");
  if (!data || !box) return;
  const all = data.pairs.flat().flatMap((i) => data.o[i].v.filter((_, j) => !data.o[i].floor[j]));
  if (!all.length) { box.replaceChildren(tag("p", { class: "empty" }, "No run has a result yet.")); return; }
  const low = Math.min(...all), high = Math.max(...all), pad = 0.06 * (high - low) || 1;
  const inside = (value) => Math.max(low - pad, Math.min(high + pad, value));
  box.replaceChildren(...data.pairs.map(() => tag("div")));
  data.pairs.forEach(([treatment, baseline], place) => watch(box.children[place], (width) => {
    const height = 190, top = 22, bottom = height - 24, y = linear(low - pad, high + pad, bottom, top), to = width - 16;
    const from = 12 + Math.max(...ticks(low - pad, high + pad, 4).map((value) => widthOf(short(value))));
    const made = picture(width, height);
    for (const value of ticks(low - pad, high + pad, 4)) {
      made.append(line(from, y(value), to, y(value), "grid"), text(from - 6, y(value) + 4, minus(short(value)), { "text-anchor": "end" }));
    }
    const group = svg("g", { class: color(treatment), "data-c": treatment });
    const a = data.o[baseline], b = data.o[treatment], shared = [];
    a.seeds.forEach((seed, i) => {
      const j = b.seeds.indexOf(seed);
      if (j < 0) return;
      shared.push([a.v[i], b.v[j]]);
      const lost = a.floor[i] || b.floor[j];
      group.append(svg("path", { class: "thin", "stroke-dasharray": lost ? "3 3" : null, d: `M${from},${number(y(inside(a.v[i])))}L${to},${number(y(inside(b.v[j])))}` },
        svg("title", {}, `seed ${seed}: ${short(a.v[i])} to ${short(b.v[j])}, ${signed(+(b.v[j] - a.v[i]).toPrecision(6))}${lost ? " (diverged)" : ""}`)));
    });
    if (shared.length) {
      const mean = (side) => shared.reduce((sum, pair) => sum + pair[side], 0) / shared.length;
      group.append(svg("path", { class: "line", d: `M${from},${number(y(inside(mean(0))))}L${to},${number(y(inside(mean(1))))}` }),
        mark(baseline, from, y(inside(mean(0))), 4.5), mark(treatment, to, y(inside(mean(1))), 4.5));
    } else group.append(text((from + to) / 2, (top + bottom) / 2, "no shared seed", { "text-anchor": "middle" }));
    const under = [report.conditions[baseline], report.conditions[treatment]], fits = widthOf(under[0]) + widthOf(under[1]) + 12 <= width;
    made.append(group, text(2, 12, cut(under[1], width - 4), { class: "label" }), text(0, height - 4, cut(under[0], width - 4)));
    if (fits) made.append(text(width, height - 4, under[1], { "text-anchor": "end" }));
    box.children[place].replaceChildren(made);
  }));
}
