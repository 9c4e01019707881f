"""safetensors files: read tensor by tensor, from one file or from shards, and written so too.

The format (https://huggingface.co/docs/safetensors): eight bytes with the length of a JSON header,
the header (name -> dtype, shape, offsets), then the tensors' bytes without gaps. The library's own
writer wants all tensors in memory at once; this one takes them as they come.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from safetensors import SafetensorError, safe_open

from retrain.errors import InputError
from retrain.files import lfs_pointer

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "adapter_model.safetensors"
INDEX = WEIGHTS + ".index.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")

_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2,
    "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


class TensorReader:
    """Tensors of one adapter, read one at a time; shapes and dtypes without reading."""

    def __init__(self, slices: Mapping[str, Any], paths: Mapping[str, Path], folder: str) -> None:
        """slices: by name, of files opened without torch. folder: what messages call it."""
        self._slices = slices
        self._paths = paths
        self._folder = folder
        self._opened: dict[Path, Any] = {}

    @property
    def names(self) -> list[str]:
        return list(self._slices)

    def where(self, name: str) -> str:
        """The file and the tensor, for messages."""
        return f"{self._folder}/{self._paths[name].name}: tensor {name!r}"

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slices[name].get_shape())

    def dtype(self, name: str) -> str:
        """As safetensors calls it: `F32`, `BF16`, …"""
        return str(self._slices[name].get_dtype())

    def read(self, name: str) -> Tensor:
        path = self._paths[name]
        if path not in self._opened:
            self._opened[path] = safe_open(path, framework="pt")
        tensor: Tensor = self._opened[path].get_tensor(name)
        return tensor


@contextmanager
def open_tensors(folder: Path, label: str, weights: Path | None = None) -> Iterator[TensorReader]:
    """The tensors of an adapter's folder, or of the one file `weights`.

    Raises InputError when there are none, they are pickled, or a file is damaged.
    """
    with ExitStack() as stack:
        slices: dict[str, Any] = {}
        paths: dict[str, Path] = {}
        for path, wanted in _tensor_files(folder, label, weights):
            shown = f"{label}/{path.name}"
            try:
                file = stack.enter_context(safe_open(path, framework="numpy"))
                held = list(file.keys())
            except (OSError, SafetensorError) as error:
                damage = f"{shown} is damaged: {error}; copy or download it again"
                raise InputError(lfs_pointer(path) or damage) from error
            missing = sorted(set(wanted or held) - set(held))
            if missing:
                raise InputError(f"{shown} lacks the tensor {missing[0]!r} that {INDEX} promises")
            for name in wanted or held:
                slices[name], paths[name] = file.get_slice(name), path
        yield TensorReader(slices, paths, label)


def _tensor_files(
    folder: Path, label: str, weights: Path | None
) -> list[tuple[Path, list[str] | None]]:
    """(file, the tensors to take from it; None: all)."""
    if weights is not None:
        return [(weights, None)]
    if (folder / WEIGHTS).is_file():
        return [(folder / WEIGHTS, None)]
    if (folder / INDEX).is_file():
        return _shards(folder, f"{label}/{INDEX}")
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickled:
        raise pickle_error(f"{label}/{pickled[0]}")
    raise InputError(f"{label} holds no adapter: {WEIGHTS} is missing")


def _shards(folder: Path, label: str) -> list[tuple[Path, list[str] | None]]:
    try:
        weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        tensors_of: dict[str, list[str]] = {}
        for tensor, name in weight_map.items():
            tensors_of.setdefault(str(name), []).append(tensor)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{label} is damaged: {type(error).__name__}: {error}; copy the adapter again"
        ) from error
    for name in tensors_of:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise InputError(
                f"{label} names the file {name!r}; only .safetensors beside it will do"
            )
        if not (folder / name).is_file():
            raise InputError(f"{label} names {name}, which is missing; copy the adapter again")
    return [(folder / name, tensors) for name, tensors in sorted(tensors_of.items())]


def pickle_error(where: str) -> InputError:
    """A pickle runs any code that it holds when it is read, so none is."""
    return InputError(
        f"{where} is a pickle, which can run any code when it is read; load it where you trust it "
        "and save it with save_pretrained(..., safe_serialization=True)"
    )


class TensorWriter:
    """A safetensors file whose tensors are written one at a time, in any order."""

    def __init__(self, file: BinaryIO, layout: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        """`layout[name] = (dtype, shape)` of everything that will be written."""
        self._file = file
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._places: dict[str, tuple[int, int]] = {}
        end = 0
        # Wide dtypes first keeps every tensor aligned, as the library does.
        for name in sorted(layout, key=lambda name: (-_BYTES[layout[name][0]], name)):
            dtype, shape = layout[name]
            start, end = end, end + _BYTES[dtype] * math.prod(shape)
            self._places[name] = (start, end)
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        self._data = 8 + len(text)

    def write(self, name: str, tensor: Tensor) -> None:
        """`tensor` has the dtype and the shape that the layout said."""
        import torch

        start, end = self._places.pop(name)
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        assert data.nbytes == end - start, f"{name}: {data.nbytes} bytes for {end - start}"
        self._file.seek(self._data + start)
        self._file.write(data.data)

    def finish(self) -> None:
        """All tensors of the layout must have been written."""
        assert not self._places, f"never written: {sorted(self._places)}"
        self._file.flush()


def check_dtypes(tensors: TensorReader, names: list[str]) -> None:
    """Raise InputError for a dtype whose width is not known, which could not be copied."""
    for name in names:
        if tensors.dtype(name) not in _BYTES:
            raise InputError(
                f"{tensors.where(name)} has dtype {tensors.dtype(name)}, not known here"
            )
