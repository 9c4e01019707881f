"""The protobuf messages of the wire, as plain arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from tinker.proto import tinker_public_pb2

from retrain.types import Completion, FloatArray, IntArray

# The generated module builds its classes when it is imported.
_pb: Any = tinker_public_pb2


@dataclass(frozen=True, slots=True)
class Datum:
    """tokens (tokens,) the model's input; inputs: name -> (tokens,), int64 or float32."""

    tokens: IntArray
    inputs: dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Batch:
    """A forward_backward request."""

    model_id: str
    seq_id: int
    data: list[Datum]
    loss_fn: str
    config: dict[str, float | str]
    forward_only: bool


@dataclass(frozen=True, slots=True)
class Sampled:
    """The completions of one asample request; prompt_logprobs (tokens,), NaN where not known."""

    completions: Sequence[Completion]
    prompt_logprobs: FloatArray | None


def read_batch(body: bytes) -> Batch:
    """Raises ValueError (or protobuf's DecodeError) when the body is not such a message."""
    message = _pb.ForwardBackwardRequest()
    message.ParseFromString(body)
    config: dict[str, float | str] = dict(message.loss_fn_config)
    for name, value in message.loss_fn_config_v2.items():
        config[name] = value.text if value.WhichOneof("value") == "text" else value.number
    return Batch(
        model_id=message.model_id,
        seq_id=message.seq_id,
        data=[_datum(datum) for datum in message.data],
        loss_fn=message.loss_fn,
        config=config,
        forward_only=message.forward_only,
    )


def _datum(message: Any) -> Datum:
    chunks = []
    for chunk in message.model_input:
        if not chunk.HasField("encoded_text"):
            raise ValueError("the stand-in takes text only")
        chunks.append(np.frombuffer(chunk.encoded_text.tokens, dtype="<i4"))
    tokens = np.concatenate(chunks) if chunks else np.zeros(0)
    inputs = {name: _tensor(tensor) for name, tensor in message.loss_fn_inputs.items()}
    return Datum(tokens.astype(np.int64), inputs)


def _tensor(message: Any) -> NDArray[Any]:
    if message.HasField("sparse_csr"):
        raise ValueError("the stand-in takes dense tensors only")
    dtype = {_pb.DTYPE_FLOAT32: "<f4", _pb.DTYPE_INT64: "<i8"}[message.dtype]
    values = np.frombuffer(message.dense, dtype=dtype)
    return values.reshape(list(message.shape)) if message.shape else values


def write_outputs(logprobs: Sequence[FloatArray], metrics: Mapping[str, float]) -> bytes:
    """A ForwardBackwardOutput. logprobs: of each datum's target tokens (tokens,)."""
    message = _pb.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord")
    record = message.loss_fn_outputs.add(num_datums=len(logprobs))
    field = record.fields["logprobs"]
    rows = [np.asarray(row, dtype="<f4") for row in logprobs]
    ends = np.cumsum([0, *(row.nbytes for row in rows)])
    field.data, field.offsets = b"".join(row.tobytes() for row in rows), _bytes(ends, "<i8")
    field.dtype = _pb.DTYPE_FLOAT32
    for name, value in metrics.items():
        message.metrics[name] = value
    return cast(bytes, message.SerializeToString())


def write_sampled(sampled: Sampled) -> bytes:
    """A SampleResponse."""
    message = _pb.SampleResponse()
    for completion in sampled.completions:
        stopped = completion.stop_reason == "stop"
        message.sequences.add(
            stop_reason=_pb.STOP_REASON_STOP if stopped else _pb.STOP_REASON_LENGTH,
            tokens=_bytes(completion.token_ids, "<i4"),
            logprobs=_bytes(completion.logprobs, "<f4"),
        )
    if sampled.prompt_logprobs is not None:
        message.prompt_logprobs = _bytes(sampled.prompt_logprobs, "<f4")
    return cast(bytes, message.SerializeToString())


def _bytes(values: NDArray[Any], dtype: str) -> bytes:
    return values.astype(dtype).tobytes()
