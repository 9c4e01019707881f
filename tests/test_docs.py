"""The examples of the documentation, run as they stand."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILE = re.compile(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)
SHELL = re.compile(r"```bash\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)(#[^)]*)?\)")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])
RUN_PAGES = [ROOT / "docs" / "extending.md", ROOT / "docs" / "data.md", ROOT / "README.md"]


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    words = shlex.split(command, comments=True)
    words = {"retrain": [sys.executable, "-m", "retrain"], "python": [sys.executable]}[
        words[0]
    ] + words[1:]
    return subprocess.run(
        words,
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )


def commands_of(page: Path, files: set[str]) -> list[str]:
    """Commands of the page's shell blocks that use one of the page's own files."""
    lines = [
        line.strip() for block in SHELL.findall(page.read_text()) for line in block.split("\n")
    ]
    wanted = [line for line in lines if line.startswith(("retrain ", "python "))]
    return [
        line for line in wanted if any(name in shlex.split(line, comments=True) for name in files)
    ]


@pytest.mark.parametrize("page", RUN_PAGES, ids=lambda page: page.name)
def test_examples(page: Path, tmp_path: Path) -> None:
    files = dict(FILE.findall(page.read_text()))
    assert files
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    commands = commands_of(page, set(files))
    assert commands
    for command in commands:
        result = run(command, tmp_path)
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"


def test_the_table_of_scores_is_the_one_that_is_printed(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "rewards.md").read_text()
    (tmp_path / "answers.jsonl").write_text(dict(FILE.findall(text))["answers.jsonl"])
    (shown,) = re.findall(r"```text\n(   line .*?)```", text, re.DOTALL)
    assert run("retrain score answers.jsonl --type math", tmp_path).stdout == shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, _ in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_configuration_tables_in_the_docs_are_valid(tmp_path: Path) -> None:
    """Snippets without a file name are parts of a config: every key of them must exist."""
    import tomllib

    from retrain.config.schema import RetrainConfig

    for page in PAGES:
        for block in re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL):
            values = tomllib.loads(block)
            RetrainConfig.model_validate(values)
