"""The step that the benchmarks measure: its shape, and the run config that has it."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict, dataclass, fields
from typing import Any

from retrain.config.schema import RunConfig
from retrain.experiments.workers import thread_environment

LORA_RANK = 8
LORA_ALPHA = 16.0
BETAS = (0.9, 0.99)
GRAD_CLIP = 1.0


@dataclass(frozen=True, slots=True)
class Shape:
    """What one step samples and learns from; `batch_size` problems of `group_size` completions."""

    batch_size: int = 8
    group_size: int = 16
    max_tokens: int = 64
    threads: int = 1
    seed: int = 42
    lr: float = 2e-3
    temperature: float = 1.0

    @property
    def rows(self) -> int:
        """Completions a step."""
        return self.batch_size * self.group_size

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """One flag a field, with the field's default."""
        for name, default in asdict(Shape()).items():
            flag = "--" + name.replace("_", "-")
            parser.add_argument(flag, type=type(default), default=default)

    @staticmethod
    def of(options: argparse.Namespace) -> Shape:
        return Shape(**{field.name: getattr(options, field.name) for field in fields(Shape)})

    def arguments(self) -> list[str]:
        """The flags that give this shape."""
        return [f"--{name.replace('_', '-')}={value}" for name, value in asdict(self).items()]

    def run_config(self, steps: int, log_generations: int = 4) -> RunConfig:
        """`grpo+none` on the embedded model, without evaluation and checkpoints."""
        tables: dict[str, Any] = {
            "model": {"lora_rank": LORA_RANK, "lora_alpha": LORA_ALPHA},
            "algorithm": {"advantage_mode": "grpo", "transform_mode": "none"},
            "training": {
                "seed": self.seed,
                "max_steps": steps,
                "batch_size": self.batch_size,
                "group_size": self.group_size,
                "max_tokens": self.max_tokens,
                "temperature": self.temperature,
                "lr": self.lr,
                "betas": list(BETAS),
                "grad_clip": GRAD_CLIP,
                "save_every": 0,
            },
            "evaluation": {"before_training": False, "num_problems": 0},
            "backend": {"device": "cpu", "threads": self.threads},
            "logging": {"log_generations": log_generations},
        }
        return RunConfig.model_validate(tables)


def environment(threads: int) -> dict[str, str]:
    """What torch must find in the environment when it is imported: threads, no GPU, no network."""
    return {
        **os.environ,
        **thread_environment(threads),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
