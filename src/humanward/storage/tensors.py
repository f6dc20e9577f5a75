"""Tensors on disk in the safetensors format, written without a second copy in memory and read one at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}


def tensor_bytes(tensors: Mapping[str, Any]) -> int:
    """The size of the file that ``write_tensors`` would write, at most."""
    return sum(_size(tensor) for tensor in tensors.values()) + 256 * (len(tensors) + 1) + sum(2 * len(name.encode()) for name in tensors)


def write_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Write named tensors (torch or numpy, or bytes as uint8). Tied tensors are stored once and come back under each of their names."""
    first: dict[Any, str] = {}
    tied: dict[str, str] = {}
    for name in sorted(tensors):
        same = first.setdefault(_identity(name, tensors[name]), name)
        if same != name:
            tied[name] = same
    # the largest items first, so that every tensor begins at a multiple of its item size
    stored = sorted(first.values(), key=lambda name: (-_item_size(tensors[name]), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "tied": json.dumps(tied)}}
    offset = 0
    for name in stored:
        size = _size(tensors[name])
        header[name] = {"dtype": _dtype(tensors[name]), "shape": _shape(tensors[name]), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in stored:
            file.write(_content(tensors[name]))


class StoredTensors(Mapping[str, "torch.Tensor"]):
    """The tensors of a file; each is read when it is asked for, as a tensor of its own on the CPU."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: Any = None
        with open(path, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        tied = json.loads(header.pop("__metadata__", {}).get("tied", "{}"))
        self._sources = {name: name for name in header} | tied

    def __getitem__(self, name: str) -> torch.Tensor:
        source = self._sources[name]
        if self._file is None:
            from safetensors import safe_open

            # stays open: the checkpoint may be rotated away while it is being read
            self._file = safe_open(self._path, framework="pt")
        return self._file.get_tensor(source)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._sources))

    def __len__(self) -> int:
        return len(self._sources)


def _is_torch(tensor: Any) -> bool:
    return type(tensor).__module__.startswith("torch")


def _size(tensor: Any) -> int:
    if isinstance(tensor, bytes):
        return len(tensor)
    return tensor.numel() * tensor.element_size() if _is_torch(tensor) else tensor.nbytes


def _item_size(tensor: Any) -> int:
    if isinstance(tensor, bytes):
        return 1
    return tensor.element_size() if _is_torch(tensor) else tensor.itemsize


def _shape(tensor: Any) -> list[int]:
    return [len(tensor)] if isinstance(tensor, bytes) else list(tensor.shape)


def _dtype(tensor: Any) -> str:
    name = "uint8" if isinstance(tensor, bytes) else str(tensor.dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise TypeError(f"tensors of type {name} cannot be stored")
    return _DTYPES[name]


def _identity(name: str, tensor: Any) -> Any:
    """Equal for two tensors that are the same memory seen the same way."""
    if isinstance(tensor, bytes) or _size(tensor) == 0:
        return name
    if _is_torch(tensor):
        return str(tensor.device), tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()
    return tensor.__array_interface__["data"][0], str(tensor.dtype), tensor.shape, tensor.strides


def _content(tensor: Any) -> Any:
    """The bytes of a tensor in row-major order; a view where the tensor is that already."""
    if isinstance(tensor, bytes):
        return tensor
    if _is_torch(tensor):
        import torch

        flat = tensor.detach().cpu().contiguous().resolve_conj().resolve_neg().reshape(-1)
        return flat.view(torch.uint8).numpy().data if flat.numel() else b""
    import numpy

    little = tensor.astype(tensor.dtype.newbyteorder("<"), copy=False)
    return numpy.ascontiguousarray(little).reshape(-1).view("uint8").data if tensor.size else b""
