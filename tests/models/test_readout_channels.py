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
    with pytest.raises(ValueError, match="unknown readout 'local'; known: global, full, decoded"):
        model.readout_channels("local")


@pytest.mark.parametrize("name", MODELS)
def test_the_spread_of_equal_sites_leaves_finite_gradients(name, batch_of):
    """A crystal of one site has no spread, and the root no slope there."""
    model = build(name).double()
    model.readout(model.graph(batch_of(["Cu", "NaCl"])), "full").sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_decoded_is_a_layer_on_the_global_representation(batch_of):
    model = build("sitenet").double()
    batch = model.graph(batch_of(["NaCl", "TiO2"]))
    with pytest.raises(ValueError, match="'decoded' is of encoders that were trained with the objective fingerprint"):
        model.readout(batch, "decoded")
    model.decoder = torch.nn.Linear(model.channels, 3).double()
    torch.testing.assert_close(model.readout(batch, "decoded"), model.decoder(model(batch)))
    assert model.readout_channels("decoded") == 3
