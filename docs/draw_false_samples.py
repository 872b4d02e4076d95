"""Draw the kinds of false samples, made by the package of two flat crystals and a small graph.

``python docs/draw_false_samples.py`` writes ``docs/pictures/false_samples.png``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from ase import Atoms
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from pyg_dim.data import CrystalBatch, CrystalDataset, CrystalLoader, DenseSupercell
from pyg_dim.data.elements import symbols
from pyg_dim.false_samples.permutation import permutation
from pyg_dim.false_samples.transplant import transplant
from pyg_dim.false_samples.unconnected import unconnected_nodes

PICTURE: Final = Path(__file__).parent / "pictures" / "false_samples.png"
COLOURS: Final = {"Na": "#8e6bbf", "Cl": "#5aa469", "Zn": "#5b7fa6", "S": "#e0b030"}
HALF: Final = (6.0, 5.2)
"""Half of the width and height of a panel, in angstrom."""
THICKNESS: Final = 20.0
"""Height of the cells, in angstrom: the crystals are single layers, seen from above."""


def crystals() -> CrystalBatch:
    """Two layers of four sites a cell: one of NaCl, and one of ZnS with another geometry."""
    layers = []
    for names, (width, height), places in (
        ("NaNaClCl", (6.4, 6.4), [(0.2, 0.25), (0.72, 0.2), (0.28, 0.78), (0.8, 0.7)]),
        ("ZnS2Zn", (8.4, 4.8), [(0.08, 0.3), (0.35, 0.7), (0.6, 0.3), (0.85, 0.7)]),
    ):
        flat = [(x, y, 0.5) for x, y in places]
        layers.append(Atoms(names, scaled_positions=flat, cell=(width, height, THICKNESS), pbc=True))
    dataset = CrystalDataset.from_structures(layers)
    return next(iter(CrystalLoader(dataset, DenseSupercell(16), shuffle=False)))


def draw_crystal(axes: Axes, batch: CrystalBatch, number: int) -> None:
    """Draw a crystal of a batch: its cell and the sites around it."""
    chosen = batch.batch == number
    cell = batch.cell[number, :2, :2].numpy()
    positions = batch.pos[chosen, :2].numpy()
    for i in range(-2, 3):
        for j in range(-2, 3):
            inside = i == j == 0
            for z, position in zip(batch.z[chosen].tolist(), positions + [i, j] @ cell, strict=True):
                colour = COLOURS[symbols()[z]]
                axes.scatter(*position, s=130, color=colour, alpha=1.0 if inside else 0.3, edgecolors="none", zorder=2)
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) @ cell
    axes.add_patch(Polygon(corners, fill=False, linewidth=1, edgecolor="0.3", zorder=3))
    middle = cell.sum(axis=0) / 2
    axes.set_xlim(middle[0] - HALF[0], middle[0] + HALF[0])
    axes.set_ylim(middle[1] - HALF[1], middle[1] + HALF[1])


def draw_messages(above: Axes, below: Axes, seed: int) -> None:
    """Draw the messages to a node, and those that are put in their place."""
    # Two graphs: a ring of six nodes, and a square.
    angles = [*(np.pi / 3 * k + 0.3 for k in range(6)), *(np.pi / 2 * k for k in range(4))]
    centres = np.array([[-2.4, 0.0]] * 6 + [[3.2, 0.0]] * 4)
    radii = np.array([2.2] * 6 + [1.5] * 4)[:, None]
    place = centres + radii * np.column_stack([np.cos(angles), np.sin(angles)])
    rings = ((0, 6), (6, 4))
    pairs = [(start + k, start + (k + 1) % size) for start, size in rings for k in range(size)]
    source, target = torch.tensor([*pairs, *(pair[::-1] for pair in pairs)]).T
    graph = torch.tensor([0] * 6 + [1] * 4)
    false, _ = unconnected_nodes(target, source, graph, 2, torch.Generator().manual_seed(seed))
    receiver = 0
    for axes, senders in ((above, source), (below, false)):
        for a, b in pairs:
            axes.plot(*place[[a, b]].T, color="0.75", linewidth=1, zorder=1)
        axes.scatter(*place.T, s=110, color=["#d1495b" if k == receiver else "0.6" for k in range(10)], zorder=2)
        for sender in senders[target == receiver].tolist():
            style = {"arrowstyle": "-|>", "color": "#d1495b", "shrinkA": 6, "shrinkB": 6, "linewidth": 1.6}
            axes.annotate("", place[receiver], place[sender], arrowprops=style)
        axes.set_xlim(-HALF[0], HALF[0])
        axes.set_ylim(-HALF[1], HALF[1])


def draw(path: Path) -> None:
    """Write the picture.

    Args:
        path: PNG file.
    """
    batch = crystals()
    transplanted = transplant(batch, generator=torch.Generator().manual_seed(0)).batch
    shuffled = permutation(batch, generator=torch.Generator().manual_seed(3)).batch
    figure = Figure(figsize=(12.5, 5.4), layout="constrained")
    axes = figure.subplots(2, 5)
    # What gives the vector, and what does not belong to it: crystals of a batch.
    columns = {
        "other": ((batch, 0), (batch, 1), "another crystal of the batch"),
        "composition": ((batch, 0), (transplanted, 0), "its geometry,\nspecies of another crystal"),
        "polymorph": ((batch, 1), (transplanted, 0), "its species,\ngeometry of another crystal"),
        "permutation": ((batch, 0), (shuffled, 0), "its geometry and composition,\nspecies shuffled"),
    }
    for (above, below), (name, (true, false, text)) in zip(axes.T, columns.items(), strict=False):
        draw_crystal(above, *true)
        draw_crystal(below, *false)
        above.set_title(name, fontweight="bold")
        below.set_xlabel(text)
    draw_messages(*axes[:, 4], seed=1)
    axes[0, 4].set_title("unconnected", fontweight="bold")
    axes[1, 4].set_xlabel("messages of nodes\nthat are not its neighbours")
    axes[0, 0].set_ylabel("the vector is of this ...")
    axes[1, 0].set_ylabel("... to which this does not belong")
    for each in axes.flat:
        each.set_xticks([])
        each.set_yticks([])
        each.set_aspect("equal")
    handles = [figure.axes[0].scatter([], [], s=80, color=colour, label=name) for name, colour in COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, format="png", dpi=110)
    temporary.replace(path)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=PICTURE, metavar="FILE.png", help="where to write")
    draw(parser.parse_args(argv).out)


if __name__ == "__main__":
    main()
