"use strict";
// Cards hold their text already; this paints tokens when a card is opened, filters and sorts.
// Text only ever goes in as text (textContent, createTextNode): whatever a model wrote stays inert.
const $ = (id) => document.getElementById(id);
const list = $("list"), tip = $("tip");
const cards = [...list.children];
const scale = { a: +document.body.dataset.advantage, u: +document.body.dataset.uncertainty };
const shown = (x) => (x === null || x === undefined ? "–" : String(+x.toPrecision(4)));
const signed = (x) => (x > 0 ? "+" : "") + shown(x);
const share = (x, full) => (x && full ? Math.min(1, Math.abs(x) / full) : 0);
const tokens = new Map();   // span of a token -> what its tip says

function data(card) {
  if (!card.logged) {
    const found = JSON.parse(card.querySelector("script").textContent);
    const each = (x) => (i) => (Array.isArray(x) ? x[i] : x);
    card.logged = { sizes: found.n, spans: found.p, a: each(found.a), u: each(found.u) };
  }
  return card.logged;
}

function paint(card) {
  if (card.painted) return;
  card.painted = true;
  const { sizes, spans, a, u } = data(card), box = card.querySelector(".completion");
  const characters = Array.from(box.textContent);  // positions count whole characters, as in Python
  const part = (from, to) => document.createTextNode(characters.slice(from, to).join(""));
  function fill(parent, from, to) {                // the text, with planning spans underlined
    let planning = false;
    for (const [start, end] of spans) {
      if (end <= from || start >= to) continue;
      const first = Math.max(start, from), last = Math.min(end, to);
      parent.append(part(from, first));
      parent.appendChild(document.createElement("u")).append(part(first, last));
      from = last;
      planning = true;
    }
    parent.append(part(from, to));
    return planning;
  }
  const painted = document.createDocumentFragment();
  if (!sizes.length) fill(painted, 0, characters.length);
  let at = 0;
  sizes.forEach((size, i) => {
    const ending = !size && i === sizes.length - 1 && card.dataset.stop === "stop";
    if (!size && !ending) return;
    const span = painted.appendChild(document.createElement("span"));
    span.className = "t" + (a(i) > 0 ? " pos" : a(i) < 0 ? " neg" : "") + (ending ? " end" : "");
    span.style.setProperty("--a", share(a(i), scale.a).toFixed(3));
    span.style.setProperty("--u", share(u(i), scale.u).toFixed(3));
    const planning = fill(span, at, at + size);
    const text = ending ? "end token" : JSON.stringify(characters.slice(at, at + size).join(""));
    tokens.set(span, `${text}\nadvantage ${signed(a(i))}\nuncertainty ${shown(u(i))}\n` +
      `token ${i + 1} of ${sizes.length}${planning ? ", planning" : ""}`);
    at += size;
  });
  box.replaceChildren(painted);
}

function strip(card) {   // a completion's tokens as thin lines, in order
  const canvas = card.querySelector("canvas");
  if (!canvas) return;
  const { sizes, a, u } = data(card), by = document.body.dataset.color, pen = canvas.getContext("2d");
  const look = getComputedStyle(document.body), rgb = (name) => look.getPropertyValue(name);
  canvas.width = 288;
  canvas.height = 24;
  const width = canvas.width / Math.max(1, sizes.length);
  sizes.forEach((_, i) => {
    const value = by === "uncertainty" ? u(i) : by === "advantage" ? a(i) : 0;
    const color = rgb(by === "uncertainty" ? "--unc" : value < 0 ? "--neg" : "--pos");
    pen.fillStyle = `rgba(${color}, ${share(value, by === "uncertainty" ? scale.u : scale.a)})`;
    pen.fillRect(i * width, 0, width + 0.5, canvas.height);
  });
}
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) strip(entry.target);
}, { rootMargin: "200px" });
const watch = () => { seen.disconnect(); cards.forEach((card) => seen.observe(card)); };

