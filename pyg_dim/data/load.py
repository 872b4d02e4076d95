"""Open a data set, whatever it is stored in."""

from __future__ import annotations

from pathlib import Path

import torch

from pyg_dim.data.collect import ImportOptions
from pyg_dim.data.compositions import CompositionDataset, holds_formulas
from pyg_dim.data.dataset import CrystalDataset, Oxidation
from pyg_dim.data.parquet import has_optimade_columns
from pyg_dim.data.prototypes import decorated_prototypes
from pyg_dim.data.reading import open_sources, read_crystals
from pyg_dim.data.supercell import MAX_SITES


def load_dataset(
    source: str | Path,
    max_sites: int = MAX_SITES,
    oxidation: Oxidation = "zero",
    dtype: torch.dtype = torch.float32,
) -> CrystalDataset:
    """Open a data set.

    Args:
        source: ``"prototypes"`` (hypothetical crystals, no file), a Parquet file with OPTIMADE columns or a folder of
            them, which are taken as they are; or any source that ``pyg-dim import`` takes, which is read anew each
            time: import large ones once. A CSV file with a column ``composition`` or ``formula`` and none of structures
            is a :class:`~pyg_dim.data.CompositionDataset`.
        max_sites: crystals with more primitive sites are left out.
        oxidation: oxidation states: ``"zero"`` for all, or ``"guess"`` from each composition.
        dtype: floating-point type of positions, cells and site features.

    Returns:
        The data set; its report says what was left out.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: unknown format, an empty folder, or no usable crystal.
    """
    if source == "prototypes":
        return decorated_prototypes(max_sites=max_sites, oxidation=oxidation, dtype=dtype)
    path = Path(source)
    if holds_formulas(path):
        if oxidation != "zero":
            raise ValueError(f"{path} holds formulas, whose elements have no oxidation states here: use zero")
        return CompositionDataset.from_csv(path, dtype)
    if has_optimade_columns(path):
        return CrystalDataset.from_parquet(path, max_sites, oxidation, dtype)
    raw, report = read_crystals(open_sources([source]), ImportOptions(max_sites))
    return CrystalDataset.from_raw(raw, report, max_sites, oxidation, dtype)
