"""`retrain explain`: what a config would do, before it does it. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from retrain.analysis.words import duration, plural
from retrain.config.explain_design import (
    comparison_words,
    design_of,
    detectable_words,
    too_few_seeds,
)
from retrain.config.explain_memory import memory_rows
from retrain.config.explain_order import order, order_rows
from retrain.config.load import EMBEDDED, LoadedConfig, tables_of
from retrain.config.messages import show
from retrain.config.schema import RunConfig
from retrain.terminal import Terminal

MOST_SEED_COLUMNS = 10


def explain(loaded: LoadedConfig, warnings: Sequence[str] = ()) -> dict[str, Any]:
    """Everything that `render` shows, as plain JSON."""
    if loaded.is_squeeze:
        return _squeeze(loaded, warnings)
    configs = [loaded.run_config(condition, loaded.seeds[0]) for condition in loaded.conditions]
    steps = [config.training.max_steps for config in configs]
    design = design_of(loaded)
    return {
        "config": str(loaded.path) if loaded.path else None,
        "kind": "campaign" if loaded.is_campaign else "run",
        "values": _values(loaded),
        "conditions": [
            {
                "label": condition.label,
                "advantage_mode": condition.advantage_mode,
                "transform_mode": condition.transform_mode,
                "changes": condition.changes,
                "max_steps": max_steps,
            }
            for condition, max_steps in zip(loaded.conditions, steps, strict=True)
        ],
        "seeds": list(loaded.seeds),
        "runs": [
            {
                "name": f"{condition.label}_s{seed}",
                "condition": condition.label,
                "seed": seed,
                "max_steps": max_steps,
            }
            for condition, max_steps in zip(loaded.conditions, steps, strict=True)
            for seed in loaded.seeds
        ],
        "step": _step(loaded),
        "backend": _backend(loaded),
        "memory": _memory(loaded),
        "order": order(loaded),
        "capacity": _capacity(loaded),
        "design": design,
        "notes": list(_notes(loaded)),
        "warnings": [*too_few_seeds(design), *warnings],
    }


def _values(loaded: LoadedConfig) -> dict[str, dict[str, Any]]:
    """table -> key -> value, its source, and the conditions that change it."""
    values: dict[str, dict[str, Any]] = {}
    for name, table in tables_of(loaded.config):
        values[name] = {
            key: {
                "value": value,
                "source": loaded.sources[f"{name}.{key}"],
                "conditions": _changers(loaded, f"{name}.{key}"),
            }
            for key, value in table.model_dump(exclude={"conditions", "stopping"}).items()
        }
    if loaded.is_campaign:
        values["training"]["seed"] = {
            "value": None,
            "source": "campaign.seeds",
            "conditions": [],
        }
    return values


def _changers(loaded: LoadedConfig, place: str) -> list[str]:
    """Labels of the conditions that set a key."""
    if place == "algorithm.algorithm_mode" and not loaded.config.algorithm.algorithm_mode:
        # Conditions with modes of their own put an algorithm_mode out of force, if there is one.
        return [
            c.label for c in loaded.conditions if "algorithm_mode" in c.changes.get("algorithm", {})
        ]
    return [condition.label for condition in loaded.conditions if place in condition.written]


def _step(loaded: LoadedConfig) -> dict[str, Any]:
    """The size of a step of the base config."""
    training = loaded.config.training
    return {
        "problems": training.batch_size,
        "completions": training.batch_size * training.group_size,
        "max_tokens": training.batch_size * training.group_size * training.max_tokens,
        "updates": training.updates_per_batch * training.minibatches,
    }


def _backend(loaded: LoadedConfig) -> dict[str, Any]:
    from retrain.models.folder import inspect
    from retrain.policies.backends import capabilities_of

    config = loaded.run_config(loaded.conditions[0], loaded.seeds[0])
    model = inspect(config.model, loaded.base_dir)
    capabilities = asdict(capabilities_of(config))
    local = config.backend.backend == "local"
    return {
        "backend": config.backend.backend,
        "device": config.backend.device if local else config.model.base_url or "the service",
        "model": config.model.model,
        "context": model.context if local or config.model.model == EMBEDDED else None,
        "downloaded": model.path is not None,
        "sampled_by": config.inference.engine,
        "server": _server(config),
        **capabilities,
        "losses": sorted(capabilities["losses"]),
    }


def _server(config: RunConfig) -> str:
    """What samples, in words; empty when it is this process."""
    inference = config.inference
    if inference.engine == "openai":
        return f"the server at {inference.url}"
    if inference.engine == "vllm":
        return f"{inference.command}, started here"
    return ""


def _memory(loaded: LoadedConfig) -> dict[str, Any] | None:
    """Of the first condition's runs."""
    from retrain.experiments.memory import run_memory

    run = loaded.run_config(loaded.conditions[0], loaded.seeds[0])
    return run_memory(run, loaded.base_dir, loaded.data_bytes)


