"""Runs whose completions come from a real vLLM, in float32 on the CPU: `make vllm` starts these.

Pytest collects a file of this name only where it is named, and so `make test` does not. A start of
vLLM takes up to minutes, so tests share one where they can. RETRAIN_VLLM may name the program of
another vLLM for CPUs than the one that `make vllm` installs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import httpx
import numpy as np
import pytest
from rich.console import Console
from tests.training import runs

from retrain.config.schema import BackendConfig, ModelConfig, RunConfig
from retrain.errors import InputError
from retrain.experiments.serving import Servers, launch_of, serving
from retrain.files import RunRecord, read_jsonl
from retrain.policies.inference.policy import mismatch, opened
from retrain.policies.inference.sampling import Sampler
from retrain.policies.inference.supervisor import claim_port
from retrain.training.place import Place
from retrain.types import IntArray, Problem, SamplingParams, TrainBatch, pad_mask, pad_rows

INSTALLED = Path(__file__).parents[2] / ".venv-vllm/bin/vllm"
PROGRAM = Path(os.environ.get("RETRAIN_VLLM", INSTALLED)).absolute()
START_S = 900.0
END_S = 30.0
AGREE = 1e-4
"""Nats a token: two float32 implementations of one model."""

KEEPER = "retrain.policies.inference.keeper"
NO_EVALUATION = {"num_problems": 0}
BRIEF = {"max_steps": 2}

CAMPAIGN = """
[model]
lora_rank = 8

[training]
batch_size = 8
group_size = 8
max_tokens = 48
lr = 2e-3

[evaluation]
num_problems = 32

[logging]
log_dir = "logs"

[campaign]
seeds = [7]
max_steps = 12
parallel = true
max_workers = 2

[[campaign.conditions]]
advantage_mode = "grpo"
transform_mode = "none"

[[campaign.conditions]]
advantage_mode = "maxrl"
transform_mode = "gtpo"
"""
CONDITIONS = ("grpo+none", "maxrl+gtpo")

ONE_RUN = """
[training]
batch_size = 4
group_size = 8
max_tokens = 48
lr = 2e-3
max_steps = 3

[evaluation]
num_problems = 0

[logging]
log_dir = "logs"
"""

ENGINE = """
[inference]
engine = "vllm"
command = "{program}"
arguments = {arguments}
"""


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """Little memory, as several may run at a time, and nothing from elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


def settings(**tables: dict[str, Any]) -> RunConfig:
    given = {"evaluation": NO_EVALUATION, "logging": {"log_generations": 12}, **tables}
    given.setdefault("inference", {"engine": "vllm", "command": str(PROGRAM)})
    return runs.config(**given)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """One vLLM for all runs in this process, as a campaign of them would have it."""
    ranks = [settings(model={"lora_rank": rank}) for rank in (4, 32)]
    folder = tmp_path_factory.mktemp("server")
    with serving(ranks, folder, Console(), clients=2) as found:
        assert found.of(ranks[0]) == found.of(ranks[1])
        yield found


def train(servers: Servers, config: RunConfig, folder: Path, **kwargs: Any) -> Path:
    """The folder of the run, which is done and has lost nothing."""
    place = Place(config.backend, servers.of(config))
    assert runs.start(config, folder, place=place, **kwargs).status == "done"
    assert_agrees(folder)
    return folder


def assert_agrees(folder: Path) -> None:
    assert RunRecord.read(folder).status == "done"
    found = runs.rows(folder)
    assert len(found) == RunRecord.read(folder).data["max_steps"]
    for row in found:
        assert row["sampler_mismatch"] < AGREE
        assert row["sampler_ess"] is None or row["sampler_ess"] > 0.999
        assert (row["lost_completions"], row["lost_groups"]) == (0, 0)
    assert not (folder / "adapters").exists()


