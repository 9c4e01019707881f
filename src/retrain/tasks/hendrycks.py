"""The MATH data set (Hendrycks et al. 2021, "Measuring Mathematical Problem Solving With the MATH
Dataset"), from the hub: trained on its training problems, judged on its test problems.

The reference answer is the last `\\boxed{}` of the solution, the domain the subject. Both lists
stand in an order of hashes, so that any first part of them is a fair sample of the subjects.
"""

from __future__ import annotations

from pathlib import Path

from retrain import seeding
from retrain.analysis.words import plural
from retrain.config.data import DataConfig
from retrain.errors import InputError
from retrain.rewards.match import last_boxed
from retrain.tasks.hub import HubData, rows
from retrain.tasks.problems import ProblemListTask
from retrain.tasks.rows import problem_id
from retrain.types import Problem

REPO = "EleutherAI/hendrycks_math"
MEGABYTES_A_SUBJECT = 1
INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


def hendrycks_parts(data: DataConfig) -> list[HubData]:
    """What `source = "math"` reads: one configuration a subject."""
    if data.path and not Path(data.path).is_dir():
        raise InputError(
            f"data.path: there is no folder {data.path}; for math it is a copy of {REPO}, or leave "
            "it out"
        )
    repo = str(Path(data.path)) if data.path else REPO
    return [HubData(repo, subject, data.revision) for subject in data.subjects]


def read_hendrycks_task(data: DataConfig) -> ProblemListTask:
    """The task. Raises InputError when the data set is not on this machine."""
    parts = hendrycks_parts(data)
    notes: list[str] = []
    train = _problems(parts, "train", notes)
    held_out = _problems(parts, "test", notes)
    if not train:
        raise InputError(f"data.source: {parts[0].repo} holds no training problem")
    task = ProblemListTask("math", train, held_out, data.shuffle)
    return task.noted(("data.source", note) for note in notes).apart()


def _problems(parts: list[HubData], split: str, notes: list[str]) -> list[Problem]:
    """The problems of one split of all subjects, in a fixed order that mixes them."""
    problems: dict[str, Problem] = {}
    unboxed = repeated = 0
    for part in parts:
        for place, row in rows(part, split, "data.subjects"):
            if not all(isinstance(row.get(name), str) for name in ("problem", "solution")):
                raise InputError(
                    f"data.path: {part} {split}, {place}: `problem` and `solution` are wanted; the "
                    f"fields are {', '.join(row)}"
                )
            answer = last_boxed(row["solution"])
            if answer is None or not answer.strip():
                unboxed += 1
                continue
            problem = Problem(
                id=f"math:{problem_id(row['problem'])}",
                prompt=row["problem"],
                answer=answer,
                domain=part.subset,
                metadata={"level": row["level"]} if row.get("level") else {},
            )
            repeated += problem.id in problems
            problems.setdefault(problem.id, problem)
    for count, reason in (
        (unboxed, "the solution has no \\boxed{} answer"),
        (repeated, "the same problem again"),
    ):
        if count:
            notes.append(f"MATH {split}: {plural(count, 'problem')} left out: {reason}")
    return sorted(problems.values(), key=lambda problem: seeding.key(0, "math/order", problem.id))
