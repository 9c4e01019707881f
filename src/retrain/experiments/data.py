"""The data of a config, on this machine before anything is trained."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from retrain.config.load import LoadedConfig
from retrain.tasks.download import fetch_missing


def fetch_data(loaded: LoadedConfig, console: Console) -> None:
    """Download the data sets that the runs need and that are not here, then check them.

    Workers that are started later find them. Raises InputError when one cannot be had, and
    ConfigError when it does not fit the config.
    """

    def say(text: str) -> None:
        console.print(Text(text), soft_wrap=True)

    runs = [loaded.run_config(condition, loaded.seeds[0]) for condition in loaded.conditions]
    if not fetch_missing([run.data for run in runs], say):
        return
    from retrain.preflight import check_data

    for warning in check_data(loaded):
        say(f"warning: {warning}")
