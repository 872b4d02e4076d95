"""Open a data set, whatever it is stored in."""

from __future__ import annotations

from pathlib import Path

import torch

from pyg_dim.data.dataset import CrystalDataset, Oxidation
from pyg_dim.data.prototypes import decorated_prototypes
from pyg_dim.data.readers import read_cif_folder, read_matbench_json
from pyg_dim.data.supercell import MAX_SITES


def load_dataset(
    source: str | Path,
    max_sites: int = MAX_SITES,
    oxidation: Oxidation = "zero",
    dtype: torch.dtype = torch.float32,
) -> CrystalDataset:
    """Open a data set.

    Args:
        source: ``"prototypes"`` (hypothetical crystals, no file), a ``.parquet`` file, a folder of ``.cif`` or of
            ``.parquet`` files, or a Matbench ``.json`` or ``.json.gz`` file.
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
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path} (for the embedded data set say 'prototypes')")
    if path.suffix == ".parquet" or (path.is_dir() and any(path.glob("*.parquet"))):
        return CrystalDataset.from_parquet(path, max_sites, oxidation, dtype)
    if path.is_dir():
        raw, report = read_cif_folder(path)
    elif path.name.endswith((".json", ".json.gz")):
        raw, report = read_matbench_json(path)
    else:
        raise ValueError(f"{path}: unknown format; known are .parquet, .json, .json.gz and folders of .cif files")
    return CrystalDataset.from_raw(raw, report, max_sites, oxidation, dtype)
