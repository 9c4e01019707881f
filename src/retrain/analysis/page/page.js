// Text only ever goes in as text (textContent, append): whatever a label or a message holds stays
// inert. Parts of this script share their names.
const $ = (id) => document.getElementById(id);
const read = (id) => ($(id) ? JSON.parse($(id).textContent) : null);
const report = read("data-page");
const root = document.documentElement;

function tag(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

// What the reader has chosen. `lit` is the condition that stands out: pointed at, else pinned.
const chosen = { axis: "step", show: "means", accuracy: "accuracy", band: "ci", runs: true, hidden: new Set(), pinned: null, lit: null };
const painters = [];        // functions that draw a picture anew
const redraw = () => painters.forEach((paint) => paint());

function light(condition) {
  chosen.lit = condition;
  for (const group of document.querySelectorAll("[data-c]")) {
    const own = condition !== null && +group.dataset.c === condition;
    group.classList.toggle("lit", own);
    group.classList.toggle("dim", condition !== null && !own);
    // What stands out lies on top, so that it can be seen among many.
    if (own && group.matches("g.series")) group.parentNode.append(group);
  }
}

function theme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const button = tag("button", { type: "button" });
  const store = (value) => { try { localStorage.setItem("retrain-theme", value); } catch { /* refused from disk */ } };
  const now = () => root.dataset.theme || (dark.matches ? "dark" : "light");
  const say = () => { button.textContent = now() === "dark" ? "light colours" : "dark colours"; };
  try {
    const kept = localStorage.getItem("retrain-theme");
    if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  } catch { /* refused from disk */ }
  button.addEventListener("click", () => {
    root.dataset.theme = now() === "dark" ? "light" : "dark";
    store(root.dataset.theme);
    say();
  });
  dark.addEventListener("change", say);
  say();
  $("theme").append(button);
}

function copying() {        // <button class="copy" data-copy="ID"> copies the text of the element
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button.copy");
    const source = button && $(button.dataset.copy);
    if (!source) return;
    const said = button.textContent;
    let done = false;
    try {
      await navigator.clipboard.writeText(source.textContent);
      done = true;
    } catch {               // no clipboard for pages from disk: select it, the old way
      const range = document.createRange();
      range.selectNodeContents(source);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      done = document.execCommand("copy");
    }
    button.textContent = done ? "copied" : "selected: press Ctrl+C";
    setTimeout(() => { button.textContent = said; }, 1800);
  });
}
