"""A training step of retrain against one of TRL's GRPOTrainer, in one invocation.

Both train the embedded model on the same arithmetic problems in the same order, with the same
LoRA, optimizer, temperature and threads, each in a process of its own. The processes take turns:
one runs a block of steps while the others wait, so that noise of the machine hits all alike. TRL
runs once for each micro-batch given, and the headline is the ratio to its fastest.

    python benchmarks/step_vs_trl.py [--steps 40] [--threads 1] [--json]

See benchmarks/README.md for how to read the output.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from rich.console import Console
from rich.table import Table

from shape import BETAS, GRAD_CLIP, LORA_ALPHA, LORA_RANK, Shape, environment

RETRAIN = "retrain"
NEEDED = ("trl", "peft", "datasets")
PACKAGES = ("retrain", "torch", "transformers", "peft", "trl", "accelerate", "datasets")


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step as its own process measured it.

    wall_s, cpu_s: from the end of the step before to the end of this one, journal and trainer
    bookkeeping included; cpu_s counts all threads. rollout_*: the part of it until completions are
    decoded and about to be scored. tokens: completion tokens. learning_rows: completions whose
    group's rewards differ, the only ones with a gradient.
    """

    wall_s: float
    cpu_s: float
    rollout_wall_s: float
    rollout_cpu_s: float
    reward: float
    tokens: int
    learning_rows: int


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    Shape.add_arguments(parser)
    parser.add_argument("--steps", type=int, default=40, help="measured steps a side")
    parser.add_argument("--warmup", type=int, default=4, help="steps before them, dropped")
    parser.add_argument("--block", type=int, default=4, help="steps a side runs before the next")
    parser.add_argument(
        "--trl-micro-batches",
        default="",
        help="completions a forward pass of TRL, comma-separated; default: all, a half, a quarter",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--side", help=argparse.SUPPRESS)  # this process is one side
    options = parser.parse_args()
    shape = Shape.of(options)
    if options.side:
        run_side(options.side, shape, options.warmup + options.steps)
        return 0
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"step_vs_trl: not installed: {', '.join(missing)}. `make bench` installs them "
            "(or: pip install -e '.[bench]').",
            file=sys.stderr,
        )
        return 2
    if options.steps < options.block or options.steps % options.block or options.warmup < 1:
        parser.error("--steps must be a multiple of --block, and --warmup at least 1")
    sides = [RETRAIN, *(f"trl/{rows}" for rows in micro_batches(options, shape, parser))]
    started, load = time.time(), os.getloadavg()[0]
    records = measure(sides, shape, options.warmup, options.steps, options.block)
    result = {
        "shape": asdict(shape),
        "steps": options.steps,
        "warmup": options.warmup,
        "block": options.block,
        "machine": {
            "architecture": platform.machine(),
            "cores": os.cpu_count(),
            "load_before": round(load, 2),
            "load_after": round(os.getloadavg()[0], 2),
            "seconds": round(time.time() - started),
        },
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        **summarise(records, options.block),
        "records": {side: [asdict(step) for step in steps] for side, steps in records.items()},
    }
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        show(result)
    return 0


