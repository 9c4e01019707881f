"""The data of a config, on this machine before anything is trained."""

from __future__ import annotations

from functools import partial

from rich.console import Console

from retrain.config.load import LoadedConfig
from retrain.policies.inference.vllm import require_program
from retrain.policies.tinker.access import require_access
from retrain.tasks.download import fetch_missing
from retrain.terminal import say


def fetch_data(loaded: LoadedConfig, console: Console) -> None:
    """Download the data sets that the runs need and that are not here, then check them.

    Workers that are started later find them. Raises InputError when one cannot be had, or the
    service or program that the runs need is not there, and ConfigError when data does not fit the
    config.
    """
    runs = [loaded.run_config(condition, loaded.seeds[0]) for condition in loaded.conditions]
    if any(run.backend.backend == "tinker" for run in runs):
        require_access()
    for run in runs:
        if run.inference.engine == "vllm":
            require_program(run.inference.command)
    if not fetch_missing([run.data for run in runs], partial(say, console)):
        return
    from retrain.preflight import check_data

    for warning in check_data(loaded):
        say(console, f"warning: {warning}")
