from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from pyg_dim.data import radial
from pyg_dim.data.elements import element_property
from pyg_dim.data.radial import (
    RADIAL_CUTOFF,
    RADIAL_GRID,
    RADIAL_PROPERTIES,
    RADIAL_WIDTH,
    radial_fingerprint,
)


def fingerprint(*crystals):
    z = torch.from_numpy(np.concatenate([np.asarray(z) for z, _, _ in crystals]))
    pos = torch.from_numpy(np.concatenate([pos for _, pos, _ in crystals]))
    cell = torch.from_numpy(np.stack([cell for _, _, cell in crystals]))
    return radial_fingerprint(z, pos, cell, torch.tensor([0, *(len(z) for z, _, _ in crystals)]).cumsum(0))


def supercell(crystal, matrix):
    """The same crystal in the cell ``matrix @ cell``, with its sites brought into that cell."""
    z, pos, cell = crystal
    matrix = np.array(matrix)
    copies = round(abs(np.linalg.det(matrix)))
    reach = range(-4, 5)
    found_z, found = [], []
    for image in itertools.product(reach, repeat=3):
        moved = (pos + np.array(image) @ cell) @ np.linalg.inv(matrix @ cell)
        inside = ((moved > -1e-9) & (moved < 1 - 1e-9)).all(axis=1)
        found.append(moved[inside] @ (matrix @ cell))
        found_z.append(np.asarray(z)[inside])
    new = np.concatenate(found_z), np.concatenate(found), matrix @ cell
    assert len(new[0]) == copies * len(z)
    return new


def slow(z, pos, cell):
    """The formula, pair by pair."""

    def shape(d, radius):
        fade = 1.0 if d < RADIAL_CUTOFF - RADIAL_WIDTH else math.cos(math.pi / 2 * ((d - 5.6) / 0.4)) ** 2
        return fade * math.exp(-((d - radius) ** 2) / (2 * RADIAL_WIDTH**2))

    columns = [np.ones(len(z))]
    for name, (mean, spread) in RADIAL_PROPERTIES.items():
        columns.append((element_property(name, torch.tensor(np.asarray(z))).numpy() - mean) / spread)
    sums = np.zeros((len(columns), len(RADIAL_GRID)))
    for image in itertools.product(range(-4, 5), repeat=3):
        for i, j in itertools.product(range(len(z)), repeat=2):
            d = np.linalg.norm(pos[j] + np.array(image) @ cell - pos[i])
            if 1e-3 < d < RADIAL_CUTOFF:
                for p, column in enumerate(columns):
                    sums[p] += [column[i] * column[j] * shape(d, radius) for radius in RADIAL_GRID]
    step = 0.001
    volume = [
        sum(4 * math.pi * r * r * shape(r, radius) * step for r in np.arange(step / 2, RADIAL_CUTOFF, step))
        for radius in RADIAL_GRID
    ]
    density = len(z) / abs(np.linalg.det(cell))
    return (sums / len(z) / density / np.array(volume)).ravel()


@pytest.fixture
def crystal(random_crystal):
    return random_crystal(np.random.default_rng(3), 4)


def test_equals_a_sum_over_pairs(random_crystal):
    crystal = random_crystal(np.random.default_rng(5), 3)
    np.testing.assert_allclose(fingerprint(crystal)[0].numpy(), slow(*crystal), rtol=1e-5, atol=1e-8)


def test_six_neighbours_of_simple_cubic_polonium():
    """Lattice constant 3.35 angstrom: 6 neighbours there, 12 at 4.74, 8 at 5.80 (which fade)."""
    (row,) = fingerprint(([84], np.zeros((1, 3)), 3.35 * np.eye(3)))
    r = torch.linspace(0, 6, 60_001, dtype=torch.float64)

    def fade(d):
        return torch.cos(math.pi / 2 * ((d - 5.6) / 0.4).clamp(0, 1)) ** 2

    for k, radius in enumerate(RADIAL_GRID):
        volume = torch.trapezoid(4 * math.pi * r**2 * fade(r) * torch.exp(-((r - radius) ** 2) / 0.32), r)
        d = 3.35 * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).sqrt()
        near = fade(d) * torch.exp(-((d - radius) ** 2) / 0.32)
        expected = (torch.tensor([6, 12, 8]) * near).sum() * 3.35**3 / volume
        torch.testing.assert_close(row[k], expected, rtol=1e-6, atol=1e-12)
    weight = (2.0 - 1.7) / 0.7  # the electronegativity of polonium is 2
    torch.testing.assert_close(row[12:24], row[:12] * weight**2)


