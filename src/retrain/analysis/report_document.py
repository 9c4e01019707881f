"""What `retrain report --json` prints; its fields are in `docs/report.md`."""

from __future__ import annotations

from typing import Any

from retrain.analysis.records import CampaignRecord
from retrain.analysis.statistics import Contrast
from retrain.analysis.summary import Comparison, ConditionSummary, PlannedContrast, all_pairs

SCHEMA = 1


def report_document(campaign: CampaignRecord, comparison: Comparison) -> dict[str, Any]:
    """Plain JSON; what does not exist is null."""
    settings = comparison.settings
    return {
        "schema": SCHEMA,
        "campaign": campaign.name,
        "finished": campaign.finished,
        "counts": dict(sorted(campaign.counts().items())),
        "settings": {
            "metric": settings.metric,
            "summary": settings.summary,
            "window": settings.window,
            "baseline": comparison.baseline,
            "contrasts": [list(pair) for pair in settings.pairs(campaign.conditions)],
            "margin": settings.margin,
            "alpha": settings.alpha,
            "floor": settings.floor,
            "recorded_before_the_first_run": comparison.recorded and not comparison.changes,
            "changes": list(comparison.changes),
        },
        "unlike": list(comparison.unlike),
        "seeds": list(comparison.seeds),
        "conditions": [_condition(condition) for condition in comparison.conditions],
        "contrasts": [_planned(contrast) for contrast in comparison.contrasts],
        "exploratory": [
            {
                "treatment": pair.treatment,
                "baseline": pair.baseline,
                **_contrast(pair.contrast),
                "p_benjamini_hochberg": pair.p,
            }
            for pair in all_pairs(comparison)
        ],
    }


def _condition(condition: ConditionSummary) -> dict[str, Any]:
    return {
        "label": condition.label,
        "planned": condition.planned,
        "states": dict(sorted(condition.states.items())),
        "before": condition.before,
        "after": condition.after,
        "greedy_after": condition.greedy_after,
        "value": condition.value,
        "values": {str(seed): value for seed, value in condition.values.items()},
        "scored": {str(seed): value for seed, value in condition.scored.items()},
    }


def _planned(contrast: PlannedContrast) -> dict[str, Any]:
    judged, paired = contrast.judgement, contrast.judgement.paired
    verdict = judged.verdict
    return {
        "treatment": contrast.treatment,
        "baseline": contrast.baseline,
        "verdict": verdict.kind,
        "text": verdict.text,
        "notes": list(verdict.notes),
        "more_seeds": verdict.more_seeds,
        **_contrast(paired.contrast),
        "p": judged.p,
        "p_uncorrected": paired.p_sign_flip,
        "smallest_p": paired.smallest_p,
        "correction": judged.method,
        "p_equivalence": judged.p_equivalence,
        "wins": paired.wins,
        "losses": paired.losses,
        "ties": paired.ties,
        "correlation": paired.correlation,
        "sd": paired.sd,
        "detectable": paired.detectable,
        "differences": {str(seed): value for seed, value in contrast.differences.items()},
        "finished_pairs_only": _contrast(contrast.complete),
    }


def _contrast(contrast: Contrast) -> dict[str, Any]:
    return {
        "difference": contrast.mean_difference,
        "low": contrast.low,
        "high": contrast.high,
        "confidence": contrast.confidence,
        "seeds": contrast.n,
        "dropped_seeds": contrast.dropped,
    }
