"""Completions as one HTML file that needs nothing else: no network, no other file.

Every text stands in the page as escaped text, so that it can be read, searched and printed
without a script. The script, `page.js`, paints tokens as cards are opened, filters and sorts; a
card's token numbers lie beside its text as JSON, which no browser runs. A content security policy
allows the page's own style and script by their hashes and nothing else: what a model wrote cannot
run, load or send anything, even were it not escaped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from retrain import __version__
from retrain.analysis.samples.look import (
    advantage_scale,
    marks,
    one_line,
    shown_number,
    uncertainty_scale,
)
from retrain.analysis.samples.sample import Sample
from retrain.analysis.samples.selection import OUTCOMES, Seen
from retrain.analysis.webpage import policy, safe
from retrain.analysis.words import plural
from retrain.output import visible

FOLDER = Path(__file__).parent
OPEN_CARDS = 3
PREVIEW = 180
SIGNS = {"correct": "✓ ", "wrong": "✗ "}
SORTS = {
    "place up": "as chosen",
    "step down": "newest first",
    "step up": "oldest first",
    "reward down": "highest reward",
    "reward up": "lowest reward",
    "advantage down": "highest advantage",
    "advantage up": "lowest advantage",
    "tokens down": "longest",
}


def page(samples: Sequence[Sample], seen: Seen, title: str, color: str) -> str:
    """The document. `color` is what tokens are coloured by at first."""
    style, script = (
        (FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.js")
    )
    scales = advantage_scale(samples), uncertainty_scale(samples)
    full = f'data-advantage="{scales[0]:.5g}" data-uncertainty="{scales[1]:.5g}"'
    several = len({sample.run for sample in samples}) > 1
    cards = "\n".join(_card(sample, i < OPEN_CARDS, several) for i, sample in enumerate(samples))
    name = safe(title)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(policy(style, script))}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{name}: completions</title>
<style>{style}</style>
</head>
<body data-color="{safe(color)}" {full}>
<header>
<h1>{name}</h1>
<p>{_what(samples, seen)}</p>
<noscript><p>Colours and filters need JavaScript; the texts are all here.</p></noscript>
</header>
{_bar(samples, color)}
<main>
{_legend(samples, *scales)}
<div id="list">
{cards}
</div>
<p id="none" hidden>No completion matches these filters.</p>
<footer>Written by retrain {__version__}. The page is complete in itself and loads nothing.</footer>
</main>
<div id="tip" role="tooltip" hidden></div>
<script>{script}</script>
</body>
</html>
"""


def _what(samples: Sequence[Sample], seen: Seen) -> str:
    runs = list(dict.fromkeys(sample.run for sample in samples))
    steps = sorted({sample.step for sample in samples})
    parts = ["1 completion" if len(samples) == 1 else f"{len(samples):,} completions"]
    if len(samples) < seen.total:
        parts[0] += f" of {seen.total:,} that were logged"
    if steps:
        parts.append(f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}")
    parts.append(one_line(runs[0]) if len(runs) == 1 else plural(len(runs), "run"))
    return escape("; ".join(parts))


def _bar(samples: Sequence[Sample], color: str) -> str:
    outcomes = {sample.outcome for sample in samples}
    chosen = [
        ("outcome", [*(o for o in OUTCOMES if o in outcomes), *sorted(outcomes - {*OUTCOMES})]),
        ("run", list(dict.fromkeys(sample.run for sample in samples))),
        ("domain", sorted({sample.domain for sample in samples})),
    ]
    selects = "\n".join(
        f'<select id="{key}" aria-label="{key}"><option value="">every {key}</option>'
        + "".join(f'<option value="={safe(v)}">{safe(v) or "–"}</option>' for v in values)
        + "</select>"
        for key, values in chosen
        if len(values) > 1
    )
    sorts = _options(SORTS, "place up")
    names = {"advantage": "advantage", "uncertainty": "uncertainty", "none": "nothing"}
    return f"""<div class="bar" hidden><div>
<input id="find" type="search" placeholder="search" aria-label="search">
{selects}
<label>steps <input id="first" type="number" min="0" placeholder="from" aria-label="from step">
<input id="last" type="number" min="0" placeholder="to" aria-label="to step"></label>
<label>order <select id="sort">{sorts}</select></label>
<label>colour by <select id="color">{_options(names, color)}</select></label>
<button id="open" type="button">open all</button>
<button id="close" type="button">close all</button>
<span id="count" role="status"></span>
</div></div>"""


