"""An adapter beside the one that it was cut from: same luck, and nothing lost in loading."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from retrain.config.schema import RunConfig
from retrain.errors import InputError
from retrain.models.adapters.reader import open_adapter
from retrain.models.lora import LoraSpec
from retrain.policies.local.policy import LocalPolicy
from retrain.squeeze import compress_adapter
from retrain.training.adapter_check import AdapterChecker, load_policy
from retrain.training.run import BaseModels
from retrain.types import TrainBatch

BASES = BaseModels()
CONFIG = RunConfig.model_validate(
    {
        "training": {"max_tokens": 24, "seed": 3},
        "evaluation": {"num_problems": 5, "samples_per_problem": 2},
    }
)


def policy(seed: int = 0) -> LocalPolicy:
    base = BASES.get(CONFIG.model, CONFIG.backend)
    made = LocalPolicy(base, LoraSpec(4, 8.0), seed)
    generator = torch.Generator().manual_seed(seed)
    made.adapter.params.normal_(std=0.05, generator=generator)
    return made


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    policy().adapter.save(folder)
    return folder


@pytest.fixture(scope="module")
def checker(adapter: Path) -> AdapterChecker:
    return AdapterChecker(CONFIG, BASES.get(CONFIG.model, CONFIG.backend), adapter)


def batch() -> TrainBatch:
    rng = np.random.default_rng(0)
    mask = np.arange(6) < np.array([6, 3, 5])[:, None]
    nothing = np.zeros(mask.shape)
    ids = rng.integers(5, 50, mask.shape) * mask
    prompts = [rng.integers(5, 50, 4), rng.integers(5, 50, 7)]
    return TrainBatch(prompts, np.array([0, 1, 1]), ids, mask, nothing, nothing, nothing, 0.7)


def logprobs(of: LocalPolicy) -> torch.Tensor:
    return torch.cat([values[mask] for values, mask in of.logprobs(batch())])


def test_an_adapter_beside_itself_differs_in_nothing(
    checker: AdapterChecker, adapter: Path
) -> None:
    check = checker.compare(adapter)
    assert check.accuracy == check.original_accuracy
    assert (check.difference.mean, check.difference.problems) == (0.0, 5)
    assert check.mean_token_kl == 0.0


@pytest.mark.parametrize("allocation", ["uniform", "per_module"])
def test_a_cut_adapter_is_loaded_as_its_matrices_say(
    adapter: Path, tmp_path: Path, allocation: str
) -> None:
    """Whatever ranks and scalings: the product of the factors is what is added to a weight."""
    result = compress_adapter(adapter, tmp_path / "cut", rank=2, allocation=allocation)  # type: ignore[arg-type]
    base = BASES.get(CONFIG.model, CONFIG.backend)
    with open_adapter(tmp_path / "cut") as opened:
        loaded = load_policy(opened, base, CONFIG)
    kept = policy()
    for name, factors in kept.adapter.factors.items():
        u, s, v = torch.linalg.svd((factors.b @ factors.a).double(), full_matrices=False)
        (rank,) = {k for module, k in result.ranks.items() if module.endswith(name)}
        root = s[:rank].sqrt()
        factors.a.zero_()
        factors.b.zero_()
        factors.a[:rank] = (root[:, None] * v[:rank]).float()
        factors.b[:, :rank] = (u[:, :rank] * root).float()
    torch.testing.assert_close(logprobs(loaded), logprobs(kept), atol=1e-5, rtol=1e-5)


def test_log_probabilities_leave_gradients_on() -> None:
    """Also when two policies take turns, and one is not read to its end."""
    one, two = policy(0).logprobs(batch()), policy(1).logprobs(batch())
    next(one)
    next(two)
    assert torch.is_grad_enabled()
    one.close()
    two.close()
    assert torch.is_grad_enabled()


def test_kl_is_that_of_the_two_policies(checker: AdapterChecker, tmp_path: Path) -> None:
    """Larger the further the other is away; of the tokens' distributions, so not negative."""
    found = []
    for strength in (0.1, 1.0):
        other = policy()
        noise = torch.randn(other.adapter.num_params, generator=torch.Generator().manual_seed(1))
        other.adapter.params.add_(noise, alpha=0.05 * strength)
        other.adapter.save(tmp_path / str(strength))
        found.append(checker.compare(tmp_path / str(strength)).mean_token_kl)
    assert 0 < found[0] < found[1]


def test_an_adapter_of_another_model_is_refused(
    checker: AdapterChecker, adapter: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(adapter / "adapter_model.safetensors")
    renamed = {name.replace("layers.1.", "layers.7."): value for name, value in tensors.items()}
    (tmp_path / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text())
    save_file(renamed, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"embedded has no linear layer model\.layers\.7\."):
        checker.compare(tmp_path)


def test_without_held_out_problems_there_is_nothing_to_check(adapter: Path) -> None:
    evaluation = CONFIG.evaluation.model_copy(update={"num_problems": 0})
    config = CONFIG.model_copy(update={"evaluation": evaluation})
    with pytest.raises(InputError, match=r"evaluation\.num_problems"):
        AdapterChecker(config, BASES.get(CONFIG.model, CONFIG.backend), adapter)
