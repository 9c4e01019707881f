"""A squeeze on Weights & Biases: one run named `squeeze-analysis`.

    python -m retrain.tracking.wandb_squeeze FOLDER < settings.json

All of wandb lives in a process of its own, as for runs, so that a squeeze can neither fail nor hang
for it. FOLDER holds `squeeze.json`; wandb's files go to `wandb/` beside it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retrain.analysis.squeezed import SQUEEZE_FILE
from retrain.config.schema import LoggingConfig
from retrain.files import read_json
from retrain.tracking.wandb_process import DISCREET

RUN_NAME = "squeeze-analysis"
TIMEOUT_S = 90.0
CURVES = ("mean_variance", "min_variance", "max_variance", "pooled_variance")
SUMMARY = ("recommended_rank", "source_rank", "num_layers", "min_variance_retention")


def track_squeeze(settings: LoggingConfig, folder: Path) -> str:
    """Send what is in `folder`; why it could not be sent, or an empty text."""
    if not settings.wandb_project:
        return ""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "retrain.tracking.wandb_squeeze", str(folder.absolute())],
            input=settings.model_dump_json(),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"Weights & Biases did not take it within {TIMEOUT_S:.0f} s"
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"its process ended with exit code {done.returncode}"


def history(document: Mapping[str, Any]) -> list[dict[str, float]]:
    """A row a rank, from 1: what it keeps, by curve."""
    ranks = range(1, int(document["source_rank"]) + 1)
    return [
        {f"squeeze/{curve}": float(document[curve][str(rank)]) for curve in CURVES}
        for rank in ranks
    ]


def main() -> int:
    """Send it. The table holds the ranks that the terminal shows."""
    import wandb

    folder = Path(sys.argv[1])
    settings = LoggingConfig.model_validate_json(sys.stdin.read())
    document = read_json(folder / SQUEEZE_FILE)
    run = wandb.init(
        project=settings.wandb_project,
        entity=settings.wandb_entity or None,
        name=RUN_NAME,
        job_type="squeeze",
        tags=["squeeze", *settings.wandb_tags],
        mode=settings.wandb_mode,
        dir=folder,
        config={"adapter": document["adapter"]},
        settings=wandb.Settings(**DISCREET),
    )
    for number, row in enumerate(history(document)):
        run.log(row, step=number + 1)
    rows = [[rank, *(document[curve][str(rank)] for curve in CURVES)] for rank in document["ranks"]]
    table = wandb.Table(columns=["rank", *CURVES], data=rows)
    run.log({"squeeze/variance": table})
    for key in SUMMARY:
        run.summary[f"squeeze/{key}"] = document[key]
    for stage in ("check", "finetuned"):
        for key, value in (document[stage] or {}).items():
            if isinstance(value, int | float):
                run.summary[f"squeeze/{stage}/{key}"] = value
    run.finish()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
