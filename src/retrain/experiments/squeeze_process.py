"""The process that squeezes a run of a campaign.

    python -m retrain.experiments.squeeze_process CAMPAIGN_DIR RUN_NAME

What it says goes to `squeeze/squeeze.log`. It ends when its standard input does: then the campaign
is gone, and whoever resumes it starts another.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from pathlib import Path

from retrain.analysis.squeezed import SQUEEZE_FOLDER
from retrain.config.schema import SqueezeConfig
from retrain.errors import RetrainError
from retrain.experiments.manifest import Manifest
from retrain.experiments.squeezing import squeeze_run
from retrain.output import guard_output
from retrain.terminal import Terminal


def main() -> int:
    """0 when everything that was asked for is in `squeeze/`."""
    campaign, run = Path(sys.argv[1]), sys.argv[2]
    threading.Thread(target=_leave_with_the_campaign, daemon=True).start()
    guard_output()
    # What a batch system sends to every process of a job must not end this one before the campaign.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Training comes first.
    os.nice(10)
    try:
        manifest = Manifest.read(campaign)
        settings = SqueezeConfig.model_validate(manifest.data["squeeze"]["settings"])
        console = Terminal(file=sys.stdout, width=100)
        squeeze_run(settings, campaign / "runs" / run, campaign / SQUEEZE_FOLDER, console)
    except RetrainError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _leave_with_the_campaign() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    raise SystemExit(main())
