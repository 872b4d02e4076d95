"""Barlow Twins: two views of a crystal are to have the same representation, without repeating themselves in it."""

from __future__ import annotations

import math
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from pyg_dim.data.keys import AMOUNT, SPECIES_KEYS
from pyg_dim.false_samples.corruption import random_order
from pyg_dim.models.encoder import Encoder
from pyg_dim.models.site_input import SiteInput
from pyg_dim.objectives.deep_infomax import frozen_buffers

LAMBDA = 0.0051
"""Weight of the redundancy, as published."""
_EPS = 1e-5
"""Added to variances: that of batch norm."""


def cross_correlation(z1: Tensor, z2: Tensor) -> Tensor:
    r"""Correlation over a batch of each dimension of one view with each of the other.

    .. math:: C = \frac1N \hat Z_1^\top \hat Z_2, \qquad \hat z = \frac{z - \mu}{\sqrt{s^2 + 10^{-5}}}

    with mean :math:`\mu` and variance :math:`s^2` (divided by N) over the batch. It is computed in float32 at least.

    Args:
        z1: [N, D] vectors of one view.
        z2: [N, D] vectors of the other, in the same order.

    Returns:
        [D, D] correlations.

    Raises:
        ValueError: the views have other shapes.
    """
    if z1.shape != z2.shape or z1.dim() != 2:
        raise ValueError(f"z1 and z2 must both be [N, D], not {list(z1.shape)} and {list(z2.shape)}")
    with torch.autocast(z1.device.type, enabled=False):
        return _standardised(z1).T @ _standardised(z2) / z1.size(0)


def barlow_twins_loss(z1: Tensor, z2: Tensor, lambd: float = LAMBDA) -> tuple[Tensor, Tensor, Tensor]:
    r"""Barlow Twins loss of two views.

    .. math:: L = \sum_i (C_{ii} - 1)^2 + \lambda \sum_{i \ne j} C_{ij}^2

    with C of :func:`cross_correlation`. The divisor is the number of rows that there are, also where the last batch of
    an epoch is smaller than the others; a batch of one row has no correlation and no gradient.

    Args:
        z1: [N, D] vectors of one view.
        z2: [N, D] vectors of the other, in the same order.
        lambd: weight of the second sum.

    Returns:
        L, and the two sums, without their weights.

    Raises:
        ValueError: the views have other shapes.

    Source: Zbontar et al., ICML 2021, eq. 1 and 2.
    """
    correlation = cross_correlation(z1, z2)
    diagonal = correlation.diagonal()
    on_diagonal = (diagonal - 1).square().sum()
    off_diagonal = (correlation - torch.diag(diagonal)).square().sum()
    return on_diagonal + lambd * off_diagonal, on_diagonal, off_diagonal


