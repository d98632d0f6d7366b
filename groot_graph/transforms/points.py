r"""Whatever holds points, as a tensor."""

from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Who reads what pandas does not.
READERS = {
    ".ply": "torch_geometric.io.read_ply reads it",
    ".obj": "torch_geometric.io.read_obj reads it",
    ".off": "torch_geometric.io.read_off reads it",
    ".las": "laspy.read(path).xyz reads it",
    ".laz": "laspy.read(path).xyz reads it",
    ".npy": "numpy.load reads it",
    ".pt": "torch.load reads it",
}


def to_points(pos: Any, key: str) -> Tensor:
    r"""Points as a tensor, one row each."""
    if isinstance(pos, Tensor):
        return pos
    if isinstance(pos, (str, PathLike)):
        pos = _read_table(Path(fspath(pos)), key)
    if isinstance(pos, (list, tuple)):
        return _list_to_tensor(pos, key)
    if hasattr(pos, "columns") and hasattr(pos, "to_numpy"):
        pos = _table_to_array(pos, key)
    if not isinstance(pos, np.ndarray):
        raise TypeError(
            f"'{key}' must be a Tensor, an array, a list, a data frame or the path of a CSV file, "
            f"got {type(pos).__name__}"
        )
    if pos.dtype.kind not in "fiu":
        raise TypeError(f"'{key}' must hold numbers, got {pos.dtype}")
    dtype = pos.dtype.newbyteorder("=") if pos.dtype.kind == "f" else np.float64
    # A copy, because views may run backwards and files be read-only.
    return torch.from_numpy(np.array(pos, dtype=dtype))


def _list_to_tensor(pos: Any, key: str) -> Tensor:
    try:
        return torch.tensor(pos, dtype=torch.get_default_dtype())
    except (TypeError, ValueError) as error:
        raise TypeError(f"'{key}' must hold points of equally many numbers ({error})") from error


def _table_to_array(table: Any, key: str) -> np.ndarray:
    others = [name for name, dtype in table.dtypes.items() if dtype.kind not in "fiu"]
    if others:
        raise TypeError(f"'{key}' must have columns of numbers alone, got others in {others}")
    return table.to_numpy()


def _read_table(path: Path, key: str) -> Any:
    reader = READERS.get(path.suffix.lower())
    if reader is not None:
        raise ValueError(
            f"'{key}' must be the path of a CSV file, got '{path}': {reader}, hand over the "
            "coordinates"
        )
    try:
        import pandas
    except ImportError as error:
        raise ImportError("reading files of points needs pandas: pip install pandas") from error
    try:
        top = pandas.read_csv(path, header=None, nrows=1)
        has_names = any(dtype.kind not in "fiu" for dtype in top.dtypes)
        return pandas.read_csv(path, header=0 if has_names else None)
    except (OSError, ValueError) as error:
        raise ValueError(f"'{key}' must be a readable CSV file, got '{path}' ({error})") from error