def _capacity(loaded: LoadedConfig) -> dict[str, Any]:
    from retrain.analysis import capacity
    from retrain.experiments.plan import first_runs, plan_runs
    from retrain.experiments.workers import plan_workers

    campaign = loaded.config.campaign
    now = first_runs(plan_runs(loaded), campaign.max_runs if campaign else 0)
    configs = [run.config for run in now]
    total = sum(capacity.total_campaign_steps(1, 1, run.training.max_steps) for run in configs)
    parallelism = 1
    note = ""
    if campaign is not None:
        plan = plan_workers(campaign, configs)
        note = plan.note
        parallelism = capacity.effective_parallelism(
            len(configs),
            parallel=campaign.parallel,
            max_workers=campaign.max_workers,
            available=plan.workers,
        )
    measured = capacity.measured_step_time(Path(configs[0].logging.log_dir), configs[0])
    seconds = None
    if measured is not None:
        seconds = capacity.estimated_wall_time(total, measured.seconds, parallelism)
    return {
        "total_runs": len(configs),
        "total_campaign_steps": total,
        "effective_parallelism": parallelism,
        "parallelism_note": note,
        "median_step_time_s": measured.seconds if measured else None,
        "measured_runs": measured.runs if measured else 0,
        "same_shape": measured.same_shape if measured else False,
        "estimated_wall_time_s": seconds,
    }


def _notes(loaded: LoadedConfig) -> Iterator[str]:
    taken = [c for c in loaded.conditions if "data.source" not in c.written]
    if loaded.sources["data.source"] == "default":
        for model, source, reward in dict.fromkeys(
            (c.config.model.model, c.config.data.source, c.config.reward.type) for c in taken
        ):
            what = "MATH (hendrycks/MATH)" if source == "math" else source
            yield (
                f"trains on {what} with the {reward} reward: [data] names no source, and the model "
                f"is {model}"
            )
    yield from _downloads(loaded)
    model = loaded.config.model.model
    if model == EMBEDDED:
        yield "the embedded model is a toy: it shows that a method works, not how well"


def _downloads(loaded: LoadedConfig) -> Iterator[str]:
    """The data sets that are not on this machine yet, each once."""
    from retrain.errors import InputError
    from retrain.tasks.download import describe, missing

    told = set()
    for condition in loaded.conditions:
        try:
            wanted = missing(loaded.run_config(condition, loaded.seeds[0]).data)
        except InputError:
            # It is in error, which has been told.
            continue
        if wanted and tuple(wanted) not in told:
            told.add(tuple(wanted))
            yield f"before training the data set will be downloaded: {describe(wanted)}"


def _squeeze(loaded: LoadedConfig, warnings: Sequence[str]) -> dict[str, Any]:
    """Of a config that trains nothing: the tables that it may read."""
    squeeze = loaded.config.squeeze
    assert squeeze is not None
    tables = ["squeeze", "logging"]
    if squeeze.check:
        tables = ["model", "training", "data", "reward", "evaluation", "backend", *tables]
    values = _values(loaded)
    does = [f"shows how much each rank keeps of {squeeze.adapter_path}"]
    if squeeze.output_path:
        rank = f"rank {squeeze.compress_to}" if squeeze.compress_to else "the recommended rank"
        does.append(f"writes it cut to {rank} to {squeeze.output_path}")
    if squeeze.check:
        does.append(
            "evaluates both on the held-out problems, of the adapter's run if none are here"
        )
    if squeeze.finetune_steps:
        does.append(f"trains it on for {plural(squeeze.finetune_steps, 'step')}, evaluates again")
    return {
        "config": str(loaded.path) if loaded.path else None,
        "kind": "squeeze",
        "values": {table: values[table] for table in tables},
        "conditions": [],
        "does": does,
        "notes": ["nothing is trained" if not squeeze.finetune_steps else "no run is trained"],
        "warnings": list(warnings),
    }


def render(explanation: dict[str, Any], console: Console | None = None) -> None:
    """Show an explanation: values first, what matters most last."""
    console = console or Terminal()
    if explanation["kind"] == "squeeze":
        does = [Text(f"  {line}") for line in explanation["does"]]
        parts = (Text(), _heading("squeeze"), *does, _remarks_view(explanation))
        console.print(Group(_values_view(explanation), *parts))
        return
    console.print(
        Group(
            _values_view(explanation),
            _runs_view(explanation),
            _summary_view(explanation),
            _remarks_view(explanation),
        )
    )


def _columns(*styles: str) -> Table:
    table = Table.grid(padding=(0, 2))
    for style in styles:
        table.add_column(style=style, overflow="fold")
    return table


def _heading(text: str) -> Text:
    return Text(text, style="bold")


