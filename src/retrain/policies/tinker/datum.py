"""What the service learns from: a batch's rows as data of its losses, and its losses' settings.

The service's losses are sums over target tokens. Position t of a datum is the prediction of token
t + 1, so inputs are all tokens but the last, targets all but the first, and the first completion
token stands at position `len(prompt) - 1`. Positions that predict the prompt have advantage 0. The
denominators of the aggregation are folded into the advantages: all losses are positively
homogeneous in them, so that the sum is the local policy's loss and has its gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tinker
from tinker.types import LossFnType

from retrain.config.schema import LossConfig
from retrain.policies.local.loss import clip_bounds, ratio_limit
from retrain.types import FloatArray, IntArray, TrainBatch, pad_rows


def data_of(batch: TrainBatch) -> list[tinker.Datum]:
    """A datum a row, in order."""
    return [_datum(batch, row) for row in range(batch.num_rows)]


def _datum(batch: TrainBatch, row: int) -> tinker.Datum:
    prompt = batch.prompts[int(batch.prompt_index[row])]
    length = int(batch.mask[row].sum())
    tokens = np.concatenate([prompt, batch.token_ids[row, :length]])

    def shifted(values: FloatArray) -> tinker.TensorData:
        """(completion tokens,) -> (positions,)"""
        return _tensor(np.concatenate([np.zeros(len(prompt) - 1), values[:length]]))

    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1].tolist()),
        loss_fn_inputs={
            "target_tokens": _tensor(tokens[1:]),
            "logprobs": shifted(batch.logprobs[row]),
            "advantages": shifted(batch.credit[row] * batch.weight[row]),
        },
    )


def _tensor(values: FloatArray | IntArray) -> tinker.TensorData:
    kept = np.int64 if values.dtype.kind == "i" else np.float32
    return tinker.TensorData.from_numpy(values.astype(kept))


def loss_of(loss: LossConfig) -> tuple[LossFnType, dict[str, float]]:
    """The service's name and settings of `[loss]`; its clips are bounds of the ratio itself."""
    if loss.type == "ppo":
        low, high = clip_bounds(loss)
        return "ppo", {"clip_low_threshold": low, "clip_high_threshold": high}
    if loss.type == "cispo":
        return "cispo", {"clip_low_threshold": 0.0, "clip_high_threshold": ratio_limit(loss)}
    if loss.type != "importance_sampling":
        raise ValueError(f"the service has no {loss.type} of ours")
    return "importance_sampling", {}


def completion_logprobs(
    outputs: Sequence[dict[str, tinker.TensorData]], batch: TrainBatch
) -> FloatArray:
    """(rows, tokens) of the batch's completion tokens under the service's policy, 0 on padding."""
    rows = []
    for row, output in enumerate(outputs):
        length = int(batch.mask[row].sum())
        values = np.asarray(output["logprobs"].to_numpy(), dtype=np.float64).reshape(-1)
        rows.append(values[len(values) - length :])
    found = pad_rows(rows)
    padding = batch.mask.shape[1] - found.shape[1]
    return np.pad(found, ((0, 0), (0, padding)))
