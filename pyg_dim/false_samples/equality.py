"""Which false samples are true by chance: they are masked, not trained on."""

from __future__ import annotations

import functools
import math
from typing import Any, Final

import torch
from torch import Tensor

from pyg_dim import native
from pyg_dim.constituents import Constituents
from pyg_dim.native.occurs import edges_occur as native_edges_occur
from pyg_dim.native.occurs import environments as native_environments
from pyg_dim.native.occurs import sites_occur as native_sites_occur
from pyg_dim.native.pair_rows import PairRows, rows_of

DISTANCE_TOLERANCE: Final = 1e-3
"""Two distances closer than this are equal, in angstrom: the noise of relaxed structures."""
SHARE_TOLERANCE: Final = 1e-5
"""Two shares of an element in a formula closer than this are equal."""
_FINGERPRINT_TOLERANCE: Final = 2e-3
_FREQUENCIES: Final = tuple(math.sqrt(p) for p in (2, 3, 5, 7))
_SPECIES: Final = 128
ROUNDING: Final = 1e-6
"""Features that differ by a smaller share of their range are equal, unless a level knows better."""


def _rows(batch: Any, dtype: torch.dtype) -> PairRows | None:
    """Rows of the batch where the kernels of that type can be used."""
    rows = rows_of(batch)
    return None if rows is None or native.fault("occurs", dtype) is not None else rows


def edges_occur(batch: Any, site_target: Tensor, species: Tensor) -> Tensor:
    """Whether a false (species, distance) pair occurs among the true pairs of the site it is scored against.

    Args:
        batch: true crystal batch with its edges.
        site_target: [N] site that the pairs of each site are scored against.
        species: [N] false atomic number of each site.

    Returns:
        [E] bool.
    """
    if (rows := _rows(batch, batch.edge_dist.dtype)) is not None:
        return native_edges_occur(rows, batch.edge_dist, site_target, species, batch.z, DISTANCE_TOLERANCE)
    source, target = batch.edge_index
    true = target * _SPECIES + batch.z[source]
    return _near(site_target[target] * _SPECIES + species[source], batch.edge_dist, true, batch.edge_dist)


def elements_occur(crystal: Tensor, species: Tensor, share: Tensor, true_species: Tensor, true_share: Tensor) -> Tensor:
    """Whether a false element, with its share, occurs in the true formula that has the place.

    Args:
        crystal: [N] formula of each site.
        species: [N] false atomic numbers.
        share: [N] false shares of the elements in their formula.
        true_species: [N] true atomic numbers.
        true_share: [N] true shares.

    Returns:
        [N] bool.
    """
    # Distances on the line are in units of the tolerance.
    scale = DISTANCE_TOLERANCE / SHARE_TOLERANCE
    return _near(crystal * _SPECIES + species, share * scale, crystal * _SPECIES + true_species, true_share * scale)


def constituents_occur(
    false: Constituents, target: Tensor, true: Constituents, index: Tensor, rounding: float = ROUNDING
) -> Tensor:
    """Whether a false constituent equals a true one of the group it is scored against, feature by feature.

    For levels of any graph: equality is that of what the critic sees, up to rounding (a random projection of the
    features is compared).

    Args:
        false: m constituents.
        target: [m] group that each is scored against.
        true: n constituents of the same width.
        index: [n] group of each.
        rounding: how far equal features may differ, as a share of their range.

    Returns:
        [m] bool.
    """
    if not len(false) or not len(true):
        return torch.zeros_like(target, dtype=torch.bool)
    weight = _weights(false, true)
    values, true_values = _projection(false, weight), _projection(true, weight)
    low = torch.cat([values, true_values, values.new_zeros(1)]).min()
    # Distances on the line are in units of the tolerance.
    scale = DISTANCE_TOLERANCE / rounding
    return _near(target, (values - low) * scale, index, (true_values - low) * scale)


def _weights(*sets: Constituents) -> Tensor:
    """[F] irregular weights, in units of each feature's own range: a large feature must not hide a small one."""
    ranges = []
    for constituents in sets:
        columns = [features.double() for features, _ in constituents.parts]
        ranges.append((torch.cat([c.amin(0) for c in columns]), torch.cat([c.amax(0) for c in columns])))
    width = torch.stack([high for _, high in ranges]).amax(0) - torch.stack([low for low, _ in ranges]).amin(0)
    position = torch.arange(1, width.numel() + 1, dtype=torch.float64, device=width.device)
    # The usual hash of a shader: the same in every run and on every device.
    irregular = (position * 12.9898).sin().mul(43758.5453).frac()
    return irregular / width.where(width > 0, torch.ones_like(width))


