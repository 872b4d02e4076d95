"""The description of a crystal does not show in its graph: properties tried on crystals of every kind."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("hypothesis", reason="needs hypothesis: pip install -e '.[test]'")
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pyg_dim.data.batch import CrystalBatch
from pyg_dim.data.graphs import DenseSupercell, NearestNeighbors, RadiusGraph

WHOLE_SHELLS = [NearestNeighbors(12, 6.0, ties=True), RadiusGraph(4.0)]
TOLERANCE = 1e-5
# No deadline: a time says nothing about what is right.
trials = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@st.composite
def crystals(draw):
    """Atomic numbers, positions and cell: general or with sites and lattice of high symmetry, well shaped or flat."""
    edges = draw(st.lists(st.sampled_from([2.5, 3.0, 3.7, 4.4, 9.0]), min_size=3, max_size=3))
    shear = draw(st.lists(st.sampled_from([0.0, 0.5, -0.5, 0.31, -0.17, 1.0]), min_size=3, max_size=3))
    cell = np.diag(edges)
    cell[1, 0], cell[2, 0], cell[2, 1] = shear[0] * edges[0], shear[1] * edges[0], shear[2] * edges[1]
    coordinate = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 0.75]), st.integers(0, 999).map(lambda n: n / 1000))
    fractional = draw(st.lists(st.tuples(coordinate, coordinate, coordinate), min_size=1, max_size=5, unique=True))
    z = draw(st.lists(st.sampled_from([8, 11, 26]), min_size=len(fractional), max_size=len(fractional)))
    pos = np.array(fractional) @ cell
    batch = as_batch(z, pos, cell)
    # Sites on top of one another are no crystal.
    assume(len(pos) == 1 or float(RadiusGraph(30.0)(batch).edge_dist.min()) > 0.5)
    return np.array(z), pos, cell


def as_batch(z, pos, cell):
    return CrystalBatch(
        z=torch.as_tensor(np.array(z)),
        pos=torch.as_tensor(np.array(pos)),
        cell=torch.as_tensor(np.array(cell))[None],
        batch=torch.zeros(len(z), dtype=torch.long),
        ptr=torch.tensor([0, len(z)]),
    )


def environments(graph, z, pos, cell):
    """Of every site: its species, and the sorted (species, distance) of its neighbours."""
    batch = graph(as_batch(z, pos, cell))
    source, target = batch.edge_index
    found = []
    for site in range(len(z)):
        mine = target == site
        species, length = batch.z[source[mine]], batch.edge_dist[mine]
        found.append({int(kind): length[species == kind].sort().values for kind in species.unique()})
    return found


def equal(one, other):
    return one.keys() == other.keys() and all(
        len(one[kind]) == len(other[kind]) and torch.allclose(one[kind], other[kind], rtol=0, atol=TOLERANCE)
        for kind in one
    )


def agree(before, after, order):
    assert all(equal(after[new], before[old]) for new, old in enumerate(order))


@trials
@given(crystals(), st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("graph", [*WHOLE_SHELLS, NearestNeighbors(7), DenseSupercell(24)], ids=repr)
def test_wrapping_sites_into_the_cell(graph, crystal, seed):
    z, pos, cell = crystal
    image = np.random.default_rng(seed).integers(-4, 5, (len(z), 3))
    agree(environments(graph, z, pos, cell), environments(graph, z, pos + image @ cell, cell), range(len(z)))


@trials
@given(crystals(), st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("graph", [*WHOLE_SHELLS, NearestNeighbors(7), DenseSupercell(24)], ids=repr)
def test_permuting_the_sites(graph, crystal, seed):
    z, pos, cell = crystal
    order = np.random.default_rng(seed).permutation(len(z))
    agree(environments(graph, z, pos, cell), environments(graph, z[order], pos[order], cell), order)


@trials
@given(crystals(), st.lists(st.tuples(st.sampled_from([(0, 1), (0, 2), (1, 2)]), st.integers(-3, 3)), max_size=4))
@pytest.mark.parametrize("graph", WHOLE_SHELLS, ids=repr)
def test_changing_the_basis_of_the_lattice(graph, crystal, steps):
    z, pos, cell = crystal
    change = np.eye(3, dtype=int)
    for number, ((i, j), times) in enumerate(steps):
        i, j = (i, j) if number % 2 else (j, i)
        change[i] += times * change[j]
    agree(environments(graph, z, pos, cell), environments(graph, z, pos, change @ cell), range(len(z)))


@trials
@given(crystals(), st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 2)), st.integers(-1, 1))
@pytest.mark.parametrize("graph", WHOLE_SHELLS, ids=repr)
def test_reducing_to_the_primitive_niggli_cell(graph, crystal, repeats, shear):
    """Every site of the primitive cell has the environment of the sites that it stands for in a larger cell."""
    from pymatgen.core import Lattice, Structure

    z, pos, cell = crystal
    large = Structure(Lattice(cell), z, pos, coords_are_cartesian=True)
    large.make_supercell([[repeats[0], shear, 0], [0, repeats[1], 0], [0, 0, repeats[2]]])
    small = large.get_primitive_structure(tolerance=1e-3).get_reduced_structure("niggli")
    before, after = (
        environments(graph, [site.specie.Z for site in cell], cell.cart_coords, cell.lattice.matrix)
        for cell in (large, small)
    )
    assert len(before) % len(after) == 0
    assert all(any(equal(one, other) for other in after) for one in before)
    assert all(sum(equal(one, other) for other in before) >= len(before) / len(after) for one in after)
