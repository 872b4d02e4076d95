"""Magpie features: a fingerprint of what a crystal is made of.

The numbers of the elements lie beside this file in ``magpie.csv``, so that neither matminer nor pymatgen is needed.
``python -m pyg_dim.data.magpie`` writes that file anew from them.
"""

from __future__ import annotations

import csv
import functools
import os
from importlib import resources
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor

from pyg_dim.data.elements import MAX_Z, symbols

MAGPIE_PROPERTIES: Final = (
    "Number",
    "MendeleevNumber",
    "AtomicWeight",
    "MeltingT",
    "Column",
    "Row",
    "CovalentRadius",
    "Electronegativity",
    "NsValence",
    "NpValence",
    "NdValence",
    "NfValence",
    "NValence",
    "NsUnfilled",
    "NpUnfilled",
    "NdUnfilled",
    "NfUnfilled",
    "NUnfilled",
    "GSvolume_pa",
    "GSbandgap",
    "GSmagmom",
    "SpaceGroupNumber",
)
"""Properties of the elements, by the names and in the units of matminer's Magpie table (see the head of the file)."""

_PARTS: Final = 1e8
"""Parts of a site in which amounts are counted where they are not whole: matminer takes smaller charges for zero."""
_CHUNK: Final = 50_000
"""Crystals whose charges are balanced in one go."""
_NORMS: Final = (0, 2, 3, 5, 7, 10)
_STATISTICS: Final = ("minimum", "maximum", "range", "mean", "avg_dev", "mode")
_ORBITALS: Final = ("s", "p", "d", "f")

MAGPIE_NAMES: Final = (
    *(f"{p}-norm" for p in _NORMS),
    *(f"MagpieData {statistic} {name}" for name in MAGPIE_PROPERTIES for statistic in _STATISTICS),
    *(f"avg {orbital} valence electrons" for orbital in _ORBITALS),
    "compound possible",
    "max ionic char",
    "avg ionic char",
)
"""The 145 features, by matminer's names and in its order."""

_HEADER = """\
# Properties of the elements for Magpie features, written by `python -m pyg_dim.data.magpie`.
# Source: matminer (MagpieData: Ward et al., npj Comput. Mater. 2016, 2, 16028); X and oxidation_states: pymatgen.
# Units: AtomicWeight u; MeltingT K; CovalentRadius pm; Electronegativity and X Pauling scale; GSvolume_pa A^3/atom,
# GSbandgap eV and GSmagmom Bohr magnetons of the ground state in density functional theory; oxidation_states elementary
# charges. The rest are pure numbers. The last field names the values that the source lacks; the mean over the elements
# that have one stands in.
"""


class _Table(NamedTuple):
    properties: Tensor
    """[MAX_Z + 1, 22] float64, row = atomic number (row 0 is zero)."""
    electronegativity: Tensor
    """[MAX_Z + 1] float64, Pauling scale, which the ionic features are made of."""
    states: Tensor
    """[S] int64, common oxidation states of all elements."""
    states_ptr: Tensor
    """[MAX_Z + 2] int64, first state of each atomic number; row 0 stands for no element, with the one state 0."""


