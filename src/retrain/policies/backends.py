"""What each `[backend].backend` can do, known without importing what does it."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

from retrain.config.schema import LossConfig, RunConfig
from retrain.policies.policy import Capabilities

BACKENDS: dict[str, Capabilities] = {
    "local": Capabilities(
        exact_resume=True,
        token_entropies=True,
        losses=frozenset(get_args(LossConfig.model_fields["type"].annotation)),
        kl_to_base=True,
        tempered_loss=True,
        dual_clip=True,
    ),
    "tinker": Capabilities(
        exact_resume=True,
        token_entropies=False,
        losses=frozenset({"importance_sampling", "ppo", "cispo"}),
        kl_to_base=False,
        tempered_loss=False,
        dual_clip=False,
    ),
}


def capabilities_of(run: RunConfig) -> Capabilities:
    """What a run's policy can do, with the server that samples for it, if there is one."""
    found = BACKENDS[run.backend.backend]
    return found if run.inference.engine == "local" else replace(found, token_entropies=False)


def place_of(run: RunConfig) -> str:
    """Where a run samples, for messages: `backend "tinker"`, or `engine "openai"`."""
    remote = run.inference.engine != "local"
    return f'engine "{run.inference.engine}"' if remote else f'backend "{run.backend.backend}"'