class BarlowTwins(nn.Module):
    r"""Barlow Twins over the global representations of a crystal and of a distorted copy of it.

    One view is the crystal of the batch. The other has its sites displaced, as by heat, with a graph of its own, and
    the species of some of them hidden. A linear layer maps both to vectors whose loss, divided by their length so that
    it is of order one and adds up with other objectives, is the total.

    Of n sites of a crystal, :math:`\min(\max(\mathrm{round}(\text{mask} \cdot n), 1), n - 1)` are hidden: at least one,
    but never all, so that a crystal of one site keeps its species, without which nothing would tell it from others. A
    hidden site has atomic number, features and oxidation state zero, which no element has.

    Of a formula nothing is displaced, and :math:`\max(\lfloor \text{mask} \cdot n \rfloor, 1)` of its n elements are
    hidden, as published: also the only one. Their amounts stay, which tell one element from another of the formula.

    Running statistics of batch norm are those of the crystals of the batch alone.

    Args:
        encoder: an encoder, from any batch of crystals to their global representations.
        channels: length D of the vectors that are compared.
        lambd: weight of the redundancy.
        mask: share of the sites of a crystal whose species are hidden; 0 for none.
        displacement: standard deviation of the displacement along each axis, in angstrom.

    Raises:
        ValueError: an argument out of range, or an encoder that is given vectors of the elements
            (``species_channels``), of which there is none for a hidden site, together with a ``mask``.

    Source: Zbontar et al., ICML 2021; for materials: Huang, Magar, Barati Farimani, J. Chem. Inf. Model. 2024, 64, 627.
    """

    def __init__(
        self,
        encoder: Encoder,
        channels: int = 256,
        lambd: float = LAMBDA,
        mask: float = 0.1,
        displacement: float = 0.05,
    ) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"Barlow Twins: channels must be at least 1, not {channels}")
        if not 0 <= mask < 1:
            raise ValueError(f"Barlow Twins: mask is a share of sites in [0, 1), not {mask}")
        for name, value in (("lambd", lambd), ("displacement", displacement)):
            if not 0 <= value < math.inf:
                raise ValueError(f"Barlow Twins: {name} must be finite and not negative, not {value}")
        if mask and any(isinstance(m, SiteInput) and m.species is not None for m in encoder.modules()):
            raise ValueError(
                "Barlow Twins: the encoder is given vectors of the elements (species_channels), and there is none for "
                "a hidden site: use mask=0, or an encoder without them"
            )
        self.encoder = encoder
        self.channels, self.lambd, self.mask, self.displacement = channels, lambd, mask, displacement
        self.projector = nn.Linear(encoder.channels, channels)

    @torch.no_grad()
    def distorted(self, batch: Any, generator: torch.Generator | None = None) -> Any:
        """The other view of a batch.

        Args:
            batch: crystal batch.
            generator: random numbers, on the device of the batch.

        Returns:
            A copy of the batch with other positions, some species hidden, and the edges that the encoder wants for
            both; all else is shared.
        """
        crystal, ptr = batch.batch, batch.ptr
        view = copy(batch)
        is_formula = AMOUNT in batch
        if not is_formula:
            pos = batch.pos
            noise = torch.randn(pos.shape, dtype=pos.dtype, device=pos.device, generator=generator)
            view.pos = pos + self.displacement * noise
        if self.mask:
            sites = ptr.diff()
            hidden = (self.mask * sites).floor() if is_formula else (self.mask * sites).round()
            hidden = torch.minimum(hidden.long().clamp(min=1), sites if is_formula else sites - 1)
            # In this order the sites of a crystal lie side by side, shuffled: the first ones of each are hidden.
            order = random_order(crystal, generator)
            place = torch.arange(crystal.numel(), device=crystal.device) - ptr[crystal]
            is_hidden = torch.zeros_like(crystal, dtype=torch.bool).index_copy(0, order, place < hidden[crystal])
            for key in SPECIES_KEYS:
                if key != AMOUNT and (values := batch.get(key)) is not None:
                    view[key] = values.masked_fill(is_hidden.view(-1, *[1] * (values.dim() - 1)), 0)
        if is_formula:
            return view  # whose graph depends on the number of elements alone
        # The graph comes last: classes of equal sites depend on the species, too.
        with torch.autocast(crystal.device.type, enabled=False):
            return self.encoder.graph(view)

    def project(self, batch: Any) -> Tensor:
        """The vectors that are compared.

        Args:
            batch: crystal batch with its graph, or another view of one.

        Returns:
            [B, D], a linear map of :meth:`pyg_dim.models.Encoder.activated`.
        """
        return self.projector(self.encoder.activated(self.encoder(batch)))

    def forward(self, batch: Any, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Loss of a batch.

        Args:
            batch: crystal batch with its graph.
            generator: random numbers, on the device of the batch; seed it for the same views every time.

        Returns:
            Scalars: "total", a scalar with its gradient; "barlow/on_diagonal" and "barlow/off_diagonal", the two terms
            that it is the sum of.

        Raises:
            ValueError: the batch is none of crystals.
        """
        if not hasattr(batch, "max_sites"):
            raise ValueError(
                f"Barlow Twins displaces the sites of crystals: it needs a batch of CrystalLoader, not a "
                f"{type(batch).__name__}"
            )
        z1 = self.project(batch)
        view = self.distorted(batch, generator)
        with frozen_buffers(self.encoder):
            z2 = self.project(view)
        total, on_diagonal, off_diagonal = (loss / self.channels for loss in barlow_twins_loss(z1, z2, self.lambd))
        return {
            "total": total,
            "barlow/on_diagonal": on_diagonal.detach(),
            "barlow/off_diagonal": self.lambd * off_diagonal.detach(),
        }


def _standardised(z: Tensor) -> Tensor:
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    centred = z - z.mean(dim=0)
    return centred * (centred.square().mean(dim=0) + _EPS).rsqrt()
