"""Properties of the elements: the site features of Site-Net.

The numbers lie beside this file in ``elements.csv``, so that training needs no pymatgen. ``python -m
pyg_dim.data.elements`` writes that file anew from pymatgen and the fills below.
"""

from __future__ import annotations

import csv
import functools
import os
from importlib import resources
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

PROPERTIES: Final = (
    "number",
    "atomic_weight",
    "row",
    "column",
    "first_ionization_energy",
    "electronegativity",
    "atomic_radius",
    "density",
)
"""Columns of the element table. Units: -, u, -, -, eV, Pauling scale, angstrom, kg/m3."""

SCALERS: Final = (0.1, 0.1, 1.0, 1.0, 1.0, 10.0, 10.0, 0.001)
"""What each property is multiplied by to make a site feature (Site-Net's table of hyper-parameters)."""

NUM_FEATURES: Final = len(PROPERTIES) + 1
"""Site features: the eight scaled properties and the oxidation state."""

MAX_Z: Final = 103
"""Heaviest element in the table (lawrencium): beyond it too few properties are known."""

_ALLRED_ROCHOW = "Allred-Rochow value (no Pauling value)"
_CALCULATED = "calculated radius of Clementi et al. 1967 (no empirical value)"
_LIGHTER_HOMOLOGUE = "value of the lighter homologue"
_LAST_ACTINIDE = "value of americium, the last actinide with an empirical radius"
_GAS = "gas at 0 degC, 101.325 kPa"
_LIQUID = "liquid at 25 degC"
_MEASURED = "measured, CRC Handbook"
_PREDICTED = "predicted from neighbouring elements"

FILLS: Final[dict[str, dict[str, tuple[float, str]]]] = {
    "electronegativity": {
        "He": (5.50, _ALLRED_ROCHOW),
        "Ne": (4.84, _ALLRED_ROCHOW),
        "Ar": (3.20, _ALLRED_ROCHOW),
    },
    "atomic_radius": {
        "He": (0.31, _CALCULATED),
        "Ne": (0.38, _CALCULATED),
        "Kr": (0.88, _CALCULATED),
        "Xe": (1.08, _CALCULATED),
        "At": (1.27, _CALCULATED),
        "Rn": (1.20, _CALCULATED),
        "Fr": (2.60, _LIGHTER_HOMOLOGUE),
        **dict.fromkeys(("Cm", "Bk", "Cf", "Es", "Fm", "Md", "No", "Lr"), (1.75, _LAST_ACTINIDE)),
    },
    "density": {
        "H": (0.0899, _GAS),
        "He": (0.1785, _GAS),
        "N": (1.251, _GAS),
        "O": (1.429, _GAS),
        "F": (1.696, _GAS),
        "Ne": (0.900, _GAS),
        "Cl": (3.214, _GAS),
        "Ar": (1.784, _GAS),
        "Kr": (3.75, _GAS),
        "Xe": (5.90, _GAS),
        "Rn": (9.73, _GAS),
        "Br": (3120.0, _LIQUID),
        "Hg": (13534.0, _LIQUID),
        "Am": (12000.0, _MEASURED),
        "Es": (8840.0, _MEASURED),
        "At": (6350.0, _PREDICTED),
        "Fr": (2480.0, _PREDICTED),
        "Fm": (9700.0, _PREDICTED),
        "Md": (10300.0, _PREDICTED),
        "No": (9900.0, _PREDICTED),
        "Lr": (14400.0, _PREDICTED),
    },
}
"""Values for elements to which pymatgen gives none: property -> symbol -> (value, where it is from)."""

_HEADER = """\
# Properties of the elements, written by `python -m pyg_dim.data.elements`.
# Source: pymatgen (Element.Z, atomic_mass, row, group, ionization_energy, X, atomic_radius, density_of_solid).
# Units: atomic_weight u; first_ionization_energy eV; electronegativity Pauling scale; atomic_radius angstrom; density
# kg/m3. The column of lanthanides and actinides is 3. The last field names the values that pymatgen lacks and their
# origin.
"""


@functools.cache
def _rows() -> tuple[dict[str, str], ...]:
    text = resources.files("pyg_dim.data").joinpath("elements.csv").read_text(encoding="utf-8")
    return tuple(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))


