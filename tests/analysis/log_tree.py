"""Makes run and campaign folders as `docs/files.md` describes them, with made-up numbers."""

from __future__ import annotations

import json
import os
import random
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tomli_w

from retrain.config.evidence import ReportConfig, recorded
from retrain.processes import ProcessId

BEGAN = 1_760_000_000.0
PROBLEMS = 16


def iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")


def metrics_row(step: int, condition: str, seed: int, **changes: Any) -> dict[str, Any]:
    row = {
        "step": step,
        "condition": condition,
        "seed": seed,
        "loss": 0.01,
        "mean_reward": 0.5,
        "correct_rate": 0.5,
        "unverifiable_rate": 0.02,
        "running_correct_rate": 0.45,
        "batch_size": 8,
        "group_size": 16,
        "num_datums": 96,
        "informative_groups": 6,
        "groups_all_correct": 1,
        "groups_all_wrong": 1,
        "groups_other": 0,
        "max_token_hit_rate": 0.01,
        "mean_completion_tokens": 28.5,
        "tokens": 3648,
        "exec_uncertainty_mean": 0.31,
        "exec_uncertainty_var": 0.22,
        "plan_uncertainty_mean": None,
        "plan_uncertainty_var": None,
        "planning_fraction": 0.0,
        "sepa_lambda": 0.0,
        "sepa_gate_open": True,
        "advantage_abs_mean": 0.42,
        "grad_norm": 0.8,
        "ratio_mean": 1.0,
        "ratio_max": 1.0,
        "log_ratio_mean": 0.0,
        "clip_fraction": 0.0,
        "kl_to_sampler": 0.0,
        "kl_to_base": None,
        "lr": 0.002,
        "num_updates": 1,
        "step_time_s": 0.5,
        "sample_time_s": 0.2,
        "reward_time_s": 0.01,
        "update_time_s": 0.29,
        "evaluation_time_s": 0.0,
        "tokens_per_second": 7296.0,
        "peak_memory_mb": 512.0,
    }
    return {**row, **changes}


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2))


def process_fields(
    pid: int | None = None, host: str | None = None, born: int | None = None
) -> dict[str, Any]:
    """How a file names a process: this very one, another of this machine, or one elsewhere."""
    own = ProcessId.own()
    if host is not None:
        return replace(own, host=host, pid=pid or own.pid, boot="another boot").fields()
    return own.fields() if pid is None else replace(own, pid=pid, born=born).fields()


def write_lock(folder: Path, **holder: Any) -> None:
    """A campaign's or a run's lock, held by this very process unless `holder` says otherwise."""
    lock = {"token": "0123", "since": iso(BEGAN), **process_fields(**holder)}
    (folder / ".lock").write_text(json.dumps(lock) + "\n")


