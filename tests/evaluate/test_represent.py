from __future__ import annotations

import pytest
import torch

from pyg_dim.data.loader import CrystalLoader
from pyg_dim.evaluate.represent import represent
from pyg_dim.models import build


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return build("sitenet")


def test_vectors_come_in_the_order_of_the_rows(crystals, encoder):
    plain = CrystalLoader(crystals, encoder.graph, batch_sites=1000, shuffle=False)
    shuffled = CrystalLoader(crystals, encoder.graph, batch_sites=24, seed=3)
    expected, rows = represent(encoder, plain)
    vectors, shuffled_rows = represent(encoder, shuffled)
    assert expected.shape == (60, encoder.channels)
    assert torch.equal(rows, torch.arange(60))
    assert torch.equal(shuffled_rows, rows)
    torch.testing.assert_close(vectors, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batches_are_given_in_the_precision_of_the_encoder_and_left_as_they_are(crystals, encoder, dtype):
    batches = list(CrystalLoader(crystals, encoder.graph, shuffle=False))
    before = [batch.clone() for batch in batches]
    expected, _ = represent(encoder, batches)
    vectors, rows = represent(encoder.to(dtype), batches)
    assert vectors.dtype == dtype
    assert torch.equal(rows, torch.arange(60))
    torch.testing.assert_close(vectors.float(), expected, rtol=1e-4, atol=1e-5)
    for batch, old in zip(batches, before, strict=True):
        assert all(torch.equal(batch[key], old[key]) for key in ("x", "edge_dist", "edge_index", "row"))
        assert batch.x.dtype == torch.float32


def test_full_begins_with_global(crystals, encoder):
    loader = CrystalLoader(crystals, encoder.graph, shuffle=False)
    full, _ = represent(encoder, loader, "full")
    vectors, _ = represent(encoder, loader, "global")
    assert full.shape[1] > vectors.shape[1]
    assert torch.equal(full[:, : encoder.channels], vectors)


def test_an_encoder_may_have_a_readout_of_its_own(crystals, encoder):
    loader = CrystalLoader(crystals, encoder.graph, shuffle=False)
    vectors, full = (represent(encoder, loader, kind)[0] for kind in ("global", "full"))
    assert represent(encoder, loader)[0].equal(vectors)
    encoder.default_readout = "full"
    assert represent(encoder, loader)[0].equal(full)
    assert represent(encoder, loader, "global")[0].equal(vectors)
    assert encoder.eval().readout(next(iter(loader))).shape == full.shape


def test_modes_and_gradients_are_left_as_they_were(crystals, encoder):
    encoder.train()
    kept = next(child for child in encoder.children() if sum(1 for _ in child.modules()) > 1)
    kept.eval()
    before = [module.training for module in encoder.modules()]
    seen = []
    handle = kept.register_forward_pre_hook(lambda module, _: seen.append((encoder.training, torch.is_grad_enabled())))
    vectors, _ = represent(encoder, CrystalLoader(crystals, encoder.graph))
    handle.remove()
    assert not vectors.requires_grad
    assert [module.training for module in encoder.modules()] == before
    assert all(state == (False, False) for state in seen)


def test_modes_are_restored_after_an_error(crystals, encoder):
    encoder.train()
    with pytest.raises(ValueError, match="readout"):
        represent(encoder, CrystalLoader(crystals, encoder.graph), "poetic")
    assert encoder.training


def test_a_row_that_comes_twice_is_returned_once(crystals, encoder):
    batches = list(CrystalLoader(crystals, encoder.graph, batch_sites=40, shuffle=False))
    _, rows = represent(encoder, [*batches, batches[0]])
    assert torch.equal(rows, torch.arange(60))


def test_an_empty_loader_is_an_error(encoder):
    with pytest.raises(ValueError, match="no crystal"):
        represent(encoder, [])


def test_one_process_of_two_represents_all_crystals(crystals, encoder, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    _, shared = represent(encoder, CrystalLoader(crystals, encoder.graph, batch_sites=24))
    _, rows = represent(encoder, CrystalLoader(crystals, encoder.graph, batch_sites=24, shard=False))
    assert shared.numel() < 60
    assert torch.equal(rows, torch.arange(60))
