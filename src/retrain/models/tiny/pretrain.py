"""Pre-training of the embedded model: next-token loss on solutions, in one annealed run.

The curriculum starts with clean chains, from which arithmetic is learnt fastest, and moves to
the mixture of `text.py` while the learning rate falls.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import GenerationConfig, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from retrain import seeding
from retrain.models.tiny.text import Mixture, solution
from retrain.models.tiny.tokenizer import ASSISTANT, CONTEXT, END, USER
from retrain.tasks.arithmetic import draw_distinct

CLEAN = Mixture(careful=1.0, guess=0.0, sloppy=0.0, haste=0.0, slip=0.0, check=0.0)
MIXED = Mixture(careful=0.56, guess=0.16, sloppy=0.28, haste=0.32, slip=0.10, check=0.12)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the weights. The defaults make the shipped model.

    steps, rows: optimizer steps, and rows in each
    pool:        steps whose rows are drawn together and sorted by length
    matrix_rate, other_rate: peak learning rates; `warmup` steps lead up to them, then they
                 fall linearly to zero
    clean_until, mixed_from: shares of the steps between which the text moves from `clean`
                 to `mixed`
    width and below: sizes of the Qwen3 architecture
    """

    seed: int = 0
    steps: int = 800
    rows: int = 128
    pool: int = 16
    matrix_rate: float = 2e-2
    other_rate: float = 5e-3
    warmup: int = 20
    clean_until: float = 0.5
    mixed_from: float = 0.6
    clean: Mixture = CLEAN
    mixed: Mixture = MIXED
    width: int = 128
    feed_forward: int = 384
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2

    def mixture(self, step: int) -> Mixture:
        """What a step reads."""
        progress = step / self.steps
        span = max(self.mixed_from - self.clean_until, 1e-9)
        share = min(max((progress - self.clean_until) / span, 0.0), 1.0)
        return self.clean.towards(self.mixed, share)

    def rate(self, step: int) -> float:
        """A step's share of the peak learning rates."""
        warm = min((step + 1) / self.warmup, 1.0)
        decay = (self.steps - step) / max(self.steps - self.warmup, 1)
        return min(warm, decay)


def make_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    """A plain Qwen3 with fresh weights in fp32."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.width // recipe.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.key(recipe.seed, "tiny/init") % 2**63)
        model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def pretrain(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    report: Callable[[str], None] = print,
) -> None:
    """Train the model in place."""
    optimizers = _optimizers(model, recipe)
    model.train()
    started = time.monotonic()
    recent: list[float] = []  # batches differ in length and so in loss: report a mean
    for step, (ids, targets) in enumerate(batches(tokenizer, recipe)):
        loss = solution_loss(model(input_ids=ids, use_cache=False).logits, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * recipe.rate(step)
            optimizer.step()
            optimizer.zero_grad()
        recent.append(loss.item())
        if (step + 1) % 50 == 0 or step + 1 == recipe.steps:
            seconds, mean = time.monotonic() - started, sum(recent) / len(recent)
            report(f"step {step + 1:5d}/{recipe.steps}  loss {mean:7.3f}  {seconds:4.0f} s")
            recent.clear()
    model.eval()  # type: ignore[no-untyped-call]


def solution_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The rows' mean negative log-likelihood of a whole solution, in nats.

    Every token weighs the same whatever its row's length and whichever rows share its batch.
    A mean over the batch's tokens would over-weight short guesses, whose batches hold few
    tokens, and so would a mean over each row's: the model would guess more than its text does.

    logits: (rows, tokens, vocabulary); targets: (rows, tokens), -100 where nothing is learnt.
    """
    summed = functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum"
    )
    return summed / len(targets)


def _optimizers(
    model: Qwen3ForCausalLM, recipe: Recipe
) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon for the matrices and AdamW for the rest, each with its peak learning rate.

    Muon gets further in 200 clean steps than AdamW alone in 400, and it is what makes the
    model a matter of minutes.
    """
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    ids = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in ids]
    return [
        (torch.optim.Muon(matrices, weight_decay=0.1), recipe.matrix_rate),
        (torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0), recipe.other_rate),
    ]


def batches(tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
    """(inputs, targets) of each step, both (rows, tokens), right-padded.

    Rows of `pool` steps are drawn together and sorted by length, so that little is padded.
    """
    for first in range(0, recipe.steps, recipe.pool):
        stream = seeding.generator(recipe.seed, "tiny/text", first)
        expressions = draw_distinct(stream, held_out=False)
        steps = range(first, min(first + recipe.pool, recipe.steps))
        mixture = recipe.mixture(first)
        prompts, answers = [], []
        for _ in range(len(steps) * recipe.rows):
            expression = next(expressions)
            prompts.append(f"{USER}{expression.problem.prompt}{END}{ASSISTANT}")
            answers.append(solution(expression, mixture, stream) + END)
        prompt_ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
        answer_ids = tokenizer(answers, add_special_tokens=False)["input_ids"]
        rows = sorted(zip(prompt_ids, answer_ids, strict=True), key=lambda r: len(r[0]) + len(r[1]))
        for index in stream.permutation(len(steps)):
            start = int(index) * recipe.rows
            yield _pad(rows[start : start + recipe.rows], tokenizer.pad_token_id)


def _pad(rows: list[tuple[list[int], list[int]]], pad: int) -> tuple[Tensor, Tensor]:
    width = max(len(prompt) + len(answer) for prompt, answer in rows) - 1
    ids = torch.full((len(rows), width), pad)
    targets = torch.full((len(rows), width), -100)
    for i, (prompt, answer) in enumerate(rows):
        whole = torch.tensor(prompt + answer)
        ids[i, : len(whole) - 1] = whole[:-1]
        targets[i, len(prompt) - 1 : len(whole) - 1] = whole[len(prompt) :]
    return ids, targets
