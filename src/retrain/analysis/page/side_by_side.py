"""Which completions a report shows: the same problem under the same seed, in every condition.

A campaign can hold gigabytes of completions. A few seeds and steps are chosen before anything is
read, and rows of a step are found in a file by bisection, so that a thousand runs cost no more than
a few.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from retrain.analysis.reading import last_rows, number, parse_object
from retrain.analysis.records import CampaignRecord, RunView
from retrain.analysis.samples.look import one_line, shown_number
from retrain.analysis.samples.sample import Sample, Span, read_sample
from retrain.analysis.settings import ReportSettings
from retrain.files import GENERATIONS_FILE
from retrain.output import visible

BUDGET = 1_000_000
"""Bytes of JSON, about."""
MOST_STEPS, MOST_SEEDS = 12, 8
HEAD, TAIL = 6_000, 2_000
"""Characters that are kept of a longer text: where texts part, and the answer."""
PROMPT = 3_000
WINDOW = 1 << 16
"""Bytes of a file that are looked through line by line."""

_STEP = re.compile(rb'\s*\{\s*"step"\s*:\s*(\d{1,15})\s*[,}]')


@dataclass(frozen=True, slots=True)
class Group:
    """What the conditions wrote in answer to one problem, under one seed, at one step."""

    seed: int
    step: int
    place: int
    """Its place among the step's logged completions."""
    samples: Mapping[str, Sample]
    """By condition; without those that have none here."""

    @property
    def first(self) -> Sample:
        return next(iter(self.samples.values()))

    @property
    def outcomes_differ(self) -> bool:
        return len({sample.outcome for sample in self.samples.values()}) > 1

    @property
    def interest(self) -> tuple[bool, bool, int]:
        """Smaller is more interesting: outcomes that differ, then texts that differ."""
        texts = {sample.completion for sample in self.samples.values()}
        return (not self.outcomes_differ, len(texts) < 2, self.place)

    def document(self, labels: Sequence[str]) -> list[Any]:
        """Plain JSON: seed, step, problem, place in its group of completions, domain, answer,
        prompt, then one entry a condition: None, or outcome, reward, advantage, tokens, whether it
        was cut off, text, planning spans. All text is safe to show."""
        first = self.first
        prompt = prompt_of(first)
        if any(sample.prompt != first.prompt for sample in self.samples.values()):
            prompt += (
                f"\n[… {one_line(first.condition)}; other conditions were prompted otherwise …]"
            )
        return [
            self.seed,
            self.step,
            one_line(first.problem_id),
            first.number,
            one_line(first.domain),
            one_line(first.answer),
            prompt,
            [_entry(self.samples[label]) if label in self.samples else None for label in labels],
        ]


@dataclass(frozen=True, slots=True)
class Choice:
    """What is shown; `groups` in the order in which they were chosen."""

    conditions: tuple[str, ...]
    """The baseline first."""
    groups: tuple[Group, ...]
    documents: tuple[list[Any], ...]
    """Of the groups."""
    whole: bool
    """Whether nothing that was logged at these steps, under these seeds, is left out."""


def choose(campaign: CampaignRecord, budget: int = BUDGET) -> Choice:
    """Completions to put side by side, within `budget` bytes.

    The first seeds that have any; steps spread evenly over training, the ends first; all problems
    of a step where there is room, else the most interesting ones. The same files always give the
    same choice.
    """
    baseline = _baseline(campaign)
    labels = tuple(dict.fromkeys((baseline, *campaign.conditions)))
    seeds = _seeds(campaign, labels)
    newest = max((_newest(path) for runs in seeds.values() for path in runs.values()), default=0)
    groups: list[Group] = []
    documents: list[list[Any]] = []
    spent, whole = 0, True
    for seed, paths in seeds.items():
        for step in spread(newest, MOST_STEPS):
            taken = 0
            for group in sorted(_groups(paths, seed, step), key=lambda group: group.interest):
                document = group.document(labels)
                size = len(json.dumps(document))
                # A step's share: one step with many long texts must not leave none of the others.
                if taken and taken + size > budget // MOST_STEPS:
                    whole = False
                    break
                if groups and spent + size > budget:
                    return Choice(labels, tuple(groups), tuple(documents), whole=False)
                groups.append(group)
                documents.append(document)
                taken += size
                spent += size
    return Choice(labels, tuple(groups), tuple(documents), whole)


