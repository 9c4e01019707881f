"""Keys from the environment stand in no file, argument list, log or message."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.rewards.judge_server import fake_server, said
from tests.tracking.tiny_runs import CLOSED

KEYS = {
    name: f"{start}canary-{number}"
    for number, (name, start) in enumerate(
        [
            ("JUDGE_KEY", "sk-"),
            ("WANDB_API_KEY", "0123456789" * 4),
            ("TINKER_API_KEY", "tml-"),
            ("VLLM_API_KEY", ""),
            ("OPENAI_API_KEY", "sk-"),
            ("HF_TOKEN", "hf_"),
        ]
    )
}
TOML = """
[campaign]
seeds = [1]
max_steps = 1

[[campaign.conditions]]
advantage_mode = "grpo"
transform_mode = "none"

[training]
batch_size = 1
group_size = 2
max_tokens = 8

[evaluation]
num_problems = 0

[reward]
type = "judge"
model = "judge-1"
base_url = "{url}"
api_key_env = "JUDGE_KEY"
on_failure = "mask"
retries = 0

[logging]
wandb_project = "probe"
wandb_mode = "offline"
"""


def arguments_of_the_machine() -> bytes:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes())
        except OSError:
            continue
    return b"\n".join(found)


def test_no_key_gets_out_of_the_environment(tmp_path: Path) -> None:
    shown = b""
    with fake_server() as judge:

        def answer(body: object) -> object:
            nonlocal shown
            shown += arguments_of_the_machine()
            return said(f"I was asked with {KEYS['JUDGE_KEY']}, and say no more.")

        judge.answer = answer  # type: ignore[assignment]
        (tmp_path / "campaign.toml").write_text(TOML.format(url=judge.url))
        done = subprocess.run(
            [sys.executable, "-m", "retrain", "campaign.toml"],
            cwd=tmp_path,
            env={**os.environ, **KEYS, "WANDB_BASE_URL": CLOSED, "HOME": str(tmp_path)},
            capture_output=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr.decode()
    assert judge.headers[0]["Authorization"] == f"Bearer {KEYS['JUDGE_KEY']}"
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert any(b"[key], and say no more" in text for text in files.values())
    assert any(path.suffix == ".wandb" for path in files)
    for name, key in KEYS.items():
        for where, text in {**files, "output": done.stdout + done.stderr, "ps": shown}.items():
            assert key.encode() not in text, (name, where)
