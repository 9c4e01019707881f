"""Where the time of a training step goes, against what its arithmetic alone would take.

Runs the real step (rollout, reward, credit, update) of `grpo+none` on the embedded model: first
plain, for the times; then under torch.profiler, for the shares. The floor is the step's
floating-point operations over the speed of matrix products at the model's own shapes, measured in
the same run on the same threads.

    python benchmarks/profile_step.py [--steps 20] [--threads 1] [--json]

See benchmarks/README.md for how to read the output.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from shape import LORA_ALPHA, LORA_RANK, Shape, environment

if TYPE_CHECKING:
    from torch import Tensor

    from retrain.types import BoolArray, Group

PHASES = ("rollout", "update")
GEMM_TOKENS = 1024  # tokens of a micro-batch of the update on a CPU
OTHER = "other operators"
_DENSE = ("aten::mm", "aten::addmm")
_BATCHED = ("aten::bmm", "aten::baddbmm")
# A product outside a linear layer belongs to the attention; so does the copying around it.
_ATTENTION = ("aten::matmul", "aten::softmax", "aten::_softmax_backward_data")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    Shape.add_arguments(parser)
    parser.add_argument("--steps", type=int, default=20, help="plain steps to time")
    parser.add_argument("--warmup", type=int, default=4, help="steps before them, dropped")
    parser.add_argument("--profiled-steps", type=int, default=4)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    if min(options.steps, options.warmup, options.profiled_steps) < 1:
        parser.error("--steps, --warmup and --profiled-steps must be at least 1")
    shape = Shape.of(options)
    if os.environ.get("OMP_NUM_THREADS") != str(shape.threads):
        # Threads must be set before torch is imported.
        os.execve(sys.executable, [sys.executable, *sys.argv], environment(shape.threads))
    result = measure(shape, options.warmup, options.steps, options.profiled_steps)
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        show(result)
    return 0


# --- the step, as training/loop.py runs it


@dataclass(frozen=True, slots=True)
class Work:
    """What has to be computed for some completions when each prompt is computed once.

    inputs: tokens that go through the layers (the last token of a completion need not);
    outputs: positions whose logits are needed; attended: keys seen, summed over the inputs.
    """

    inputs: int
    outputs: int
    attended: int

    @staticmethod
    def of(groups: Sequence[Group], chosen: BoolArray) -> Work:
        """Of the chosen completions (completions,)."""
        inputs = outputs = attended = row = 0
        for group in groups:
            lengths = [completion.num_tokens for completion in group.completions]
            kept = [
                n for n, yes in zip(lengths, chosen[row : row + len(lengths)], strict=True) if yes
            ]
            row += len(lengths)
            prompt = len(group.prompt_ids) if kept else 0
            inputs += prompt + sum(n - 1 for n in kept)
            outputs += sum(kept)
            attended += prompt * (prompt + 1) // 2
            attended += sum((n - 1) * prompt + n * (n - 1) // 2 for n in kept)
        return Work(inputs, outputs, attended)


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of one step and its work: `sampled` of all rows, `learned` of those with credit."""

    wall_s: float
    cpu_s: float
    rollout_wall_s: float
    rollout_cpu_s: float
    update_wall_s: float
    update_cpu_s: float
    sampled: Work
    learned: Work


