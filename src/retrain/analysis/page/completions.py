"""Section of the report: what the policies wrote, side by side.

Without the script, a few groups stand in the page as text; with it, `completions.js` shows one of
all groups at a time. Model text goes into the page escaped, or as JSON that the script puts in as
text.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from retrain.analysis.page.markup import name
from retrain.analysis.page.section import Section
from retrain.analysis.page.side_by_side import Choice, choose
from retrain.analysis.records import CampaignRecord
from retrain.analysis.words import plural

LISTED = 3
"""Groups that are shown without the script."""
LISTED_CHARACTERS = 600
MOST_COLUMNS = 5
SIGNS = {"correct": "✓", "wrong": "✗"}


def completions_section(campaign: CampaignRecord) -> Section | None:
    """Completions by condition: the same problem under the same seed side by side.

    None where no run has logged a completion.
    """
    choice = choose(campaign)
    if not choice.groups:
        return None
    # With the colours of the whole page, where conditions stand in the order of the plan.
    names = [name(label, campaign.conditions.index(label)) for label in choice.conditions]
    # The script's order is that of training; the reader begins where the choice did.
    seeds = list(dict.fromkeys(group.seed for group in choice.groups))
    times = [(seeds.index(g.seed), g.step, g.place) for g in choice.groups]
    order = sorted(range(len(times)), key=times.__getitem__)
    data = {
        "columns": MOST_COLUMNS,
        "first": order.index(0),
        "groups": [choice.documents[i] for i in order],
    }
    listed = "\n".join(_group(document, names) for document in choice.documents[:LISTED])
    html = f"""<p>{_shown(choice, campaign)}</p>
<p class="sbs-note">Side by side: one problem under one seed, at the same place of the \
batch. Common random numbers give every condition the same uniform numbers to draw tokens by, \
so texts differ only as the conditions do.</p>
{_viewer(names)}
<div id="sbs-list">
{listed}
<p class="sbs-note">{min(LISTED, len(choice.groups))} of {len(choice.groups):,} groups; to look \
through all of them needs JavaScript.</p>
</div>"""
    return Section("completions", "What the policies wrote", html, data)


def _shown(choice: Choice, campaign: CampaignRecord) -> str:
    """What part of all completions this is."""
    count = sum(len(group.samples) for group in choice.groups)
    seeds = list(dict.fromkeys(group.seed for group in choice.groups))
    steps = sorted({group.step for group in choice.groups})
    named = ", ".join(map(str, seeds))
    at = ", ".join(map(str, steps))
    part = (
        f"{count:,} {'completion' if count == 1 else 'completions'} from "
        f"{plural(len(steps), 'step')} ({at}) under {len(seeds)} of "
        f"{plural(len(campaign.seeds), 'seed')} ({named}), spread evenly over training."
    )
    if not choice.whole:
        part += (
            " Where a step had no room for all its problems, those whose outcomes differ between "
            "conditions came first: they are no fair sample."
        )
    return escape(part) + (
        " <code>retrain samples .</code> in the campaign’s folder shows all that were logged, with "
        "the credit of every token."
    )


def _viewer(names: Sequence[str]) -> str:
    boxes = "".join(
        f'<label><input type="checkbox" value="{index}"'
        f"{' checked' if index < MOST_COLUMNS else ''}> {label}"
        f"{' <small>baseline</small>' if index == 0 and len(names) > 1 else ''}</label>"
        for index, label in enumerate(names)
    )
    return f"""<div id="sbs" hidden>
<div class="sbs-bar">
<label>seed <select id="sbs-seed"></select></label>
<span class="sbs-pick"><button type="button" id="sbs-earlier" aria-label="earlier step">‹</button>
<label>step <select id="sbs-step"></select></label>
<button type="button" id="sbs-later" aria-label="later step">›</button></span>
<span class="sbs-pick">\
<button type="button" id="sbs-back" aria-label="previous problem">‹</button>
<label>problem <select id="sbs-problem"></select></label>
<button type="button" id="sbs-next" aria-label="next problem">›</button></span>
<label><input type="checkbox" id="sbs-differ"> only where outcomes differ</label>
<span id="sbs-count" role="status"></span>
</div>
<fieldset id="sbs-columns"{" hidden" if len(names) < 2 else ""}>\
<legend>columns</legend>{boxes}</fieldset>
<div id="sbs-view" tabindex="0" role="group" aria-label="Completions side by side. Left and right \
arrow: previous and next problem; with Shift: earlier and later step."></div>
<p class="sbs-note"><span class="sbs-same">Pale</span>: as in the baseline’s text, up to where \
they part; a bar marks that place. <u>Underlined</u>: planning. Keys, when the texts have the \
focus: <kbd>←</kbd> <kbd>→</kbd> problem, <kbd>Shift</kbd> <kbd>←</kbd> <kbd>→</kbd> step. Cut-off \
texts reached the limit of tokens.</p>
</div>"""


def _group(document: Sequence[Any], names: Sequence[str]) -> str:
    seed, step, problem, number, _, answer, prompt, entries = document
    title = f"step {step} · seed {seed} · {problem}"
    if number is not None:
        title += f" · completion {number}"
    columns = "".join(
        _column(label, entry) for label, entry in zip(names, entries, strict=True) if entry
    )
    expected = f'<p class="sbs-answer">answer <b>{escape(answer)}</b></p>' if answer else ""
    return f"""<div class="sbs-group"><h4>{escape(title)}</h4>
<div class="sbs-prompt">{escape(_short(prompt))}</div>{expected}
<div class="sbs-grid">{columns}</div></div>"""


def _column(label: str, entry: Sequence[Any]) -> str:
    outcome, reward, advantage, tokens, cut, text, _ = entry
    kind = outcome if outcome in SIGNS else "other"
    facts = [f"reward {reward}", f"advantage {advantage}"]
    if tokens is not None:
        facts.append(plural(tokens, "token") + (", cut off" if cut else ""))
    return f"""<div class="sbs-column"><h5>{label}</h5>
<p class="sbs-facts"><span class="sbs-{kind}">{SIGNS.get(outcome, "?")} {escape(outcome)}</span> \
{" ".join(f"<span>{escape(fact)}</span>" for fact in facts)}</p>
<div class="sbs-text">{escape(_short(text)) or "<i>(empty)</i>"}</div></div>"""


def _short(text: str) -> str:
    left_out = len(text) - LISTED_CHARACTERS
    return text if left_out <= 0 else f"{text[:LISTED_CHARACTERS]}\n[… {left_out:,} more …]"