function words(card) {
  const parts = [...card.querySelectorAll(".text")].map((part) => part.textContent);
  return (card.words ??= [card.dataset.problem, ...parts].join("\n").toLowerCase());
}

function filter() {
  const find = $("find").value.toLowerCase(), first = $("first").value, last = $("last").value;
  let count = 0;
  for (const card of cards) {
    const { outcome, run, domain, step } = card.dataset;
    const holds = [["outcome", outcome], ["run", run], ["domain", domain]]
      .every(([name, value]) => !$(name) || !$(name).value || $(name).value === "=" + value);
    card.hidden = !(holds && (!first || +step >= +first) && (!last || +step <= +last) &&
      (!find || words(card).includes(find)));
    count += !card.hidden;
  }
  $("count").textContent = `${count.toLocaleString("en")} of ${cards.length.toLocaleString("en")}`;
  $("none").hidden = count > 0;
  mark(find);
}

function mark(find) {   // highlight what is searched, in the cards that are open
  if (!("highlights" in CSS)) return;
  CSS.highlights.delete("find");
  if (!find) return;
  const ranges = [];
  for (const box of list.querySelectorAll(".sample[open]:not([hidden]) .text")) {
    const nodes = [], walk = document.createTreeWalker(box, NodeFilter.SHOW_TEXT);
    let text = "";
    while (walk.nextNode()) { nodes.push([text.length, walk.currentNode]); text += walk.currentNode.data; }
    text = text.toLowerCase();
    const spot = (at, ending) => {
      const [start, node] = nodes.findLast(([from]) => (ending ? from < at : from <= at));
      return [node, Math.min(at - start, node.length)];
    };
    for (let at = text.indexOf(find); at >= 0; at = text.indexOf(find, at + find.length)) {
      const range = new Range();
      range.setStart(...spot(at, false));
      range.setEnd(...spot(at + find.length, true));
      ranges.push(range);
    }
  }
  CSS.highlights.set("find", new Highlight(...ranges));
}

function sort() {
  const [key, way] = $("sort").value.split(" ");
  const value = (card) => (key === "place" ? cards.indexOf(card) : parseFloat(card.dataset[key]));
  const keyed = cards.map((card, i) => [value(card), i, card]);
  keyed.sort(([x, i], [y, j]) => (isNaN(x) - isNaN(y)) || (way === "up" ? x - y : y - x) || i - j);
  list.append(...keyed.map(([, , card]) => card));
}

function tell(event) {
  const said = tokens.get(event.target.closest?.(".t"));
  tip.hidden = !said;
  if (!said) return;
  tip.textContent = said;
  const { innerWidth: wide, innerHeight: high } = window, box = tip.getBoundingClientRect();
  tip.style.left = `${Math.min(event.clientX + 14, wide - box.width - 8)}px`;
  tip.style.top = `${event.clientY + 18 + box.height > high ? event.clientY - box.height - 10 : event.clientY + 18}px`;
}

const all = (open) => cards.forEach((card) => { if (!card.hidden) card.open = open; });
document.addEventListener("toggle", (event) => {
  if (event.target.open && event.target.matches(".sample")) paint(event.target);
  if ($("find").value) mark($("find").value.toLowerCase());
}, true);
for (const name of ["find", "first", "last", "outcome", "run", "domain"]) {
  $(name)?.addEventListener("input", filter);
}
$("sort").addEventListener("input", sort);
$("color").addEventListener("input", () => { document.body.dataset.color = $("color").value; watch(); });
$("open").addEventListener("click", () => all(true));
$("close").addEventListener("click", () => all(false));
list.addEventListener("pointerover", tell);
list.addEventListener("pointerdown", tell);
list.addEventListener("pointerleave", () => { tip.hidden = true; });
window.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", watch);
document.querySelector(".bar").hidden = false;
cards.filter((card) => card.open).forEach(paint);
filter();
watch();
