"""What an encoder is told of the species of a site."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyg_dim.data.elements import MAX_Z, NUM_FEATURES, site_features


class SiteInput(nn.Module):
    """Numbers that describe the species of every site: scaled site features, or given vectors.

    Site features are brought to zero mean and unit spread over the elements, since nothing scales them later.

    Args:
        species_channels: length of vectors that describe the species in place of the site features. They are a
            buffer, NaN until ``load_cgcnn_checkpoint`` or the state of another encoder fills it.

    Attributes:
        channels: length of the description.
        species: [104, C] vectors by atomic number, or None.
    """

    species: Tensor | None
    feature_mean: Tensor
    feature_spread: Tensor

    def __init__(self, species_channels: int | None = None) -> None:
        super().__init__()
        self.channels = species_channels or NUM_FEATURES
        table = None if species_channels is None else torch.full((MAX_Z + 1, species_channels), float("nan"))
        self.register_buffer("species", table)
        self._looked_up = False
        mean, spread = _feature_scale()
        self.register_buffer("feature_mean", mean.float())
        self.register_buffer("feature_spread", spread.float())

    def forward(self, batch: Any) -> Tensor:
        """Describe the sites of a batch.

        Args:
            batch: crystal batch (x, or z where species have vectors).

        Returns:
            [N, C] numbers.

        Raises:
            ValueError: in evaluation mode, or at the first batch: an element that no species vector describes.
        """
        if self.species is None:
            return (batch.x - self.feature_mean) / self.feature_spread
        # Looked at once while training: it makes the host wait for the device.
        if not (self.training and self._looked_up):
            self._looked_up = True
            if unknown := batch.z[self.species[batch.z].isnan().any(dim=1)].unique().tolist():
                raise ValueError(
                    f"there are no atom vectors for the elements with atomic numbers {unknown}; load_cgcnn_checkpoint "
                    "fills them in, or the state of an encoder that has them"
                )
        return self.species[batch.z]


def _feature_scale() -> tuple[Tensor, Tensor]:
    """[9] mean and [9] standard deviation of the site features over the elements; of oxidation states 0 and 1."""
    z = torch.arange(1, MAX_Z + 1)
    features = site_features(z, torch.zeros(MAX_Z, dtype=torch.float64), torch.float64)
    spread = features.std(dim=0, correction=0)
    return features.mean(dim=0), torch.where(spread > 0, spread, 1.0)
