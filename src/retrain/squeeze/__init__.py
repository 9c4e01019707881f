"""LoRA squeeze: how much of an adapter each rank keeps, and the adapter cut to the rank worth it.

    from retrain.squeeze import analyze_adapter, compress_adapter

    analysis = analyze_adapter("runs/grpo+none_s42/final")
    analysis.recommended_rank, analysis.mean_variance[8]
    compress_adapter("runs/grpo+none_s42/final", "squeezed")

After LoRA-Squeeze (arXiv 2602.10993): learn at a high rank, then cut. Retention is a share of the
squared singular values, not of the accuracy; that has to be measured. Importing this package is
instant; torch is imported when an adapter is read.
"""

from __future__ import annotations

from retrain.squeeze.analysis import ModuleSpectrum, SqueezeAnalysis, analyze_adapter
from retrain.squeeze.compress import SqueezeResult, compress_adapter
from retrain.squeeze.pictures import pictures
from retrain.squeeze.table import render_table

__all__ = [
    "ModuleSpectrum",
    "SqueezeAnalysis",
    "SqueezeResult",
    "analyze_adapter",
    "compress_adapter",
    "pictures",
    "render_table",
]
