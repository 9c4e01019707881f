"""What each `[backend].backend` can do, known without importing what does it."""

from __future__ import annotations

from typing import get_args

from retrain.config.schema import LossConfig
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
