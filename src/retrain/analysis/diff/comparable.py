"""Whether two sides can be compared at all, and what stands in the way, in plain words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from retrain.analysis.diff.configs import ConfigDifferences, Difference
from retrain.analysis.diff.sides import Match, Side
from retrain.analysis.power import smallest_p
from retrain.analysis.reading import items, load_object
from retrain.analysis.records import RunView
from retrain.analysis.words import plural
from retrain.config.changes import CONTENTS
from retrain.config.messages import show
from retrain.files import evaluation_files

EVALUATED = ("evaluation.num_problems", "evaluation.samples_per_problem", "evaluation.temperature")
LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Comparable:
    """What two sides have in common; None is not known."""

    same_model: bool | None
    same_task: bool | None
    same_reward: bool | None
    same_held_out: bool | None
    """By the ids of the problems that were evaluated, and the content of the data where known."""
    warnings: tuple[str, ...]
    """What forbids or weakens a conclusion from the numbers."""

    @property
    def comparable(self) -> bool:
        """Nothing that is known makes the held-out accuracies answers to different questions."""
        return False not in self._same

    @property
    def verdict(self) -> str:
        """`comparable` as a word."""
        if not self.comparable:
            return "no"
        return "as far as known" if None in self._same else "yes"

    @property
    def _same(self) -> tuple[bool | None, ...]:
        return self.same_model, self.same_task, self.same_reward, self.same_held_out


def compare_ground(match: Match, differences: ConfigDifferences, identical: bool) -> Comparable:
    """Same model, task, reward, held-out problems? Same seeds, steps, states?

    identical: all numbers of all pairs are the same, so that there is nothing for chance to do.
    """
    changed = {difference.key: difference for difference in differences.decisive}
    held_out, shared = _held_out(match)

    def same(content: str, *prefixes: str) -> bool | None:
        if content in changed or any(key.startswith(prefixes) for key in changed):
            return False
        return None if differences.unreadable else True

    ground = Comparable(
        same_model=same("model", "model.model", "model.revision"),
        same_task=same("data", "data."),
        same_reward=same("reward", "reward."),
        # Where the problems are others, the same ids do not say that these ones are the same.
        same_held_out=None if held_out and "data" in changed else held_out,
        warnings=(),
    )
    unreadable = dict.fromkeys(differences.unreadable)
    warnings = [
        *_ground_warnings(ground, changed, shared),
        *_evaluation_warnings(changed),
        *([] if identical else _pair_warnings(match)),
        *_state_warnings(match.a, "A"),
        *_state_warnings(match.b, "B"),
        *_cost_warnings(differences),
        *(f"{path} is missing or damaged: its config is unknown" for path in unreadable),
    ]
    return replace(ground, warnings=tuple(warnings))


def _ground_warnings(
    ground: Comparable, changed: Mapping[str, Difference], shared: str
) -> list[str]:
    warnings = []
    if ground.same_model is False:
        keys = ("model", "model.model", "model.revision")
        warnings.append(f"not the same model: {_values(changed, *keys)}")
    if ground.same_task is False:
        found = [key for key in changed if key == "data" or key.startswith("data.")]
        warnings.append(f"not the same task: {_values(changed, *found)}")
    if ground.same_reward is False:
        warnings.append("not the same reward: mean rewards, and what counts as correct, differ")
    if ground.same_held_out is False:
        warnings.append(f"not the same held-out problems ({shared}): accuracies do not compare")
    return warnings


def _evaluation_warnings(changed: Mapping[str, Difference]) -> list[str]:
    warnings = []
    keys = [key for key in EVALUATED if key in changed]
    if keys:
        warnings.append(f"not evaluated alike: {_values(changed, *keys)}")
    if "training.max_tokens" in changed:
        warnings.append(
            f"completions end at different lengths, held-out ones as well: "
            f"{_values(changed, 'training.max_tokens')}"
        )
    if "training.max_steps" in changed:
        lengths = _values(changed, "training.max_steps")
        warnings.append(f"not equally long: {lengths}; curves end with the shorter one")
    if any(key in changed for key in ("training.batch_size", "training.group_size")):
        warnings.append("a step is not the same number of completions: compare by tokens")
    return warnings


def _pair_warnings(match: Match) -> list[str]:
    count = len(match.pairs)
    if match.kind == "runs":
        different = match.pairs[0].seed is None
        return [
            "one run each: "
            + ("the seeds differ, and " if different else "")
            + "what two runs differ by may be chance; compare conditions over seeds"
        ]
    if not count:
        return ["no seed in common: nothing can be paired, so there are no curves and no costs"]
    if count == 1:
        return ["one pair of seeds gives no interval: the difference may be chance"]
    least = smallest_p(count)
    if least > LEVEL:
        return [f"{count} pairs cannot show a difference: no sign-flip p below {least:.2g}"]
    return []


def _state_warnings(side: Side, name: str) -> list[str]:
    states = Counter(run.state for run in side.runs)
    open_ = sum(states[state] for state in ("running", "stalled", "pending"))
    warnings = []
    if open_:
        warnings.append(f"{name}: {open_} of {plural(len(side.runs), 'run')} not finished yet")
    if states["diverged"]:
        warnings.append(
            f"{name}: {plural(states['diverged'], 'run')} diverged, and counts only up to there: "
            "pairs without it flatter this side"
        )
    if ended := sum(states[state] for state in ("failed", "lost", "stopped")):
        warnings.append(f"{name}: {plural(ended, 'run')} ended early, and counts only up to there")
    return warnings


def _cost_warnings(differences: ConfigDifferences) -> list[str]:
    keys = {difference.key for difference in differences.environment}
    places = [name for name in ("host", "device", "threads") if name in keys]
    return [f"seconds do not compare: another {' and '.join(places)}"] if places else []


def _held_out(match: Match) -> tuple[bool | None, str]:
    """Whether every pair was evaluated on the same problems, and how many are shared if not."""
    known = False
    for pair in match.pairs:
        a, b = _problem_ids(pair.a), _problem_ids(pair.b)
        if not a or not b:
            continue
        known = True
        if set(a) != set(b):
            return False, f"A has {len(a)}, B has {len(b)}, {len({*a} & {*b})} are in both"
    return (True if known else None), ""


def _problem_ids(run: RunView) -> Sequence[str]:
    files = list(evaluation_files(run.folder).values())
    problems = items(load_object(files[-1]), "problems") if files else []
    return [str(problem.get("id")) for problem in problems if isinstance(problem, dict)]


def _values(changed: Mapping[str, Difference], *keys: str) -> str:
    return "; ".join(
        f"{CONTENTS.get(key, key)} {show(changed[key].a)} and {show(changed[key].b)}"
        for key in keys
        if key in changed
    )
