"""The paragraphs on methods that go into a paper: sentences that are true of what was done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retrain.analysis.diff.configs import Config, is_bookkeeping
from retrain.analysis.page.citations import REFERENCES
from retrain.analysis.page.provenance import condition_configs, differing_keys
from retrain.analysis.paired import MONTE_CARLO_FLIPS
from retrain.analysis.power import EXACT_SEEDS
from retrain.analysis.reading import load_object, number
from retrain.analysis.records import CampaignRecord
from retrain.analysis.samples.look import one_line
from retrain.analysis.summary import Comparison
from retrain.analysis.words import plural
from retrain.files import evaluation_files

AGGREGATIONS = {
    "token_mean": ", averaged over the tokens of an update",
    "sequence_mean": ", averaged over the completions of an update",
    "sum": ", summed over tokens",
}
LOSSES = {
    "importance_sampling": "the importance-sampled policy gradient",
    "ppo": "PPO's clipped objective (arXiv:1707.06347)",
    "gspo": "GSPO's clipped objective (arXiv:2507.18071)",
    "cispo": "CISPO's clipped importance weights (arXiv:2506.13585)",
}
ADVANTAGES = {
    "grpo": "grpo (rewards minus their group's mean; Liu et al., 2025)",
    "grpo std": "grpo (rewards standardised within their group; Shao et al., 2024)",
    "maxrl": "maxrl (arXiv:2602.02710)",
}
TRANSFORMS = {
    "none": "the same for all tokens of a completion",
    "gtpo": "gtpo (after arXiv:2508.04349)",
    "gtpo_hicra": "gtpo_hicra (after arXiv:2509.03646)",
}
OWN_FATE = ("diverged", "dropped")
"""States of runs without a result that are not simply missing."""


def methods_text(campaign: CampaignRecord, comparison: Comparison) -> str:
    """Methods as plain text: paragraphs and the works they cite, parted by empty lines.

    Nothing is said of a key of the config that is not known, or not the same for all conditions.
    """
    configs = {label: condition_configs(campaign.of(label)) for label in campaign.conditions}
    setup = _Setup.of(configs)
    sentences = (
        _training(campaign, comparison, setup),
        _outcome(campaign, comparison, setup),
        _tests(comparison),
        _missing(comparison),
    )
    text = "\n\n".join(" ".join(paragraph) for paragraph in sentences)
    cited = [work for name, work in REFERENCES.items() if name in text]
    return "\n\n".join([text, "\n".join(["References", *cited])] if cited else [text])


@dataclass(frozen=True, slots=True)
class _Setup:
    """What the conditions' configs share, and where they differ."""

    every: Sequence[Config]
    differ: Sequence[str]

    @classmethod
    def of(cls, configs: Mapping[str, Sequence[Config]]) -> _Setup:
        every = [config for of_condition in configs.values() for config in of_condition]
        return cls(every, differing_keys(configs))

    def get(self, key: str) -> Any:
        """None where it is unknown or not the same for all."""
        return self.every[0].get(key) if self.every and key not in self.differ else None

    def say(self, words: str, key: str) -> str:
        """The words with the key's value in them; nothing when it has none."""
        value = self.get(key)
        shown = f"{value:g}" if isinstance(value, float) else one_line(str(value))
        return "" if value is None else words.format(shown)


