"""What an encoder of formulas is told of an element: a vector that it learns, or one of a table."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from pyg_dim.data.elements import MAX_Z, atomic_numbers, symbols
from pyg_dim.data.magpie import element_properties
from pyg_dim.models.weights_file import must_exist, read_arrays

BUILT_IN: Final = ("learned", "one_hot", "magpie")
TABLE: Final = "table"


class ElementVectors(nn.Module):
    """A vector for each element; that of a hidden one (atomic number 0) is zero.

    Args:
        elements: "learned"; "one_hot"; "magpie" (the 22 properties of Magpie, each of mean zero and unit spread over
            the elements); the path of a file (see :func:`read_element_vectors`); or "table", vectors that are NaN until
            the state of another encoder fills them.
        channels: length of the vectors where ``elements`` does not tell.

    Attributes:
        elements: as given, "table" for a file: what makes an equal module together with the state.
        channels: length of the vectors.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is no table of elements.
    """

    learned: nn.Embedding
    vectors: Tensor

    def __init__(self, elements: str, channels: int) -> None:
        super().__init__()
        self.elements = elements if elements in (*BUILT_IN, TABLE) else TABLE
        self._looked_up = False
        if elements == "learned":
            self.channels = channels
            self.learned = nn.Embedding(MAX_Z + 1, channels, padding_idx=0)
            return
        if elements == "one_hot":
            vectors = torch.eye(MAX_Z)
        elif elements == "magpie":
            properties = element_properties()[1:]
            vectors = (properties - properties.mean(dim=0)) / properties.std(dim=0, correction=0)
        elif elements == TABLE:
            vectors = torch.full((MAX_Z, channels), float("nan"))
        else:
            vectors = read_element_vectors(elements)
        self.channels = vectors.size(1)
        self.register_buffer("vectors", torch.cat([vectors.new_zeros(1, self.channels), vectors]).float())

    def forward(self, z: Tensor) -> Tensor:
        """Look up the vectors of elements.

        Args:
            z: [N] int64, atomic numbers.

        Returns:
            [N, channels].

        Raises:
            ValueError: in evaluation mode, or at the first batch: an element that the table does not have.
        """
        if self.elements == "learned":
            return self.learned(z)
        found = self.vectors.index_select(0, z)
        # Looked at once while training: it makes the host wait for the device.
        if self.elements == TABLE and not (self.training and self._looked_up):
            self._looked_up = True
            if unknown := z[found.isnan().any(dim=1)].unique().tolist():
                raise ValueError(
                    f"there are no vectors for the elements {', '.join(symbols()[k] for k in unknown)}: the table of "
                    "--encoder.elements lacks them, or has not been read (a checkpoint has it)"
                )
        return found


def read_element_vectors(path: str | Path) -> Tensor:
    """Read a vector for each element from a file.

    ``.csv``: a symbol, then numbers, in each line, with a first line of names or without; ``.json``: a dictionary from
    symbols to lists of numbers; ``.npz``: arrays ``element`` and ``embedding``. None of them can hold code.

    Args:
        path: the file.

    Returns:
        [103, C] float64 by atomic number, NaN for elements that the file does not have.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, unknown elements, vectors of different length, or numbers that are none.
    """
    path = Path(path)
    if path.suffix not in _READERS:
        raise ValueError(
            f"unknown elements {str(path)!r}; known: {', '.join(BUILT_IN)}, or a file that ends in "
            f"{', '.join(_READERS)}"
        )
    must_exist(path)
    try:
        rows = {str(symbol): np.asarray(vector, dtype=np.float64) for symbol, vector in _READERS[path.suffix](path)}
    except (ValueError, TypeError, KeyError, AttributeError, UnicodeError, csv.Error) as error:
        raise ValueError(f"{path} is no table of vectors of the elements: {error}") from error
    known = {symbol: z for symbol, z in atomic_numbers().items() if symbol not in ("D", "T")}
    if unknown := [symbol for symbol in rows if symbol not in known]:
        raise ValueError(f"{path} has vectors of what is no known element: {', '.join(map(repr, unknown[:5]))}")
    shapes = {vector.shape for vector in rows.values()}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 1 or not shape[0]:
        raise ValueError(f"{path} is no table of vectors of the elements: they differ in length, or there are none")
    table = torch.full((MAX_Z, shape[0]), float("nan"), dtype=torch.float64)
    for symbol, vector in rows.items():
        if not np.isfinite(vector).all():
            raise ValueError(f"{path}: the vector of {symbol} holds values that are no finite numbers")
        table[known[symbol] - 1] = torch.from_numpy(vector)
    return table


def _read_csv(path: Path) -> list[tuple[Any, Any]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = [[cell.strip() for cell in line] for line in csv.reader(file) if line]
    if lines and lines[0][0] not in atomic_numbers():
        lines = lines[1:]  # names of the columns
    return [(line[0], [float(cell) for cell in line[1:]]) for line in lines]


def _read_json(path: Path) -> list[tuple[Any, Any]]:
    return list(json.loads(path.read_text(encoding="utf-8")).items())


def _read_npz(path: Path) -> list[tuple[Any, Any]]:
    arrays = read_arrays(path)
    return list(zip(arrays["element"].tolist(), arrays["embedding"], strict=True))


_READERS: Final = {".csv": _read_csv, ".json": _read_json, ".npz": _read_npz}
