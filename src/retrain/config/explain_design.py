"""What `retrain explain` says about what a campaign can show."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from retrain.analysis.words import plural
from retrain.config.load import LoadedConfig


def design_of(loaded: LoadedConfig) -> dict[str, Any] | None:
    """What the campaign can show; None where nothing is compared."""
    if not loaded.is_campaign or len(loaded.conditions) < 2:
        return None
    from retrain.analysis.design import design
    from retrain.experiments.manifest import report_settings

    run = loaded.run_config(loaded.conditions[0], loaded.seeds[0])
    settings = report_settings(loaded)
    found = design(
        settings,
        len(loaded.conditions),
        len(loaded.seeds),
        log_dir=Path(run.logging.log_dir),
        config=run.model_dump(mode="json"),
    )
    return {"report": settings, **asdict(found), "detectable": found.detectable}


def too_few_seeds(design: dict[str, Any] | None) -> Iterator[str]:
    """The warning when no p value can reach alpha, whatever comes out."""
    if design is not None and design["effect"] is None:
        yield (
            f"no result of this campaign can be significant: with "
            f"{plural(design['seeds'], 'seed')} the smallest possible sign-flip p value is "
            f"{design['smallest_p']:g}; {design['fewest_seeds']} seeds are the fewest that can "
            f"reach {design['alpha']:g}"
        )


def comparison_words(design: dict[str, Any]) -> str:
    """By what conditions are compared, which with which, margin and alpha."""
    from retrain.analysis.settings import ReportSettings

    report = design["report"]
    settings = ReportSettings.of({"report": report})
    assert settings is not None
    pairs = [f"{a} vs {b}" for a, b in report["contrasts"]]
    which = ", ".join(pairs) or f"each condition with {report['baseline']}"
    return (
        f"{settings.words}; {which}; margin {settings.unit.size(settings.margin)}, alpha "
        f"{100 * settings.alpha:g} %"
    )


def detectable_words(design: dict[str, Any]) -> str:
    """`differences of 3.2 points or more, with 80 % power (…)`."""
    if design["effect"] is None:
        return "nothing significant (see below)"
    if design["detectable"] is None:
        return (
            f"differences of {design['effect']:.2g} standard deviations of the paired differences "
            "or more, with 80 % power"
        )
    spread = f"{100 * design['spread']:.2g} points"
    if design["spread_from"]:
        reason = f"seeds made differences vary by {spread} (sd) in {design['spread_from']}"
    else:
        reason = (
            f"taking {spread} (sd) for the spread of paired differences, which is what the number "
            "of held-out answers alone gives; an earlier campaign like this one would tell more"
        )
    return (
        f"differences of about {100 * design['detectable']:.2g} points or more, with 80 % power; "
        + reason
    )
