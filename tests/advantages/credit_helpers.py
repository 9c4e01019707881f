"""Made-up scored groups."""

import numpy as np

from retrain.types import Completion, Group, Problem, Score


def completion(pieces, logprobs, entropies=None):
    """A completion whose token ids count from 0; its text is the pieces joined."""
    return Completion(
        token_ids=np.arange(len(logprobs)),
        logprobs=np.array(logprobs, dtype=np.float64),
        text="".join(pieces),
        stop_reason="stop",
        entropies=None if entropies is None else np.array(entropies, dtype=np.float64),
    )


def group(name, completions, rewards, outcomes=None):
    outcomes = outcomes or ["correct" if reward > 0 else "wrong" for reward in rewards]
    return Group(
        problem=Problem(id=name, prompt="?", answer="1"),
        prompt_ids=np.arange(2),
        completions=tuple(completions),
        scores=tuple(Score(r, o) for r, o in zip(rewards, outcomes, strict=True)),
    )


def plain_group(name, rewards, tokens=3):
    """Completions of equal tokens, nothing planning."""
    rows = [completion(["x"] * tokens, [-1.0] * tokens) for _ in rewards]
    return group(name, rows, rewards)


def no_pieces(token_ids):
    return ["x"] * len(token_ids)