class Step:
    """Training steps, one at a time, with the profiler's marks around their phases."""

    def __init__(self, shape: Shape, total: int) -> None:
        from retrain.models.lora import LoraSpec
        from retrain.policies.local import sampler
        from retrain.policies.local.base import load_base
        from retrain.policies.local.policy import LocalPolicy
        from retrain.rewards.registry import build_reward
        from retrain.tasks.registry import build_task
        from retrain.training.run import algorithm_of

        self.config = shape.run_config(total)
        base = load_base(self.config.model, self.config.backend)
        self.policy = LocalPolicy(base, LoraSpec(LORA_RANK, LORA_ALPHA), shape.seed)
        self.task = build_task(self.config.data)
        self.reward = build_reward(self.config.reward)
        self.algorithm = algorithm_of(self.config)
        sampler.draw_tokens = marked("draw", sampler.draw_tokens)

    def run(self, index: int) -> StepTime:
        from torch.profiler import record_function

        from retrain.advantages.credit import assign_credit
        from retrain.rewards.reward import score
        from retrain.training.rollout import optimizer_batches, rollout
        from retrain.training.schedule import optimizer_at

        training, policy = self.config.training, self.policy
        started = clocks()
        problems = self.task.train_batch(training.seed, index, training.batch_size)
        with record_function("rollout"):
            groups = rollout(policy, problems, training, index, entropies=False)
        sampled = clocks()
        groups = score(groups, self.reward)
        scored = clocks()
        with record_function("update"):
            with record_function("credit"):
                credit = assign_credit(groups, self.algorithm, index, 0.0, policy.codec.pieces)
            for batch in optimizer_batches(groups, credit, self.config, index):
                policy.update(batch, self.config.loss, optimizer_at(training, index))
        ended = clocks()
        learns = (credit.token_advantages != 0).any(axis=1)
        return StepTime(
            wall_s=ended[0] - started[0],
            cpu_s=ended[1] - started[1],
            rollout_wall_s=sampled[0] - started[0],
            rollout_cpu_s=sampled[1] - started[1],
            update_wall_s=ended[0] - scored[0],
            update_cpu_s=ended[1] - scored[1],
            sampled=Work.of(groups, learns | True),
            learned=Work.of(groups, learns),
        )


def clocks() -> tuple[float, float]:
    """Wall and CPU seconds (of all threads) on clocks that only run forward."""
    return time.perf_counter(), time.process_time()