def _training(campaign: CampaignRecord, comparison: Comparison, setup: _Setup) -> Iterator[str]:
    steps = f" of {plural(campaign.max_steps, 'step')}" if campaign.max_steps else ""
    yield (
        f"We compared {plural(len(comparison.conditions), 'condition')} "
        f"({_listed(campaign.conditions)}) under {plural(len(comparison.seeds), 'seed')}: "
        f"{plural(comparison.planned, 'training run')}{steps}."
    )
    model = setup.say("{}", "model.model")
    if model:
        name = "the tiny model that ships with retrain" if model == "embedded" else model
        rank, alpha = setup.get("model.lora_rank"), setup.get("model.lora_alpha")
        size = f" of rank {rank}" if rank else ""
        size += f" and alpha {alpha or 2.0 * rank:g}" if rank and alpha is not None else ""
        task = setup.say(" for the task {}", "data.source")
        task += setup.say(" with the reward {}", "reward.type")
        yield f"Each run trained a LoRA adapter (Hu et al., 2022){size} on {name}{task}."
    batch = _joined(
        setup.say("{} problems", "training.batch_size"),
        setup.say("{} completions of each", "training.group_size"),
        setup.say("at most {} tokens a completion", "training.max_tokens"),
        setup.say("temperature {}", "training.temperature"),
        setup.say("top-p {}", "training.top_p") if setup.get("training.top_p") != 1.0 else "",
    )
    if batch:
        passes, parts = setup.get("training.updates_per_batch"), setup.get("training.minibatches")
        updates = f" and made {plural(passes * parts, 'update')}" if passes and parts else ""
        yield f"A step sampled a batch ({batch}){updates}."
    advantages = _kinds(map(_advantage, setup.every), ADVANTAGES)
    transforms = _kinds((str(c.get("algorithm.transform_mode")) for c in setup.every), TRANSFORMS)
    if advantages and not any(config.get("algorithm.algorithm_mode") for config in setup.every):
        yield f"Advantages: {advantages}; a token's share: {transforms}."
    if loss := LOSSES.get(str(setup.get("loss.type"))):
        kl = setup.get("loss.kl_coef")
        penalty = f", with a KL penalty of weight {kl:g} to the base model" if kl else ""
        mean = AGGREGATIONS.get(str(setup.get("loss.aggregation")), "")
        yield f"The loss was {loss}{mean}{penalty}."
    keys = ("grad_clip", "warmup_steps", "betas")
    clip, warmup, betas = (setup.get(f"training.{key}") for key in keys)
    optimizer = _joined(
        setup.say("learning rate {}", "training.lr"),
        setup.say("{} schedule", "training.lr_schedule"),
        f"{plural(warmup, 'warm-up step')}" if warmup else "",
        f"betas {_listed([f'{beta:g}' for beta in betas])}" if betas else "",
        setup.say("weight decay {}", "training.weight_decay"),
        f"gradient norm clipped at {clip:g}" if clip else "",
    )
    if optimizer:
        yield f"The optimizer was AdamW (Loshchilov and Hutter, 2019; {optimizer})."
    differ = [key for key in setup.differ if not is_bookkeeping(key)]
    if differ:
        yield f"Conditions differed in {_listed(differ)}."
    versions = next((run.versions for run in campaign.runs if run.versions), {})
    packages = [f"{name} {versions[name]}" for name in ("retrain", "torch") if name in versions]
    if packages:
        yield f"Software: {one_line(', '.join(packages))}."


def _outcome(campaign: CampaignRecord, comparison: Comparison, setup: _Setup) -> Iterator[str]:
    settings = comparison.settings
    yield f"The outcome of a run was its {settings.words}."
    problems = setup.get("evaluation.num_problems") and _held_out_problems(campaign)
    if settings.metric != "reward" and problems:
        how = "decoded greedily"
        if settings.metric == "accuracy":
            samples = int(setup.get("evaluation.samples_per_problem") or 1)
            how = f"with {plural(samples, 'sampled completion')} each" + setup.say(
                " at temperature {}", "evaluation.temperature"
            )
        yield f"It was measured on {plural(problems, 'held-out problem')}, {how}."
    yield (
        "All conditions under one seed drew from the same uniform random numbers, and met the same "
        "problems where they share task and batch (common random numbers). The unit of analysis is "
        "the run: conditions were compared by the differences between runs of one seed."
    )


def _held_out_problems(campaign: CampaignRecord) -> int:
    """How many there were, which may be fewer than were asked for; 0 when nothing was measured."""
    for run in campaign.runs:
        for path in evaluation_files(run.folder).values():
            if found := number(load_object(path), "num_problems"):
                return int(found)
    return 0


def _tests(comparison: Comparison) -> Iterator[str]:
    contrasts, settings = comparison.contrasts, comparison.settings
    if not contrasts:
        yield "No comparison was planned."
        return
    count = len(contrasts)
    to_baseline = {(c.treatment, comparison.baseline) for c in contrasts}
    others = {(c.label, comparison.baseline) for c in comparison.conditions}
    if (
        to_baseline
        == {(c.treatment, c.baseline) for c in contrasts}
        == others - {(comparison.baseline, comparison.baseline)}
    ):
        which = f"each condition against {comparison.baseline}"
    else:
        which = _listed([f"{c.treatment} against {c.baseline}" for c in contrasts])
    verb = "planned" if comparison.recorded and not comparison.changes else "made"
    yield f"We {verb} {plural(count, 'comparison')}: {which}. {_when_planned(comparison)}"
    most = max(c.judgement.paired.contrast.n for c in contrasts)
    test = "the exact two-sided sign-flip test (Fisher, 1935)"
    if most > EXACT_SEEDS:
        test = (
            f"the two-sided sign-flip test (Fisher, 1935) with {MONTE_CARLO_FLIPS:,} random flips "
            "(Phipson and Smyth, 2010)"
        )
    method = contrasts[0].judgement.method
    corrected = {
        "none": "",
        "maxT": f", corrected for the {count} comparisons by the step-down maxT procedure with "
        "common sign flips (Westfall and Young, 1993)",
        "Holm": f", corrected for the {count} comparisons by Holm's procedure (Holm, 1979), since "
        "they do not all rest on the same seeds",
    }[method]
    yield f"P values are those of {test} on the differences{corrected}."
    holm = ", corrected by Holm's procedure (Holm, 1979)," if count > 1 else ""
    yield (
        f"A condition is called better or worse when p is at most {settings.alpha:g}; else "
        f"equivalent when two one-sided t tests (Schuirmann, 1987) at level {settings.alpha:g}"
        f"{holm} put the difference within {settings.unit.size(settings.margin)} of zero; else "
        "undecided. Conditions whose runs have the same rewards and gradients in every step are "
        "called identical."
    )
    yield (
        f"Intervals are {100 * comparison.confidence:g} % paired t intervals (Student, 1908), each "
        "for its own comparison."
    )
    yield from _sensitivity(comparison)


