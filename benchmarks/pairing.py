"""What common random numbers save: conditions compared under the same seeds and under others.

    retrain five.toml --seeds 42,101,202,303,404,505,606,707
    retrain five.toml --seeds 1,2,3,4,5,6,7,8
    python benchmarks/pairing.py logs/campaign_A logs/campaign_B

Two campaigns of one design whose seeds differ. Paired: a condition and the baseline of the same
campaign, by seed. Unpaired: a condition of one campaign and the baseline of the other, which is
what a campaign without common random numbers would be; both ways round, and over every way to put
their seeds beside each other, as a single one would be luck. The spread of the differences
says how many seeds each way needs for a difference of the margin with 80 % power.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from retrain.analysis.closing import load_campaign
from retrain.analysis.power import needed_seeds
from retrain.analysis.summary import Comparison, compare
from retrain.types import FloatArray

HEADERS = ("condition", "r paired", "sd paired", "r unpaired", "sd unpaired", "seeds", "unpaired")


def values(comparison: Comparison, label: str) -> FloatArray:
    """(S,) what each seed's run is judged by; NaN where it did not finish."""
    by_seed = comparison.condition(label).values
    return np.asarray([by_seed.get(seed) for seed in comparison.seeds], dtype=np.float64)


def spread(treatment_S: FloatArray, baseline_S: FloatArray) -> tuple[float, float]:
    """Correlation of the two sides over seeds, and standard deviation of their differences."""
    if treatment_S.shape != baseline_S.shape:
        raise SystemExit("the campaigns need equally many seeds")
    both = ~np.isnan(treatment_S) & ~np.isnan(baseline_S)
    a, b = treatment_S[both], baseline_S[both]
    return float(np.corrcoef(a, b)[0, 1]), float((a - b).std(ddof=1))


def rows(first: Comparison, second: Comparison) -> list[dict[str, Any]]:
    found = []
    margin, alpha = first.settings.margin, first.settings.alpha
    sides = ((first, first), (second, second)), ((first, second), (second, first))
    for condition in first.conditions:
        if condition.label == first.baseline:
            continue
        row: dict[str, Any] = {"condition": condition.label}
        for name, pairs in zip(("paired", "unpaired"), sides, strict=True):
            shifts = range(len(first.seeds)) if name == "unpaired" else (0,)
            both = [
                spread(values(one, condition.label), np.roll(values(other, first.baseline), shift))
                for one, other in pairs
                for shift in shifts
            ]
            row[f"correlation_{name}"] = float(np.mean([r for r, _ in both]))
            # Variances average; standard deviations do not.
            sd = float(np.sqrt(np.mean([sd**2 for _, sd in both])))
            row[f"sd_{name}"] = sd
            row[f"seeds_{name}"] = needed_seeds(sd, margin, alpha)
        found.append(row)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("campaigns", nargs=2, type=Path, metavar="CAMPAIGN")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    first, second = (compare(load_campaign(folder)) for folder in arguments.campaigns)
    found = rows(first, second)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return 0
    unit = first.settings.unit
    lines = [
        (
            row["condition"],
            f"{row['correlation_paired']:+.2f}",
            unit.plain(row["sd_paired"]),
            f"{row['correlation_unpaired']:+.2f}",
            unit.plain(row["sd_unpaired"]),
            str(row["seeds_paired"]),
            str(row["seeds_unpaired"]),
        )
        for row in found
    ]
    widths = [max(map(len, column)) for column in zip(HEADERS, *lines, strict=True)]
    for cells in (HEADERS, *lines):
        first_cell, *others = zip(cells, widths, strict=True)
        print("  ".join([first_cell[0].ljust(first_cell[1]), *(c.rjust(w) for c, w in others)]))
    paired, unpaired = (
        sum(row[f"seeds_{name}"] or 0 for row in found) for name in ("paired", "unpaired")
    )
    print(
        f"\nfor a difference of {unit.size(first.settings.margin)} to {first.baseline} with 80 % "
        f"power: {paired} seeds over all conditions with common random numbers, {unpaired} without"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
