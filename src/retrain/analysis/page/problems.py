"""What the held-out problems add: other problems, domains, several completions a problem."""

from __future__ import annotations

import numpy as np

from retrain.analysis.evaluations import Estimate
from retrain.analysis.held_out import HeldOut, read_held_out
from retrain.analysis.page.markup import MISSING, folded, interval, minus, name, table
from retrain.analysis.page.section import Section
from retrain.analysis.records import CampaignRecord
from retrain.analysis.resampling import (
    FEWEST_TASKS,
    FEWEST_VALUES,
    probability_of_improvement,
    stratified_bootstrap,
)
from retrain.analysis.statistics import paired_contrast
from retrain.analysis.summary import Comparison
from retrain.analysis.webpage import safe
from retrain.analysis.words import Unit, plural
from retrain.types import FloatArray

POINTS = Unit()
MOST_DOMAINS = 30


def problem_section(campaign: CampaignRecord, comparison: Comparison) -> Section | None:
    """None without held-out answers, or where they have nothing to add."""
    if (held_out := read_held_out(campaign)) is None:
        return None
    parts = [
        _other_problems(held_out, comparison),
        _pass_at(held_out),
        _domains(held_out, comparison),
    ]
    html = "".join(part for part in parts if part)
    return Section("problems", "Problems and domains", html) if html else None


def _other_problems(held_out: HeldOut, comparison: Comparison) -> str:
    """Intervals that hold for other problems too."""
    rows = []
    for contrast in comparison.contrasts:
        pair = contrast.treatment, contrast.baseline
        try:
            both = held_out.of_seeds_and_problems(*pair, comparison.confidence)
        except ValueError:
            continue
        mine, theirs = (_by_seed(held_out, label) for label in pair)
        rows.append(
            [
                f"{_named(contrast.treatment, held_out)} <small>vs {safe(pair[1])}</small>",
                interval(paired_contrast(mine, theirs, comparison.confidence), POINTS),
                _estimate(both),
            ]
        )
    if not rows:
        return ""
    confidence = f"[{100 * comparison.confidence:g} % CI]"
    head = ["comparison", f"over seeds {confidence}", f"over seeds and problems {confidence}"]
    problems = len(held_out.domains)
    caption = (
        f"Difference in accuracy on the {problems} held-out problems. The second interval "
        "resamples seeds and problems (Owen 2007): it speaks of other problems like these, too. "
        "Verdicts rest on seeds alone; neither interval is corrected for the number of comparisons."
    )
    return table(head, rows, caption=caption)


def _pass_at(held_out: HeldOut) -> str:
    ks, found_CK = held_out.pass_at()
    if len(ks) < 2:
        return ""
    rows = [
        [_named(label, held_out), *(_share(value) for value in found_CK[c])]
        for c, label in enumerate(held_out.conditions)
    ]
    caption = (
        "pass@k in %: the unbiased chance that one of k completions is correct (Chen et al. 2021), "
        "mean over seeds and problems after training"
    )
    return folded("pass@k", table(["condition", *(f"k = {k}" for k in ks)], rows, caption=caption))


def _domains(held_out: HeldOut, comparison: Comparison) -> str:
    names = held_out.names
    if len(names) < 2:
        return ""
    accuracy_CSD = held_out.by_domain()
    baseline = held_out.conditions.index(comparison.baseline)
    rows = []
    for d, domain in enumerate(names[:MOST_DOMAINS]):
        size = held_out.domains.count(domain)
        cells = [f"{safe(domain)} <small>{plural(size, 'problem')}</small>"]
        for c in range(len(held_out.conditions)):
            mean = _share(_mean(accuracy_CSD[c, :, d]))
            if c != baseline:
                mine, theirs = (_dict(held_out, accuracy_CSD[i, :, d]) for i in (c, baseline))
                difference = paired_contrast(mine, theirs, comparison.confidence)
                mean += f" <small>{interval(difference, POINTS)}</small>"
            cells.append(mean)
        rows.append(cells)
    head = ["domain", *(_named(label, held_out) for label in held_out.conditions)]
    shown = f"; the first {MOST_DOMAINS} of {len(names)}" if len(names) > MOST_DOMAINS else ""
    caption = (
        "Accuracy in % by domain, mean over seeds, with the difference to "
        f"{safe(comparison.baseline)} in points{shown}. Exploratory, not corrected for the number "
        "of domains."
    )
    html = table(head, rows, caption=caption) + _pooled(held_out, accuracy_CSD, baseline)
    return folded(f"By domain ({len(names)})", html, opened=len(names) <= MOST_DOMAINS)


def _pooled(held_out: HeldOut, accuracy_CSD: FloatArray, baseline: int) -> str:
    """The interquartile mean over domains, where there are enough of them."""
    rows = []
    for c, label in enumerate(held_out.conditions):
        values_SD = accuracy_CSD[c]
        enough = np.isfinite(values_SD).sum() >= FEWEST_VALUES
        if values_SD.shape[1] < FEWEST_TASKS or not enough:
            continue
        if not np.isfinite(values_SD).any(axis=0).all():
            continue
        pooled = stratified_bootstrap(values_SD)
        ends = f"[{_share(pooled.low)}, {_share(pooled.high)}]"
        better = MISSING
        if c != baseline and np.isfinite(accuracy_CSD[baseline]).any(axis=0).all():
            better = _share(probability_of_improvement(values_SD, accuracy_CSD[baseline]))
        iqm = f"<b>{_share(pooled.estimate)}</b> <small>{ends}</small>"
        rows.append([_named(label, held_out), iqm, better])
    if not rows:
        return ""
    head = ["condition", "IQM [95 % CI]", "chance that a run beats one of the baseline"]
    caption = (
        "Pooled over domains, in %: interquartile mean with a stratified bootstrap over runs, and "
        "the probability of improvement (Agarwal et al. 2021). A run is judged on every domain, so "
        "that its domains are not independent and the intervals are too narrow."
    )
    return table(head, rows, caption=caption)


def _named(label: str, held_out: HeldOut) -> str:
    return name(label, held_out.conditions.index(label))


def _by_seed(held_out: HeldOut, label: str) -> dict[int, float | None]:
    accuracy_SP = held_out.accuracy[held_out.conditions.index(label)]
    return _dict(held_out, np.asarray([_mean(row) for row in accuracy_SP]))


def _dict(held_out: HeldOut, values_S: FloatArray) -> dict[int, float | None]:
    pairs = zip(held_out.seeds, values_S, strict=True)
    return {seed: None if np.isnan(value) else float(value) for seed, value in pairs}


def _mean(values: FloatArray) -> float:
    there = values[~np.isnan(values)]
    return float(there.mean()) if there.size else float("nan")


def _estimate(estimate: Estimate) -> str:
    center = f"<b>{minus(POINTS.signed(estimate.mean))}</b>"
    if estimate.low is None or estimate.high is None:
        return f"{center} <small>one seed</small>"
    low, high = minus(POINTS.signed(estimate.low)), minus(POINTS.signed(estimate.high))
    return f"{center} <small>[{low}, {high}]</small>"


def _share(value: float) -> str:
    return MISSING if np.isnan(value) else f"{100 * value:.1f}"
