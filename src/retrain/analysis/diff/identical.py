"""Whether two runs of the same config and seed wrote the same numbers, and where they part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from retrain.analysis.diff.configs import Config, computes_the_same
from retrain.analysis.diff.sides import RunPair
from retrain.analysis.reading import items, iter_rows, load_object
from retrain.analysis.records import RunView
from retrain.files import EVALUATION_FOLDER

MEASURED = frozenset({"tokens_per_second", "peak_memory_mb"})
"""Besides the times, what the config does not determine (docs/files.md)."""

NAMES = frozenset({"condition"})
"""What a run is called has no say in its numbers."""

UPDATE = frozenset(
    {
        *("loss", "grad_norm", "ratio_mean", "ratio_max", "log_ratio_mean", "clip_fraction"),
        *("kl_to_sampler", "kl_to_base", "lr", "num_updates"),
    }
)
"""Keys of a row that tell of the update; those that are not held-out tell of the rollout."""

Stage = Literal["evaluation", "rollout", "update"]
"""What differs first: the completions of a step, its update although the completions agree, or
nothing but a held-out evaluation."""


@dataclass(frozen=True, slots=True)
class Value:
    """A key with its two values; None is null or absent."""

    key: str
    a: Any
    b: Any


@dataclass(frozen=True, slots=True)
class Parting:
    """Where two runs that should be the same first differ."""

    step: int | None
    """The row's step; None is the evaluation before training."""
    stage: Stage
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Sameness:
    """Whether the metrics of two runs of one config and seed are the same, bit for bit."""

    pair: str
    seed: int
    steps: int
    """Steps that both have written and that were compared."""
    parting: Parting | None
    """None: all of them are the same."""


def compare_rows(pair: RunPair, a: Config | None, b: Config | None) -> Sameness | None:
    """Every key of every common step but the times; None for runs that need not agree.

    They need to when their seed is the same and their configs (`a` and `b`) compute the same. The
    numbers are compared as they were written, so that 0.0 and -0.0 differ, as their bits do.
    """
    if pair.seed is None or a is None or b is None or not computes_the_same(a, b):
        return None
    # Other steps may be evaluated where only the length or `evaluation.every` differs.
    same_steps = all(a.get(k) == b.get(k) for k in ("training.max_steps", "evaluation.every"))
    before = _before_training(pair.a), _before_training(pair.b)
    parting: Parting | None = None
    if all(before) and (values := _different(*before)):
        parting = Parting(None, "evaluation", values)
    rows_b = {row["step"]: row for row in iter_rows(pair.b.metrics) if "step" in row}
    steps = 0
    for row in iter_rows(pair.a.metrics):
        other = rows_b.get(row.get("step"))
        if other is None:
            continue
        steps += 1
        if parting is None and (values := _different(row, other, evaluated=same_steps)):
            parting = Parting(int(row["step"]), _stage(values), values)
    return Sameness(pair.name, pair.seed, steps, parting)


def _before_training(run: RunView) -> dict[str, Any]:
    """The evaluation before training, flat: a key for each problem."""
    record = load_object(run.folder / EVALUATION_FOLDER / "step_000000.json")
    problems = [problem for problem in items(record, "problems") if isinstance(problem, dict)]
    return {
        **{key: value for key, value in record.items() if key != "problems"},
        **{f"problems/{problem.get('id')}": problem for problem in problems},
    }


def _different(
    a: Mapping[str, Any], b: Mapping[str, Any], *, evaluated: bool = True
) -> tuple[Value, ...]:
    found = []
    for key in dict.fromkeys([*a, *b]):
        if key.endswith("_time_s") or key in MEASURED | NAMES:
            continue
        one_sided = (key in a) != (key in b)
        if one_sided and key.startswith("held_out") and not evaluated:
            continue
        x, y = a.get(key), b.get(key)
        # 0.0 == -0.0 and 1 == 1.0, though not the same bits.
        if one_sided or repr(x) != repr(y):
            found.append(Value(key, x, y))
    return tuple(found)


def _stage(values: tuple[Value, ...]) -> Stage:
    keys = {value.key for value in values if not value.key.startswith("held_out")}
    if not keys:
        return "evaluation"
    return "update" if keys <= UPDATE else "rollout"
