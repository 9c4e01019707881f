"""What a tracker's process and the trainer say to each other, and how long they wait."""

from __future__ import annotations

import json

DRAIN_S = 8.0
"""How long the end of a run may wait for the last rows to arrive."""
GRACE_S = 3.0
"""What the process may take on top for its own start and end before it is killed."""
UPLOAD_S = 600.0
"""How long files may take after the end of a run. The trainer does not wait for them; a campaign
does before it ends."""
END = b"end\n"


def loses(reason: str) -> str:
    """The line of a process that gives up."""
    return json.dumps({"lost": reason})


def warns(text: str) -> str:
    """The line of a process that could not send everything."""
    return json.dumps({"warning": text})


def uploads(count: int) -> str:
    """The line of a process whose files are on their way: it need not be waited for."""
    return json.dumps({"uploads": count})


def lost(title: str, reason: str) -> str:
    """The one warning when tracking ends before the run does."""
    return (
        f"no tracking with {title} from here on: {reason}. Training is not affected, and "
        "metrics.jsonl has every row"
    )
