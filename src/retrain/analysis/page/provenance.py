"""Section of the report: what was run, on what, and how to run it again."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from retrain.analysis.diff.configs import Config, is_bookkeeping, read_config
from retrain.analysis.page.markup import folded, listed, name, table
from retrain.analysis.page.section import Section
from retrain.analysis.reading import items, load_object, nested, number, text
from retrain.analysis.records import CampaignRecord, RunView
from retrain.analysis.samples.look import visible
from retrain.analysis.series import SeriesReader
from retrain.analysis.settings import ReportSettings
from retrain.analysis.webpage import safe
from retrain.analysis.words import duration, plural
from retrain.files import RUN_FILE

SEED_KEY = "training.seed"
MOST_CONFIGS = 5
"""Configs that are read of a condition: more than one only where runs were added or changed."""
MISSING = "–"

_SEED_LINE = re.compile(rb"(?m)^seed = .*$")


def provenance_section(campaign: CampaignRecord, reader: SeriesReader | None = None) -> Section:
    """Config differences, settings, versions, machine and commands.

    reader: one that has read the runs' series, to count tokens; without it they are not counted.
    """
    settings = ReportSettings.of(campaign.manifest) or ReportSettings()
    labels = tuple(dict.fromkeys((settings.baseline_of(campaign.conditions), *campaign.conditions)))
    places = {label: place for place, label in enumerate(campaign.conditions)}
    configs = {label: condition_configs(campaign.of(label)) for label in labels}
    parts = [
        "<h3>How the conditions differ</h3>",
        _differences(labels, places, configs),
        _shared(labels, configs),
        "<h3>Runs and machines</h3>",
        _facts(campaign, reader),
        listed(_deviations(campaign, configs)),
        "<h3>What was planned</h3>",
        _planned(campaign),
        "<h3>Run it again</h3>",
        _commands(campaign),
    ]
    return Section("provenance", "Where it comes from", "\n".join(part for part in parts if part))


def condition_configs(runs: Iterable[RunView]) -> tuple[Config, ...]:
    """The distinct resolved configs of a condition's runs, seeds aside, the first run's first.

    Flat: `table.key` -> value. At most `MOST_CONFIGS`; unreadable ones are left out. Files that
    are equal but for their seed are parsed once.
    """
    found: dict[bytes, RunView] = {}
    for run in runs:
        try:
            config = _SEED_LINE.sub(b"", run.config.read_bytes())
            found.setdefault(config + repr(sorted(run.contents.items())).encode(), run)
        except OSError:
            continue
    configs = (read_config(run) for run in list(found.values())[:MOST_CONFIGS])
    return tuple(
        {key: value for key, value in config.items() if key != SEED_KEY}
        for config in configs
        if config is not None
    )


def differing_keys(configs: Mapping[str, Sequence[Config]]) -> list[str]:
    """Keys whose values are not the same in every config, in the order of the configs."""
    every = [config for of_condition in configs.values() for config in of_condition]
    keys = dict.fromkeys(key for config in every for key in config)
    return [key for key in keys if any(c.get(key) != every[0].get(key) for c in every[1:])]


def _differences(
    labels: Sequence[str], places: Mapping[str, int], configs: Mapping[str, Sequence[Config]]
) -> str:
    if not any(configs.values()):
        return "<p>No run has left its config yet.</p>"
    differ = differing_keys(configs)
    if not differ:
        return "<p>In no key of their configs.</p>"
    rows = [
        [f"<code>{safe(key)}</code>{note}", *(_values(configs[label], key) for label in labels)]
        for note, keys in (
            ("", [key for key in differ if not is_bookkeeping(key)]),
            (" <small>changes no number</small>", [key for key in differ if is_bookkeeping(key)]),
        )
        for key in keys
    ]
    head = ["key", *(name(label, places[label]) for label in labels)]
    head[1] += " <small>baseline</small>" if len(labels) > 1 else ""
    return table(head, rows, text=frozenset(range(1, len(head))))


def _shared(labels: Sequence[str], configs: Mapping[str, Sequence[Config]]) -> str:
    differ = set(differing_keys(configs))
    first = next((configs[label][0] for label in labels if configs[label]), {})
    rows = [
        [f"<code>{safe(key)}</code>", _value(value)]
        for key, value in first.items()
        if key not in differ and not is_bookkeeping(key)
    ]
    if not rows:
        return ""
    note = (
        "<p>With their defaults. Keys that change no number, such as those of logging, are left "
        "out; each run’s <code>config.toml</code> has them.</p>"
    )
    title = f"{plural(len(rows), 'key')} that all conditions share"
    return folded(title, note + table(["key", "value"], rows, text=frozenset({1})))


def _facts(campaign: CampaignRecord, reader: SeriesReader | None) -> str:
    records = [load_object(run.folder / RUN_FILE) for run in campaign.runs]
    hosts = {host for record in records if (host := text(record, "host"))}
    threads = Counter(int(n) for r in records if (n := number(r, "threads")) is not None)
    devices = Counter(run.device for run in campaign.runs if run.device)
    walls = [run.result.wall_s for run in campaign.runs if run.result.wall_s is not None]
    facts = [
        ("seeds", ", ".join(map(str, campaign.seeds))),
        ("started", _moment(campaign.started_at)),
        (
            "last change" if campaign.finished else "last change so far",
            _moment(campaign.updated_at),
        ),
        ("training time", f"{duration(sum(walls))} in {_runs(len(walls), 'finished')}"),
        ("tokens", _tokens(campaign, reader)),
        ("runs at a time", str(campaign.workers) if campaign.workers else ""),
        ("machines", str(len(hosts)) if hosts else ""),
        ("device", _counted(devices)),
        ("CPU threads a run", _counted(threads)),
        *_versions(campaign),
    ]
    rows = [[safe(fact), safe(value)] for fact, value in facts if value]
    return table(["what", "value"], rows, text=frozenset({1}))


def _tokens(campaign: CampaignRecord, reader: SeriesReader | None) -> str:
    if reader is None:
        return ""
    spent = [series.tokens[-1] for run in campaign.runs if (series := reader.read(run)).tokens.size]
    return f"{int(sum(spent)):,} sampled for training in {_runs(len(spent))}" if spent else ""


def _versions(campaign: CampaignRecord) -> list[tuple[str, str]]:
    """Of each package, all that runs were trained with."""
    found: dict[str, Counter[str]] = {}
    for run in campaign.runs:
        for package, version in run.versions.items():
            found.setdefault(package, Counter())[version] += 1
    if not found and campaign.retrain_version:
        return [("retrain", campaign.retrain_version)]
    return [(package, _counted(versions)) for package, versions in found.items()]


def _deviations(campaign: CampaignRecord, configs: Mapping[str, Sequence[Config]]) -> Iterable[str]:
    """Where what was done is not what was planned at first."""
    overrides = nested(campaign.manifest, "overrides")
    if overrides:
        given = ", ".join(f"{key} = {_shown(value)}" for key, value in overrides.items())
        yield f"Changed on the command line: {given}."
    added = [
        run
        for run in items(campaign.manifest, "runs")
        if isinstance(run, dict) and text(run, "added")
    ]
    if added:
        days = sorted({text(run, "added")[:10] for run in added})
        when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
        which = _some([text(run, "name") for run in added])
        yield (
            f"{plural(len(added), 'run')} added later, when others could be seen already ({when}): "
            f"{which}."
        )
    for label, found in configs.items():
        if len(found) > 1:
            keys = differing_keys({label: found})
            what = f" ({_some(keys)})" if keys else ""
            yield f"Not all runs of {label} have the same config{what}."


def _planned(campaign: CampaignRecord) -> str:
    recorded = nested(campaign.manifest, "report")
    if not recorded:
        return "<p>No <code>[report]</code> settings were recorded before the first run.</p>"
    rows = [
        [f"<code>{safe(key)}</code>", _value(value) if value != [] else "each against the baseline"]
        for key, value in recorded.items()
    ]
    note = "<p><code>[report]</code>, recorded before the first run.</p>"
    return note + table(["key", "value"], rows, text=frozenset({1}))


def _commands(campaign: CampaignRecord) -> str:
    lines = []
    file = campaign.campaign_file or "campaign.toml"
    if (campaign.folder / file).is_file():
        overrides = nested(campaign.manifest, "overrides")
        # Seeds and other changes of the command line are not in the file.
        options = "".join(f" {_option(key, value)}" for key, value in overrides.items())
        lines.append(f"retrain {shlex.quote(file)}{options}  # as a new campaign")
    if (campaign.folder / "run_all.sh").is_file():
        lines.append("bash run_all.sh  # run by run, into a new folder")
    if not lines:
        return "<p>The campaign’s folder holds neither its TOML file nor its script.</p>"
    shown = "\n".join(escape(visible(line)) for line in lines)
    button = '<button type="button" class="copy" data-copy="commands">copy</button>'
    return (
        "<p>In the campaign’s folder; the same config on the same machine gives the same bits.</p>"
        f'<div class="paste">{button}<pre id="commands">{shown}</pre></div>'
    )


def _option(key: str, value: Any) -> str:
    if key == "campaign.seeds" and isinstance(value, list):
        return "--seeds " + ",".join(str(seed) for seed in value)
    return "--set " + shlex.quote(
        f"{key}={json.dumps(value) if not isinstance(value, str) else value}"
    )


def _values(configs: Sequence[Config], key: str) -> str:
    values = dict.fromkeys(_shown(config.get(key)) for config in configs)
    return " / ".join(safe(value) for value in values) or MISSING


def _value(value: Any) -> str:
    return safe(_shown(value))


def _shown(value: Any) -> str:
    if value is None:
        return MISSING
    if isinstance(value, str):
        return value or '""'
    return json.dumps(value, ensure_ascii=False)


def _counted(values: Mapping[Any, int] | Counter[Any]) -> str:
    if len(values) == 1:
        return str(next(iter(values)))
    ordered = sorted(values.items(), key=lambda item: (-item[1], str(item[0])))
    return ", ".join(f"{value} ({_runs(count)})" for value, count in ordered)


def _runs(count: int, kind: str = "") -> str:
    return plural(count, f"{kind} run".strip())


def _some(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