def spread(newest: int, count: int) -> list[int]:
    """Up to `count` steps from 0 to `newest`, evenly; the ends first, then always the one that is
    farthest from those before it."""
    even = sorted({(2 * i * newest + count - 1) // (2 * (count - 1)) for i in range(count)})
    order = [even.pop(), *([even.pop(0)] if even else [])]
    while even:
        farthest = max(even, key=lambda step: (min(abs(step - s) for s in order), -step))
        even.remove(farthest)
        order.append(farthest)
    return order


def prompt_of(sample: Sample) -> str:
    """The prompt as text, safe to show."""
    parts = (
        (f"{one_line(message.role)}: " if message.role else "") + visible(message.content)
        for message in sample.prompt
    )
    text = "\n".join(parts)
    return text if len(text) <= PROMPT else f"{text[:PROMPT]}\n[… {len(text) - PROMPT:,} more …]"


def rows_of_step(path: Path, step: int) -> list[dict[str, Any]]:
    """The rows of one step of a JSONL file whose rows ascend by step; nothing without the file."""
    try:
        with path.open("rb") as file:
            return list(_rows_of_step(file, step))
    except OSError:
        return []


def _rows_of_step(file: BinaryIO, step: int) -> Iterator[dict[str, Any]]:
    low, high = 0, file.seek(0, 2)
    while high - low > WINDOW:
        middle = (low + high) // 2
        start, found = _line_after(file, middle)
        if found is None or found >= step:
            high = middle
        else:
            low = start
    file.seek(low)
    for line in file:
        found = _step_of(line)
        if found is not None and found > step:
            return
        if found == step and (row := parse_object(line)) is not None:
            yield row


def _line_after(file: BinaryIO, place: int) -> tuple[int, int | None]:
    """Where the next line begins that has a step, and its step; None at the end of the file."""
    file.seek(place)
    file.readline()
    while True:
        start = file.tell()
        line = file.readline()
        step = _step_of(line)
        if step is not None or not line:
            return start, step


def _step_of(line: bytes) -> int | None:
    # Rows begin with their step: long ones need not be parsed to be passed over.
    if match := _STEP.match(line, 0, 64):
        return int(match[1])
    step = number(parse_object(line) or {}, "step")
    return None if step is None else int(step)


def _baseline(campaign: CampaignRecord) -> str:
    settings = ReportSettings.of(campaign.manifest) or ReportSettings()
    return settings.baseline_of(campaign.conditions)


def _seeds(campaign: CampaignRecord, labels: Sequence[str]) -> dict[int, dict[str, Path]]:
    """The first seeds under which completions were logged: condition -> file."""
    by_seed: dict[int, dict[str, RunView]] = {}
    for run in campaign.runs:
        if run.seed is not None:
            by_seed.setdefault(run.seed, {}).setdefault(run.condition, run)
    found: dict[int, dict[str, Path]] = {}
    for seed, runs in by_seed.items():
        paths = {
            label: path
            for label in labels
            if label in runs and (path := runs[label].folder / GENERATIONS_FILE).is_file()
        }
        if paths:
            found[seed] = paths
        if len(found) == MOST_SEEDS:
            break
    return found


def _newest(path: Path) -> int:
    rows, _ = last_rows(path, 1)
    return int(number(rows[0], "step") or 0) if rows else 0


def _groups(paths: Mapping[str, Path], seed: int, step: int) -> list[Group]:
    """By problem and place in its group of completions: conditions may differ in their batches."""
    found: dict[tuple[str, int | None, int], dict[str, Sample]] = {}
    for label, path in paths.items():
        seen: Counter[tuple[str, int | None]] = Counter()
        for place, row in enumerate(rows_of_step(path, step)):
            # Tokens are not shown here, and take far longer to read than the text.
            row.pop("token_lengths", None)
            sample = read_sample(row, run="", condition=label, seed=seed, place=place)
            if sample is not None:
                key = (sample.problem_id, sample.number)
                found.setdefault((*key, seen[key]), {})[label] = sample
                seen[key] += 1
    return [
        Group(seed, step, min(sample.place for sample in samples.values()), samples)
        for samples in found.values()
    ]


def _entry(sample: Sample) -> list[Any]:
    text, spans = _shortened(visible(sample.completion), sample.planning)
    return [
        one_line(sample.outcome) or "not judged",
        shown_number(sample.reward),
        shown_number(sample.advantage, sign=True),
        sample.num_tokens,
        int(sample.stop_reason == "length"),
        text,
        spans,
    ]


def _shortened(text: str, spans: Sequence[Span]) -> tuple[str, list[Span]]:
    """The beginning and the end of a long text, and where its spans are then."""
    left_out = len(text) - HEAD - TAIL
    if left_out <= 0:
        return text, list(spans)
    gap = f"\n[… {left_out:,} characters left out …]\n"
    shift = len(gap) - left_out
    kept = [(start, min(end, HEAD)) for start, end in spans if start < HEAD]
    kept += [
        (max(start, HEAD + left_out) + shift, end + shift)
        for start, end in spans
        if end > HEAD + left_out
    ]
    return text[:HEAD] + gap + text[-TAIL:], kept