@functools.cache
def _table() -> _Table:
    text = resources.files("pyg_dim.data").joinpath("magpie.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))
    zero = [0.0] * len(MAGPIE_PROPERTIES)
    states = [[0], *([int(state) for state in row["oxidation_states"].split()] for row in rows)]
    return _Table(
        torch.tensor([zero, *([float(row[name]) for name in MAGPIE_PROPERTIES] for row in rows)], dtype=torch.float64),
        torch.tensor([0.0, *(float(row["X"]) for row in rows)], dtype=torch.float64),
        torch.tensor([state for of in states for state in of]),
        torch.tensor([0, *(len(of) for of in states)]).cumsum(0),
    )


def element_properties() -> Tensor:
    """Properties of the elements that Magpie features are made of.

    Returns:
        [MAX_Z + 1, 22] float64; row = atomic number (row 0 is zero), columns as in :data:`MAGPIE_PROPERTIES`.
    """
    return _table().properties


class _Elements(NamedTuple):
    """The different elements of all crystals, E entries crystal by crystal."""

    crystal: Tensor
    """[E] crystal of each entry."""
    z: Tensor
    """[E] atomic number."""
    amount: Tensor
    """[E] float64, sites of this element in its crystal, or its amount in a formula."""
    number: Tensor
    """[n] elements of each crystal."""

    @property
    def first(self) -> Tensor:
        """[n] first entry of each crystal."""
        return self.number.cumsum(0) - self.number

    def reduce(self, values: Tensor, how: str) -> Tensor:
        """[n, F] from [E, F] over the elements of each crystal."""
        into = values.new_zeros(self.number.numel(), values.size(1))
        return into.scatter_reduce(0, self.crystal[:, None].expand_as(values), values, how, include_self=False)


def magpie_features(z: Tensor, ptr: Tensor, amount: Tensor | None = None) -> Tensor:
    """The 145 features of Magpie: of stoichiometry, properties of the elements, valence orbitals and ionic character.

    With f the fractions of a crystal's elements and v a property of theirs:

    - norms (sum f^p)^(1/p) for p = 2, 3, 5, 7, 10; for p = 0 the number of elements;
    - of each of the 22 properties: minimum, maximum, range, mean m = sum f v, average deviation, the sum of f times the
      distance of v from m, and mode, the value of the most frequent element (the smallest of them where several are);
    - mean number of valence electrons in s, p, d and f orbitals;
    - whether common oxidation states, one for each element, balance ("compound possible": 1 or 0; 1 for an element),
      and maximum and mean, sum over pairs f_i f_j c_ij, of the ionic character c = 1 - exp(-(X_i - X_j)^2 / 4).

    These are the numbers of matminer's Stoichiometry, ElementProperty (preset "magpie"), ValenceOrbital
    (``props=["avg"]``) and IonProperty (``fast=True``), with ``impute_nan=True``: what the table lacks is the mean over
    the elements.

    Args:
        z: [N] int64, atomic numbers from 1 to 103.
        ptr: [n + 1] int64, first site of each of n crystals, then N; a crystal has one site at least.
        amount: [N] float, how much of its element each site stands for, from 1e-8 to 1e6: the elements of formulas; 1
            each where None.

    Returns:
        [n, 145] float64 on the device of ``z``, columns as in :data:`MAGPIE_NAMES`.

    Source: Ward et al., npj Comput. Mater. 2016, 2, 16028.
    """
    num_sites = ptr.diff().to(z.device)
    table = _Table(*(values.to(z.device) for values in _table()))
    # Sorted by crystal, then by element.
    key = torch.repeat_interleave(num_sites, output_size=z.numel()) * (MAX_Z + 1) + z
    entries, place = torch.unique(key, return_inverse=True)
    crystal = entries // (MAX_Z + 1)
    each = torch.ones_like(key) if amount is None else amount
    sites = torch.zeros(entries.shape, dtype=torch.float64, device=z.device).index_add(0, place, each.double())
    elements = _Elements(crystal, entries % (MAX_Z + 1), sites, torch.bincount(crystal, minlength=num_sites.numel()))
    fraction = sites / elements.reduce(sites[:, None], "sum")[crystal, 0]

    norms = [elements.reduce(fraction[:, None] ** p, "sum") ** (1 / p) for p in _NORMS[1:]]
    values = table.properties[elements.z]
    low, high = elements.reduce(values, "amin"), elements.reduce(values, "amax")
    mean = elements.reduce(fraction[:, None] * values, "sum")
    deviation = elements.reduce(fraction[:, None] * (values - mean[crystal]).abs(), "sum")
    most = elements.reduce(sites[:, None], "amax")[crystal, 0]
    mode = elements.reduce(values.where((sites == most)[:, None], torch.inf), "amin")
    statistics = torch.stack([low, high, high - low, mean, deviation, mode], dim=2).flatten(1)
    valence = mean[:, [MAGPIE_PROPERTIES.index(f"N{orbital}Valence") for orbital in _ORBITALS]]
    possible = _balances(elements, table).double()[:, None]
    ionic = _ionic_character(elements, fraction, table.electronegativity[elements.z])
    return torch.cat([elements.number.double()[:, None], *norms, statistics, valence, possible, ionic], dim=1)


def _ionic_character(elements: _Elements, fraction: Tensor, electronegativity: Tensor) -> Tensor:
    """[n, 2] maximum and mean over the pairs of elements of each crystal."""
    # All ordered pairs, i = j among them, which have no ionic character.
    partners = elements.number[elements.crystal]
    i = torch.repeat_interleave(partners)
    place = torch.arange(i.numel(), device=i.device) - (partners.cumsum(0) - partners)[i]
    j = elements.first[elements.crystal[i]] + place
    character = 1 - torch.exp(-0.25 * (electronegativity[i] - electronegativity[j]).square())
    pairs = elements._replace(crystal=elements.crystal[i])
    highest = pairs.reduce(character[:, None], "amax")
    # Each pair comes twice.
    return torch.cat([highest, pairs.reduce((0.5 * fraction[i] * fraction[j] * character)[:, None], "sum")], dim=1)


def _balances(elements: _Elements, table: _Table) -> Tensor:
    """[n] bool: whether some choice of one oxidation state for each element adds up to zero; elements always do."""
    found = []
    for start in range(0, elements.number.numel(), _CHUNK):
        here = (elements.crystal >= start) & (elements.crystal < start + _CHUNK)
        found.append(
            _chunk_balances(
                _Elements(
                    elements.crystal[here] - start, elements.z[here], elements.amount[here],
                    elements.number[start : start + _CHUNK],
                ),
                table,
            )
        )  # fmt: skip
    return torch.cat(found)


def _chunk_balances(elements: _Elements, table: _Table) -> Tensor:
    n = elements.number.numel()
    # Charges are whole numbers, exact; those of amounts that are not whole are counted in parts, and may be one off.
    broken = elements.reduce((elements.amount != elements.amount.round()).double()[:, None], "amax")[:, 0] > 0
    units = (elements.amount * torch.where(broken, _PARTS, 1.0)[elements.crystal]).round().long()
    width = int(elements.number.max())
    place = torch.arange(elements.z.numel(), device=elements.z.device) - elements.first[elements.crystal]
    # [place, crystal], padded with zero sites of no element.
    z, sites = (
        values.new_zeros(width, n).index_put((place, elements.crystal), values) for values in (elements.z, units)
    )
    bound = int(table.states.abs().max() * sites.sum(0).max())
    # Charges that can be reached with the elements so far, each once; a crystal without any has an element without
    # states.
    crystal, charge = torch.arange(n, device=z.device), torch.zeros(n, dtype=torch.long, device=z.device)
    for element, count in zip(z, sites, strict=True):
        choices = table.states_ptr.diff()[element[crystal]]
        row = torch.repeat_interleave(choices)
        choice = torch.arange(row.numel(), device=row.device) - (choices.cumsum(0) - choices)[row]
        crystal = crystal[row]
        state = table.states[table.states_ptr[element[crystal]] + choice]
        charge = charge[row] + state * count[crystal]
        reached = torch.unique(crystal * (2 * bound + 1) + charge + bound)
        crystal, charge = reached // (2 * bound + 1), reached % (2 * bound + 1) - bound
    possible = elements.number == 1
    return possible.index_fill(0, crystal[charge.abs() <= broken[crystal]], True)


def write_magpie_table(path: str | Path) -> None:
    """Write the element table as CSV from matminer and pymatgen.

    Args:
        path: file to write.

    Raises:
        ImportError: matminer is not installed (``pip install 'pyg-dim[baselines]'``).
    """
    import warnings

    from matminer.utils.data import MagpieData, PymatgenData
    from pymatgen.core import Element

    known, magpie, pymatgen = MagpieData(impute_nan=False), MagpieData(), PymatgenData()
    lines = [",".join(["symbol", *MAGPIE_PROPERTIES, "X", "oxidation_states", "filled"])]
    for symbol in symbols()[1:]:
        element = Element(symbol)
        with warnings.catch_warnings():
            # pymatgen warns of every missing value; these are filled.
            warnings.simplefilter("ignore")
            sources = {name: known.get_elemental_property(element, name) for name in MAGPIE_PROPERTIES}
            sources["X"] = element.X
            values = [magpie.get_elemental_property(element, name) for name in MAGPIE_PROPERTIES]
            values.append(pymatgen.get_elemental_property(element, "X"))
        states = " ".join(str(state) for state in pymatgen.get_oxidation_states(element))
        filled = " ".join(name for name, value in sources.items() if value != value)
        lines.append(",".join([symbol, *map(_shortest, values), states, filled]))
    target = Path(path)
    temporary = target.with_name(target.name + ".tmp")
    temporary.write_text(_HEADER + "\n".join(lines) + "\n", encoding="utf-8")
    os.replace(temporary, target)


def _shortest(value: float) -> str:
    """Without a digit that does not count, and without loss."""
    return str(float(value)).removesuffix(".0")


if __name__ == "__main__":
    write_magpie_table(Path(__file__).with_name("magpie.csv"))