@pytest.fixture(scope="module")
def undisturbed(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(servers, settings(), tmp_path_factory.mktemp("undisturbed") / "run")


def assert_same(folder: Path, other: Path) -> None:
    """The same completions, and numbers up to float32's last bits."""
    assert completions(folder) == completions(other)
    for mine, theirs in zip(runs.rows(folder), runs.rows(other), strict=True):
        assert mine["mean_reward"] == theirs["mean_reward"]
        for key in ("loss", "grad_norm"):
            near = None if theirs[key] is None else pytest.approx(theirs[key], rel=1e-3, abs=1e-6)
            assert mine[key] == near, key


def completions(folder: Path) -> list[tuple[int, str, str]]:
    """Step, prompt and text of every completion of the run."""
    rows = read_jsonl(folder / "emergence/generations.jsonl")
    return [(row["step"], row["prompt"], row["completion"]) for row in rows]


def test_the_same_seed_draws_the_same_completions(
    servers: Servers, undisturbed: Path, tmp_path: Path
) -> None:
    assert_same(train(servers, settings(), tmp_path / "again"), undisturbed)
    assert len(completions(undisturbed)) == 4 * 3 * 4
    other = settings(training={**BRIEF, "seed": 8})
    found = completions(train(servers, other, tmp_path / "other"))
    assert found != completions(undisturbed)[: len(found)]


def test_the_adapter_is_what_is_sampled_from(servers: Servers, tmp_path: Path) -> None:
    import torch

    from retrain.models.lora import LoraSpec
    from retrain.policies.local.base import load_base
    from retrain.policies.local.policy import LocalPolicy

    base = load_base(ModelConfig(), BackendConfig(device="cpu"))
    policy = LocalPolicy(base, LoraSpec(4, 8.0), seed=1)
    noise = np.random.default_rng(2).normal(0, 0.1, policy.adapter.params.shape)
    policy.adapter.params.add_(torch.from_numpy(noise).float())
    config = settings()
    problems = [Problem(text, f"Compute {text}.", "") for text in ("7*8-4", "3+9")]
    prompts = [base.codec.encode(problem) for problem in problems]
    with opened(policy, config, "noise", tmp_path, servers.of(config)) as remote:
        batch = sampled(remote, prompts, 4)
    assert batch.num_tokens > 100
    assert mismatch(policy, batch) < AGREE
    bare = LocalPolicy(base, LoraSpec(4, 8.0), seed=1)
    assert mismatch(bare, batch) > 0.1


def sampled(policy: Any, prompts: list[IntArray], group: int) -> TrainBatch:
    keys = np.arange(len(prompts) * group, dtype=np.uint64).reshape(len(prompts), group)
    groups = policy.sample(prompts, keys, SamplingParams(32))
    rows = [completion for rows in groups for completion in rows]
    mask = pad_mask([row.num_tokens for row in rows])
    nothing = np.zeros(mask.shape)
    return TrainBatch(
        prompts=prompts,
        prompt_index=np.repeat(np.arange(len(prompts)), group),
        token_ids=pad_rows([row.token_ids for row in rows], np.int64),
        mask=mask,
        logprobs=pad_rows([row.logprobs for row in rows]),
        credit=nothing,
        weight=nothing,
        temperature=1.0,
    )


@pytest.mark.parametrize(
    "tables",
    [{"training": {"temperature": 0.8}}, {"model": {"lora_rank": 32}}],
    ids=["temperature", "rank"],
)
def test_other_settings(servers: Servers, tmp_path: Path, tables: dict[str, Any]) -> None:
    tables["training"] = {**BRIEF, **tables.get("training", {})}
    train(servers, settings(**tables), tmp_path / "run")


def test_a_server_that_is_killed_is_started_again(
    servers: Servers,
    undisturbed: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the middle of a rollout, whose completions are then asked for once more."""
    (killed,) = vllms_of(os.getpid())
    shared = shared_memory(family(killed))
    sample, ask = Sampler.sample, Sampler._one
    times = 0

    def prepare(row: Mapping[str, Any]) -> None:
        if row["step"] == 1:
            monkeypatch.setattr(Sampler, "sample", arm)

    def arm(self: Sampler, *arguments: Any) -> Any:
        nonlocal times
        times += 1
        # The first completions are those of the check after the push.
        if times == 2:
            monkeypatch.setattr(Sampler, "_one", kill_soon)
        return sample(self, *arguments)

    async def kill_soon(self: Sampler, *arguments: Any) -> Any:
        monkeypatch.setattr(Sampler, "_one", ask)
        # A completion takes ten times as long.
        asyncio.get_running_loop().call_later(0.05, os.kill, killed, signal.SIGKILL)
        return await ask(self, *arguments)

    begun = time.monotonic()
    train(servers, settings(), tmp_path / "run", on_row=prepare)
    print(f"killed and started again: {time.monotonic() - begun:.0f} s in all")
    (risen,) = vllms_of(os.getpid())
    assert risen != killed
    assert caplog.text.count("vLLM was ended by SIGKILL") == 1
    assert caplog.text.count("it is started again") == 1
    assert shared
    assert [path for path in shared if path.exists()] == []
    assert_same(tmp_path / "run", undisturbed)


def vllms_of(pid: int) -> list[int]:
    """Process ids of the servers that this process keeps."""
    keepers = [child for child in children(pid) if KEEPER in command_line(child)]
    return [server for keeper in keepers for server in children(keeper)]


def children(pid: int) -> list[int]:
    found: list[str] = []
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        # A thread may end meanwhile.
        with contextlib.suppress(OSError):
            found += thread.read_text().split()
    return list(map(int, found))


def family(pid: int) -> list[int]:
    """The process and all that come from it."""
    return [pid, *(one for child in children(pid) for one in family(child))]


def shared_memory(pids: Iterable[int]) -> set[Path]:
    """Files of shared memory that these processes have open."""
    found: set[str] = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            found.update(re.findall(r"/dev/shm/\S+", Path(f"/proc/{pid}/maps").read_text()))
    return {path for path in map(Path, found) if path.exists()}


def command_line(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return []


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a campaign with two workers at one vLLM; nothing of it is left."""
    folder = tmp_path_factory.mktemp("campaign")
    kept: set[int] = set()

    def watch(parent: int) -> None:
        kept.update(vllms_of(parent))

    text = CAMPAIGN + ENGINE.format(program=PROGRAM, arguments="[]")
    code, output = command(folder, text, watch)
    assert code == 0, output
    print(output)
    assert "2 runs, 24 steps, 2 workers" in output
    assert len(kept) == 1
    return only(folder)


def test_a_campaign_has_one_server_and_leaves_nothing(campaign: Path) -> None:
    for condition in CONDITIONS:
        assert_agrees(campaign / f"runs/{condition}_s7")
    log = (campaign / "vllm.log").read_text()
    assert len(re.findall(r"^--- .* serve ", log, re.MULTILINE)) == 1
    loaded = re.findall(r"Loaded new LoRA adapter: name '(.+?)'", log)
    assert len(set(loaded)) == len(loaded) >= 2 * 12
    assert sorted(re.findall(r"Removed LoRA adapter: name '(.+?)'", log)) == sorted(loaded)
    # As it is ended it aborts its own engine, and calls that an error.
    assert "Traceback" not in log.partition("[shutdown]")[0]
    worst = max(row["sampler_mismatch"] for name in CONDITIONS for row in rows_of(campaign, name))
    print(f"sampler_mismatch in float32: at most {worst:.2g}")


def test_it_learns_as_the_local_run_does(campaign: Path, tmp_path: Path) -> None:
    """Other completions are drawn under the same seed, so that curves are alike and no more. Of
    local campaigns under other seeds the mean of the last four steps spreads by 0.04, and the
    held-out accuracy of 32 problems by 0.05."""
    code, output = command(tmp_path, CAMPAIGN)
    assert code == 0, output
    here, there = curves(only(tmp_path)), curves(campaign)
    print(f"correct, first and last steps, held-out: {there} here, {here} without vLLM")
    for found in (here, there):
        assert found["last"] > found["first"] + 0.1
        assert found["after"] > found["before"] + 0.05
    assert there["last"] == pytest.approx(here["last"], abs=0.15)
    assert there["after"] == pytest.approx(here["after"], abs=0.2)
    # Before the first update there is nothing but the sampler that differs.
    assert there["before"] == pytest.approx(here["before"], abs=0.2)


def curves(campaign: Path) -> dict[str, float]:
    """Means over both conditions."""
    correct = [[row["correct_rate"] for row in rows_of(campaign, name)] for name in CONDITIONS]
    results = [RunRecord.read(campaign / f"runs/{name}_s7").data["result"] for name in CONDITIONS]
    means = {
        "first": fmean(fmean(rates[:2]) for rates in correct),
        "last": fmean(fmean(rates[-4:]) for rates in correct),
        "before": fmean(result["accuracy_before"] for result in results),
        "after": fmean(result["accuracy_after"] for result in results),
    }
    return {name: round(value, 3) for name, value in means.items()}


def rows_of(campaign: Path, condition: str) -> list[dict[str, Any]]:
    return runs.rows(campaign / f"runs/{condition}_s7")


def command(
    folder: Path, text: str, watch: Callable[[int], None] = lambda pid: None
) -> tuple[int, str]:
    """Exit code and output of `retrain` in the folder, after which nothing of it lives on.

    watch: called again and again meanwhile, with its process id.
    """
    (folder / "given.toml").write_text(text)
    with (folder / "output").open("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "retrain", "given.toml"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        seen: set[int] = set()
        shared: set[Path] = set()
        while process.poll() is None:
            there = processes_in(folder)
            seen.update(there)
            shared |= shared_memory(there)
            watch(process.pid)
            time.sleep(0.5)
        deadline = time.monotonic() + END_S
        while processes_in(folder) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert process.pid in seen
        assert processes_in(folder) == []
        assert [path for path in shared if path.exists()] == []
        output.seek(0)
        return process.returncode, output.read()


def processes_in(folder: Path) -> list[int]:
    """Those that were started in the folder, and theirs: none of vLLM's goes elsewhere."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "cwd").readlink() == folder:
                found.append(int(entry.name))
    return found


def only(folder: Path) -> Path:
    (found,) = (folder / "logs").iterdir()
    return found


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--no-such-flag"], "vllm: error: unrecognized arguments: --no-such-flag"),
        (["--max-model-len", "100000"], "User-specified max_model_len (100000) is greater than"),
    ],
    ids=["unknown", "too large"],
)
def test_a_start_that_fails_is_told_in_vllms_words(
    tmp_path: Path, arguments: list[str], told: str
) -> None:
    engine = ENGINE.format(program=PROGRAM, arguments=arguments)
    code, output = command(tmp_path, ONE_RUN + engine)
    assert code == 2, output
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    print(line)
    assert told in line
    assert f"retrain resume {only(tmp_path).relative_to(tmp_path)}" in line
    assert "Traceback" not in output


def test_a_server_in_bfloat16(tmp_path: Path) -> None:
    """Of two `--dtype` vLLM takes the last."""
    engine = ENGINE.format(program=PROGRAM, arguments=["--dtype", "bfloat16"])
    code, output = command(tmp_path, ONE_RUN + engine)
    assert code == 0, output
    rows = runs.rows(only(tmp_path))
    found = [row["sampler_mismatch"] for row in rows]
    print(f"sampler_mismatch, bfloat16 and float32: {', '.join(f'{one:.2g}' for one in found)}")
    print(f"sampler_ess: {', '.join(str(row['sampler_ess']) for row in rows)}")
    assert all(AGREE < one < 0.03 for one in found)
    assert all(row["sampler_ess"] > 0.99 for row in rows)


@contextlib.contextmanager
def by_hand(folder: Path) -> Iterator[str]:
    """The address of a vLLM that somebody has started without `--logprobs-mode`."""
    model = launch_of(settings()).model
    port, claim = claim_port()
    options = ["--port", str(port), "--dtype", "float32", "--enable-lora", "--max-lora-rank", "32"]
    url = f"http://127.0.0.1:{port}"
    with (
        claim or contextlib.nullcontext(),
        (folder / "vllm.log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-m", KEEPER, str(PROGRAM), "serve", model, *options],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env={
                **os.environ,
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
                "VLLM_NO_USAGE_STATS": "1",
            },
        ) as process,
    ):
        deadline = time.monotonic() + START_S
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/v1/models").status_code == 200:
                    break
            time.sleep(0.5)
        assert process.poll() is None, (folder / "vllm.log").read_text()
        yield url


def test_log_probabilities_of_another_temperature_are_refused(tmp_path: Path) -> None:
    with by_hand(tmp_path) as url:
        inference = {"engine": "openai", "url": url}
        plain = settings(inference=inference, training=BRIEF)
        runs.start(plain, tmp_path / "plain")
        assert_agrees(tmp_path / "plain")
        warm = settings(inference=inference, training={**BRIEF, "temperature": 0.8})
        with pytest.raises(InputError, match="--logprobs-mode processed_logprobs") as refused:
            runs.start(warm, tmp_path / "warm")
    print(refused.value)