def _projection(constituents: Constituents, weight: Tensor) -> Tensor:
    total = None
    widths = [features.size(1) for features, _ in constituents.parts]
    for (features, index), share in zip(constituents.parts, weight.split(widths), strict=True):
        term = features.double() @ share
        term = term if index is None else term[index]
        total = term if total is None else total + term
    assert total is not None  # noqa: S101 - there is at least one part
    return total


def _near(cell: Tensor, value: Tensor, true_cell: Tensor, true_value: Tensor) -> Tensor:
    """Whether a true value lies in the same cell, nearer than the tolerance; values are not negative.

    All are put on one line, ordered by cell and value; an equal one is then the nearest on it.
    """
    if not value.numel() or not true_value.numel():
        return torch.zeros_like(cell, dtype=torch.bool)
    # One cell of the line holds every value there is, with room between cells.
    width = torch.maximum(value.max(), true_value.max()).double() + 1.0
    line = cell * width + value.double()
    true_line = torch.sort(true_cell * width + true_value.double()).values
    after = torch.searchsorted(true_line, line)
    last = true_line.numel() - 1
    gap = torch.minimum(
        (true_line[after.clamp(max=last)] - line).abs(), (true_line[(after - 1).clamp(min=0)] - line).abs()
    )
    return gap < DISTANCE_TOLERANCE


@functools.cache
def _frequencies(device: torch.device) -> Tensor:
    """Made once for each device, since every copy from the host makes the host wait."""
    return torch.tensor(_FREQUENCIES, dtype=torch.float64, device=device)


def environments(batch: Any, species: Tensor) -> Tensor:
    r"""Fingerprint of every site's environment: equal for sites that symmetry makes equal, whatever the encoder.

    .. math:: f_{ik} = \sum_j \frac{\mathrm{frac}(\sqrt{p_k}\, Z_j)}{1 + d_{ij}}, \qquad p = 2, 3, 5, 7

    Args:
        batch: crystal batch with edge_index and edge_dist.
        species: [N] atomic number of each site.

    Returns:
        [N, 4] float64 fingerprints.
    """
    label = (species[:, None] * _frequencies(species.device)).frac()
    if (rows := _rows(batch, batch.edge_dist.dtype)) is not None:
        return native_environments(rows, batch.edge_dist, label)
    source, target = batch.edge_index
    terms = label[source] / (1.0 + batch.edge_dist.double())[:, None]
    return terms.new_zeros(species.size(0), len(_FREQUENCIES)).index_add(0, target, terms)


def sites_occur(
    batch: Any, species: Tensor, fingerprint: Tensor, crystal: Tensor, true_species: Tensor, true_fingerprint: Tensor
) -> Tensor:
    """Whether a false environment occurs among the true environments of the crystal it is scored against.

    Finds permutations that symmetry maps onto the crystal, equal compounds, and single-element crystals.

    Args:
        batch: crystal batch (ptr, max_sites).
        species: [N] atomic numbers of the corrupted batch.
        fingerprint: [N, 4] its fingerprints.
        crystal: [N] crystal that each site is scored against.
        true_species: [N] atomic numbers of the true batch.
        true_fingerprint: [N, 4] its fingerprints.

    Returns:
        [N] bool.
    """
    if _rows(batch, torch.float32) is not None:
        return native_sites_occur(
            crystal, batch.ptr, species, fingerprint, true_species, true_fingerprint, _FINGERPRINT_TOLERANCE
        )
    first, count = batch.ptr[crystal], batch.ptr[crystal + 1] - batch.ptr[crystal]
    column = torch.arange(batch.max_sites, device=species.device)
    candidate = first[:, None] + torch.minimum(column, (count - 1)[:, None])
    same = (fingerprint[:, None] - true_fingerprint[candidate]).abs().amax(-1) < _FINGERPRINT_TOLERANCE
    return (same & (species[:, None] == true_species[candidate])).any(-1)