def _options(names: dict[str, str], chosen: str) -> str:
    return "".join(
        f'<option value="{key}"{" selected" if key == chosen else ""}>{name}</option>'
        for key, name in names.items()
    )


def _legend(samples: Sequence[Sample], advantage: float, uncertainty: float) -> str:
    parts = []
    if advantage:
        end = f"{advantage:.3g}"
        parts.append(f'<span class="credit">token advantage −{end}<i></i>+{end} and beyond</span>')
    if uncertainty:
        end = f"{uncertainty:.3g}"
        parts.append(f'<span class="doubt">uncertainty 0<i></i>{end} and beyond</span>')
    if marks(samples):
        parts.append("<span><u>underlined</u>: planning</span>")
    if any(sample.tokens for sample in samples):
        parts.append("<span>point at a token to see its numbers</span>")
    elif samples:
        parts.append("<span>tokens were not logged: these runs are of an older version</span>")
    return f'<p class="legend">{"".join(parts)}</p>'


def _card(sample: Sample, is_open: bool, several: bool) -> str:
    """`several`: runs, so that each card names its own."""
    data = {
        "step": sample.step,
        "reward": "" if sample.reward is None else sample.reward,
        "advantage": "" if sample.advantage is None else sample.advantage,
        "tokens": "" if sample.num_tokens is None else sample.num_tokens,
        "outcome": sample.outcome,
        "stop": sample.stop_reason,
        "run": sample.run,
        "domain": sample.domain,
        "problem": sample.problem_id,
    }
    attributes = " ".join(f'data-{key}="{safe(str(value))}"' for key, value in data.items())
    kind = sample.outcome if sample.outcome in {"correct", "wrong"} else "other"
    where = [sample.problem_id, f"step {sample.step}", sample.run if several else ""]
    if sample.num_tokens is not None:
        cut = sample.stop_reason == "length"
        tokens = plural(sample.num_tokens, "token") + (", cut off" if cut else "")
        length = f"<span{' class=cut' if cut else ''}>{tokens}</span>"
    else:
        length = ""
    strip = '<canvas class="strip" aria-hidden="true"></canvas>' if sample.tokens else ""
    return f"""<details class="sample" {attributes}{" open" if is_open else ""}>
<summary><span class="row"><span class="outcome {kind}">{SIGNS.get(sample.outcome, "")}\
{safe(sample.outcome) or "not judged"}</span>
<span class="reward">reward <b>{shown_number(sample.reward)}</b></span>
<span class="advantage">advantage <b>{shown_number(sample.advantage, sign=True)}</b></span>
{length}{strip}
<span class="where">{" · ".join(safe(part) for part in where if part)}</span></span>
<span class="preview">{safe(sample.completion[:PREVIEW])}</span></summary>
<div class="body">
{"".join(_message(m.role, m.content) for m in sample.prompt)}
{_facts(sample)}
<div class="completion text">{escape(visible(sample.completion))}</div>
<script type="application/json">{_tokens(sample)}</script>
</div>
</details>"""


def _message(role: str, content: str) -> str:
    who = f"<b>{safe(role)}</b>" if role else ""
    return f'<div class="prompt">{who}<div class="text">{escape(visible(content))}</div></div>'


def _facts(sample: Sample) -> str:
    facts = [("answer", sample.answer), ("problem", sample.problem_id), ("domain", sample.domain)]
    if sample.number is not None:
        facts.append(("sample", str(sample.number)))
    facts.append(("run", sample.run))
    facts += [(f"reward: {name}", shown_number(value)) for name, value in sample.parts.items()]
    shown = "".join(
        f"<span>{safe(key)} <b>{safe(value)}</b></span>" for key, value in facts if value
    )
    return f'<div class="facts">{shown}</div>'


def _tokens(sample: Sample) -> str:
    """n: characters of each token; a, u: advantage and uncertainty, one number when all are equal;
    p: planning spans."""
    data = {
        "n": [token.end - token.start for token in sample.tokens],
        "a": _short([token.advantage for token in sample.tokens]),
        "u": _short([token.uncertainty for token in sample.tokens]),
        "p": sample.planning,
    }
    # There is nothing but numbers in it.
    return json.dumps(data, separators=(",", ":"))


def _short(values: list[float | None]) -> list[float | None] | float | None:
    return values[0] if values and values.count(values[0]) == len(values) else values
