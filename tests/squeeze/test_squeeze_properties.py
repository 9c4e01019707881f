"""The mathematics, against the dense product in float64."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrain.models.adapters.settings import read_settings
from retrain.squeeze import analyze_adapter, compress_adapter, factors
from retrain.squeeze.analysis import retention
from tests.squeeze.adapters import (
    best_approximation,
    product,
    random_factors,
    read_config,
    read_tensors,
    write_adapter,
)

ADAPTERS = st.fixed_dictionaries(
    {
        "rank": st.integers(1, 9),
        "fan_out": st.integers(1, 14),
        "fan_in": st.integers(1, 14),
        "decay": st.sampled_from([1.0, 0.7, 0.1, 1e-3]),
        "seed": st.integers(0, 10_000),
    }
)


@contextmanager
def written(shape: dict[str, float], **options: object) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield write_adapter(Path(name) / "source", random_factors(**shape), **options)  # type: ignore[arg-type]


@settings(max_examples=60)
@given(shape=ADAPTERS, data=st.data(), rslora=st.booleans(), alpha=st.sampled_from([1, 16, 0.3]))
def test_errors_are_the_tail_and_the_scaling_is_kept(
    shape: dict[str, float], data: st.DataObject, rslora: bool, alpha: float
) -> None:
    """Frobenius and spectral error of the written adapter equal what the analysis says, and no
    matrix of that rank is closer."""
    rank = int(shape["rank"])
    k = data.draw(st.integers(1, rank), label="k")
    with written(shape, use_rslora=rslora, lora_alpha=alpha) as source:
        result = compress_adapter(source, source.parent / "cut", rank=k)
        config = read_config(result.output_path)
        scaling = config["lora_alpha"] / (config["r"] ** 0.5 if rslora else config["r"])
        assert config["r"] == k
        assert config["lora_alpha"] > 0
        assert scaling == pytest.approx(alpha / (rank**0.5 if rslora else rank), rel=1e-12)
        for module in result.analysis.modules:
            dense = product(source, module.name, module.scaling)
            cut = product(result.output_path, module.name, scaling)
            size = torch.linalg.norm(dense).item()
            frobenius, spectral = module.error(k)
            assert torch.linalg.norm(dense - cut).item() == pytest.approx(
                frobenius, abs=1e-8 * size
            )
            assert torch.linalg.matrix_norm(dense - cut, 2).item() == pytest.approx(
                spectral, abs=1e-8 * size
            )
            torch.testing.assert_close(
                torch.tensor(module.scaled_singular_values[: min(dense.shape)]),
                torch.linalg.svdvals(dense)[:rank],
                rtol=1e-7,
                atol=1e-12 * size,
                check_dtype=False,
            )


@settings(max_examples=30)
@given(shape=ADAPTERS, threshold=st.sampled_from([0.05, 0.5, 0.9, 0.95, 0.999, 1.0]))
def test_retention_rises_to_one_and_the_recommendation_is_minimal(
    shape: dict[str, float], threshold: float
) -> None:
    with written(shape) as source:
        analysis = analyze_adapter(source, min_variance_retention=threshold)
    ranks = range(1, int(shape["rank"]) + 1)
    for curve in (
        analysis.mean_variance,
        analysis.min_variance,
        analysis.max_variance,
        analysis.pooled_variance,
    ):
        values = [curve[rank] for rank in ranks]
        assert values == sorted(values)
        assert values[-1] == 1.0
        assert list(curve) == list(ranks)
    best = analysis.recommended_rank
    assert analysis.mean_variance[best] >= threshold - 1e-12
    assert best == 1 or analysis.mean_variance[best - 1] < threshold - 1e-12


@settings(max_examples=25)
@given(shape=ADAPTERS, seed=st.integers(0, 99))
def test_what_counts_is_the_product(shape: dict[str, float], seed: int) -> None:
    """(B R) (R^-1 A) is the same update as B A, however ill-conditioned R is."""
    base = random_factors(**shape)  # type: ignore[arg-type]
    rank = int(shape["rank"])
    rng = np.random.default_rng(seed)
    left, _ = np.linalg.qr(rng.normal(size=(rank, rank)))
    stretch = np.logspace(0, 4, rank)
    mix, undo = torch.from_numpy(left * stretch), torch.from_numpy((left / stretch).T)
    mixed = {name: (b @ mix, undo @ a) for name, (b, a) in base.items()}
    with tempfile.TemporaryDirectory() as folder:
        one = analyze_adapter(write_adapter(Path(folder) / "one", base))
        two = analyze_adapter(write_adapter(Path(folder) / "two", mixed))
    for rank, kept in one.mean_variance.items():
        assert two.mean_variance[rank] == pytest.approx(kept, abs=1e-9)


@settings(max_examples=25)
@given(shape=ADAPTERS, data=st.data())
def test_cutting_twice_is_cutting_once(shape: dict[str, float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, int(shape["rank"])))
    with written(shape) as source:
        once = compress_adapter(source, source.parent / "once", rank=k).output_path
        twice = compress_adapter(once, source.parent / "twice", rank=k).output_path
        assert read_config(once) == read_config(twice)
        for name in random_factors(**shape):  # type: ignore[arg-type]
            torch.testing.assert_close(product(once, name), product(twice, name))


def test_the_same_source_gives_the_same_bytes(tmp_path: Path) -> None:
    source = write_adapter(tmp_path / "source", random_factors(), dtype=torch.bfloat16)
    outputs = [compress_adapter(source, tmp_path / name, rank=3).output_path for name in "ab"]
    for file in ("adapter_model.safetensors", "adapter_config.json", "squeeze.json"):
        assert (outputs[0] / file).read_bytes() == (outputs[1] / file).read_bytes()
    # The sign of a pair of singular vectors is free: the largest entry of B's is positive.
    for name, tensor in read_tensors(outputs[0]).items():
        if "lora_B" in name:
            assert bool((tensor.amax(0) >= -tensor.amin(0)).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_of_the_source_is_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    source = write_adapter(tmp_path / "source", random_factors(), dtype=dtype)
    result = compress_adapter(source, tmp_path / "cut", rank=2)
    tensors = read_tensors(result.output_path)
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    for name in random_factors():
        expected = best_approximation(product(source, name), 2)
        error = torch.linalg.norm(product(result.output_path, name) - expected)
        assert error <= 4 * torch.finfo(dtype).eps * torch.linalg.norm(expected)


def test_all_that_there_is_can_be_asked_for(tmp_path: Path) -> None:
    """1.0 is reached at the number of directions that are there, not only at the full rank."""
    b, a = random_factors(layers=1)["model.layers.0.self_attn.q_proj"]
    b[:, 3:] = 0
    source = write_adapter(tmp_path / "source", {"model.layers.0.self_attn.q_proj": (b, a)})
    assert analyze_adapter(source, min_variance_retention=1.0).recommended_rank == 3


@pytest.mark.parametrize("rank", range(1, 11))
def test_round_off_does_not_cost_a_rank(tmp_path: Path, rank: int) -> None:
    """Ten equal directions: `rank` tenths need `rank` of them, though 1 - 0.9 < 0.1."""
    eye = torch.eye(10).double()
    source = write_adapter(tmp_path / "source", {"layers.0.q_proj": (eye, eye)})
    analysis = analyze_adapter(source, min_variance_retention=rank / 10)
    assert analysis.recommended_rank == rank


def test_the_recommended_rank_need_not_be_a_power_of_two(tmp_path: Path) -> None:
    b = torch.diag(torch.tensor([1.0] * 6 + [0.0] * 2, dtype=torch.float64))
    source = write_adapter(tmp_path / "source", {"layers.0.q_proj": (b, torch.eye(8).double())})
    analysis = analyze_adapter(source, min_variance_retention=5 / 6, target_ranks=[7])
    assert analysis.recommended_rank == 5
    assert analysis.ranks == (1, 2, 4, 5, 7, 8)
    assert analysis.mean_variance[5] == pytest.approx(5 / 6)


def test_pooled_weighs_by_the_scaled_energy(tmp_path: Path) -> None:
    """Worked by hand: S = (2, 1) at scaling 1 and (1, 1) at scaling 2."""
    eye = torch.eye(2).double()
    factors = {
        "layers.0.q_proj": (torch.diag(torch.tensor([2.0, 1.0])).double(), eye),
        "layers.1.q_proj": (eye, eye),
    }
    source = write_adapter(
        tmp_path / "s", factors, lora_alpha=2, alpha_pattern={r"layers\.1\.q_proj": 4}
    )
    analysis = analyze_adapter(source)
    assert analysis.mean_variance[1] == pytest.approx((4 / 5 + 1 / 2) / 2)
    assert analysis.pooled_variance[1] == pytest.approx((4 + 4 * 1) / (5 + 4 * 2))
    assert analysis.min_variance[1] == pytest.approx(1 / 2)
    assert analysis.max_variance[1] == pytest.approx(4 / 5)
    assert [module.effective_rank for module in analysis.modules] == [2, 2]


def test_zero_modules_are_counted_and_left_out(tmp_path: Path) -> None:
    factors = random_factors(layers=1)
    names = sorted(factors)
    factors[names[0]] = (torch.zeros_like(factors[names[0]][0]), factors[names[0]][1])
    analysis = analyze_adapter(write_adapter(tmp_path / "s", factors))
    alone = analyze_adapter(write_adapter(tmp_path / "t", {names[1]: factors[names[1]]}))
    assert analysis.zero_modules == (names[0],)
    assert analysis.num_layers == 1
    assert analysis.mean_variance == alone.mean_variance


@pytest.mark.parametrize("which", [0, 1])
def test_a_zero_module_stays_zero_and_trainable(tmp_path: Path, which: int) -> None:
    factors = random_factors(layers=1)
    name = min(factors)
    pair = list(factors[name])
    pair[which] = torch.zeros_like(pair[which])
    factors[name] = (pair[0], pair[1])
    out = compress_adapter(write_adapter(tmp_path / "s", factors), tmp_path / "o", rank=2)
    tensors = read_tensors(out.output_path)
    assert not product(out.output_path, name).any()
    assert sum(bool(t.any()) for key, t in tensors.items() if name in key) == 1


def test_a_product_that_only_round_off_keeps_from_zero_is_zero() -> None:
    rng = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(30, 8, generator=rng, dtype=torch.float64))
    b = torch.randn(20, 4, generator=rng, dtype=torch.float64) @ torch.eye(4, 8).double()
    a = torch.cat([torch.zeros(4, 30).double(), basis.T[:4]])
    mix, _ = torch.linalg.qr(torch.randn(8, 8, generator=rng, dtype=torch.float64))
    assert torch.linalg.norm((b @ mix) @ (mix.T @ a)) > 0
    assert not factors.singular_values(b @ mix, mix.T @ a).any()


def test_modules_of_unequal_rank_keep_all_from_their_own_rank_on(tmp_path: Path) -> None:
    small, large = random_factors(layers=1, rank=3), random_factors(layers=1, rank=8, seed=1)
    names = sorted(small)
    factors = {names[0]: small[names[0]], names[1]: large[names[1]]}
    source = write_adapter(tmp_path / "s", factors, lora_alpha=8, rank_pattern={names[0]: 3})
    analysis = analyze_adapter(source)
    assert analysis.source_rank == 8
    assert analysis.max_variance[3] == 1.0
    assert analyze_adapter(source, source_rank=8).source_rank == 8
    result = compress_adapter(source, tmp_path / "o", rank=5)
    assert dict(result.ranks) == {names[0]: 3, names[1]: 5}
    settings = read_settings(result.output_path / "adapter_config.json", "config")
    for name in names:
        rank = settings.rank_of(name)
        assert rank == result.ranks[name]
        before = 8 / (3 if name == names[0] else 8)
        assert settings.scaling(settings.alpha_of(name), rank) == pytest.approx(before)


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), k=st.integers(1, 6))
def test_per_module_keeps_at_least_as_much_for_no_more_parameters(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    modules = {}
    for number in range(4):
        fan_out, fan_in = rng.integers(6, 30, size=2)
        made = random_factors(1, 6, int(fan_out), int(fan_in), float(rng.uniform(0.2, 1)), seed)
        b, a = made["model.layers.0.self_attn.q_proj"]
        modules[f"layers.{number}.q_proj"] = (b * float(rng.uniform(0, 3)), a)
    with tempfile.TemporaryDirectory() as folder:
        source = write_adapter(Path(folder) / "source", modules)
        uniform = compress_adapter(source, Path(folder) / "uniform", rank=k)
        free = compress_adapter(source, Path(folder) / "free", rank=k, allocation="per_module")
    assert free.parameters <= uniform.parameters
    assert free.pooled_variance >= uniform.pooled_variance - 1e-12
    assert min(free.ranks.values()) >= 1


def test_per_module_is_never_worse_than_uniform(tmp_path: Path) -> None:
    """Greedy alone would buy the two cheap ranks and could not pay for the better dear one."""
    modules = {}
    for name, shape, energy in (
        ("layers.0.q_proj", (5, 5), [20, 10, 9.9, 0.1]),
        ("layers.1.q_proj", (8, 7), [20, 14.7, 0.1, 0.1]),
    ):
        b = torch.eye(shape[0], 4).double() * torch.tensor(energy).double().sqrt()
        modules[name] = (b, torch.eye(4, shape[1]).double())
    source = write_adapter(tmp_path / "source", modules)
    result = compress_adapter(source, tmp_path / "cut", rank=2, allocation="per_module")
    assert set(result.ranks.values()) == {2}


def test_retention_of_tiny_and_huge_values() -> None:
    for size in (1e-200, 1e200):
        np.testing.assert_allclose(retention(np.array([2.0, 1.0]) * size, 3), [0.8, 1, 1])


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6, np.inf])
def test_both_triangles_give_the_same_singular_values(condition: float) -> None:
    """Well-conditioned factors go by Cholesky, others by Householder: neither loses digits."""
    rng = np.random.default_rng(0)
    u, _ = np.linalg.qr(rng.normal(size=(200, 16)))
    v, _ = np.linalg.qr(rng.normal(size=(16, 16)))
    s = np.logspace(0, -np.log10(condition), 16) if condition < np.inf else np.arange(16.0)
    b, a = torch.from_numpy((u * s) @ v), torch.from_numpy(rng.normal(size=(16, 90)))
    expected = torch.linalg.svdvals(b @ a)[:16]
    torch.testing.assert_close(
        factors.singular_values(b, a), expected, rtol=1e-8, atol=1e-13 * float(expected[0])
    )
