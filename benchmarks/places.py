"""The same seed learns the same, wherever its policy lives.

    python benchmarks/places.py [--seeds 42,101,202] [--steps 40] [--picture FILE.png] [--json]
    python benchmarks/places.py --vllm URL --workers 3      also with a real server

Trains one campaign of two conditions in three places: here; at the stand-in for the Tinker service
that the tests use; and here with completions from the tests' inference server. Both are started on
loopback. `--vllm` adds a vLLM that serves the embedded model, whose folder is

    python -c "from retrain.models.tiny import EMBEDDED_PATH; print(EMBEDDED_PATH)"

and has room for as many adapters as there are workers (`--max-loras`). Each place is compared with
here: run by run, and by its mean over seeds with a paired-t interval.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from places_picture import write_picture
from places_tables import (
    HERE,
    LAST,
    compare,
    differences,
    print_differences,
    print_runs,
    read_place,
    summary,
)

ROOT = Path(__file__).resolve().parents[1]
TINKER, SERVER, VLLM = "tinker", "server", "vllm"
TITLES = {
    HERE: "here",
    TINKER: "Tinker stand-in",
    SERVER: "test server",
    VLLM: "vLLM",
}

CAMPAIGN = """\
[campaign]
seeds = {seeds}
max_steps = {steps}
parallel = true
max_workers = {workers}

[[campaign.conditions]]
advantage_mode = "grpo"
transform_mode = "none"

[[campaign.conditions]]
advantage_mode = "maxrl"
transform_mode = "gtpo_sepa"

[model]
model = "embedded"
lora_rank = 8
{model}
[training]
batch_size = 8
group_size = 8
max_tokens = 64
lr = 2e-3

[sepa]
delay_steps = 5
steps = 20

[evaluation]
num_problems = {problems}
every = 10
greedy = false

[logging]
log_dir = "{place}"
log_generations = 64            # all of a step, to compare them

{tables}
"""


@contextmanager
def servers(out: Path) -> Iterator[dict[str, str]]:
    """The addresses of the stand-in and of the test server while they run."""
    sys.path.append(str(ROOT))
    from tests.inference import server
    from tests.tinker import standin

    states = out / "standin", out / "test_server"
    for state in states:
        state.mkdir()
    options = ("--logprobs-mode", "processed_logprobs")
    with standin.Remote(states[0]) as service, server.Remote(states[1], *options) as inference:
        yield {TINKER: service.url, SERVER: inference.url}


def train(place: str, url: str, options: argparse.Namespace, out: Path) -> None:
    """Train the campaign in a place, as a user does; its files are in `out/place`."""
    model, tables = "", ""
    if place == TINKER:
        model = f'base_url = "{url}"\n'
        tables = '[backend]\nbackend = "tinker"\nmax_concurrent = 64'
    elif place != HERE:
        tables = f'[inference]\nengine = "openai"\nurl = "{url}"'
    campaign = CAMPAIGN.format(
        seeds=list(options.seeds),
        steps=options.steps,
        workers=options.workers,
        problems=options.problems,
        place=place,
        model=model,
        tables=tables,
    )
    (out / f"{place}.toml").write_text(campaign)
    log = out / f"{place}.log"
    begin = time.monotonic()
    with log.open("w") as words:
        done = subprocess.run(
            [sys.executable, "-m", "retrain", f"{place}.toml"],
            cwd=out,
            env={**os.environ, "TINKER_API_KEY": "tml-loopback"},
            stdout=words,
            stderr=subprocess.STDOUT,
        )
    if done.returncode:
        last = "\n".join(log.read_text().splitlines()[-15:])
        raise SystemExit(f"{last}\n{TITLES[place]}: the campaign failed")
    print(f"{TITLES[place]}: trained in {time.monotonic() - begin:.0f} s", file=sys.stderr)


def train_all(options: argparse.Namespace, out: Path) -> None:
    with servers(out) as urls:
        urls |= {VLLM: options.vllm} if options.vllm else {}
        for place in (HERE, *urls):
            train(place, urls.get(place, ""), options, out)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=seeds_of, default=[42, 101, 202])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--problems", type=int, default=256, help="held out")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    parser.add_argument("--vllm", metavar="URL", help="a vLLM that serves the embedded model")
    parser.add_argument("--out", type=Path, help="a new folder for the runs, which stay there")
    parser.add_argument("--read", type=Path, help="train nothing: read what --out left")
    parser.add_argument("--picture", type=Path, help="write the curves, as .svg or .png")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    if options.steps < LAST:
        parser.error(f"--steps must be at least {LAST}")
    if options.picture and options.picture.suffix not in {".svg", ".png"}:
        parser.error("--picture must end in .svg or .png")
    if options.out and options.out.exists():
        parser.error(f"{options.out} is there already; give --out a new folder, or --read this one")
    if options.read and not (options.read / HERE).is_dir():
        parser.error(f"{options.read} holds no runs of this script")
    with tempfile.TemporaryDirectory(prefix="retrain_places_") as aside:
        out = options.read or options.out or Path(aside)
        if not options.read:
            out.mkdir(parents=True, exist_ok=True)
            train_all(options, out)
        places = {place: read_place(out / place) for place in TITLES if (out / place).is_dir()}
    found, apart = compare(places), differences(places)
    if options.picture:
        rewards = {
            place: {run: one["mean_reward"] for run, one in runs.items()}
            for place, runs in places.items()
        }
        write_picture(rewards, TITLES, options.picture)
    if options.json:
        result = {
            "runs": [asdict(one) for one in found],
            "differences": [asdict(one) for one in apart],
        }
        print(json.dumps(result, indent=2))
        return 0
    print_runs(found, TITLES)
    print_differences(apart, TITLES)
    for place in [place for place in places if place != HERE]:
        runs = [one for one in found if one.place == place]
        print(summary(runs, [one for one in apart if one.place == place], TITLES[place]))
    return 0


def seeds_of(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
