"""Checks that need more than one key. Each says which key is wrong and what to do.

`check_run` judges one merged config. `check` judges all conditions: what is wrong in every one of
them is told once, at the base config's key; a key that is idle in some conditions and read in
others is fine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence, Set
from dataclasses import replace

from retrain.config.backend_checks import check_backend
from retrain.config.campaign_checks import check_campaign, check_report, check_squeeze
from retrain.config.conditions import Condition
from retrain.config.data_checks import check_data
from retrain.config.findings import Finding, idle, written_key
from retrain.config.inference_checks import check_inference
from retrain.config.messages import near, show
from retrain.config.reward_checks import check_reward
from retrain.config.schema import RetrainConfig, RunConfig
from retrain.config.tracking_checks import check_tracking

LOSS_KEYS = {
    "eps_low": ("ppo", "gspo"),
    "eps_high": ("ppo", "gspo"),
    "dual_clip": ("ppo",),
    "ratio_max": ("cispo",),
}
"""Keys of `[loss]` and the types that read them."""

TRANSFORM_TABLES = {
    "gtpo": ("gtpo", "gtpo_hicra", "gtpo_sepa"),
    "hicra": ("gtpo_hicra",),
    "sepa": ("gtpo_sepa",),
}
"""Tables and the built-in transform modes that read them."""

GREEDY_BELOW = 0.01
COLD_BELOW = 0.2
NARROW_BELOW = 0.01
LARGE_LR = 0.05


def check(
    config: RetrainConfig,
    conditions: Sequence[Condition],
    written: Set[str],
    tainted: Set[str] = frozenset(),
) -> list[Finding]:
    """Everything odd about a config, each thing once.

    written: `table.key` of what the base config writes. tainted: keys in error already.
    """
    found: dict[Finding | str, tuple[Finding, list[Condition]]] = {}
    for condition in conditions:
        for finding in check_run(condition.config, written | condition.written):
            # Conditions may each have a reason of their own for not reading a key.
            same = finding.key if finding.is_idle else finding
            found.setdefault(same, (finding, []))[1].append(condition)
    findings = []
    for finding, holders in found.values():
        if len(holders) == len(conditions):
            findings.append(finding)
            continue
        own = [holder for holder in holders if written_key(finding.key) in holder.written]
        if own:
            findings += [replace(finding, key=f"{holder.place}.{finding.key}") for holder in own]
        elif not finding.is_idle:
            where = ", ".join(holder.label for holder in holders)
            findings.append(replace(finding, message=f"{finding.message} (in {where})"))
    findings += check_campaign(config, conditions, written)
    findings += check_report(config, conditions, written)
    findings += check_squeeze(config, conditions)
    bare = {re.sub(r"^campaign\.conditions\[\d+\]\.", "", key) for key in tainted}
    return [f for f in findings if not {f.key, *f.also} & (bare | tainted)]


def check_run(run: RunConfig, written: Set[str]) -> Iterator[Finding]:
    """What is odd about one run's config.

    A key that is written with its default value is never idle: resolved configs write all.
    """
    written = {place for place in written if _differs(run, place)}
    yield from _training(run, written)
    yield from _sampling(run)
    yield from _loss(run, written)
    yield from _algorithm(run, written)
    yield from check_data(run, written)
    yield from check_reward(run, written)
    yield from _evaluation(run, written)
    yield from check_backend(run, written)
    yield from check_inference(run, written)
    yield from _places(run, written)
    yield from check_tracking(run, written)


def without_idle(run: RunConfig, *, warned: bool = False) -> RunConfig:
    """`run` with every key that it inherits but must not write set to its default.

    warned: also those that may be written, with a warning.

    A condition may inherit `eps_low` and change the loss to one that has none; its resolved
    config is a valid config of its own.
    """
    everything = {
        f"{table}.{key}"
        for table in RunConfig.model_fields
        for key in getattr(run, table).__class__.model_fields
    }
    for finding in check_run(run, everything):
        if finding.is_idle and (finding.is_error or warned):
            table, _, key = finding.key.partition(".")
            held = getattr(run, table)
            default = type(held).model_fields[key].get_default(call_default_factory=True)
            run = run.model_copy(update={table: held.model_copy(update={key: default})})
    return run


def _differs(run: RunConfig, place: str) -> bool:
    table, _, key = place.partition(".")
    held = getattr(run, table, None)
    if held is None or key not in type(held).model_fields:
        return False
    default = type(held).model_fields[key].get_default(call_default_factory=True)
    return bool(getattr(held, key) != default)


def _training(run: RunConfig, written: Set[str]) -> Iterator[Finding]:
    training = run.training
    if training.warmup_steps >= training.max_steps:
        yield Finding(
            "training.warmup_steps",
            f"a warm-up of {training.warmup_steps} steps never ends in a run of "
            f"{training.max_steps}; make it shorter than max_steps",
            ("training.max_steps",),
        )
    rows = training.batch_size * training.group_size
    if rows % training.minibatches:
        yield Finding(
            "training.minibatches",
            f"{rows} completions (batch_size {training.batch_size} x group_size "
            f"{training.group_size}) cannot be shared equally among {training.minibatches}",
            ("training.batch_size", "training.group_size"),
        )
    mode = run.algorithm.algorithm_mode or run.algorithm.advantage_mode
    if training.group_size == 1 and mode in ("grpo", "maxrl"):
        yield Finding(
            "training.group_size",
            f"{mode} compares the completions of a problem with each other; with one completion "
            "nothing is learnt; take 2 or more, e.g. 8",
        )
    if training.lr >= 1.0:
        yield Finding("training.lr", f"{training.lr:g} cannot be meant; a usual value is 4e-5")
    elif training.lr > LARGE_LR:
        message = f"{training.lr:g} is very large; training will likely diverge"
        yield Finding("training.lr", message, is_error=False)
    micro = training.micro_batch_tokens
    if micro != "auto" and micro < training.max_tokens:
        yield Finding(
            "training.micro_batch_tokens",
            f"{micro} is less than one completion of max_tokens = {training.max_tokens}; such a "
            "completion is computed alone and needs more memory than this suggests",
            ("training.max_tokens",),
            is_error=False,
        )
    if "training.keep_last" in written and training.keep_last and not training.save_every:
        yield idle("training.keep_last", "save_every = 0 writes no checkpoints")
    if "training.keep_best" in written and not training.keep_last:
        yield idle("training.keep_best", "keep_last = 0 keeps every checkpoint")


def _sampling(run: RunConfig) -> Iterator[Finding]:
    for table, temperature in (
        ("training", run.training.temperature),
        ("evaluation", run.evaluation.temperature),
    ):
        remedy = {
            "training": "training needs completions that differ; take 0.6 to 1.0",
            "evaluation": "for greedy accuracy set greedy = true and leave temperature at 1.0",
        }[table]
        key = f"{table}.temperature"
        if temperature < GREEDY_BELOW:
            yield Finding(key, f"{temperature:g} is as good as greedy; {remedy}")
        elif temperature < COLD_BELOW and table == "training":
            yield Finding(key, f"{temperature:g} is nearly greedy; {remedy}", is_error=False)
    if run.training.top_p < NARROW_BELOW:
        remedy = "training needs completions that differ; take 0.8 to 1.0"
        yield Finding("training.top_p", f"{run.training.top_p:g} is as good as greedy; {remedy}")
    elif run.training.top_p < 1.0:
        wrong = "the ratio of policy and sampler would be wrong, since the sampler's truncated "
        wrong += "probabilities are not the policy's"
        if run.loss.type != "importance_sampling":
            yield Finding(
                "training.top_p",
                f"top_p < 1 with [loss] type = {show(run.loss.type)}: {wrong}; set top_p = 1.0, or "
                'type = "importance_sampling"',
                ("loss.type",),
            )
        if run.loss.kl_coef > 0:
            yield Finding(
                "training.top_p",
                f"top_p < 1 with [loss] kl_coef > 0: {wrong}; set top_p = 1.0, or kl_coef = 0.0",
                ("loss.kl_coef",),
            )


def _loss(run: RunConfig, written: Set[str]) -> Iterator[Finding]:
    for key, types in LOSS_KEYS.items():
        if getattr(run.loss, key) is not None and run.loss.type not in types:
            readers = " and ".join(show(name) for name in types)
            reason = f"type = {show(run.loss.type)}; it is for {readers}"
            yield idle(f"loss.{key}", reason, "loss.type", is_error=True)
    if "loss.kl_estimator" in written and run.loss.kl_coef == 0:
        yield idle("loss.kl_estimator", "kl_coef = 0", "loss.kl_coef", is_error=True)


def _algorithm(run: RunConfig, written: Set[str]) -> Iterator[Finding]:
    algorithm = run.algorithm
    if algorithm.algorithm_mode:
        for mode in ("advantage_mode", "transform_mode"):
            if f"algorithm.{mode}" in written:
                reason = "algorithm_mode replaces both modes; write either it or them"
                yield idle(f"algorithm.{mode}", reason, "algorithm.algorithm_mode", is_error=True)
        return
    transform = algorithm.transform_mode
    for table, modes in TRANSFORM_TABLES.items():
        if transform in modes or "." in transform:
            continue
        for key in sorted(key for key in written if key.startswith(f"{table}.")):
            reason = f"transform_mode = {show(transform)}; it is for {', '.join(modes)}"
            yield idle(key, reason, "algorithm.transform_mode")
    if run.gtpo.beta > 1 and transform in TRANSFORM_TABLES["gtpo"]:
        message = f"{run.gtpo.beta:g} is above 1: tokens below the mean can lose all their credit"
        yield Finding("gtpo.beta", message, is_error=False)


def _evaluation(run: RunConfig, written: Set[str]) -> Iterator[Finding]:
    evaluation = run.evaluation
    if evaluation.num_problems == 0:
        for key in ("every", "before_training", "samples_per_problem", "temperature", "greedy"):
            if f"evaluation.{key}" in written:
                yield idle(f"evaluation.{key}", "num_problems = 0 turns evaluation off")
    elif evaluation.every > run.training.max_steps:
        yield Finding(
            "evaluation.every",
            f"{evaluation.every} is more than the {run.training.max_steps} steps of a run; there "
            "is no evaluation between the first and the last",
            ("training.max_steps",),
            is_error=False,
        )


def _places(run: RunConfig, written: Set[str]) -> Iterator[Finding]:
    if run.model.model == "embedded" and run.model.revision:
        reason = "the embedded model has no revisions"
        yield idle("model.revision", reason, "model.model", is_error=True)
    elif run.model.model != "embedded" and near(run.model.model, ("embedded",)):
        message = f'{show(run.model.model)} is not known; did you mean "embedded"?'
        yield Finding("model.model", message)
    grams = run.logging.strategic_grams
    if isinstance(grams, str) and grams.strip().startswith("["):
        try:
            grams = json.loads(grams)
        except json.JSONDecodeError as error:
            yield Finding("logging.strategic_grams", f"is no JSON list: {error}")
            return
    if isinstance(grams, list) and not all(isinstance(g, str) and g.strip() for g in grams):
        yield Finding("logging.strategic_grams", "every phrase must be text that is not empty")
    elif "logging.strategic_grams" in written and not grams:
        message = "is empty, which takes the 18 built-in phrases"
        yield Finding("logging.strategic_grams", message, is_error=False)
