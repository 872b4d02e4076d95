import itertools

import numpy as np
import pytest
import torch

from pyg_dim.data.minimum_image import minimum_image, minkowski_reduction


def skewed_cell(rng, shear):
    """A lattice given by long, nearly parallel vectors."""
    cell = np.diag(rng.uniform(2, 8, 3))
    for _ in range(6):
        i, j = rng.choice(3, 2, replace=False)
        cell[i] += rng.integers(-shear, shear + 1) * cell[j]
    return cell @ np.linalg.qr(rng.normal(size=(3, 3)))[0]


def brute_force(difference, cell, reach):
    images = np.array(list(itertools.product(range(-reach, reach + 1), repeat=3)))
    return np.linalg.norm(difference[:, None] + images @ cell, axis=2).min(1)


def test_exact_minimum_against_all_images_in_a_wide_range():
    rng = np.random.default_rng(0)
    for _ in range(30):
        cell = skewed_cell(rng, 1)
        difference = rng.uniform(-1, 1, (40, 3)) @ cell
        length, shift = minimum_image(
            torch.tensor(difference), torch.zeros(40, dtype=torch.long), torch.tensor(cell)[None]
        )
        reach = int(shift.abs().max()) + 2
        np.testing.assert_allclose(length, brute_force(difference, cell, reach), rtol=0, atol=1e-9)
        np.testing.assert_allclose(np.linalg.norm(difference + shift.numpy() @ cell, axis=1), length, rtol=0, atol=1e-9)


def test_agrees_with_pymatgen_in_strongly_skewed_cells():
    from pymatgen.core import Lattice

    rng = np.random.default_rng(1)
    for _ in range(20):
        cell = skewed_cell(rng, 4)
        fractional = rng.uniform(0, 1, (6, 3))
        expected = Lattice(cell).get_all_distances(fractional, fractional)
        difference = (fractional[None] - fractional[:, None]).reshape(-1, 3) @ cell
        length, _ = minimum_image(torch.tensor(difference), torch.zeros(36, dtype=torch.long), torch.tensor(cell)[None])
        np.testing.assert_allclose(length.view(6, 6), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shear", [0, 1, 5])
def test_reduced_basis_spans_the_lattice_and_is_minkowski_reduced(shear):
    rng = np.random.default_rng(2)
    cells = torch.tensor(np.stack([skewed_cell(rng, shear) for _ in range(50)]))
    change = minkowski_reduction(cells)
    torch.testing.assert_close(torch.linalg.det(change.double()).abs(), torch.ones(50, dtype=torch.float64))
    reduced = change.double() @ cells
    lengths = reduced.norm(dim=2)
    assert (lengths.diff(dim=1) >= -1e-8).all()
    a, b, c = reduced.unbind(1)
    signs = [s for s in itertools.product((-1, 0, 1), repeat=2) if any(s)]
    slack = 1 + 1e-8
    assert all((b.norm(dim=1) <= slack * (b + s * a).norm(dim=1)).all() for s in (-1, 1))
    assert all((c.norm(dim=1) <= slack * (c + s * a + t * b).norm(dim=1)).all() for s, t in signs)


def test_each_difference_uses_the_lattice_of_its_own_crystal():
    cells = torch.stack([2.0 * torch.eye(3, dtype=torch.float64), 10.0 * torch.eye(3, dtype=torch.float64)])
    difference = torch.tensor([[1.8, 0.0, 0.0], [1.8, 0.0, 0.0]], dtype=torch.float64)
    length, shift = minimum_image(difference, torch.tensor([0, 1]), cells)
    torch.testing.assert_close(length, torch.tensor([0.2, 1.8], dtype=torch.float64))
    assert shift.tolist() == [[-1, 0, 0], [0, 0, 0]]


def test_zero_difference_stays_exactly_zero():
    cell = torch.tensor(skewed_cell(np.random.default_rng(3), 3))[None]
    length, shift = minimum_image(torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1, dtype=torch.long), cell)
    assert length.tolist() == [0.0]
    assert shift.tolist() == [[0, 0, 0]]
