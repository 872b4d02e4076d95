from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from pyg_dim.data.loader import CrystalLoader
from pyg_dim.data.magpie import magpie_features
from pyg_dim.evaluate.represent import represent
from pyg_dim.experiments.features import (
    READOUT_NAMES,
    checkpoint_features,
    descriptor_features,
    readout_features,
    spread,
    untrained_encoder,
)
from pyg_dim.training.checkpoints import load_encoder

ROWS = torch.tensor([1, 4, 5, 17, 60, 61, 119])
LOCAL, POOLED, GLOBAL = 8, 8, 8


def test_the_untrained_encoder_is_the_one_that_the_run_began_with(finished):
    encoder = untrained_encoder(finished.checkpoint)
    assert encoder.state_dict().keys() == finished.initial.keys()
    assert all(value.equal(finished.initial[name]) for name, value in encoder.state_dict().items())
    assert not encoder.training
    trained = load_encoder(finished.checkpoint)
    assert trained.config == encoder.config
    assert encoder.decoder is None
    assert not trained.output.weight.equal(encoder.output.weight)


def test_readouts_are_those_of_the_encoder_in_the_rows_of_the_data_set(finished, dataset):
    encoder = load_encoder(finished.checkpoint)
    found = readout_features(encoder, dataset, ROWS, READOUT_NAMES, batch_sites=6)
    assert list(found) == ["global", "full", "decoded", "global+magpie", "full+magpie", "decoded+magpie"]
    subset = dataset.subset(ROWS)
    magpie = magpie_features(subset.z, subset.ptr)
    # The run was to tell the Magpie fingerprint.
    widths = {"global": GLOBAL, "full": GLOBAL + POOLED + 4 * LOCAL, "decoded": magpie.shape[1]}
    for kind, width in widths.items():
        expected, _ = represent(encoder, CrystalLoader(subset, encoder.graph, shuffle=False), kind)
        assert expected.shape == (7, width)
        for name, vectors in ((kind, expected), (f"{kind}+magpie", torch.cat([expected, magpie.float()], dim=1))):
            assert found[name].shape == (120, width + (magpie.shape[1] if "+" in name else 0))
            assert found[name].dtype == np.float32
            np.testing.assert_allclose(found[name][ROWS], vectors, rtol=1e-4, atol=1e-5)
            others = np.delete(found[name], ROWS, axis=0)
            assert np.isnan(others).all()
    with pytest.raises(ValueError, match=r"unknown readouts \['local'\]; known: global, full, decoded, global\+magpie"):
        readout_features(encoder, dataset, ROWS, ["global", "local"])


def test_checkpoints_before_and_after_training(finished, dataset):
    trained = checkpoint_features(finished.checkpoint, dataset, ROWS, ["global"])["global"]
    before = checkpoint_features(finished.checkpoint, dataset, ROWS, ["global"], trained=False)["global"]
    expected = readout_features(untrained_encoder(finished.checkpoint), dataset, ROWS, ["global"])["global"]
    np.testing.assert_array_equal(before, expected)
    assert not np.allclose(before[ROWS], trained[ROWS])
    with pytest.raises(ValueError, match="the readout 'decoded' is of encoders that were trained with the objective"):
        checkpoint_features(finished.checkpoint, dataset, ROWS, ["decoded"], trained=False)


def test_descriptors_and_those_that_fail(dataset, monkeypatch, caplog):
    found = descriptor_features("magpie", dataset, ROWS)
    expected = magpie_features(dataset.z, dataset.ptr).numpy()
    np.testing.assert_array_equal(found[ROWS], expected[ROWS].astype(np.float32))
    assert np.isnan(np.delete(found, ROWS, axis=0)).all()

    def some_fail(name, dataset, rows, cache, workers):
        return torch.ones(2, 3, dtype=torch.float64), rows[[0, 2]]

    monkeypatch.setattr("pyg_dim.experiments.features.descriptor_table", some_fail)
    with caplog.at_level(logging.WARNING):
        found = descriptor_features("ofm", dataset, ROWS)
    assert found.shape == (120, 3)
    assert np.isfinite(found).all(axis=1).nonzero()[0].tolist() == [1, 5]


def test_spread():
    found = spread(np.array([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([2, 0]), 4)
    np.testing.assert_array_equal(found, np.float32([[3, 4], [np.nan] * 2, [1, 2], [np.nan] * 2]))
