"""The plan of a campaign: which runs, in which order, by which command."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from retrain.config.load import LoadedConfig, with_seed
from retrain.config.schema import RunConfig
from retrain.files import RUN_CONFIG_FILE

RERUN_FOLDER = "rerun"
"""Where the commands of the manifest put their runs, in the campaign's folder."""


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One condition under one seed."""

    name: str
    condition: str
    seed: int
    config: RunConfig

    @property
    def max_steps(self) -> int:
        return self.config.training.max_steps

    @property
    def folder(self) -> str:
        """Its folder, from the campaign's."""
        return f"runs/{self.name}"

    @property
    def config_path(self) -> str:
        """Its resolved config, from the campaign's folder."""
        return f"{self.folder}/{RUN_CONFIG_FILE}"

    @property
    def command(self) -> tuple[str, ...]:
        """What reruns it, in the campaign's folder."""
        return self._command(self.config_path, f"{RERUN_FOLDER}/{self.name}")

    def _command(self, config: str, run_dir: str) -> tuple[str, ...]:
        command = ["retrain", "run", config, "--run-dir", run_dir]
        return (*command, "--name", self.name, "--condition", self.condition)


def plan_runs(loaded: LoadedConfig) -> tuple[PlannedRun, ...]:
    """All runs of a campaign, seed by seed, or with `seeds_first = false` condition by condition.

    Seed by seed, every condition has at any time been trained under nearly the same seeds, so a
    campaign that ends early still compares like with like.
    """
    configs = {c.label: loaded.run_config(c, loaded.seeds[0]) for c in loaded.conditions}
    runs = tuple(
        PlannedRun(
            name=f"{condition.label}_s{seed}",
            condition=condition.label,
            seed=seed,
            config=with_seed(configs[condition.label], seed),
        )
        for seed in loaded.seeds
        for condition in loaded.conditions
    )
    campaign = loaded.config.campaign
    if campaign is None or campaign.seeds_first:
        return runs
    labels = [condition.label for condition in loaded.conditions]
    return tuple(sorted(runs, key=lambda run: labels.index(run.condition)))


def first_runs(runs: Sequence[PlannedRun], max_runs: int) -> tuple[PlannedRun, ...]:
    """The runs of as many whole seeds as `max_runs` holds; 0 for all of them."""
    if not max_runs:
        return tuple(runs)
    conditions = {run.condition for run in runs}
    seeds = list(dict.fromkeys(run.seed for run in runs))[: max_runs // len(conditions)]
    return tuple(run for run in runs if run.seed in seeds)


def rerun_script(runs: Sequence[PlannedRun]) -> str:
    """`run_all.sh`: trains everything again from the resolved configs, from any folder."""
    lines = [
        f"run {shlex.quote(run.name)} {shlex.quote(run.condition)} {shlex.quote(run.config_path)}"
        for run in runs
    ]
    return SCRIPT.format(
        python=shlex.quote(sys.executable or "python3"), count=len(runs), runs="\n".join(lines)
    )


SCRIPT = """\
#!/usr/bin/env bash
# Trains the {count} runs of this campaign again, one after another, into a new folder:
#
#   ./run_all.sh [FOLDER]     (default: rerun_<time> beside this script)
#
# With a FOLDER that holds some of them it goes on there, and leaves what is finished alone. A run
# that fails does not stop the others; the exit code is then 1. To use a certain retrain, put it
# into the variable RETRAIN.
set -u

here="$(cd "$(dirname "${{BASH_SOURCE[0]}}")" && pwd)" || exit 2
out="${{1:-$here/rerun_$(date +%Y%m%d_%H%M%S)}}"
mkdir -p "$out" || exit 2
out="$(cd "$out" && pwd)" || exit 2

if [ -n "${{RETRAIN:-}}" ]; then
  retrain=("$RETRAIN")
elif command -v retrain >/dev/null 2>&1; then
  retrain=(retrain)
else
  retrain=({python} -m retrain)
fi

failed=()
run() {{
  local name="$1" condition="$2" config="$3" code=0
  echo "== $name"
  "${{retrain[@]}}" run "$here/$config" --run-dir "$out/$name" \\
    --name "$name" --condition "$condition" || code=$?
  if [ "$code" -eq 130 ]; then
    echo "interrupted in $name; to go on: $(printf '%q ' "$0" "$out")" >&2
    exit 130
  fi
  if [ "$code" -ne 0 ]; then
    failed+=("$name")
  fi
}}

{runs}

if [ "${{#failed[@]}}" -gt 0 ]; then
  echo "failed: ${{failed[*]}}" >&2
  exit 1
fi
echo "all {count} runs done: $out"
"""
