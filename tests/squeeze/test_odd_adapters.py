"""Damaged and odd adapters: one message each, which names the file, the key and the remedy."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from retrain.errors import InputError
from retrain.squeeze import analyze_adapter, compress_adapter
from tests.squeeze.adapters import (
    PREFIX,
    random_factors,
    read_config,
    read_tensors,
    write_adapter,
    write_config,
)

LAYER = "model.layers.0.self_attn.q_proj"
A, B = f"{PREFIX}{LAYER}.lora_A.weight", f"{PREFIX}{LAYER}.lora_B.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "source", random_factors(), dtype=torch.float32)


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = read_tensors(folder)
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


def refused(folder: Path, *parts: str, **options: Any) -> str:
    """Both verbs refuse with one line that holds all parts, and write nothing."""
    with pytest.raises(InputError) as analysing:
        analyze_adapter(folder, **options)
    output = folder.parent / "output"
    with pytest.raises(InputError) as compressing:
        compress_adapter(folder, output, **options)
    message = str(analysing.value)
    assert message == str(compressing.value)
    assert not output.exists()
    assert "\n" not in message
    for part in parts:
        assert part in message, message
    return message


def test_a_missing_partner(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.pop(B))
    refused(folder, f"{folder}/adapter_model.safetensors", A, "lora_B", "copy it again")


def test_a_shape_that_is_not_the_rank(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.update({B: torch.ones(20, 7)}))
    refused(folder, B, "[20, 7]", "adapter_config.json", "rank 8")


def test_a_shard_that_was_not_gathered(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.update({A: torch.ones(0)}))
    refused(folder, A, "[0]", "ZeRO-3")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(folder: Path, value: float) -> None:
    change_tensors(folder, lambda tensors: tensors[A][1, 2:4].fill_(value))
    refused(folder, A, "2 values of 96", "NaN or infinite", "earlier checkpoint")


def test_a_truncated_file(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(folder, str(weights), "damaged", "download it again")
    weights.write_bytes(b"")
    refused(folder, str(weights), "damaged")


@pytest.mark.parametrize("text", ['{"r": 8', "[]", "\xff"])
def test_a_config_that_is_no_json_object(folder: Path, text: str) -> None:
    (folder / "adapter_config.json").write_bytes(text.encode("latin-1"))
    refused(folder, f"{folder}/adapter_config.json", "damaged", "copy the adapter again")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"r": 0}, ["r is 0", "at least 1"]),
        ({"r": "8"}, ["r is '8'"]),
        ({"lora_alpha": 0}, ["lora_alpha is 0", "multiplies the whole adapter by 0"]),
        ({"lora_alpha": None}, ["lora_alpha is None"]),
        ({"lora_alpha": float("inf")}, ["lora_alpha is inf"]),
        ({"peft_type": "LOHA"}, ["peft_type is 'LOHA'", "only LORA"]),
        ({"rank_pattern": {"(q_proj": 4}}, ["rank_pattern", "'(q_proj'", "no regular expression"]),
        ({"rank_pattern": {"q_proj": 2.5}}, ["rank_pattern['q_proj'] is 2.5"]),
        ({"alpha_pattern": [1]}, ["alpha_pattern is [1]"]),
        ({"use_rslora": "yes"}, ["use_rslora is 'yes'"]),
        ({"use_dora": True}, ["use_dora = true", "DoRA", "merge"]),
        ({"target_parameters": ["experts.w"]}, ["target_parameters", "experts"]),
        ({"use_bdlora": {"nblocks": 2}}, ["use_bdlora", "block-diagonal"]),
        ({"init_lora_weights": "pissa_niter_4"}, ["pissa_niter_4", "convert it"]),
        ({"a_new_setting": 3}, ["a_new_setting = 3", "remove the key"]),
    ],
)
def test_configs_that_are_refused(folder: Path, change: dict[str, Any], parts: list[str]) -> None:
    write_config(folder, {**read_config(folder), **change})
    refused(folder, f"{folder}/adapter_config.json", *parts)


def test_a_dora_magnitude_without_its_setting(folder: Path) -> None:
    name = f"{PREFIX}{LAYER}.lora_magnitude_vector"
    change_tensors(folder, lambda tensors: tensors.update({name: torch.ones(20)}))
    refused(folder, name, "DoRA")


@pytest.mark.parametrize("name", ["lora_diag", "lora_down.weight", "lora_A.bias"])
def test_factors_that_peft_s_lora_has_not(folder: Path, name: str) -> None:
    name = f"{PREFIX}{LAYER}.{name}"
    change_tensors(folder, lambda tensors: tensors.update({name: torch.ones(20)}))
    refused(folder, name)


def test_a_raw_state_dict(folder: Path) -> None:
    name = f"{PREFIX}score.modules_to_save.default.weight"
    change_tensors(folder, lambda tensors: tensors.update({name: torch.ones(2, 2)}))
    refused(folder, name, "save_pretrained")


def test_a_part_of_a_layer(folder: Path) -> None:
    names = {f"{PREFIX}attn.base_layer.out_proj.lora_{x}.weight": torch.ones(8, 8) for x in "AB"}
    change_tensors(folder, lambda tensors: tensors.update(names))
    refused(folder, "attn.base_layer.out_proj", "MultiheadAttention")


def test_a_grouped_convolution(tmp_path: Path) -> None:
    layer = f"{PREFIX}conv"
    extra = {
        f"{layer}.lora_A.weight": torch.ones(8, 4, 3, 3),
        f"{layer}.lora_B.weight": torch.ones(4, 4, 1, 1),
    }
    folder = write_adapter(tmp_path / "source", random_factors(), extra=extra)
    refused(folder, "conv.lora_B", "[4, 4, 1, 1]", "rank 8")


def test_integers_are_no_factors(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.update({A: tensors[A].to(torch.int8)}))
    refused(folder, A, "dtype I8", "bfloat16")


def test_an_adapter_that_was_never_trained(tmp_path: Path) -> None:
    factors = {name: (torch.zeros_like(b), a) for name, (b, a) in random_factors().items()}
    folder = write_adapter(tmp_path / "source", factors)
    refused(folder, str(folder), "all 4 modules are zero", "trained?")


class Boom:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("boom"),))


def test_a_pickle_is_never_opened(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Boom()))
    refused(folder, "adapter_model.bin is a pickle", "safe_serialization=True")
    with pytest.raises(InputError, match="pickle"):
        analyze_adapter(folder / "adapter_model.bin")
    assert not (tmp_path / "boom").exists()


def test_what_holds_no_adapter(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", f"{tmp_path}/empty", "adapter_config.json is missing")
    refused(tmp_path / "sourc", "no such adapter", "did you mean source?")
    with pytest.raises(InputError, match="download the adapter first"):
        analyze_adapter("tinker://run/weights/final")
    (tmp_path / "run" / "final").mkdir(parents=True)
    (tmp_path / "run" / "run.json").write_text("{}")
    refused(tmp_path / "run", "is a run; its adapter is", "final")
    (folder / "adapter_model.safetensors").unlink()
    refused(folder, "adapter_model.safetensors is missing")
    save_file({"x": torch.ones(2)}, folder / "adapter_model.safetensors")
    refused(folder, "no LoRA factors")


def test_the_rank_contradicts(folder: Path) -> None:
    refused(folder, "source_rank: 16", "has rank 8", "write 8", source_rank=16)
    refused(folder, "target_ranks: 9", "1 to 8", target_ranks=(2, 9))
    refused(folder, "min_variance_retention: 95", "0.95", min_variance_retention=95)
    refused(folder, "device: 'tpu9'", device="tpu9")
    refused(folder, "dtype: 'float16'", dtype="float16")
    for rank in (9, -1):
        with pytest.raises(InputError, match=f"rank: {rank}.* rank 8; 1 to 8 is possible"):
            compress_adapter(folder, folder.parent / "output", rank=rank)


def test_several_adapters_in_one_file(tmp_path: Path) -> None:
    one = {
        f"{PREFIX}{LAYER}.lora_{x}.one.weight": t.contiguous()
        for x, t in zip("BA", random_factors()[LAYER], strict=True)
    }
    folder = write_adapter(
        tmp_path / "source", random_factors(seed=1), adapter_name="two", extra=one
    )
    refused(folder, "several adapters: one, two", "adapter_name")
    refused(folder, "no adapter 'three'", "one, two", adapter_name="three")
    assert analyze_adapter(folder, adapter_name="one").num_layers == 1
    assert analyze_adapter(folder, adapter_name="two").num_layers == 4
    result = compress_adapter(folder, tmp_path / "output", rank=2, adapter_name="one")
    # Without the name, as PEFT's own files are: it gives the name when it loads.
    assert set(read_tensors(result.output_path)) == {A, B}


def shard(folder: Path) -> dict[str, str]:
    """Split the file in two, as large checkpoints are."""
    tensors = read_tensors(folder)
    names = sorted(tensors)
    where = {name: f"adapter_model-{i % 2 + 1}-of-2.safetensors" for i, name in enumerate(names)}
    for file in set(where.values()):
        save_file({name: tensors[name] for name in names if where[name] == file}, folder / file)
    (folder / "adapter_model.safetensors").unlink()
    return where


def write_index(folder: Path, weight_map: object) -> None:
    index = folder / "adapter_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))


def test_shards(folder: Path) -> None:
    whole = analyze_adapter(folder)
    where = shard(folder)
    write_index(folder, where)
    assert analyze_adapter(folder) == whole
    first = where[A]
    (folder / first).rename(folder / "away")
    refused(folder, "index.json names", first, "missing")
    write_index(folder, {**where, A: "../../etc/secret.safetensors"})
    refused(folder, "index.json", "'../../etc/secret.safetensors'", "beside it")
    (folder / "away").rename(folder / first)
    write_index(folder, {**where, "extra": first})
    refused(folder, first, "'extra'")
    write_index(folder, [1])
    refused(folder, "index.json is damaged")


def test_one_file_beside_its_config(folder: Path) -> None:
    other = folder / "epoch3.safetensors"
    (folder / "adapter_model.safetensors").rename(other)
    assert analyze_adapter(other).source_rank == 8


def test_modules_are_read_one_at_a_time(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a module's factors are read, none of another module's are alive."""
    import weakref

    from retrain.models.adapters.tensors import TensorReader

    alive: dict[int, tuple[str, Any]] = {}
    most: list[int] = []
    read = TensorReader.read

    def spy(self: TensorReader, name: str) -> torch.Tensor:
        tensor = read(self, name)
        modules = {other for other, ref in alive.values() if ref() is not None}
        module = re.sub(r"\.lora_[AB]\.weight", "", name)
        most.append(len(modules - {module}))
        alive[len(alive)] = (module, weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(TensorReader, "read", spy)
    compress_adapter(folder, tmp_path / "output", rank=2)
    assert len(most) == 2 * 8
    assert max(most) <= 1, "at most the module before, while its successor is read"


@pytest.fixture(autouse=True)
def _no_bytes_left_behind(tmp_path: Path) -> Iterator[None]:
    yield
    assert not list(tmp_path.glob(".*.tmp"))
