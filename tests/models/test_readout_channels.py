"""The stated lengths of readouts are those that come out."""

from __future__ import annotations

import pytest
import torch

from pyg_dim.models import MODELS, READOUTS, build


@pytest.mark.parametrize("kind", READOUTS)
@pytest.mark.parametrize("name", MODELS)
def test_length_of_the_readout(name, kind, batch_of):
    model = build(name).double()
    with torch.no_grad():
        vectors = model.readout(model.graph(batch_of(["NaCl", "TiO2"])), kind)
    assert vectors.size(1) == model.readout_channels(kind)


def test_sitenet_adds_up():
    model = build("sitenet", local_channels=5, post_pool=[7, 11], pre_pool=[3])
    assert model.readout_channels() == 11
    assert model.readout_channels("full") == 11 + 7 + 4 * 5
    with pytest.raises(ValueError, match="unknown readout 'local'; known: global, full"):
        model.readout_channels("local")