def _values_view(explanation: dict[str, Any]) -> RenderableType:
    view = _columns("", "", "dim")
    for name, keys in explanation["values"].items():
        view.add_row(_heading(f"[{name}]"))
        for key, entry in keys.items():
            changed, value = entry["conditions"], entry["value"]
            source = entry["source"]
            if len(changed) == len(explanation["conditions"]) and changed:
                shown, source = "", "set by every condition"
            else:
                shown = "" if value is None else show(value)
                source += f", changed in {', '.join(changed)}" if changed else ""
            style = "dim" if source == "default" else ""
            view.add_row(Text(f"  {key}", style), Text(shown, style), Text(source))
    return view


def _runs_view(explanation: dict[str, Any]) -> RenderableType:
    if explanation["kind"] == "run":
        return Text()
    seeds = explanation["seeds"]
    wide = len(seeds) > MOST_SEED_COLUMNS
    conditions = _columns("", "", "", "")
    matrix = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    matrix.add_column("steps a run, under seed" if not wide else "steps a run")
    for seed in [f"{len(seeds)} seeds"] if wide else map(str, seeds):
        matrix.add_column(seed, justify="right")
    for condition in explanation["conditions"]:
        changes = [
            f"{table}.{key} = {show(value)}"
            for table, keys in condition["changes"].items()
            for key, value in keys.items()
        ]
        label = Text(condition["label"])
        modes = f"{condition['advantage_mode']}, {condition['transform_mode']}"
        conditions.add_row(label, Text(modes), Text("; ".join(changes)))
        matrix.add_row(label, *[str(condition["max_steps"])] * (1 if wide else len(seeds)))
    parts: list[RenderableType] = [
        Text(),
        _heading("conditions"),
        Padding(conditions, (0, 0, 1, 2)),
    ]
    parts += [_heading("runs"), Padding(matrix, (0, 0, 0, 2))]
    return Group(*parts)


def _summary_view(explanation: dict[str, Any]) -> RenderableType:
    step, backend, capacity = (explanation[key] for key in ("step", "backend", "capacity"))
    runs = explanation["runs"]
    view = _columns("", "")
    view.add_row(
        "total",
        f"{plural(len(explanation['conditions']), 'condition')} x "
        f"{plural(len(explanation['seeds']), 'seed')} = {plural(len(runs), 'run')}, "
        f"{plural(sum(run['max_steps'] for run in runs), 'step')}",
    )
    for heading, text in order_rows(explanation):
        view.add_row(heading, text)
    view.add_row(
        "a step",
        f"{plural(step['problems'], 'problem')}, {step['completions']:,} completions of at most "
        f"{step['max_tokens'] // step['completions']:,} tokens, "
        f"{plural(step['updates'], 'optimizer step')}",
    )
    context = backend["context"]
    size = f"{context:,} tokens of context" if context else "context not known yet"
    view.add_row("model", Text(f"{backend['model']}, {size}"))
    can = [f"losses {', '.join(backend['losses'])}"]
    cannot: list[str] = []
    for key, words in (
        ("exact_resume", "exact resume"),
        ("token_entropies", "token entropies"),
        ("kl_to_base", "KL to the base model"),
        ("tempered_loss", "other temperatures and top_p in training"),
        ("dual_clip", "dual clip"),
    ):
        (can if backend[key] else cannot).append(words)
    view.add_row("backend", f"{backend['backend']} on {backend['device']}")
    if backend["sampled_by"] != "local":
        server = f"{backend['server']}; updates are made here"
        view.add_row("sampled by", Text(server))
    view.add_row("  can", "; ".join(reversed(can)))
    view.add_row("  cannot", "; ".join(cannot) or "nothing that this config could ask for")
    at_a_time = plural(capacity["effective_parallelism"], "run")
    for heading, text in memory_rows(explanation["memory"]) if explanation["memory"] else ():
        view.add_row(heading, text)
    view.add_row("at a time", capacity["parallelism_note"] or at_a_time)
    view.add_row("time", _time_words(capacity))
    if (design := explanation["design"]) is not None:
        view.add_row("compares", Text(comparison_words(design)))
        view.add_row("can show", detectable_words(design))
    return Group(Text(), _heading("summary"), Padding(view, (0, 0, 0, 2)))


def _time_words(capacity: dict[str, Any]) -> str:
    if capacity["median_step_time_s"] is None:
        return "unknown: the log folder has no earlier run to take a step time from"
    alike = "like these" if capacity["same_shape"] else "of another shape"
    return (
        f"about {duration(capacity['estimated_wall_time_s'])} without evaluations: "
        f"{capacity['total_campaign_steps']} steps x "
        f"{duration(capacity['median_step_time_s'])} / {capacity['effective_parallelism']} "
        f"(median of {plural(capacity['measured_runs'], 'earlier run')} {alike})"
    )


def _remarks_view(explanation: dict[str, Any]) -> RenderableType:
    lines: list[RenderableType] = []
    for note in explanation["notes"]:
        lines.append(Text.from_markup(f"[cyan]note[/] {escape(note)}"))
    for warning in explanation["warnings"]:
        lines.append(Text.from_markup(f"[yellow]warning[/] {escape(warning)}"))
    return Group(Text(), *lines) if lines else Text()
