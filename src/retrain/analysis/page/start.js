// Controls, legends, and which picture shows what.
function choice(title, key, options, onchange = redraw) {
  const set = tag("fieldset", {}, tag("legend", {}, title));
  for (const [value, words] of options) {
    const input = tag("input", { type: "radio", name: key, value, checked: chosen[key] === value });
    input.addEventListener("change", () => { chosen[key] = value; onchange(); });
    set.append(tag("label", {}, input, words));
  }
  return set;
}

function legends() {
  const boxes = [...document.querySelectorAll(".legend")];
  const mirror = () => {
    for (const entry of document.querySelectorAll(".legend > span")) {
      const i = +entry.dataset.entry, hidden = chosen.hidden.has(i);
      entry.classList.toggle("off", hidden);
      entry.querySelector(".pin").setAttribute("aria-pressed", String(chosen.pinned === i));
      const shown = entry.querySelector(".shown");
      shown.textContent = hidden ? "show" : "hide";
      shown.setAttribute("aria-label", `${hidden ? "show" : "hide"} ${report.conditions[i]}`);
    }
  };
  for (const box of boxes) {
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", "conditions");
    report.conditions.forEach((label, i) => {
      const pin = tag("button", { type: "button", class: `pin ${color(i)}`, title: `highlight ${label}` }, tag("i", { class: "swatch", "data-swatch": i }), label);
      const shown = tag("button", { type: "button", class: "shown" });
      pin.addEventListener("pointerenter", (event) => { if (event.pointerType !== "touch") light(i); });
      pin.addEventListener("pointerleave", () => light(chosen.pinned));
      pin.addEventListener("focus", () => light(i));
      pin.addEventListener("blur", () => light(chosen.pinned));
      pin.addEventListener("click", () => { chosen.pinned = chosen.pinned === i ? null : i; light(chosen.pinned); mirror(); });
      shown.addEventListener("click", () => { if (!chosen.hidden.delete(i)) chosen.hidden.add(i); mirror(); redraw(); });
      box.append(tag("span", { "data-entry": i }, pin, shown));
    });
  }
  mirror();
}

// The t interval of few runs is wider than any picture.
if (report.runs < 5) chosen.band = "range";

function learning() {
  const data = read("data-curves"), controls = $("curve-controls");
  if (!data || !controls) return;
  const figures = [...document.querySelectorAll("[data-quantity]")];
  const choose = () => {
    for (const figure of figures) {
      const key = figure.dataset.quantity;
      figure.hidden = key !== "reward" && data.accuracy && data.greedy && key !== chosen.accuracy;
    }
  };
  controls.append(choice("by", "axis", [["step", "step"], ["tokens", "tokens"], ["seconds", "time"]]));
  if (report.conditions.length > 1) {
    controls.append(choice("show", "show", [["means", "values"], ["differences", `difference to ${cut(report.conditions[report.baseline], 150)}`]]));
  }
  if (data.accuracy && data.greedy) controls.append(choice("accuracy", "accuracy", [["accuracy", "sampled"], ["greedy", "greedy"]], choose));
  if (report.seeds > 1) {
    controls.append(choice("band", "band", [["ci", `${report.confidence} % CI`], ["range", "lowest to highest"], ["none", "none"]]));
    const input = tag("input", { type: "checkbox", checked: true });
    input.addEventListener("change", () => { chosen.runs = input.checked; redraw(); });
    controls.append(tag("fieldset", {}, tag("label", {}, input, "single seeds")));
    painters.push(() => { input.disabled = chosen.show === "differences"; });
    if (!seeds) controls.append(tag("span", { class: "how" }, `${bands ? "seeds" : "bands and seeds"} of the condition that is pointed at or pinned`));
  }
  choose();
  const place = { step: 0, tokens: 1, seconds: 2 };
  for (const figure of figures) {
    const quantity = data[figure.dataset.quantity];
    lineChart(figure.querySelector(".chart"), (width) => spec({
      curves: quantity[chosen.show][chosen.axis], paired: chosen.show === "differences", percent: quantity.percent, axis: chosen.axis, title: AXES[chosen.axis], labels: true,
      height: width < 520 ? 270 : figure.dataset.quantity === "reward" ? 300 : 380,
      runs: chosen.show === "differences" ? [] : quantity.runs.map((run) => ({ ...run, x: run.x[place[chosen.axis]] })) }));
  }
}

function panels() {
  for (const panel of read("data-mechanisms") ?? []) {
    lineChart($(`panel-${panel.key}`), () => spec({ curves: panel.curves, runs: [], percent: panel.percent, axis: "step", height: 170, labels: false }));
  }
}

const spec = (given) => ({ ...given, extent: extent(given) });

root.classList.add("js");
theme();
copying();
legends();
forest();
outcomes();
slopes();
learning();
panels();
swatches();
