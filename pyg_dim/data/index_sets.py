"""Named sets of crystals in a file: splits and subsets that others can use again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from pyg_dim.data.replacing import replacing

if TYPE_CHECKING:
    from pyg_dim.data.dataset import CrystalDataset

_FORMAT: Final = "pyg_dim index sets"
_SHOWN: Final = 3


def save_index_sets(
    path: str | Path, dataset: CrystalDataset, sets: Mapping[str, Tensor], notes: Mapping[str, Any] | None = None
) -> None:
    """Write sets of crystals by their identifiers, as JSON.

    Identifiers, not rows: the file also fits a data set that holds the crystals in another order, or more of them.

    Args:
        path: file to write or replace.
        dataset: the crystals.
        sets: name -> rows, for example ``{"train": ..., "val": ...}``. Sets may overlap.
        notes: plain values that say how the sets were made.

    Raises:
        ValueError: a row beyond the data set.
    """
    named = {}
    for name, rows in sets.items():
        if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < len(dataset):
            raise ValueError(f"set {name!r} has rows that a data set of {len(dataset)} crystals does not have")
        named[name] = dataset.ids.take(pa.array(rows.cpu().numpy())).to_pylist()
    contents = {"format": _FORMAT, "source": dataset.report.source, "notes": dict(notes or {}), "sets": named}
    with replacing(path) as file:
        file.write_text(json.dumps(contents, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")


def load_index_sets(path: str | Path, dataset: CrystalDataset) -> dict[str, Tensor]:
    """Read sets of crystals and find them in a data set.

    Args:
        path: file written by :func:`save_index_sets`.
        dataset: the crystals.

    Returns:
        Name -> rows of the data set, in the order of the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no such file of sets, an identifier that the data set does not have, or one twice in a set.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        contents = None
    named = contents.get("sets") if isinstance(contents, dict) and contents.get("format") == _FORMAT else None
    if not isinstance(named, dict) or not all(_are_names(ids) for ids in named.values()):
        raise ValueError(f"{path} is no file of index sets, or a damaged one: write it with save_index_sets")
    return {name: _rows(path, name, pa.array(ids, pa.string()), dataset) for name, ids in named.items()}


def _are_names(ids: Any) -> bool:
    return isinstance(ids, list) and all(isinstance(name, str) for name in ids)


def _rows(path: Path, name: str, ids: pa.Array, dataset: CrystalDataset) -> Tensor:
    found = pc.index_in(ids, value_set=dataset.ids)
    if found.null_count:
        missing = ids.filter(found.is_null()).slice(0, _SHOWN).to_pylist()
        raise ValueError(
            f"{path}: {found.null_count} of {len(ids)} crystals of the set {name!r} are not in {dataset.report.source} "
            f"({', '.join(missing)}{', ...' if found.null_count > _SHOWN else ''}): it is of other data, or they were "
            "left out (see the report)"
        )
    rows = torch.from_numpy(found.to_numpy().astype("int64"))
    if rows.unique().numel() < rows.numel():
        raise ValueError(f"{path}: the set {name!r} names a crystal more than once")
    return rows
