"""The embedded model: a toy that arithmetic can be trained into, small enough to ship.

`EMBEDDED_PATH` is a plain Hugging Face folder; `python -m retrain.models.tiny` makes it anew.
"""

from __future__ import annotations

from pathlib import Path

EMBEDDED_PATH: Path = Path(__file__).parent / "weights"
"""The folder of the shipped model, for `from_pretrained`."""
