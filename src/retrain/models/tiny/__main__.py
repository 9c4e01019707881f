"""`python -m retrain.models.tiny`: make the embedded model from nothing."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from retrain.models.tiny import EMBEDDED_PATH
from retrain.models.tiny.pretrain import Recipe, make_model, pretrain
from retrain.models.tiny.tokenizer import make_tokenizer


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m retrain.models.tiny", description=__doc__)
    parser.add_argument("--output", type=Path, default=EMBEDDED_PATH, help="folder to write")
    parser.add_argument("--seed", type=int, default=Recipe().seed)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    make(replace(Recipe(), seed=options.seed), options.output)


def make(recipe: Recipe, output: Path, report: Callable[[str], None] = print) -> None:
    """Train by the recipe and write a Hugging Face folder."""
    tokenizer = make_tokenizer()
    model = make_model(recipe, tokenizer)
    report(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    pretrain(model, tokenizer, recipe, report)
    model.bfloat16().save_pretrained(output)
    tokenizer.save_pretrained(output)
    report(f"written to {output}")


if __name__ == "__main__":
    main()
