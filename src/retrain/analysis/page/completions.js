// The browser of completions: one problem under one seed at a time, a column a condition.
// Text only ever goes in as text (textContent, createTextNode): whatever a model wrote stays inert.
(() => {
  const holder = document.getElementById("data-completions");
  const box = document.getElementById("sbs");
  if (!holder || !box) return;
  const { columns, first, groups } = JSON.parse(holder.textContent);
  const $ = (name) => document.getElementById(`sbs-${name}`);
  const [SEED, STEP, PROBLEM, NUMBER, DOMAIN, ANSWER, PROMPT, ENTRIES] = [0, 1, 2, 3, 4, 5, 6, 7];
  const SIGNS = { correct: "✓", wrong: "✗" };
  const differ = groups.map((group) => new Set(group[ENTRIES].filter(Boolean).map((e) => e[0])).size > 1);
  const names = [...box.querySelectorAll("#sbs-columns .name")];
  const shown = new Set(names.slice(0, columns).keys());
  let at = first;

  function make(parent, tag, name, text) {
    const node = parent.appendChild(document.createElement(tag));
    if (name) node.className = name;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  // Groups that may be looked at, in order: all, or those whose outcomes differ.
  const open = () => [...groups.keys()].filter((i) => !$("differ").checked || differ[i]);
  const distinct = (list) => [...new Set(list)];
  const steps = () => distinct(open().filter((i) => groups[i][SEED] === groups[at][SEED]).map((i) => groups[i][STEP]));

  function options(select, entries, chosen) {
    select.replaceChildren();
    for (const [value, text] of entries) {
      const option = make(select, "option", "", text);
      option.value = String(value);
      option.selected = value === chosen;
    }
  }

  const title = (group) => group[PROBLEM] || group[PROMPT].slice(0, 60) || "problem";

  function bar() {
    const all = open(), group = groups[at], here = steps();
    options($("seed"), distinct(all.map((i) => groups[i][SEED])).map((s) => [s, s]), group[SEED]);
    options($("step"), here.map((s) => [s, s]), group[STEP]);
    options($("problem"), all
      .filter((i) => groups[i][SEED] === group[SEED] && groups[i][STEP] === group[STEP])
      .map((i) => [i, `${differ[i] ? "≠ " : ""}${title(groups[i])}` +
        (groups[i][NUMBER] ? ` · completion ${groups[i][NUMBER]}` : "")]), at);
    const place = all.indexOf(at);
    $("back").disabled = place <= 0;
    $("next").disabled = place >= all.length - 1;
    $("earlier").disabled = here.indexOf(group[STEP]) <= 0;
    $("later").disabled = here.indexOf(group[STEP]) >= here.length - 1;
    $("count").textContent = `${(place + 1).toLocaleString("en")} of ${all.length.toLocaleString("en")}`;
  }

  function column(parent, index, entry, base) {
    const node = make(parent, "div", "sbs-column");
    const head = make(node, "h5");
    head.append(names[index].cloneNode(true));
    if (index === 0 && names.length > 1) make(head, "small", "", " baseline");
    if (!entry) {
      make(node, "p", "sbs-facts", "no completion was logged here");
      return;
    }
    const [outcome, reward, advantage, tokens, cut, text, spans] = entry;
    const facts = make(node, "p", "sbs-facts");
    const judged = Object.hasOwn(SIGNS, outcome);
    make(facts, "span", `sbs-${judged ? outcome : "other"}`, `${judged ? SIGNS[outcome] : "?"} ${outcome}`);
    make(facts, "span", "", `reward ${reward}`);
    make(facts, "span", "", `advantage ${advantage}`);
    if (tokens !== null) make(facts, "span", "", `${tokens} token${tokens === 1 ? "" : "s"}`);
    if (cut) make(facts, "span", "sbs-cut", "cut off");
    const letters = Array.from(text);   // positions count whole characters, as in Python
    let same = 0;
    if (base && index) {
      const others = Array.from(base[5]);
      while (same < letters.length && letters[same] === others[same]) same++;
      if (same === letters.length && same === others.length) make(facts, "span", "sbs-equal", "same text as the baseline");
    }
    const body = make(node, "div", "sbs-text");
    if (!text) make(body, "i", "", "(empty)");
    const part = (from, to) => document.createTextNode(letters.slice(from, to).join(""));
    function fill(target, from, to) {
      for (const [start, end] of spans) {
        if (end <= from || start >= to) continue;
        const begin = Math.max(start, from), stop = Math.min(end, to);
        target.append(part(from, begin));
        target.appendChild(document.createElement("u")).append(part(begin, stop));
        from = stop;
      }
      target.append(part(from, to));
    }
    if (same) fill(make(body, "span", "sbs-same"), 0, same);
    if (same < letters.length) fill(make(body, "span", base && index ? "sbs-own" : ""), same, letters.length);
  }

  function draw() {
    const group = groups[at], view = $("view");
    bar();
    view.replaceChildren();
    const head = make(view, "div", "sbs-head");
    make(head, "h4", "", title(group));
    const where = [`seed ${group[SEED]}`, `step ${group[STEP]}`];
    if (group[NUMBER] !== null) where.push(`completion ${group[NUMBER]} of its group`);
    if (group[DOMAIN]) where.push(group[DOMAIN]);
    if (differ[at]) where.push("outcomes differ");
    make(head, "span", "sbs-where", where.join(" · "));
    make(view, "div", "sbs-prompt", group[PROMPT]);
    if (group[ANSWER]) {
      const line = make(view, "p", "sbs-answer", "answer ");
      make(line, "b", "", group[ANSWER]);
    }
    const grid = make(view, "div", "sbs-grid");
    for (const index of [...shown].sort((a, b) => a - b)) {
      column(grid, index, group[ENTRIES][index], group[ENTRIES][0]);
    }
    if (!shown.size) make(view, "p", "sbs-note", "No column is chosen.");
  }

  function go(to) {
    if (to !== undefined && groups[to]) { at = to; draw(); }
  }
  const move = (by) => { const all = open(); go(all[all.indexOf(at) + by]); };
  // Another step has other problems: begin with one whose outcomes differ.
  function change(seed, step) {
    const there = open().filter((i) => groups[i][SEED] === seed);
    const near = there.filter((i) => groups[i][STEP] === step);
    go((near.length ? near : there).find((i) => differ[i]) ?? (near.length ? near : there)[0]);
  }
  function climb(by) {
    const here = steps(), to = here[here.indexOf(groups[at][STEP]) + by];
    if (to !== undefined) change(groups[at][SEED], to);
  }

  $("seed").addEventListener("change", () => change(+$("seed").value, groups[at][STEP]));
  $("step").addEventListener("change", () => change(groups[at][SEED], +$("step").value));
  $("problem").addEventListener("change", () => go(+$("problem").value));
  $("back").addEventListener("click", () => move(-1));
  $("next").addEventListener("click", () => move(1));
  $("earlier").addEventListener("click", () => climb(-1));
  $("later").addEventListener("click", () => climb(1));
  $("differ").disabled = !differ.some(Boolean);
  $("differ").addEventListener("change", () => {
    const all = open();
    if (!all.includes(at)) at = all.find((i) => i > at) ?? all[all.length - 1];
    draw();
  });
  $("columns").addEventListener("change", (event) => {
    const index = +event.target.value;
    if (event.target.checked) shown.add(index); else shown.delete(index);
    draw();
  });
  $("view").addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    if (event.shiftKey) climb(by); else move(by);
  });
  draw();
  document.getElementById("sbs-list").hidden = true;
  box.hidden = false;
})();
