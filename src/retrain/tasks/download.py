"""What a config's data would download, and the download.

    python -m retrain.tasks.download X.toml

does it beforehand, for machines that have no network while they train.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence

from retrain.config.data import DataConfig
from retrain.errors import RetrainError
from retrain.output import complain
from retrain.tasks.hub import HubData, fetch, is_cached

Say = Callable[[str], object]


def parts(data: DataConfig) -> list[HubData]:
    """What of the hub the source reads; nothing for files and functions."""
    if data.source == "math":
        from retrain.tasks.hendrycks import hendrycks_parts

        return hendrycks_parts(data)
    return [HubData.of(data)] if data.source == "hub" else []


def missing(data: DataConfig) -> list[HubData]:
    """What would have to be downloaded. Asks only this machine."""
    return [part for part in parts(data) if not is_cached(part)]


def describe(wanted: Sequence[HubData]) -> str:
    """`EleutherAI/hendrycks_math (geometry, precalculus), default branch, about 2 MB`."""
    from retrain.tasks.hendrycks import MEGABYTES_A_SUBJECT, REPO

    first = wanted[0]
    subsets = ", ".join(part.subset for part in wanted if part.subset)
    words = first.repo + (f" ({subsets})" if subsets else "")
    words += f", revision {first.revision}" if first.revision else ", default branch"
    known = first.repo == REPO and subsets
    size = f"about {MEGABYTES_A_SUBJECT * len(wanted)} MB" if known else "size unknown"
    return f"{words}, {size}"


def fetch_missing(tables: Iterable[DataConfig], say: Say) -> bool:
    """Download what these need and this machine lacks; whether there was anything.

    Raises InputError with the remedy when it cannot be had.
    """
    fetched = False
    for data in tables:
        if wanted := missing(data):
            say(f"downloading the data set {describe(wanted)}")
            for part in wanted:
                fetch(part)
            fetched = True
    return fetched


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    from retrain.config.load import load_config

    given = sys.argv[1:] if arguments is None else list(arguments)
    if len(given) != 1 or given[0] in ("-h", "--help"):
        print("usage: python -m retrain.tasks.download X.toml", file=sys.stderr)
        return 0 if given[:1] in (["-h"], ["--help"]) else 2
    try:
        loaded = load_config(given[0])
        runs = [loaded.run_config(condition, 0) for condition in loaded.conditions]
        if not fetch_missing([run.data for run in runs], print):
            print("nothing to download: all of its data is on this machine")
    except RetrainError as error:
        complain(f"error: {error}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
