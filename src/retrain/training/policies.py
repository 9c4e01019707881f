"""A run's policy, by where its config wants it to live."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from retrain.config.schema import ModelConfig, RunConfig
from retrain.errors import ConfigError, ConfigIssue
from retrain.models.adapters.initial import adapter_problems
from retrain.models.lora import LoraSpec
from retrain.policies.inference.vllm import share_left
from retrain.policies.local.policy import LocalPolicy
from retrain.policies.policy import Policy
from retrain.training.place import Place

if TYPE_CHECKING:
    from retrain.policies.local.base import BaseModel
    from retrain.training.run import BaseModels


@contextmanager
def opened_policy(
    config: RunConfig,
    place: Place,
    bases: BaseModels,
    checkpoint: Path | None,
    name: str,
    run_dir: Path,
) -> Iterator[Policy]:
    """The policy as it was at the checkpoint, or as a run begins. What it holds of a service is let
    go when the block ends.

    name: the run's.
    Raises ConfigError or InputError when the policy cannot be had.
    """
    model = config.model
    if config.backend.backend == "tinker":
        from retrain.policies.tinker.access import require_access

        require_access()
        from retrain.policies.tinker.policy import open_policy

        with open_policy(config, place.backend) as policy:
            if checkpoint is not None:
                policy.load(checkpoint)
            elif model.init_adapter:
                policy.start_from(model.init_adapter)
            yield policy
        return
    local = _local(config, bases.get(model, place.backend))
    if checkpoint is not None:
        local.load(checkpoint)
    elif model.init_adapter:
        _start_from(local, model)
    if config.inference.engine == "local":
        yield local
        return
    from retrain.policies.inference.policy import opened

    with opened(local, config, name, run_dir, place.endpoint) as policy:
        yield policy


def _local(config: RunConfig, base: BaseModel) -> LocalPolicy:
    training, model = config.training, config.model
    targets = model.lora_targets
    spec = LoraSpec(
        model.lora_rank, model.alpha, targets if isinstance(targets, str) else tuple(targets)
    )
    micro, recompute = training.micro_batch_tokens, training.gradient_checkpointing
    return LocalPolicy(
        base,
        spec,
        training.seed,
        micro_batch_tokens=None if micro == "auto" else micro,
        gradient_checkpointing=None if recompute == "auto" else recompute,
        decode_rows=None if training.decode_rows == "auto" else training.decode_rows,
        memory_share=share_left(config.inference, str(base.device)),
    )


def _start_from(policy: LocalPolicy, model: ModelConfig) -> None:
    if problems := list(adapter_problems(model)):
        raise ConfigError([ConfigIssue(key, text) for key, text in problems])
    policy.start_from(Path(model.init_adapter))