def write_run(
    folder: Path,
    *,
    condition: str = "grpo+none",
    seed: int = 42,
    status: str = "done",
    message: str = "",
    cause: str | None = None,
    steps: int = 20,
    max_steps: int = 20,
    before: float | None = 0.33,
    after: float | None = 0.71,
    greedy: bool = True,
    every: int = 0,
    reward: float = 0.7,
    step_time: float = 0.5,
    row_at: float = BEGAN,
    updated_at: float = BEGAN,
    pid: int | None = None,
    host: str | None = None,
    born: int | None = None,
    batch_size: int = 8,
    contents: dict[str, str] | None = None,
) -> Path:
    """A run folder; `pid`, `host` and `born` as in `process_fields`."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(f"{condition} {seed}")
    evaluated = {0, max_steps, *(range(every, max_steps, every) if every else ())}
    accuracies = {
        step: before + (after - before) * (step / max_steps) ** 0.5
        for step in sorted(evaluated)
        if before is not None and after is not None and step <= steps
    }
    result = None
    if status == "done":
        result = {
            "steps": steps,
            "accuracy_before": before,
            "accuracy_after": after,
            "greedy_before": before if greedy else None,
            "greedy_after": after + 0.2 if greedy and after is not None else None,
            "mean_reward": reward,
            "wall_s": steps * step_time,
        }
    config = {
        "model": {"model": "embedded", "lora_rank": 8},
        "training": {
            "batch_size": batch_size,
            "group_size": 16,
            "max_tokens": 64,
            "updates_per_batch": 1,
            "lr": 0.002,
        },
        "data": {"source": "arithmetic"},
        "evaluation": {"num_problems": PROBLEMS},
    }
    (folder / "config.toml").write_text(tomli_w.dumps(config))
    lines = []
    for step in range(steps):
        share = (step + 1) / max_steps
        row = metrics_row(
            step,
            condition,
            seed,
            mean_reward=0.3 + (reward - 0.3) * share**0.5 + draw.gauss(0.0, 0.03),
            step_time_s=step_time,
        )
        if step + 1 in accuracies:
            row["held_out_accuracy"] = accuracies[step + 1]
        lines.append(json.dumps(row) + "\n")
    if status != "pending":
        (folder / "metrics.jsonl").write_text("".join(lines))
        os.utime(folder / "metrics.jsonl", (row_at, row_at))
        (folder / "run.log").write_text(message + "\n")
    for step, accuracy in accuracies.items():
        write_json(
            folder / "evaluation" / f"step_{step:06d}.json",
            {
                "step": step,
                "num_problems": PROBLEMS,
                "samples_per_problem": 1,
                "temperature": 1.0,
                "accuracy": accuracy,
                "greedy_accuracy": accuracy + 0.2 if greedy else None,
                "mean_tokens": 28.4,
                "max_token_hit_rate": 0.01,
                "problems": [
                    {"id": str(i), "domain": "arithmetic", "correct": [1], "greedy": 1}
                    for i in range(PROBLEMS)
                ],
            },
        )
    # As a run does: who reads that it is done finds everything else.
    write_json(
        folder / "run.json",
        {
            "name": folder.name,
            "condition": condition,
            "seed": seed,
            "status": status,
            "message": message,
            "cause": cause,
            "attempts": int(status != "pending"),
            "resumed_from": None,
            "changes": [],
            **({} if status == "pending" else process_fields(pid, host, born)),
            "started_at": None if status == "pending" else iso(updated_at),
            "updated_at": iso(updated_at),
            "finished_at": iso(updated_at) if status == "done" else None,
            "step": steps if status == "done" else 0,
            "max_steps": max_steps,
            "versions": {"retrain": "0.1.0", "python": "3.11.7", "torch": "2.13.0"},
            "device": "cpu",
            "threads": 1,
            "contents": contents or {},
            "result": result,
        },
    )
    return folder


@dataclass
class Planned:
    """One run of a campaign to make: how it differs from an ordinary finished one."""

    condition: str
    seed: int
    changes: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.condition}_s{self.seed}"


def write_campaign(
    folder: Path,
    runs: list[Planned],
    *,
    max_steps: int = 20,
    status: str = "done",
    timestamp: float = BEGAN,
    max_workers: int = 2,
    report: dict[str, Any] | None = None,
    contents: dict[str, str] | None = None,
) -> Path:
    """A campaign folder. `report` are keys of `[report]`; None records none, as older ones did.
    `contents` are those that every condition was planned with.

    A run whose changes say `folder: False` has only its manifest entry.
    """
    entries = []
    for run in runs:
        changes = dict(run.changes)
        made = changes.pop("folder", True)
        planned_status = changes.pop("manifest_status", None)
        planned_message = changes.pop("manifest_message", "")
        planned_cause = changes.pop("manifest_cause", None)
        if made:
            write_run(
                folder / "runs" / run.name,
                condition=run.condition,
                seed=run.seed,
                max_steps=max_steps,
                **{"steps": max_steps, **changes},
            )
        entries.append(
            {
                "name": run.name,
                "condition": run.condition,
                "seed": run.seed,
                "config": f"runs/{run.name}/config.toml",
                "command": ["retrain", "run", f"runs/{run.name}/config.toml"],
                "status": planned_status or changes.get("status", "done" if made else "pending"),
                "message": planned_message or changes.get("message", ""),
                "cause": planned_cause or changes.get("cause"),
                "result": None,
            }
        )
    labels = list(dict.fromkeys(run.condition for run in runs))
    settings = {}
    if report is not None:
        settings["report"] = recorded(ReportConfig(**report), labels, evaluates=True)
    write_json(
        folder / "manifest.json",
        {
            "schema": 1,
            "timestamp": iso(timestamp),
            "campaign_file": "campaign.toml",
            "retrain_version": "0.1.0",
            "status": status,
            "conditions": [
                {
                    "label": label,
                    "advantage_mode": label.split("+")[0],
                    "transform_mode": label.split("+")[-1],
                    "changes": {},
                    "contents": contents or {},
                }
                for label in labels
            ],
            "seeds": list(dict.fromkeys(run.seed for run in runs)),
            "max_steps": max_steps,
            "parallel": max_workers > 1,
            "max_workers": max_workers,
            "stagger_seconds": 0.0,
            "devices": "",
            "max_retries": 1,
            "worker_timeout": 1800.0,
            "workers": max_workers,
            "overrides": {},
            **(
                {}
                if report is None
                else {"report": recorded(ReportConfig(**report), labels, evaluates=True)}
            ),
            "runs": entries,
        },
    )
    (folder / "campaign.toml").write_text('[model]\nmodel = "embedded"\n')
    (folder / "run_all.sh").write_text("#!/bin/sh\n")
    return folder


STANDARD = ("grpo+none", "maxrl+none", "maxrl+gtpo", "maxrl+gtpo_hicra", "maxrl+gtpo_sepa")


def standard_campaign(
    folder: Path, seeds: tuple[int, ...] = (42, 101), *, conditions: int = 5, **changes: Any
) -> Path:
    """Finished runs whose values differ between conditions and, more, between seeds."""
    runs = []
    for c, condition in enumerate(STANDARD[:conditions]):
        for seed in seeds:
            noise = random.Random(f"{c} {seed}").gauss(0.0, 0.01)
            level = 0.68 + 0.015 * c + 0.0003 * (seed % 100) + noise
            runs.append(Planned(condition, seed, {"after": level, "reward": level, **changes}))
    return write_campaign(folder, runs)
