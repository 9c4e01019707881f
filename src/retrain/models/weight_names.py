"""Whether a checkpoint holds the weights that its model wants, by name and shape; without torch.

What a checkpoint lacks, transformers draws at random; what it has in excess, it drops.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from retrain.models.shape import SUPPORTED, ModelShape

_SHOWN = 3
_HARMLESS = re.compile(
    # Buffers of older versions: rotary angles, causal masks, positions.
    r"rotary_emb\.inv_freq$|\.(attn|attention)\.(masked_)?bias$|(^|\.)position_ids$|"
    # Heads that predict further tokens, value heads, and scales of a quantised cache.
    r"^(model\.)?mtp\.|^v_head\.|\.[kv]_scale$|"
    # What sees and hears, where only the language model is built.
    r"^(model\.)?(visual|vision_tower|vision_model|audio_tower|multi_modal_projector)\."
)


def loading_problem(found: Mapping[str, Any], config: Mapping[str, Any]) -> str | None:
    """What is wrong with a checkpoint by transformers' account of its loading. config: of the
    language model."""
    layers = int(config.get("num_hidden_layers") or 0)
    predicting = range(layers, layers + int(config.get("num_nextn_predict_layers") or 0))

    def is_harmless(name: str) -> bool:
        layer = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
        return bool(_HARMLESS.search(name) or (layer and int(layer[1]) in predicting))

    return _problem(
        found["missing_keys"],
        [name for name in found["unexpected_keys"] if not is_harmless(name)],
        {name: (tuple(held), tuple(wanted)) for name, held, wanted in found["mismatched_keys"]},
    )


def header_problem(config: Mapping[str, Any], weights: Mapping[str, Sequence[int]]) -> str | None:
    """What the headers of a checkpoint tell already, for the architectures whose layers are known
    by name. weights: shapes."""
    if config.get("model_type") not in SUPPORTED or "quantization_config" in config or not weights:
        return None
    wanted = {f"{name}.weight": size for name, size in ModelShape.of(config, {}).linear.items()}
    if any(name.startswith("layers.") for name in weights):
        # Saved without the output head.
        wanted = {name.removeprefix("model."): size for name, size in wanted.items()}
    held = {name: tuple(weights[name]) for name in wanted if name in weights}
    other = {name: (shape, wanted[name]) for name, shape in held.items() if shape != wanted[name]}
    return _problem(wanted.keys() - held.keys(), [], other)


def _problem(
    missing: Collection[str],
    unexpected: Collection[str],
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
) -> str | None:
    shapes = [f"{name}: {held} instead of {want}" for name, (held, want) in mismatched.items()]
    parts = [
        f"{len(names)} {what} ({_some(names)})"
        for what, names in (
            ("are missing", missing),
            ("are not in the model", unexpected),
            ("have another shape", shapes),
        )
        if names
    ]
    if not parts:
        return None
    return (
        f"does not hold the tensors that its config.json describes: {'; '.join(parts)}. What is "
        "missing would be drawn at random; save or download the model again, or put config.json "
        "right"
    )


def _some(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
