"""What runs of one campaign must have in common, and whether they have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from retrain.analysis.diff.configs import Config, read_config
from retrain.analysis.reading import items, nested, text
from retrain.analysis.records import CampaignRecord, RunView
from retrain.analysis.words import percent, plural
from retrain.config.changes import CONTENTS, PATHS

_OF_ANSWERS = ("model", "data", "reward", "evaluation", "init_adapter")
_NOT_BEFORE_TRAINING = ("model.lora_", "evaluation.every")


def unlike(campaign: CampaignRecord) -> tuple[str, ...]:
    """Sentences on runs that are not what their names say."""
    return (*_other_contents(campaign), *_other_beginnings(campaign))


def _other_contents(campaign: CampaignRecord) -> Iterator[str]:
    """Runs whose problems, code or model are not those of the plan."""
    planned = {
        text(entry, "label"): nested(entry, "contents")
        for entry in items(campaign.manifest, "conditions")
        if isinstance(entry, dict)
    }
    for name, words in CONTENTS.items():
        odd = [
            run.name
            for run in campaign.runs
            if (plan := planned.get(run.condition, {}).get(name))
            and run.contents.get(name, plan) != plan
        ]
        if odd:
            runs = f"{plural(len(odd), 'run')} ({', '.join(odd[:3])}{', …' if odd[3:] else ''})"
            yield (
                f"{words[0].upper()}{words[1:]} changed while the campaign was trained: {runs} "
                "have not what was planned, which may be why they differ."
            )


def _other_beginnings(campaign: CampaignRecord) -> Iterator[str]:
    """Seeds under which one and the same model answered otherwise before training."""
    odd: list[tuple[int, RunView, RunView]] = []
    for seed in campaign.seeds:
        runs = [r for r in campaign.runs if r.seed == seed and _before(r) is not None]
        if len({_before(run) for run in runs}) > 1:
            odd += ((seed, *pair) for pair in _unequal(runs))
    if odd:
        seed, a, b = odd[0]
        seeds = f"seed {seed}" + (f" and {len(odd) - 1} more" if odd[1:] else "")
        yield (
            f"Before training, {a.condition} answered {percent(_before(a))} of the held-out "
            f"problems and {b.condition} {percent(_before(b))} ({seeds}), though it is one model "
            "with the same problems and reward: something differs that no config says, so do not "
            "compare them before you know what."
        )


def _before(run: RunView) -> float | None:
    return run.result.accuracy_before


def _unequal(runs: Sequence[RunView]) -> Iterator[tuple[RunView, RunView]]:
    """The first two of these runs that should have answered alike and did not."""
    first: dict[str, RunView] = {}
    for run in runs:
        config = read_config(run)
        # Of servers the same weights need not give the same completions.
        if not config or {config["backend.backend"], config["inference.engine"]} != {"local"}:
            continue
        same = first.setdefault(repr(_asked(run, config)), run)
        if _before(same) != _before(run):
            yield same, run
            return


def _asked(run: RunView, config: Config) -> tuple[object, ...]:
    """All that decides what a run answers before training."""
    keys = {
        key: value
        for key, value in config.items()
        if key.startswith(_OF_ANSWERS) and not key.startswith(_NOT_BEFORE_TRAINING)
        if PATHS.get(key) not in config
    }
    place = run.device, sorted(run.versions.items()), config.get("training.max_tokens")
    return (*place, sorted(keys.items()))
