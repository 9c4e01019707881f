"""What `retrain diff` compares: the words of the command line as runs, paired by seed."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from retrain.analysis.reading import subfolders
from retrain.analysis.records import CampaignRecord, RunView, find_records, read_campaign, read_run
from retrain.analysis.samples.look import one_line
from retrain.config.messages import near
from retrain.errors import InputError
from retrain.files import METRICS_FILE, RUN_FILE

Kind = Literal["runs", "conditions", "campaigns"]

FORMS = "give a run's folder, a campaign's folder, or CAMPAIGN:CONDITION"


@dataclass(frozen=True, slots=True)
class Side:
    """One of two things that are compared: a single run, or the runs of a condition."""

    name: str
    """What the user would write for it."""
    condition: str
    runs: tuple[RunView, ...]


@dataclass(frozen=True, slots=True)
class RunPair:
    """Two runs that are compared directly; `seed` is that of both, None when they differ."""

    seed: int | None
    a: RunView
    b: RunView

    @property
    def name(self) -> str:
        return f"seed {self.seed}" if self.seed is not None else f"{self.a.name}, {self.b.name}"


@dataclass(frozen=True, slots=True)
class Match:
    """Two sides, and what of them is compared with what."""

    kind: Literal["runs", "conditions"]
    a: Side
    b: Side
    pairs: tuple[RunPair, ...]
    """By seed for conditions, ascending; the two runs themselves otherwise."""
    only_a: tuple[int, ...] = ()
    """Seeds that only A has."""
    only_b: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that one call compares."""

    kind: Kind
    a: str
    b: str
    matches: tuple[Match, ...]
    """One, or for campaigns one a condition that both have, in the order of A."""
    only_a: tuple[str, ...] = ()
    """Conditions that only campaign A has."""
    only_b: tuple[str, ...] = ()


Target = RunView | tuple[CampaignRecord, str] | CampaignRecord


def plan_of(targets: Sequence[str], conditions: tuple[str, str] | None = None) -> Plan:
    """What the arguments mean: `A B`, or one campaign with two of its conditions.

    Raises InputError for what is not there, what cannot be compared, and what could be meant in
    two ways.
    """
    if conditions is not None:
        if len(targets) != 1:
            x, y = conditions
            remedy = f" {targets[0]}:{x} {targets[1]}:{y}" if len(targets) == 2 else ""
            raise InputError(
                "--conditions X Y is for two conditions of one campaign; to compare conditions of "
                f"two campaigns write: retrain diff{remedy or ' CAMPAIGN:X CAMPAIGN2:Y'}"
            )
        campaign = _target(targets[0])
        if not isinstance(campaign, CampaignRecord):
            raise InputError(f"--conditions is for a campaign, and {targets[0]} is not one")
        targets = [f"{targets[0]}:{label}" for label in conditions]
        found: list[Target] = [(campaign, _label(campaign, label)) for label in conditions]
    else:
        _refuse_bare(targets)
        found = [_target(target) for target in targets]
        if len(found) == 1:
            raise InputError(_one_alone(targets[0], found[0]))
        if len(found) != 2:
            raise InputError(f"two things are compared, and {len(found)} were given: {FORMS}")
    return _plan(targets[0], targets[1], found[0], found[1])


def pair_runs(a: Side, b: Side) -> Match:
    """The runs of two conditions, paired by seed."""
    by_seed = [{run.seed: run for run in side.runs if run.seed is not None} for side in (a, b)]
    common = sorted(by_seed[0].keys() & by_seed[1].keys())
    return Match(
        kind="conditions",
        a=a,
        b=b,
        pairs=tuple(RunPair(seed, by_seed[0][seed], by_seed[1][seed]) for seed in common),
        only_a=tuple(sorted(by_seed[0].keys() - by_seed[1].keys())),
        only_b=tuple(sorted(by_seed[1].keys() - by_seed[0].keys())),
    )


def _refuse_bare(targets: Sequence[str]) -> None:
    """A condition without its campaign, beside one that has it, is the likeliest slip."""
    campaigns = [word.rpartition(":")[0] for word in targets if not Path(word).is_dir()]
    for word in targets:
        for folder in campaigns:
            if folder and "/" not in word and ":" not in word and not Path(word).is_dir():
                raise InputError(f"{word}: no such folder; did you mean {folder}:{word}?")


def _plan(name_a: str, name_b: str, a: Target, b: Target) -> Plan:
    kinds = _kind(a), _kind(b)
    if kinds[0] != kinds[1]:
        raise InputError(
            f"{name_a} is {kinds[0]} and {name_b} is {kinds[1]}: compare two of a kind "
            "(CAMPAIGN:CONDITION is a condition, CAMPAIGN:RUN a run of a campaign)"
        )
    if isinstance(a, RunView) and isinstance(b, RunView):
        if a.folder.resolve() == b.folder.resolve():
            raise InputError(f"{name_a} and {name_b} are the same run: give two")
        seed = a.seed if a.seed == b.seed else None
        sides = Side(name_a, a.condition, (a,)), Side(name_b, b.condition, (b,))
        return Plan("runs", name_a, name_b, (Match("runs", *sides, (RunPair(seed, a, b),)),))
    if isinstance(a, tuple) and isinstance(b, tuple):
        if (a[0].folder.resolve(), a[1]) == (b[0].folder.resolve(), b[1]):
            raise InputError(f"{name_a} and {name_b} are the same condition: give two")
        match = pair_runs(_side(*a, name_a), _side(*b, name_b))
        return Plan("conditions", name_a, name_b, (match,))
    assert isinstance(a, CampaignRecord)
    assert isinstance(b, CampaignRecord)
    return _campaigns(name_a, name_b, a, b)