@functools.cache
def symbols() -> tuple[str, ...]:
    """Chemical symbols by atomic number; entry 0 is empty.

    Returns:
        ``MAX_Z + 1`` strings.
    """
    return ("", *(row["symbol"] for row in _rows()))


@functools.cache
def atomic_numbers() -> dict[str, int]:
    """Atomic number by chemical symbol, with D and T for the isotopes of hydrogen.

    Returns:
        Mapping from symbol to atomic number.
    """
    return {symbol: z for z, symbol in enumerate(symbols()) if z} | {"D": 1, "T": 1}


@functools.cache
def element_table() -> Tensor:
    """Properties of the elements in their own units.

    Returns:
        [MAX_Z + 1, 8] float64; row = atomic number (row 0 is zero), columns as in :data:`PROPERTIES`.
    """
    values = [[float(row[name]) for name in PROPERTIES] for row in _rows()]
    return torch.cat([torch.zeros(1, len(PROPERTIES), dtype=torch.float64), torch.tensor(values, dtype=torch.float64)])


def element_property(name: str, z: Tensor) -> Tensor:
    """One property of each site's element.

    Args:
        name: one of :data:`PROPERTIES`.
        z: [N] int64, atomic numbers.

    Returns:
        [N] float64, in the unit of the property.

    Raises:
        ValueError: unknown property.
    """
    if name not in PROPERTIES:
        raise ValueError(f"unknown element property {name!r}; known: {', '.join(PROPERTIES)}")
    return element_table()[:, PROPERTIES.index(name)].to(z.device)[z]


@functools.cache
def _scaled_table(dtype: torch.dtype, device: torch.device) -> Tensor:
    return (element_table() * torch.tensor(SCALERS, dtype=torch.float64)).to(device, dtype)


def site_features(z: Tensor, oxidation: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The nine site features of Site-Net: eight scaled properties of the element and the oxidation state.

    Source: Moran et al., Digital Discovery 2023, 2, 1297, and table 1 of Digital Discovery 2025, 4, 790. Those numbers
    come from matminer's Magpie table, in single precision. These come from pymatgen and are the same but for the
    ionization energies (newer; 3e-5 apart, relative, in the elements compared) and the density of iridium (22650
    instead of 22560 kg/m3).

    Args:
        z: [N] int64, atomic numbers from 1 to :data:`MAX_Z`.
        oxidation: [N], oxidation states in elementary charges, zero where unknown.
        dtype: floating-point type of the result.

    Returns:
        [N, 9] features on the device of ``z``.
    """
    return torch.cat([_scaled_table(dtype, z.device)[z], oxidation.to(dtype).unsqueeze(1)], dim=1)


def write_element_table(path: str | Path) -> None:
    """Write the element table as CSV from pymatgen and :data:`FILLS`.

    Args:
        path: file to write.

    Raises:
        ValueError: an element has neither a value in pymatgen nor a fill, or has both.
    """
    import warnings

    from pymatgen.core import Element

    lines = []
    for z in range(1, MAX_Z + 1):
        element = Element.from_Z(z)
        with warnings.catch_warnings():
            # pymatgen warns of every missing value; these are what the fills are for.
            warnings.simplefilter("ignore")
            known = dict(
                zip(
                    PROPERTIES,
                    (
                        z,
                        element.atomic_mass,
                        element.row,
                        element.group,
                        element.ionization_energy,
                        element.X,
                        element.atomic_radius,
                        element.density_of_solid,
                    ),
                    strict=True,
                )
            )
        fields, filled = [], []
        for name, value in known.items():
            fill = FILLS.get(name, {}).get(element.symbol)
            missing = value is None or float(value) != float(value)
            if missing != (fill is not None):
                raise ValueError(f"{name} of {element.symbol}: pymatgen gives {value}, the fill is {fill}")
            if fill is not None:
                filled.append(f"{name}: {fill[1]}")
            number = fill[0] if fill is not None else float(value)
            fields.append(f"{number:.10g}")
        lines.append(",".join([element.symbol, *fields, f'"{"; ".join(filled)}"' if filled else ""]))
    target = Path(path)
    temporary = target.with_name(target.name + ".tmp")
    temporary.write_text(
        _HEADER + ",".join(["symbol", *PROPERTIES, "filled"]) + "\n" + "\n".join(lines) + "\n", encoding="utf-8"
    )
    os.replace(temporary, target)


if __name__ == "__main__":
    write_element_table(Path(__file__).with_name("elements.csv"))
