"""Checks of `[campaign]` and `[squeeze]`, which are about several runs, or none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence, Set

from retrain.config.conditions import Condition
from retrain.config.evidence import ReportConfig, contrast_labels
from retrain.config.findings import Finding, idle, no_device
from retrain.config.messages import did_you_mean, show
from retrain.config.schema import CampaignConfig, RetrainConfig
from retrain.config.stopping_checks import check_order, check_stopping

MOST_SEEDS = 10_000
SHORTEST_TIMEOUT_S = 1.0


def check_campaign(
    config: RetrainConfig, conditions: Sequence[Condition], written: Set[str]
) -> Iterator[Finding]:
    campaign = config.campaign
    if campaign is None:
        return
    twice = sorted(seed for seed, times in Counter(campaign.seeds).items() if times > 1)
    if len(campaign.seeds) > MOST_SEEDS:
        message = f"{len(campaign.seeds)} seeds are more than a campaign can have ({MOST_SEEDS})"
        yield Finding("campaign.seeds", message)
    if 0 < campaign.worker_timeout < SHORTEST_TIMEOUT_S:
        message = (
            f"{campaign.worker_timeout:g} s is less than any model takes to load, so every worker "
            f"would be killed as hung; take {SHORTEST_TIMEOUT_S:g} or more, or 0 to wait for ever"
        )
        yield Finding("campaign.worker_timeout", message)
    if twice:
        message = f"{', '.join(map(str, twice))} is there more than once; every seed is one run"
        yield Finding("campaign.seeds", message)
    if "training.seed" in written:
        message = "a campaign takes its seeds from [campaign].seeds"
        yield idle("training.seed", message)
    if config.algorithm.algorithm_mode and not any(
        condition.config.algorithm.algorithm_mode for condition in conditions
    ):
        reason = "every condition sets its advantage_mode and transform_mode"
        yield idle("algorithm.algorithm_mode", reason)
    yield from _devices(campaign, conditions)
    yield from check_order(campaign, conditions)
    yield from check_stopping(config, conditions)
    if not campaign.parallel:
        for key in ("max_workers", "stagger_seconds", "devices"):
            if f"campaign.{key}" in written and getattr(campaign, key):
                yield idle(f"campaign.{key}", "parallel = false trains one run after another")
    if config.logging.wandb_run_name and len(conditions) * len(campaign.seeds) > 1:
        message = "gives every run of the campaign the same name; left out, each has its own"
        yield Finding("logging.wandb_run_name", message, is_error=False)
    seen: dict[str, Condition] = {}
    for condition in conditions:
        first = seen.setdefault(condition.config.model_dump_json(), condition)
        if first is not condition and first.label != condition.label:
            message = f"trains exactly what {first.label} trains"
            yield Finding(condition.place, message, is_error=False)
    if len(campaign.seeds) == 1 and len(conditions) > 1:
        message = "one seed gives no interval: a difference between conditions may be chance"
        yield Finding("campaign.seeds", message, is_error=False)


def check_report(
    config: RetrainConfig, conditions: Sequence[Condition], written: Set[str]
) -> Iterator[Finding]:
    """`[report]`, which must name what there is."""
    report = config.report
    if config.campaign is None:
        for key in sorted(key for key in written if key.startswith("report.")):
            yield idle(key, "a single run is compared with nothing; it is for a [campaign]")
        return
    labels = [condition.label for condition in conditions]
    for key, message in label_problems(report, labels):
        yield Finding(f"report.{key}", message)
    off = [c.label for c in conditions if not c.config.evaluation.num_problems]
    blind = [c.label for c in conditions if not c.config.evaluation.greedy]
    needs = report.metric.endswith("accuracy")
    if needs and off:
        message = f"{report.metric} needs held-out evaluations, and num_problems = 0 turns them off"
        yield Finding("report.metric", message, ("evaluation.num_problems",))
    elif report.metric == "greedy_accuracy" and blind:
        message = f"greedy_accuracy is not measured in {blind[0]}; set [evaluation] greedy = true"
        yield Finding("report.metric", message, ("evaluation.greedy",))
    if off and len(off) < len(conditions) and report.metric == "auto":
        message = f"{off[0]} has no held-out evaluation to be compared by; write metric = "
        yield Finding("report.metric", message + '"reward"', ("evaluation.num_problems",))
    if (needs or (report.metric == "auto" and not off)) and not off:
        yield from _evaluations(config, conditions)


def label_problems(report: ReportConfig, labels: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(key, message) for each condition that `[report]` names and that is not there."""
    if report.baseline and report.baseline not in labels:
        yield "baseline", _no_label(report.baseline, labels)
    seen = set()
    for contrast in report.contrasts:
        try:
            pair = contrast_labels(contrast)
        except ValueError as error:
            yield "contrasts", f"{show(contrast)} {error}"
            continue
        for label in pair:
            if label not in labels:
                yield "contrasts", _no_label(label, labels)
        if frozenset(pair) in seen:
            yield "contrasts", f"{show(contrast)} is there twice"
        seen.add(frozenset(pair))


