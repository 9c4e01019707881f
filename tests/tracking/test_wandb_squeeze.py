"""A squeeze on Weights & Biases, read back from what the real package wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from retrain.analysis.squeezed import SQUEEZE_FILE
from retrain.config.load import config_from_mapping
from retrain.config.schema import LoggingConfig
from retrain.experiments.squeezing import squeeze_alone
from retrain.files import read_json
from retrain.models.lora import LoraAdapter, LoraSpec
from retrain.tracking.squeeze import CURVES, SUMMARY, track_squeeze
from tests.tracking.wandb_files import written


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    shapes = {"layers.0.up": (12, 10), "layers.1.up": (12, 10)}
    made = LoraAdapter(LoraSpec(4, 8.0), shapes, 0, torch.device("cpu"), ["up"], "none")
    made.params.normal_(generator=torch.Generator().manual_seed(0))
    made.save(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_the_table_the_curves_and_the_summary(
    tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    loaded = config_from_mapping(
        {
            "squeeze": {"adapter_path": str(adapter)},
            "logging": {
                "log_dir": str(tmp_path / "logs"),
                "wandb_project": "probe",
                "wandb_mode": "offline",
            },
        }
    )
    folder = squeeze_alone(loaded)
    document = read_json(folder / SQUEEZE_FILE)
    (found,) = written(folder)
    assert (found.project, found.name) == ("probe", "squeeze-analysis")
    curves = [row for row in found.history if "squeeze/mean_variance" in row]
    assert len(curves) == document["source_rank"] == 4
    for rank, row in enumerate(curves, start=1):
        for curve in CURVES:
            assert row[f"squeeze/{curve}"] == document[curve][str(rank)]
    for key in SUMMARY:
        assert found.summary[f"squeeze/{key}"] == document[key]
    assert found.summary["squeeze/variance/ncols"] == 1 + len(CURVES)
    assert found.summary["squeeze/variance/nrows"] == len(document["ranks"])
    (file,) = folder.glob("wandb/*run-*/files/media/table/squeeze/*.table.json")
    rows = read_json(file)["data"]
    assert [row[0] for row in rows] == document["ranks"]
    assert [row[1] for row in rows] == [document["mean_variance"][str(row[0])] for row in rows]


def test_a_squeeze_does_not_fail_for_it(
    tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    folder = squeeze_alone(
        config_from_mapping(
            {
                "squeeze": {"adapter_path": str(adapter)},
                "logging": {"log_dir": str(tmp_path / "logs")},
            }
        )
    )
    assert track_squeeze(LoggingConfig(), folder) == ""
    problem = track_squeeze(LoggingConfig(wandb_project="probe"), folder)
    assert "api key" in problem.lower() or "api_key" in problem.lower(), problem
