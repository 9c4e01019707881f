"""Options that several verbs share: short forms of `--set table.key=…`, and seeds."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from retrain.errors import InputError

SHORTHANDS: dict[str, tuple[str, str, type, str]] = {
    "--seed": ("training", "seed", int, "Seed of a single run."),
    "--max-steps": ("training", "max_steps", int, "Training steps a run."),
    "--lr": ("training", "lr", float, "Learning rate."),
    "--batch-size": ("training", "batch_size", int, "Problems a step."),
    "--group-size": ("training", "group_size", int, "Completions a problem."),
    "--max-tokens": ("training", "max_tokens", int, "Longest completion."),
    "--temperature": ("training", "temperature", float, "Sampling temperature."),
    "--model": ("model", "model", str, "embedded, a folder, or a hub id."),
    "--lora-rank": ("model", "lora_rank", int, "Rank of the adapter."),
    "--advantage-mode": ("algorithm", "advantage_mode", str, "grpo, maxrl, or a plugin."),
    "--transform-mode": ("algorithm", "transform_mode", str, "none, gtpo, …, or a plugin."),
    "--device": ("backend", "device", str, "auto, cpu, cuda, cuda:1."),
    "--log-dir": ("logging", "log_dir", str, "Folder under which results are written."),
}
"""Options that are short for `--set table.key=…`: table, key, type, help."""


def takes_overrides(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb `--set` and the shorthand options; it receives them all as `overrides`."""
    names = {flag.removeprefix("--").replace("-", "_"): flag for flag in SHORTHANDS}

    def wrapped(sets: list[str] | None = None, **arguments: Any) -> None:
        from retrain.config.load import Override, parse_set

        overrides = [parse_set(text) for text in sets or ()]
        for name, flag in names.items():
            value = arguments.pop(name)
            if value is not None:
                table, key, *_ = SHORTHANDS[flag]
                overrides.append(Override(table, key, value, flag))
        verb(overrides=overrides, **arguments)

    set_help = "Override any key of the config; repeatable."
    set_option = typer.Option("--set", metavar="TABLE.KEY=VALUE", help=set_help)
    annotations: dict[str, Any] = {
        **{
            name: Annotated[kind | None, typer.Option(flag, help=text)]
            for name, flag in names.items()
            for _, _, kind, text in [SHORTHANDS[flag]]
        },
        "sets": Annotated[list[str] | None, set_option],
    }
    own = inspect.signature(verb, eval_str=True).parameters
    path, *others = [p for p in own.values() if p.name != "overrides"]
    keyword = inspect.Parameter.KEYWORD_ONLY
    added = [
        inspect.Parameter(name, keyword, default=None, annotation=annotation)
        for name, annotation in annotations.items()
    ]
    parameters = [path, *added, *(p.replace(kind=keyword) for p in others)]
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
    wrapped.__name__, wrapped.__doc__ = verb.__name__, verb.__doc__
    return wrapped


def parse_seeds(text: str | None) -> list[int] | None:
    """`1,2,3` -> [1, 2, 3]."""
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        message = f"--seeds {text}: write whole numbers with commas between, e.g. --seeds 42,101"
        raise InputError(message) from None
