"""Oxidation states guessed from compositions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pyg_dim.data.composition import composition_groups
from pyg_dim.data.elements import MAX_Z, symbols

if TYPE_CHECKING:
    from pyg_dim.data.dataset import CrystalDataset

_MAX_COMBINATIONS: Final = 20_000
"""Combinations of oxidation states that are tried for one composition: about 0.1 s."""


def guess_oxidation_states(dataset: CrystalDataset) -> tuple[Tensor, str]:
    """The most probable charge-neutral oxidation states of each composition.

    They come from pymatgen's ``Composition.oxi_state_guesses`` (statistics of the ICSD), once for each reduced
    composition. All sites of one element in a crystal get the same, mean, state. They are zero where no neutral
    combination exists (metals, elements) or where a composition has too many combinations to try; both are counted.

    Args:
        dataset: n crystals with N sites in all.

    Returns:
        [N] oxidation states in elementary charges, in the type of the positions, and a sentence with the counts.
    """
    group = composition_groups(dataset).numpy()
    _, representative = np.unique(group, return_index=True)
    states = np.zeros((len(representative), MAX_Z + 1))
    none_neutral = too_many = 0
    for number, row in enumerate(tqdm(representative, desc="oxidation states", disable=None)):
        composition = _reduced_composition(dataset.z[dataset.ptr[row] : dataset.ptr[row + 1]].numpy())
        if _num_combinations(composition) > _MAX_COMBINATIONS:
            too_many += 1
            continue
        guess = _most_probable(composition)
        none_neutral += not guess
        for z, state in guess.items():
            states[number, z] = state
    site_group = torch.repeat_interleave(torch.from_numpy(group), dataset.num_sites)
    oxidation = torch.from_numpy(states)[site_group, dataset.z].to(dataset.pos.dtype)
    note = (
        f"oxidation states: guessed for {len(representative) - none_neutral - too_many} of {len(representative)} "
        f"compositions; zero for {none_neutral} without a neutral combination and {too_many} with too many combinations"
    )
    return oxidation, note


def _reduced_composition(z: np.ndarray) -> dict[int, int]:
    elements, counts = np.unique(z, return_counts=True)
    return dict(zip(elements.tolist(), (counts // np.gcd.reduce(counts)).tolist(), strict=True))


def _num_combinations(composition: dict[int, int]) -> int:
    """What pymatgen's search would go through: the multisets of each element, then the products of their sums."""
    from pymatgen.core import Element

    multisets, sums = 0, 1
    for z, count in composition.items():
        element = Element.from_Z(z)
        states = element.icsd_oxidation_states or element.common_oxidation_states or (0,)
        multisets += math.comb(len(states) + count - 1, count)
        sums *= min(math.comb(len(states) + count - 1, count), count * (max(states) - min(states)) + 1)
    return multisets + sums


def _most_probable(composition: dict[int, int]) -> dict[int, float]:
    from pymatgen.core import Composition

    formula = Composition({symbols()[z]: count for z, count in composition.items()})
    guesses = formula.oxi_state_guesses()
    if not guesses:
        return {}
    return {z: float(guesses[0].get(symbols()[z], 0.0)) for z in composition}
