"""What is shown and what is written: table, JSON, pictures, folders."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from safetensors import safe_open

from retrain.errors import InputError
from retrain.models.adapters.tensors import TensorWriter
from retrain.squeeze import analyze_adapter, compress_adapter, pictures, render_table
from retrain.squeeze.analysis import positions
from tests.squeeze.adapters import random_factors, read_tensors, write_adapter


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    factors = random_factors()
    name = "model.layers.1.self_attn.v_proj"
    factors[name] = (torch.zeros_like(factors[name][0]), factors[name][1])
    return write_adapter(tmp_path / "source", factors)


def test_importing_loads_no_torch() -> None:
    code = (
        "import sys, retrain.squeeze; print([m for m in ('torch', 'altair') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_the_table(tmp_path: Path) -> None:
    """Four directions of S^2 = 4, 3, 2, 1: by hand."""
    b = torch.diag(torch.tensor([4.0, 3, 2, 1]).sqrt())
    folder = write_adapter(
        tmp_path / "s",
        {"layers.0.q_proj": (b, torch.eye(4)), "layers.0.k_proj": (b * 0, torch.eye(4))},
    )
    assert render_table(analyze_adapter(folder, min_variance_retention=0.875)) == (
        """\
Source rank: 4
Layers analyzed: 1
Zero modules: 1, left out (layers.0.k_proj)

  Rank  Mean Var%  Min Var%  Max Var%  Pooled Var%
------------------------------------------------------
     1     40.00%    40.00%    40.00%       40.00%
     2     70.00%    70.00%    70.00%       70.00%
     3     90.00%    90.00%    90.00%       90.00% <--
     4    100.00%   100.00%   100.00%      100.00%

