"""Maps of the pre-trained representation by t-SNE."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyg_dim.data.dataset import CrystalDataset
from pyg_dim.evaluate.families import chemical_families, with_metal_and_halogen
from pyg_dim.evaluate.figures import map_figure, tsne_coordinates
from pyg_dim.evaluate.formatting import replace_file
from pyg_dim.evaluate.report import UNITS
from pyg_dim.experiments.features import checkpoint_features
from pyg_dim.experiments.pictures import publish
from pyg_dim.experiments.study import FORMATION, GAP, Study

_logger = logging.getLogger(__name__)

FAMILY: Final = "family"
RECIPE: Final = "combined"


def draw_map(study: Study, overlay: str) -> Path:
    """Draw the global representation of test crystals in the plane: by chemical family, and by something else.

    Beside the PNG lies a CSV with a row for each crystal: id, formula, coordinates, family, whether it has a metal and
    a halogen, labels, and a checksum of the checkpoint. Its coordinates, or those of another overlay, are taken again
    where crystals and checkpoint are the same.

    Args:
        study: The experiment.
        overlay: "family", for metal and halogen; or the name of a label.

    Returns:
        The PNG.

    Raises:
        ValueError: No such label.

    Source: Moran et al., Digital Discovery 2025, 4, 790, fig. 6, 9 and 10.
    """
    targets = dict.fromkeys((FORMATION, GAP, *(() if overlay == FAMILY else (overlay,))))
    labels = {target: study.crystals.target(target) for target in targets}
    checkpoint, rows = study.pretrained(RECIPE), mapped_rows(study)
    shown = study.crystals.subset(rows)
    checksum = hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:16]
    ids = [str(name) for name in shown.ids.to_pylist()]
    points = _known_points(study, ids, checksum)
    if points is None:
        vectors = checkpoint_features(checkpoint, study.crystals, rows, ("global",))["global"]
        points = tsne_coordinates(torch.from_numpy(vectors[rows.numpy()]))

    families, both = chemical_families(shown), with_metal_and_halogen(shown).tolist()
    columns = {
        "id": ids, "formula": [shown.formula(row) for row in range(len(shown))], "x": points[:, 0], "y": points[:, 1],
        "family": families, "metal_and_halogen": both,
        **{target: values[rows].numpy() for target, values in labels.items()}, "checkpoint": checksum,
    }  # fmt: skip
    path = study.directory / f"map-{overlay}-{study.split}.png".replace(" ", "-")
    source = Path(study.crystals.report.source).name
    title = f"t-SNE of {len(shown)} test crystals of {source}, split {study.split}: {RECIPE}, global representation"
    right = ["with metal and halogen" if one else "others" for one in both]
    values: Tensor | list[str] = right if overlay == FAMILY else labels[overlay][rows]
    name = "metal and halogen" if overlay == FAMILY else _with_unit(study.crystals, overlay)
    publish(study, map_figure(points, families, values, name, title), path, f"maps/{path.stem}")
    replace_file(path.with_suffix(".csv"), pd.DataFrame(columns).to_csv(index=False))
    return path


def mapped_rows(study: Study) -> Tensor:
    """The crystals of a map: test crystals, drawn with seed 0 where there are more than the scale allows.

    Args:
        study: The experiment.

    Returns:
        Ascending rows.
    """
    test = study.fold.test
    drawn = torch.randperm(test.numel(), generator=torch.Generator().manual_seed(0))[: study.scale.tsne_crystals]
    return test[drawn].sort().values


def _known_points(study: Study, ids: list[str], checksum: str) -> np.ndarray | None:
    for path in sorted(study.directory.glob(f"map-*-{study.split}.csv")):
        try:
            known = pd.read_csv(path, dtype={"id": str, "checkpoint": str}, keep_default_na=False)
            if list(known["id"]) == ids and set(known["checkpoint"]) == {checksum}:
                return known[["x", "y"]].to_numpy(dtype=np.float64)
        except (ValueError, KeyError):
            _logger.warning("%s is damaged: its points are computed anew", path)
    return None


def _with_unit(dataset: CrystalDataset, target: str) -> str:
    unit = dataset.units.get(target) or UNITS.get(target, "")
    return f"{target} ({unit})" if unit else target
