// A small set of tools for pictures: elements, scales, marks.
const DASHES = ["", "7 4", "2 3", "10 3 2 3"];
const COLORS = 7;
const MARKS = [             // shapes of radius 1
  "M1,0A1,1 0 1 1 -1,0A1,1 0 1 1 1,0Z", "M-.9,-.9H.9V.9H-.9Z", "M0,-1.15L1.05,.8H-1.05Z", "M0,-1.25L1.25,0L0,1.25L-1.25,0Z",
  "M0,1.15L1.05,-.8H-1.05Z", "M-.4,-1.1H.4V-.4H1.1V.4H.4V1.1H-.4V.4H-1.1V-.4H-.4Z", "M-1.1,-.45H1.1V.45H-1.1Z",
];
const number = (x) => String(Math.round(x * 100) / 100);

function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null && value !== undefined) made.setAttribute(key, value);
  made.append(...children);
  return made;
}
const picture = (width, height, ...children) =>
  svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" }, ...children);
const line = (x1, y1, x2, y2, css) => svg("line", { x1: number(x1), y1: number(y1), x2: number(x2), y2: number(y2), class: css });
const text = (x, y, words, attributes = {}) => svg("text", { x: number(x), y: number(y), ...attributes }, words);
const mark = (condition, x, y, size, css = "mark-shape") => svg("path", {
  d: MARKS[(condition + 3 * Math.floor(condition / COLORS)) % MARKS.length], class: css, transform: `translate(${number(x)},${number(y)}) scale(${size})`, "vector-effect": "non-scaling-stroke" });
const color = (condition) => `c${condition % COLORS}`;
const dash = (condition) => DASHES[Math.floor(condition / COLORS) % DASHES.length] || null;
const linear = (from, to, first, last) => (x) => first + ((x - from) / (to - from || 1)) * (last - first);

function ticks(low, high, count) {
  const rough = (high - low) / Math.max(1, count) || 1, size = 10 ** Math.floor(Math.log10(rough));
  const step = size * [1, 2, 2.5, 5, 10].find((factor) => factor * size >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) found.push(+(i * step).toPrecision(12));
  return found;
}
function short(x) {         // 0.25, 1.5k, 2M, 3e-5
  const size = Math.abs(x);
  if (size >= 1e9) return `${+(x / 1e9).toPrecision(4)}G`;
  if (size >= 1e6) return `${+(x / 1e6).toPrecision(4)}M`;
  if (size >= 1e4) return `${+(x / 1e3).toPrecision(4)}k`;
  if (size && size < 1e-3) return x.toExponential(1).replace(".0e", "e");
  return String(+x.toPrecision(4));
}
function clock(seconds) {
  if (seconds < 60) return `${short(seconds)} s`;
  if (seconds < 3600) return `${+(seconds / 60).toPrecision(3)} min`;
  return `${+(seconds / 3600).toPrecision(3)} h`;
}
const minus = (words) => words.replace(/^-/, "−");
const signed = (x) => (x > 0 ? "+" : "") + minus(short(x));

let ruler = null;
function widthOf(words, size = 12) {
  ruler ??= document.createElement("canvas").getContext("2d");
  ruler.font = `${size}px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif`;
  return ruler.measureText(words).width;
}
function cut(words, room) {  // with an ellipsis where there is no room
  if (widthOf(words) <= room) return words;
  let end = words.length;
  while (end > 1 && widthOf(words.slice(0, end) + "…") > room) end -= 1;
  return `${words.slice(0, end)}…`;
}

// Places labels near where they belong, without overlap, between two bounds.
function spread(places, gap, top, bottom) {
  const order = places.map((at, i) => [at, i]).sort((a, b) => a[0] - b[0]);
  let last = -Infinity;
  for (const entry of order) last = entry[0] = Math.max(entry[0], last + gap, top);
  last = Infinity;
  for (const entry of order.reverse()) last = entry[0] = Math.min(entry[0], last - gap, bottom);
  const found = [];
  for (const [at, i] of order) found[i] = at;
  return found;
}

// Draws `paint(width)` into a box now and whenever its width changes.
function watch(box, paint) {
  if (!box) return;
  let width = 0;
  const again = () => { if (width) paint(width); };
  new ResizeObserver(() => {
    const now = Math.floor(box.clientWidth);
    if (now && now !== width) { width = now; again(); }
  }).observe(box);
  painters.push(again);
}

function swatches() {
  for (const place of document.querySelectorAll("[data-swatch]:empty")) {
    const condition = +place.dataset.swatch;
    place.append(svg("svg", { viewBox: "0 0 28 15", "aria-hidden": "true" },
      svg("line", { x1: 0, x2: 28, y1: 7.5, y2: 7.5, class: "line", "stroke-dasharray": dash(condition) }), mark(condition, 14, 7.5, 4.6)));
  }
}