Recommended rank: 3 (>= 87.5% variance retained)"""
    )


def test_json_holds_everything(folder: Path) -> None:
    analysis = analyze_adapter(folder, target_ranks=[3])
    data = json.loads(json.dumps(analysis.to_json()))
    assert data["recommended_rank"] == analysis.recommended_rank
    assert data["zero_modules"] == ["model.layers.1.self_attn.v_proj"]
    assert data["num_layers"] == 3 == len(data["modules"])
    assert 3 in data["ranks"]
    assert data["mean_variance"]["8"] == 1.0
    assert data["modules"][0]["module_type"] == "q_proj"
    assert data["modules"][0]["scaling"] == 2.0


def test_progress_counts_both_passes(folder: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    analyze_adapter(folder, on_module=lambda *pair: seen.append(pair))
    assert seen == [(i, 4) for i in range(1, 5)]
    seen.clear()
    compress_adapter(folder, tmp_path / "o", on_module=lambda *pair: seen.append(pair))
    assert seen == [(i, 8) for i in range(1, 9)]


def test_pictures(folder: Path, tmp_path: Path) -> None:
    analysis = analyze_adapter(folder)
    for path in pictures(analysis, tmp_path / "shown"):
        assert path.read_bytes().startswith(b"\x89PNG")
        svg = ElementTree.parse(path.with_suffix(".svg"))
        text = " ".join("".join(node.itertext()) for node in svg.iter())
        assert "q_proj" in text or f"recommended rank {analysis.recommended_rank}" in text


def test_pictures_of_the_smallest_adapter(tmp_path: Path) -> None:
    """One module without a layer, rank 1."""
    factors = {"lm_head": (torch.ones(3, 1), torch.ones(1, 2))}
    analysis = analyze_adapter(write_adapter(tmp_path / "s", factors))
    assert all(path.is_file() for path in pictures(analysis, tmp_path))


def test_positions() -> None:
    found = positions(
        [
            "model.layers.3.self_attn.q_proj",
            "model.layers.3.mlp.experts.7.up_proj",
            "lm_head",
            "model.embed_tokens",
        ]
    )
    assert list(found.values()) == [
        (3, "q_proj"),
        (3, "up_proj"),
        (None, "lm_head"),
        (None, "embed_tokens"),
    ]
    stacks = positions(["encoder.block.0.q", "decoder.block.0.q", "decoder.block.1.q"])
    assert stacks["encoder.block.0.q"] == (0, "encoder.block.q")
    assert stacks["decoder.block.1.q"] == (1, "decoder.block.q")
    same_ends = positions(["h.0.attn.proj", "h.0.mlp.proj"])
    assert same_ends["h.0.mlp.proj"] == (0, "mlp.proj")


def test_an_earlier_result_is_replaced_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    compress_adapter(folder, output, rank=2)
    pictures(analyze_adapter(folder), output)
    again = compress_adapter(folder, output, rank=3)
    assert {path.name for path in output.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "squeeze.json",
    }
    written = json.loads((output / "squeeze.json").read_text())
    assert (written["rank"], written["parameters"]) == (3, again.parameters)
    (output / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt"):
        compress_adapter(folder, output, rank=2)
    assert (output / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("content", ["squeeze.json", "model.safetensors"])
def test_a_folder_of_something_else_is_left_alone(
    folder: Path, tmp_path: Path, content: str
) -> None:
    (tmp_path / "campaign").mkdir()
    (tmp_path / "campaign" / content).write_text('{"recommended_rank": 2}')
    with pytest.raises(InputError, match="is not empty and no earlier result"):
        compress_adapter(folder, tmp_path / "campaign", rank=2)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        compress_adapter(folder, tmp_path / "file", rank=2)


def test_the_source_is_never_the_output(folder: Path, tmp_path: Path) -> None:
    cut = compress_adapter(folder, tmp_path / "cut", rank=4).output_path
    before = {path.name: path.read_bytes() for path in cut.iterdir()}
    for output in (cut, cut.parent):
        with pytest.raises(InputError, match="holds the adapter itself"):
            compress_adapter(cut, output, rank=2)
    assert {path.name: path.read_bytes() for path in cut.iterdir()} == before


def test_a_failure_leaves_the_earlier_result(folder: Path, tmp_path: Path) -> None:
    output = compress_adapter(folder, tmp_path / "output", rank=2).output_path
    before = read_tensors(output)

    def fail(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress_adapter(folder, output, rank=3, on_module=fail)
    after = read_tensors(output)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert {path.name for path in tmp_path.iterdir()} == {"source", "output"}


@pytest.mark.parametrize("change", [{"ensure_weight_tying": True}, {}])
def test_ranks_that_must_be_equal_stay_equal(tmp_path: Path, change: dict[str, bool]) -> None:
    made = random_factors(layers=1)["model.layers.0.self_attn.q_proj"]
    factors = {f"layers.0.mlp.experts.{i}.w1": made for i in range(2)}
    folder = write_adapter(tmp_path / "s", factors, **change)
    with pytest.raises(InputError, match='"uniform"'):
        compress_adapter(folder, tmp_path / "o", rank=2, allocation="per_module")
    assert compress_adapter(folder, tmp_path / "o", rank=2).rank == 2
    with pytest.raises(InputError, match="allocation: 'greedy'"):
        compress_adapter(folder, tmp_path / "o", allocation="greedy")  # type: ignore[arg-type]


def test_the_writer_s_files_are_safetensors(tmp_path: Path) -> None:
    """Read back by the library, whatever the dtypes and the order of writing."""
    tensors = {
        "bytes": torch.arange(3, dtype=torch.uint8),
        "half": torch.randn(3, 1, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "ünïcode": torch.randn(2, 3).T,
        "flags": torch.tensor([True, False]),
    }
    names = {"bytes": "U8", "half": "BF16", "scalar": "F64", "flags": "BOOL"}
    layout = {name: (names.get(name, "F32"), tuple(t.shape)) for name, t in tensors.items()}
    with (tmp_path / "t.safetensors").open("wb") as file:
        writer = TensorWriter(file, layout)
        for name, tensor in reversed(tensors.items()):
            writer.write(name, tensor)
        writer.finish()
    with safe_open(tmp_path / "t.safetensors", framework="pt") as read:
        assert read.metadata() == {"format": "pt"}
        for name, tensor in tensors.items():
            assert torch.equal(read.get_tensor(name), tensor)
