"""Small data sets in the schemas that are met on the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

MATH_SUBJECTS = ("algebra", "geometry", "number_theory")


def write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def write_math(folder: Path, *, card: bool = True, train: int = 12, test: int = 8) -> Path:
    """The layout of EleutherAI/hendrycks_math; of each subject one training problem has a solution
    without a box, and one is a test problem too."""
    for subject in MATH_SUBJECTS:
        for split, count in (("train", train), ("test", test)):
            rows = [
                {
                    "problem": f"{subject} {split} {i}: what is ${i}$?",
                    "level": f"Level {1 + i % 5}",
                    "type": subject.replace("_", " ").title(),
                    "solution": rf"First \boxed{{0}}, no: $\boxed{{\frac{{{i}}}{{7}}}}$.",
                }
                for i in range(count)
            ]
            if split == "train":
                rows[0]["solution"] = "It is 0."
                rows[1]["problem"] = f"{subject} test 3: what is $3$?"
            write_parquet(folder / subject / f"{split}-00000-of-00001.parquet", rows)
    if card:
        lines = [
            f"- config_name: {subject}\n  data_files:\n"
            f"  - split: train\n    path: {subject}/train-*\n"
            f"  - split: test\n    path: {subject}/test-*\n"
            for subject in MATH_SUBJECTS
        ]
        (folder / "README.md").write_text(f"---\nconfigs:\n{''.join(lines)}---\n# MATH\n")
    return folder


def guru_rows(count: int) -> list[dict[str, Any]]:
    """The parquet layout of verl and GURU."""
    return [
        {
            "data_source": "math__dapo",
            "prompt": [{"role": "user", "content": f"What is {i} + {i}?"}],
            "ability": "math",
            "reward_model": {"ground_truth": str(2 * i), "style": "rule"},
            "extra_info": {"index": i, "split": "train", "tags": ["sum", "short"]},
            "pass_rate": i / 7,
        }
        for i in range(count)
    ]