def _evaluations(config: RetrainConfig, conditions: Sequence[Condition]) -> Iterator[Finding]:
    """Whether every run is evaluated as often as `[report]` needs."""
    report = config.report
    for condition in conditions:
        evaluation, steps = condition.config.evaluation, condition.config.training.max_steps
        after = -(-steps // evaluation.every) if evaluation.every else 1
        count = after + int(evaluation.before_training)
        if report.summary != "final" and count < 2:
            message = f"a curve needs 2 evaluations, and a run has {count}; set [evaluation] every"
            yield Finding("report.summary", message, ("evaluation.every",))
            return
        if report.summary == "final" and report.window > count:
            message = f"{report.window} is more than the {count} evaluations of a run"
            yield Finding("report.window", message, ("evaluation.every",))
            return


def _no_label(label: str, labels: Sequence[str]) -> str:
    hint = did_you_mean(label, labels) or f"; the conditions are {', '.join(labels)}"
    return f"no condition {show(label)}{hint}"


def _devices(campaign: CampaignConfig, conditions: Sequence[Condition]) -> Iterator[Finding]:
    devices = campaign.device_list
    if devices and all(one.config.backend.backend == "tinker" for one in conditions):
        message = (
            'no model runs here with backend = "tinker", so it does nothing but limit the workers; '
            "max_workers says that plainly"
        )
        yield Finding("campaign.devices", message, is_error=False)
    for device in devices:
        if problem := no_device(device):
            yield Finding("campaign.devices", problem)
    twice = sorted({d for d in devices if d.startswith("cuda") and devices.count(d) > 1})
    if twice:
        message = f"{twice[0]} is there more than once; each device takes one worker"
        yield Finding("campaign.devices", message)
    if devices and campaign.max_workers > len(devices):
        message = (
            f"{campaign.max_workers} workers, but only {len(devices)} in devices, which takes one "
            "worker each; list more of them, or drop max_workers"
        )
        yield Finding("campaign.max_workers", message, ("campaign.devices",))


def check_squeeze(config: RetrainConfig, conditions: Sequence[Condition]) -> Iterator[Finding]:
    squeeze = config.squeeze
    if squeeze is None:
        return
    if config.campaign is None and not squeeze.adapter_path:
        message = "is missing: [squeeze] without [campaign] is about one adapter; name its folder"
        yield Finding("squeeze.adapter_path", message)
    if config.campaign is not None:
        ranks = {condition.config.model.lora_rank for condition in conditions}
        for key in ("source_rank", "compress_to"):
            asked = getattr(squeeze, key)
            wrong = asked > min(ranks) if key == "compress_to" else asked and {asked} != ranks
            if wrong:
                trained = ", ".join(map(str, sorted(ranks)))
                yield Finding(f"squeeze.{key}", f"{asked}, but the runs train rank {trained}")
        for key in ("adapter_path", "adapter_name", "output_path"):
            if getattr(squeeze, key):
                message = "a campaign squeezes the first run that succeeds, into squeeze/"
                yield idle(f"squeeze.{key}", message)
    if squeeze.finetune_steps and not squeeze.check:
        message = f"{squeeze.finetune_steps} steps are judged by the check; set check = true"
        yield Finding("squeeze.finetune_steps", message)
    if squeeze.allocation == "per_module" and squeeze.finetune_steps:
        message = (
            f"{squeeze.finetune_steps} steps would need an adapter of one rank to train on; set "
            'allocation = "uniform"'
        )
        yield Finding("squeeze.finetune_steps", message)
    rank = squeeze.source_rank
    if rank and squeeze.compress_to > rank:
        yield Finding("squeeze.compress_to", f"{squeeze.compress_to} is above source_rank = {rank}")
    if beyond := [target for target in squeeze.target_ranks if rank and target > rank]:
        yield Finding("squeeze.target_ranks", f"{beyond[0]} is above source_rank = {rank}")
    if problem := no_device(squeeze.device):
        yield Finding("squeeze.device", problem)