def micro_batches(
    options: argparse.Namespace, shape: Shape, parser: argparse.ArgumentParser
) -> list[int]:
    """TRL's micro-batch sizes to try; one optimizer step always holds all rows."""
    if not options.trl_micro_batches:
        return [shape.rows // parts for parts in (1, 2, 4) if shape.rows % parts == 0]
    try:
        sizes = [int(part) for part in options.trl_micro_batches.split(",")]
    except ValueError:
        parser.error("--trl-micro-batches wants numbers, such as 128,32")
    if any(size < 1 or shape.rows % size for size in sizes):
        parser.error(f"--trl-micro-batches must divide the {shape.rows} completions of a step")
    return sizes


# --- the parent: takes turns between the sides, and sums up


class Side:
    """One side's process: runs as many steps as it is told, and says how they went."""

    def __init__(self, name: str, shape: Shape, warmup: int, steps: int, log: Path) -> None:
        self.name = name
        self._log = log
        command = [sys.executable, str(Path(__file__).resolve()), f"--side={name}"]
        command += [*shape.arguments(), f"--warmup={warmup}", f"--steps={steps}"]
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                # Its own temporary files go where this process will remove them.
                env=environment(shape.threads) | {"TMPDIR": str(log.parent)},
                text=True,
            )
        self._hear()  # loaded

    def run(self, steps: int) -> list[StepRecord]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return [StepRecord(**record) for record in self._hear()]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _hear(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            tail = "\n".join(self._log.read_text().splitlines()[-25:])
            raise SystemExit(f"step_vs_trl: the side {self.name} failed:\n{tail}")
        return json.loads(line)


def measure(
    names: Sequence[str], shape: Shape, warmup: int, steps: int, block: int
) -> dict[str, list[StepRecord]]:
    """The sides' measured steps; every second round runs them in the opposite order."""
    records: dict[str, list[StepRecord]] = {name: [] for name in names}
    sides: list[Side] = []
    with tempfile.TemporaryDirectory(prefix="retrain_bench_") as folder:
        try:
            for index, name in enumerate(names):
                sides.append(Side(name, shape, warmup, steps, Path(folder) / f"side_{index}.log"))
                sides[-1].run(warmup)
            for turn in range(steps // block):
                for side in sides if turn % 2 == 0 else reversed(sides):
                    records[side.name] += side.run(block)
        finally:
            for side in sides:
                side.close()
    return records


def summarise(records: Mapping[str, Sequence[StepRecord]], block: int) -> dict[str, Any]:
    """Medians a side, and each TRL variant's ratio to retrain over paired blocks."""
    sides = {name: side_summary(steps) for name, steps in records.items()}
    ratios = {
        name: {
            measure: paired_ratio(records[name], records[RETRAIN], measure, block)
            for measure in ("wall_s", "cpu_s", "cpu_s_per_token")
        }
        for name in records
        if name != RETRAIN
    }
    best = min(ratios, key=lambda name: ratios[name]["cpu_s"]["median"])
    return {"sides": sides, "ratios": ratios, "best_trl": best}


def side_summary(steps: Sequence[StepRecord]) -> dict[str, float]:
    """Medians of the times, means of the work, and the reward at both ends."""
    edge = max(1, len(steps) // 4)

    def median(values: Sequence[float]) -> float:
        return float(statistics.median(values))

    return {
        "wall_s": median([step.wall_s for step in steps]),
        "cpu_s": median([step.cpu_s for step in steps]),
        "rollout_wall_s": median([step.rollout_wall_s for step in steps]),
        "rollout_cpu_s": median([step.rollout_cpu_s for step in steps]),
        "rest_wall_s": median([step.wall_s - step.rollout_wall_s for step in steps]),
        "rest_cpu_s": median([step.cpu_s - step.rollout_cpu_s for step in steps]),
        "tokens": statistics.fmean(step.tokens for step in steps),
        "learning_rows": statistics.fmean(step.learning_rows for step in steps),
        "reward_first_quarter": statistics.fmean(step.reward for step in steps[:edge]),
        "reward_last_quarter": statistics.fmean(step.reward for step in steps[-edge:]),
    }


def paired_ratio(
    theirs: Sequence[StepRecord], ours: Sequence[StepRecord], measure: str, block: int
) -> dict[str, float]:
    """Quartiles over blocks of (their seconds / our seconds), blocks paired by turn."""
    name, per_token = measure.removesuffix("_per_token"), measure.endswith("_per_token")

    def seconds(steps: Sequence[StepRecord]) -> float:
        spent = sum(getattr(step, name) for step in steps)
        return spent / sum(step.tokens for step in steps) if per_token else spent

    starts = range(0, len(ours), block)
    ratios = [seconds(theirs[at : at + block]) / seconds(ours[at : at + block]) for at in starts]
    if len(ratios) == 1:
        return dict.fromkeys(("q1", "median", "q3"), ratios[0])
    q1, median, q3 = statistics.quantiles(ratios, n=4, method="inclusive")
    return {"q1": q1, "median": median, "q3": q3}


def show(result: Mapping[str, Any]) -> None:
    """The table for people."""
    shape, sides, ratios = Shape(**result["shape"]), result["sides"], result["ratios"]
    console = Console(width=None if sys.stdout.isatty() else 118)
    machine = result["machine"]
    console.print(
        f"{shape.batch_size} problems x {shape.group_size} completions x {shape.max_tokens} tokens,"
        f" {shape.threads} thread(s); {result['steps']} steps a side in blocks of"
        f" {result['block']}, {result['warmup']} warm-up steps dropped"
    )
    console.print(
        f"{machine['architecture']}, {machine['cores']} cores, load {machine['load_before']} before"
        f" and {machine['load_after']} after; "
        + ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    )
    table = Table()
    table.add_column("side")
    for heading in (
        "wall s",
        "CPU s",
        "rollout: wall, CPU",
        "update, rest: wall, CPU",
        "tokens",
        "rows learning",
        "reward",
    ):
        table.add_column(heading, justify="right")
    for name, side in sides.items():
        table.add_row(
            name,
            f"{side['wall_s']:.3f}",
            f"{side['cpu_s']:.3f}",
            f"{side['rollout_wall_s']:.3f}  {side['rollout_cpu_s']:.3f}",
            f"{side['rest_wall_s']:.3f}  {side['rest_cpu_s']:.3f}",
            f"{side['tokens']:.0f}",
            f"{side['learning_rows']:.0f}",
            f"{side['reward_first_quarter']:.2f} -> {side['reward_last_quarter']:.2f}",
        )
    console.print(table)
    for name, ratio in ratios.items():
        note = "  <- TRL's fastest" if name == result["best_trl"] else ""
        console.print(
            f"{name} / retrain: "
            + ", ".join(
                f"{label} {r['median']:.2f}x [{r['q1']:.2f}, {r['q3']:.2f}]"
                for label, r in (
                    ("wall", ratio["wall_s"]),
                    ("CPU", ratio["cpu_s"]),
                    ("CPU a token", ratio["cpu_s_per_token"]),
                )
            )
            + note,
            markup=False,
            highlight=False,
        )


# --- one side, in a process of its own


class Pacer:
    """Lets the trainer of this process run only while it is this side's turn."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._block: list[StepRecord] = []
        self._wanted = 0
        self._wall = self._cpu = 0.0
        self._rollout = (0.0, 0.0)
        # Whatever libraries print goes to the log.
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def ready(self) -> None:
        """Everything is loaded: wait for the first turn."""
        self._say("ready")
        self._await_turn()

    def rollout_done(self) -> None:
        """The trainer calls this when the completions of a step are decoded."""
        self._rollout = (time.perf_counter() - self._wall, time.process_time() - self._cpu)

    def step_done(self, reward: float, tokens: int, learning_rows: int) -> None:
        """The trainer calls this at the end of every step."""
        wall, cpu = time.perf_counter(), time.process_time()
        record = StepRecord(
            wall_s=wall - self._wall,
            cpu_s=cpu - self._cpu,
            rollout_wall_s=self._rollout[0],
            rollout_cpu_s=self._rollout[1],
            reward=reward,
            tokens=tokens,
            learning_rows=learning_rows,
        )
        self._block.append(record)
        self._done += 1
        if len(self._block) == self._wanted:
            self._say([asdict(record) for record in self._block])
            self._block = []
            if self._done < self._total:
                self._await_turn()
                return
        self._mark()

    def _await_turn(self) -> None:
        line = sys.stdin.readline()
        if not line:
            raise SystemExit("the parent is gone")
        self._wanted = int(line)
        self._mark()

    def _mark(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def _say(self, message: Any) -> None:
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()


def run_side(name: str, shape: Shape, total: int) -> None:
    pacer = Pacer(total)
    with tempfile.TemporaryDirectory(prefix="retrain_bench_") as folder:
        if name == RETRAIN:
            train_with_retrain(shape, total, pacer, Path(folder))
        else:
            train_with_trl(shape, total, int(name.removeprefix("trl/")), pacer, Path(folder))


def train_with_retrain(shape: Shape, total: int, pacer: Pacer, folder: Path) -> None:
    from retrain.training import loop
    from retrain.training.rollout import rollout as sample
    from retrain.training.run import BaseModels, train_run

    def rollout(*arguments: Any, **keywords: Any) -> Any:
        groups = sample(*arguments, **keywords)
        pacer.rollout_done()
        return groups

    config = shape.run_config(total)
    bases = BaseModels()
    bases.get(config.model, config.backend)

    def on_row(row: Mapping[str, Any]) -> None:
        pacer.step_done(
            reward=row["mean_reward"],
            tokens=row["tokens"],
            learning_rows=row["num_datums"],
        )

    pacer.ready()
    with mock.patch.object(loop, "rollout", rollout):
        train_run(config, folder, name="bench", condition="grpo+none", bases=bases, on_row=on_row)


def train_with_trl(shape: Shape, total: int, micro_batch: int, pacer: Pacer, folder: Path) -> None:
    """TRL as a careful user of a CPU sets it up.

    Not its defaults but what suits this work: float32, no gradient checkpointing, no reference
    model (beta 0), one generation of all rows an optimizer step, no logging, no saving.
    """
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        TrainerCallback,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )
    from trl import GRPOConfig, GRPOTrainer

    from retrain.models.tiny import EMBEDDED_PATH
    from retrain.rewards.match import MatchReward
    from retrain.tasks.arithmetic import ArithmeticTask
    from retrain.types import Completion, Problem

    torch.set_num_threads(shape.threads)
    task, judge = ArithmeticTask(), MatchReward()
    problems = [
        p for step in range(total) for p in task.train_batch(shape.seed, step, shape.batch_size)
    ]
    dataset = Dataset.from_list(
        [{"prompt": problem.messages, "answer": problem.answer} for problem in problems]
    )
    seen: dict[str, Any] = {}

    def reward(
        completions: list[list[dict[str, str]]],
        completion_ids: list[list[int]],
        answer: list[str],
        **_: Any,
    ) -> list[float]:
        """retrain's own reward; the call marks the end of the rollout."""
        pacer.rollout_done()
        scores = [
            judge.score(
                Problem(id="", prompt="", answer=reference),
                Completion(np.array(ids), np.zeros(len(ids)), message[0]["content"], "stop"),
            ).reward
            for message, ids, reference in zip(completions, completion_ids, answer, strict=True)
        ]
        groups = np.array(scores).reshape(-1, shape.group_size)
        seen["reward"] = float(np.mean(scores))
        seen["tokens"] = sum(len(ids) for ids in completion_ids)
        seen["learning_rows"] = int((np.ptp(groups, axis=1) > 0).sum()) * shape.group_size
        return scores

    class Steps(TrainerCallback):
        def on_step_end(
            self,
            args: TrainingArguments,
            state: TrainerState,
            control: TrainerControl,
            **_: Any,
        ) -> None:
            del args, state, control
            pacer.step_done(**seen)

    config = GRPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        fp16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=shape.rows // micro_batch,
        num_generations=shape.group_size,
        max_completion_length=shape.max_tokens,
        temperature=shape.temperature,
        top_p=1.0,
        top_k=0,
        beta=0.0,
        num_iterations=1,
        loss_type="dapo",
        scale_rewards="none",
        shuffle_dataset=False,
        learning_rate=shape.lr,
        lr_scheduler_type="constant",
        warmup_steps=0,
        weight_decay=0.0,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        max_grad_norm=GRAD_CLIP,
        max_steps=total,
        seed=shape.seed,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        dataloader_num_workers=0,
    )
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(str(EMBEDDED_PATH), dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(str(EMBEDDED_PATH)),
        reward_funcs=reward,
        args=config,
        train_dataset=dataset,
        peft_config=LoraConfig(
            r=LORA_RANK,
            lora_alpha=int(LORA_ALPHA),
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
        callbacks=[Steps()],
    )
    pacer.ready()
    trainer.train()


if __name__ == "__main__":
    sys.exit(main())