def marked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, visible to the profiler."""
    from torch.profiler import record_function

    def run(*args: Any) -> Any:
        with record_function(name):
            return function(*args)

    return run


def measure(shape: Shape, warmup: int, steps: int, profiled: int) -> dict[str, Any]:
    import torch
    from torch.profiler import ProfilerActivity, profile

    step = Step(shape, warmup + steps + profiled)
    gemm = GemmSpeed(step.policy.base.engine, shape.rows)
    for index in range(warmup):
        step.run(index)
    # On a shared machine speed drifts: look before, between and after.
    gemm.look()
    times = [step.run(warmup + index) for index in range(steps // 2)]
    gemm.look()
    times += [step.run(warmup + index) for index in range(steps // 2, steps)]
    gemm.look()
    with profile(activities=[ProfilerActivity.CPU], with_flops=True) as profiler:
        slowed = [step.run(warmup + steps + index) for index in range(profiled)]

    def median(values: Iterable[float]) -> float:
        return float(statistics.median(values))

    plain = median(t.cpu_s for t in times)
    parts, others, executed = parts_of(profiler.events(), profiled)
    return {
        "shape": asdict(shape),
        "steps": steps,
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 2),
        "median": {
            name: median(getattr(t, name) for t in times)
            for name in (
                "wall_s",
                "cpu_s",
                "rollout_wall_s",
                "rollout_cpu_s",
                "update_wall_s",
                "update_cpu_s",
            )
        },
        "tokens": statistics.fmean(t.sampled.outputs for t in times),
        "learning_tokens": statistics.fmean(t.learned.outputs for t in times),
        "profiler_slowdown": median(t.cpu_s for t in slowed) / plain,
        "profiled_s": parts,
        "largest_other_s": others,
        "executed_gflop": executed,
        "gflops": gemm.report(),
        "floor": {
            phase: {
                "gflop": statistics.fmean(gemm.needed(t, phase)[0] for t in times) / 1e9,
                "seconds": statistics.fmean(gemm.needed(t, phase)[1] for t in times),
            }
            for phase in PHASES
        },
    }


# --- the profile


Parts = dict[str, dict[str, float]]


def parts_of(events: Iterable[Any], steps: int) -> tuple[Parts, Parts, dict[str, float]]:
    """Profiled seconds a step of each phase's parts; of the operators in its parts called
    "other"; and GFLOP a step that its matrix products executed, padding included.

    Each operator counts the time that its own callees do not.
    """
    seconds: Parts = {phase: defaultdict(float) for phase in PHASES}
    others: Parts = {phase: defaultdict(float) for phase in PHASES}
    flop = dict.fromkeys(PHASES, 0.0)
    for event in events:
        names = [event.name]
        parent = event.cpu_parent
        while parent is not None:
            names.append(parent.name)
            parent = parent.cpu_parent
        phase = next((name for name in names if name in PHASES), None)
        if phase is None:
            continue
        part = rollout_part(names) if phase == "rollout" else update_part(names)
        share = event.self_cpu_time_total / 1e6 / steps
        seconds[phase][part] += share
        if part.endswith(OTHER):
            others[phase][event.name.removeprefix("autograd::engine::evaluate_function: ")] += share
        if event.name in _DENSE + _BATCHED:
            flop[phase] += (event.flops or 0) / 1e9 / steps
    return _largest_first(seconds), _largest_first(others), flop


def _largest_first(parts: Parts) -> Parts:
    return {
        phase: dict(sorted(named.items(), key=lambda item: -item[1]))
        for phase, named in parts.items()
    }


def rollout_part(names: Sequence[str]) -> str:
    """names: the operator and its callers, innermost first."""
    if "draw" in names:
        return "sampling"
    if names[0] in PHASES:
        return "Python, numpy, tokenizer"
    return kind_of(names)


def update_part(names: Sequence[str]) -> str:
    if "credit" in names:
        return "credit"
    if names[0] in PHASES:
        return "Python, numpy"
    if any(name.startswith("Optimizer.step") for name in names):
        return "optimizer"
    if any(name.startswith("autograd::engine") for name in names):
        return f"backward: {kind_of(names)}"
    if "aten::addmm_" in names:
        return "adapter: merge, gradients of the factors"
    return f"forward: {kind_of(names)}"


def kind_of(names: Sequence[str]) -> str:
    if names[0] in _DENSE or "aten::linear" in names or "aten::addmm_" in names:
        return "matrix products"
    if names[0] in _BATCHED or any(name in _ATTENTION for name in names):
        return "attention: products, softmax"
    return OTHER


# --- the floor


class GemmSpeed:
    """Matrix products of the model's layers and head, alone: the fastest of many repeats.

    For the rollout with one row a completion; for the update with `GEMM_TOKENS` rows, forward,
    gradient of the input, and gradient of the weight (the head's is frozen and has none).
    """

    def __init__(self, engine: Any, rows: int) -> None:
        import torch

        self._layers = len(engine.model.layers)
        self._attention_width = engine.model.heads * engine.model.head_dim
        shapes = [tuple(product.weight.shape) for product in engine.model.layers[0].products]
        self._shapes = dict(zip(("qkv", "o", "gate_up", "down"), shapes, strict=True))
        self._shapes["head"] = tuple(engine.model.head.shape)
        self._work: dict[tuple[str, str], tuple[Tensor, Tensor, Tensor]] = {}
        self._best: dict[tuple[str, str], float] = {}
        for name, (out, fan_in) in self._shapes.items():
            weight = torch.randn(out, fan_in)
            for kind, tokens in (("rollout", rows), ("forward", GEMM_TOKENS)):
                x = torch.randn(tokens, fan_in)
                self._work[name, kind] = (x, weight.T, torch.empty(tokens, out))
            grad = torch.randn(GEMM_TOKENS, out)
            self._work[name, "input grad"] = (grad, weight, torch.empty(GEMM_TOKENS, fan_in))
            if name != "head":
                x = torch.randn(GEMM_TOKENS, fan_in)
                self._work[name, "weight grad"] = (grad.T, x, torch.empty(out, fan_in))

    def look(self, repeats: int = 40) -> None:
        """Measure every product again, and keep the fastest time (seconds a FLOP)."""
        import torch

        for key, (a, b, out) in self._work.items():
            flop = 2 * a.shape[0] * a.shape[1] * b.shape[1]
            calls = max(1, round(5e7 / flop))
            for _ in range(repeats):
                start = time.perf_counter()
                for _ in range(calls):
                    torch.mm(a, b, out=out)
                cost = (time.perf_counter() - start) / calls / flop
                self._best[key] = min(self._best.get(key, cost), cost)

    def needed(self, step: StepTime, phase: str) -> tuple[float, float]:
        """FLOP of a step's phase without padding, and their seconds at the measured speed."""
        work = step.sampled if phase == "rollout" else step.learned
        kinds = ("rollout",) if phase == "rollout" else ("forward", "input grad", "weight grad")
        flop = seconds = 0.0
        for name, (out, fan_in) in self._shapes.items():
            tokens = work.outputs if name == "head" else work.inputs * self._layers
            for kind in kinds:
                if (name, kind) in self._best:
                    flop += 2 * out * fan_in * tokens
                    seconds += 2 * out * fan_in * tokens * self._best[name, kind]
        # Scores and mixtures, forward and (two products for each) backward, at the mean speed.
        attention = 4.0 * self._attention_width * self._layers * work.attended
        attention *= 1 if phase == "rollout" else 3
        return flop + attention, seconds * (1 + attention / flop) if flop else 0.0

    def report(self) -> dict[str, dict[str, float]]:
        """GFLOP/s of each product, by kind."""
        found: dict[str, dict[str, float]] = defaultdict(dict)
        for (name, kind), cost in self._best.items():
            found[name][kind] = round(1e-9 / cost, 1)
        return dict(found)


# --- for people


def show(result: Mapping[str, Any]) -> None:
    shape, median, floors = Shape(**result["shape"]), result["median"], result["floor"]
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    console.print(
        f"{shape.batch_size} problems x {shape.group_size} completions x {shape.max_tokens} tokens,"
        f" {shape.threads} thread(s), torch {result['torch']}, load {result['load']}\n"
        f"{result['tokens']:.0f} completion tokens a step, {result['learning_tokens']:.0f} of them "
        "in rows that have credit"
    )
    speeds = Table(title="matrix products alone, GFLOP/s")
    kinds = ("rollout", "forward", "input grad", "weight grad")
    for heading in ("product", *kinds):
        speeds.add_column(heading, justify="left" if heading == "product" else "right")
    for name, by_kind in result["gflops"].items():
        cells = [f"{by_kind[kind]:.0f}" if kind in by_kind else "" for kind in kinds]
        speeds.add_row(name, *cells)
    console.print(speeds)

    against = Table(title="a step against its floor (medians)")
    headings = ("phase", "floor s", "CPU s", "x floor", "wall s", "GFLOP needed", "executed")
    for heading in headings:
        against.add_column(heading, justify="left" if heading == "phase" else "right")
    for phase in PHASES:
        cpu, floor = median[f"{phase}_cpu_s"], floors[phase]["seconds"] * shape.threads
        against.add_row(
            phase,
            f"{floor:.3f}",
            f"{cpu:.3f}",
            f"{cpu / floor:.1f}" if floor else "",
            f"{median[f'{phase}_wall_s']:.3f}",
            f"{floors[phase]['gflop']:.1f}",
            f"{result['executed_gflop'][phase]:.1f}",
        )
    floor = sum(floors[phase]["seconds"] for phase in PHASES) * shape.threads
    cpu = median["cpu_s"]
    against.add_row(
        "step", f"{floor:.3f}", f"{cpu:.3f}", f"{cpu / floor:.1f}", f"{median['wall_s']:.3f}"
    )
    console.print(against)

    # The profiler slows the step and sees wall time; its shares, applied to the plain CPU time.
    where = Table(title=f"where it goes (profiled, {result['profiler_slowdown']:.2f} x the CPU s)")
    for heading in ("phase", "part", "share of the phase", "CPU s"):
        where.add_column(heading, justify="left" if heading in ("phase", "part") else "right")
    for phase, parts in result["profiled_s"].items():
        total = sum(parts.values())
        for part, seconds in parts.items():
            share = seconds / total
            cpu = share * median[f"{phase}_cpu_s"]
            where.add_row(phase, part, f"{share:.1%}", f"{cpu:.4f}")
        where.add_section()
    console.print(where)
    for phase, named in result["largest_other_s"].items():
        total = sum(result["profiled_s"][phase].values())
        largest = [f"{name} {seconds / total:.1%}" for name, seconds in list(named.items())[:8]]
        console.print(f"{OTHER} in the {phase}: {', '.join(largest)}")


if __name__ == "__main__":
    sys.exit(main())