def test_neither_cell_nor_orientation_nor_origin_nor_order_matters(crystal, random_rotation):
    z, pos, cell = crystal
    rng = np.random.default_rng(0)
    turn, order = random_rotation(rng), rng.permutation(len(z))
    others = [
        (z, pos @ turn.T, cell @ turn.T),
        (z, -pos, -cell),
        (z[order], pos[order], cell),
        (z, pos + np.array([0.3, 7.1, -2.0]), cell),
        (z, pos, np.array([[1, 0, 0], [3, 1, 0], [-2, 1, 1]]) @ cell),
        supercell(crystal, np.diag([2, 1, 1])),
        supercell(crystal, [[1, 1, 0], [-1, 1, 0], [0, 1, 2]]),
    ]
    rows = fingerprint(crystal, *others)
    torch.testing.assert_close(rows[1:], rows[:1].expand(len(others), -1), rtol=0, atol=1e-10)


def test_symmetric_crystals_have_one_fingerprint_in_single_precision_too(symmetric_crystal):
    z, pos, cell = symmetric_crystal
    arguments = [torch.from_numpy(pos)[None].flatten(0, 1), torch.from_numpy(cell)[None]]
    ptr = torch.tensor([0, 2])
    exact = radial_fingerprint(torch.from_numpy(z), *arguments, ptr)
    single = radial_fingerprint(torch.from_numpy(z), *(a.float() for a in arguments), ptr)
    assert single.dtype == torch.float64
    torch.testing.assert_close(single, exact, rtol=0, atol=1e-6)


def test_a_pair_leaves_without_a_jump():
    """A dimer of a large box, drawn apart past the cutoff."""
    crystals = [([3, 17], np.array([[0.0, 0, 0], [d, 0, 0]]), 40 * np.eye(3)) for d in np.arange(5.5, 6.1, 0.001)]
    rows = fingerprint(*crystals)
    assert (rows[-1] == 0).all()
    assert rows.diff(dim=0).abs().amax() < 0.01 * rows[0].abs().max()


def test_it_is_one_where_sites_are_spread_evenly():
    """In the mean over random positions of many sites, at every radius."""
    rng = np.random.default_rng(1)
    crystals = [([14] * 60, rng.uniform(0, 12, (60, 3)), 12 * np.eye(3)) for _ in range(100)]
    mean = fingerprint(*crystals)[:, :12].mean(dim=0)
    # The site itself is not counted: 59 others.
    torch.testing.assert_close(mean, torch.full_like(mean, 59 / 60), rtol=0.1, atol=0)


def test_parts_of_the_data_change_nothing(dataset, monkeypatch):
    arguments = dataset.z, dataset.pos, dataset.cell, dataset.ptr
    whole = radial_fingerprint(*arguments)
    assert whole.shape == (12, 48)
    monkeypatch.setattr(radial, "_PAIRS", 100)
    torch.testing.assert_close(radial_fingerprint(*arguments), whole, rtol=0, atol=1e-12)


def test_a_crystal_without_a_pair_within_the_cutoff_is_zero():
    box = ([2], np.zeros((1, 3)), 15 * np.eye(3))
    cubic = ([84], np.zeros((1, 3)), 3.35 * np.eye(3))
    rows = fingerprint(box, cubic, box)
    assert (rows[[0, 2]] == 0).all()
    torch.testing.assert_close(rows[1:2], fingerprint(cubic))
    assert (fingerprint(box) == 0).all()


def test_constants_are_near_mean_and_spread_of_the_elements():
    every = torch.arange(1, 104)
    for name, (mean, spread) in RADIAL_PROPERTIES.items():
        values = element_property(name, every)
        assert abs(values.mean() - mean) < 0.25 * spread
        assert 0.6 < values.std() / spread < 1.5