def _campaigns(name_a: str, name_b: str, a: CampaignRecord, b: CampaignRecord) -> Plan:
    if a.folder.resolve() == b.folder.resolve():
        raise InputError(
            f"{name_a} and {name_b} are the same campaign; to compare two of its conditions write: "
            + _example(name_a, a)
        )
    common = [label for label in a.conditions if label in b.conditions]
    if not common:
        has = [one_line(", ".join(campaign.conditions)) for campaign in (a, b)]
        words = (f"{name_a}:{a.conditions[0]}", f"{name_b}:{b.conditions[0]}")
        raise InputError(
            f"no condition is in both campaigns: {name_a} has {has[0]}, {name_b} has {has[1]}; "
            f"name the two to compare: retrain diff {' '.join(shlex.quote(word) for word in words)}"
        )
    return Plan(
        kind="campaigns",
        a=name_a,
        b=name_b,
        matches=tuple(
            pair_runs(_side(a, label, f"{name_a}:{label}"), _side(b, label, f"{name_b}:{label}"))
            for label in common
        ),
        only_a=tuple(label for label in a.conditions if label not in common),
        only_b=tuple(label for label in b.conditions if label not in common),
    )


def _side(campaign: CampaignRecord, label: str, name: str) -> Side:
    return Side(name, label, campaign.of(label))


def _kind(target: Target) -> str:
    if isinstance(target, CampaignRecord):
        return "a campaign"
    return "a run" if isinstance(target, RunView) else "a condition"


def _target(word: str) -> Target:
    path = Path(word)
    if path.is_dir():
        return _folder(path)
    folder, colon, name = word.rpartition(":")
    if not colon:
        raise InputError(_missing(path))
    if not Path(folder).is_dir():
        raise InputError(_missing(Path(folder)))
    campaign = _folder(Path(folder))
    if not isinstance(campaign, CampaignRecord):
        raise InputError(f"{word}: {folder} is a run, which has no conditions; drop :{name}")
    run = next((run for run in campaign.runs if run.name == name), None)
    if run is not None and name not in campaign.conditions:
        return run
    return campaign, _label(campaign, name)


def _folder(path: Path) -> RunView | CampaignRecord:
    if (path / RUN_FILE).is_file() or (path / METRICS_FILE).is_file():
        return read_run(path)
    campaign = read_campaign(path)
    if campaign is not None:
        return campaign
    found = find_records([path])
    several = [c.folder for c in found.campaigns] + [run.folder for run in found.runs]
    if not several:
        raise InputError(f"{path} holds neither a run nor a campaign: {FORMS}")
    example = " ".join(shlex.quote(folder) for folder in sorted(map(str, several))[:2])
    raise InputError(
        f"{path} is neither a run nor a campaign, but holds {len(several)} of them: write, e.g., "
        f"retrain diff {example}"
    )


def _label(campaign: CampaignRecord, name: str) -> str:
    if name in campaign.conditions:
        return name
    runs = [run.name for run in campaign.runs]
    guess = near(name, campaign.conditions) or near(name, runs)
    hint = f"did you mean {guess[0]}? It has " if guess else "it has "
    raise InputError(
        f"{name or 'an empty name'} is no condition of {campaign.folder}; {hint}"
        f"{one_line(', '.join(campaign.conditions))}"
    )


def _missing(path: Path) -> str:
    parent = read_campaign(path.parent) if path.parent != path else None
    if parent is not None:
        names = [*parent.conditions, *(run.name for run in parent.runs)]
        if guess := near(path.name, names):
            return f"{path}: no such folder; did you mean {path.parent}:{guess[0]}?"
    if not path.parent.is_dir():
        return f"{path}: no such folder, and {path.parent} does not exist either"
    guess = near(path.name, [folder.name for folder in subfolders(path.parent)])
    return f"{path}: no such folder; " + (
        f"did you mean {path.parent / guess[0]}?" if guess else FORMS
    )


def _one_alone(name: str, target: Target) -> str:
    if isinstance(target, CampaignRecord) and len(target.conditions) > 1:
        return (
            f"{name} alone is no comparison; name two of its conditions: {_example(name, target)} "
            f"(it has {one_line(', '.join(target.conditions))}), or a second campaign"
        )
    return f"{name} alone is no comparison; name a second one after it"


def _example(name: str, campaign: CampaignRecord) -> str:
    first, second = (*campaign.conditions, "OTHER")[:2]
    words = ("retrain", "diff", name, "--conditions", first, second)
    return " ".join(shlex.quote(word) for word in words)