def _when_planned(comparison: Comparison) -> str:
    if comparison.changes:
        return (
            "The settings of this analysis are not those recorded before the first run "
            f"({'; '.join(comparison.changes)}), which makes it exploratory."
        )
    if comparison.recorded:
        return "Outcome, comparisons, margin and level were recorded before the first run."
    return "Outcome, comparisons, margin and level were not recorded before the first run."


def _sensitivity(comparison: Comparison) -> Iterator[str]:
    unit, alpha = comparison.settings.unit, comparison.settings.alpha
    paired = [c.judgement.paired for c in comparison.contrasts if c.judgement.paired.contrast.n]
    if not paired:
        return
    pairs = sorted({p.contrast.n for p in paired})
    rest = "each comparison rests" if len(pairs) == 1 else "comparisons rest"
    number = str(pairs[0]) if len(pairs) == 1 else f"{pairs[0]} to {pairs[-1]}"
    seeds = "seed" if pairs == [1] else "seeds"
    yield f"{rest[0].upper()}{rest[1:]} on {number} {seeds}."
    smallest = min(p.smallest_p for p in paired)
    if smallest > alpha:
        yield (
            f"With so few the test cannot give a p value below {smallest:g}: no condition could be "
            "called better or worse."
        )
    found = sorted({unit.plain(p.detectable) for p in paired if p.detectable}, key=float)
    if found:
        size = found[0] if len(found) == 1 else f"{found[0]} to {found[-1]}"
        yield (
            "At the observed spread a comparison by itself has 80 % power to find a difference of "
            f"{size} {unit.name}".rstrip()
            + "."
        )


def _missing(comparison: Comparison) -> Iterator[str]:
    states: Counter[str] = Counter()
    for condition in comparison.conditions:
        states.update(condition.states)
    planned, unit = comparison.planned, comparison.settings.unit
    floor = f"{unit.plain(comparison.settings.floor)}{' %' if unit.name else ''}"
    if comparison.done == planned:
        yield "All runs finished."
    else:
        yield f"{comparison.done} of {plural(planned, 'run')} finished."
    if states["diverged"]:
        yield (
            f"A run that diverged is an outcome of its condition and scored {floor} (intention to "
            f"treat): {_by_condition(comparison, ['diverged'])}."
        )
    elif comparison.done < planned:
        yield f"None diverged; a run that does scores {floor} (intention to treat)."
    if states["dropped"]:
        yield (
            "Conditions that could no longer win were stopped for futility (the upper end of the "
            "interval lay below the margin at an interim look), and count with p = 1 in the "
            f"correction; runs that this ended: {_by_condition(comparison, ['dropped'])}."
        )
    missing = sorted(set(states) & {"failed", "stopped", "lost"})
    if missing:
        yield (
            "Runs that broke for another reason are missing, and left out together with the other "
            f"run of their pair: {_by_condition(comparison, missing)}."
        )
    waiting = planned - comparison.done - sum(states[s] for s in (*OWN_FATE, *missing))
    if waiting:
        verb = "was" if waiting == 1 else "were"
        yield f"{plural(waiting, 'run')} {verb} not finished when this was written."


def _by_condition(comparison: Comparison, states: Sequence[str]) -> str:
    """`maxrl+none 2, maxrl+gtpo 1`."""
    counts = {c.label: sum(c.states.get(s, 0) for s in states) for c in comparison.conditions}
    return ", ".join(f"{label} {count}" for label, count in counts.items() if count)


def _advantage(config: Config) -> str:
    mode = str(config.get("algorithm.advantage_mode"))
    # The mode's own parameters win over those that all modes see.
    scales = (config.get(f"algorithm.{table}.scale") for table in ("advantage_params", "params"))
    standardised = next((scale for scale in scales if scale is not None), "none") == "std"
    return f"{mode} std" if mode == "grpo" and standardised else mode


def _kinds(names: Iterable[str], words: Mapping[str, str]) -> str:
    return _listed([words.get(name, name) for name in dict.fromkeys(names)])


def _listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    shown = [one_line(name) for name in names]
    return " and ".join(filter(None, [", ".join(shown[:-1]), *shown[-1:]]))


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)
