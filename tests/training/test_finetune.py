from __future__ import annotations

import logging
import warnings

import pytest
import torch

from pyg_dim import models
from pyg_dim.data import CrystalDataset
from pyg_dim.training import finetune
from pyg_dim.training.finetune import FineTuneOptions, fine_tune

SMALL = {
    "sitenet": {
        "site_channels": 8, "pair_channels": 8, "attention_hidden": [8], "value_hidden": [8], "local_channels": 8,
        "pre_pool": [8], "post_pool": [8, 8], "supercell_sites": 8,
    },
    "cgcnn": {"site_channels": 8, "convolutions": 1, "crystal_channels": 8},
}  # fmt: skip
# Of each formula one of the two prototypes.
ROWS, TEST = (torch.tensor([row for row in range(60) if (row + row // 30) % 2 == part]) for part in (1, 0))
SHORT = {"epochs": 3, "batch_sites": 16}


def small(name: str = "sitenet") -> models.Encoder:
    torch.manual_seed(0)
    return models.build(name, **SMALL[name])


@pytest.fixture(scope="module")
def dataset(parquet) -> CrystalDataset:
    """60 binary crystals with the label "energy" in all rows but the first."""
    return CrystalDataset.from_parquet(parquet)


@pytest.fixture
def fit(dataset):
    """``fit(seed=0, encoder=..., epochs=3, ...)``: a fit of less than a second."""

    def run(seed=0, encoder=None, data=dataset, rows=ROWS, test_rows=TEST, target="energy", **options):
        encoder = small() if encoder is None else encoder
        return fine_tune(encoder, data, target, rows, test_rows, FineTuneOptions(**(SHORT | options)), seed)

    return run


@pytest.fixture
def fit_in_place(fit, monkeypatch):
    """A fit that trains the encoder it is given, so that a test can look at it."""
    monkeypatch.setattr(finetune, "deepcopy", lambda encoder: encoder)
    return fit


def state(encoder: models.Encoder) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in encoder.state_dict().items()}


def test_it_learns_from_few_labels(dataset, fit):
    result = fit(epochs=25, lr=1e-2, encoder_lr=1e-2)
    labels = dataset.target("energy")
    assert result.predictions.dtype == torch.float64
    known = labels[TEST].isfinite()
    error = (result.predictions - labels[TEST])[known].abs().mean()
    assert result.test_mae == pytest.approx(error.item(), rel=1e-12)
    mean_predictor = (labels[TEST][known] - labels[ROWS].mean()).abs().mean()
    assert result.test_mae < 0.6 * mean_predictor
    assert result.holdout_mae < 0.6 * mean_predictor


def test_the_same_seed_gives_the_same_bits_and_leaves_everything_as_it_was(fit):
    encoder = small().eval()
    encoder.local.train()
    before, modes = state(encoder), [module.training for module in encoder.modules()]
    torch.manual_seed(5)
    expected_draw = torch.rand(3)
    torch.manual_seed(5)
    first = fit(encoder=encoder, dim_weight=0.1)
    assert torch.rand(3).equal(expected_draw)
    again = fit(encoder=encoder, rows=ROWS.flip(0), dim_weight=0.1)
    assert first.predictions.equal(again.predictions)
    assert (first.test_mae, first.holdout_mae) == (again.test_mae, again.holdout_mae)
    assert not fit(encoder=encoder, seed=1, dim_weight=0.1).predictions.equal(first.predictions)
    assert all(value.equal(before[name]) for name, value in encoder.state_dict().items())
    assert [module.training for module in encoder.modules()] == modes
    assert not any(parameter.grad is not None for parameter in encoder.parameters())


def test_predictions_are_those_of_the_best_epoch(fit):
    # A learning rate so high that the error goes up again.
    result = fit(epochs=40, patience=4, lr=0.03, encoder_lr=0.03)
    assert result.epochs == result.best_epoch + 4 < 40
    shorter = fit(epochs=result.best_epoch, lr=0.03, encoder_lr=0.03)
    assert shorter.best_epoch == shorter.epochs == result.best_epoch
    assert shorter.predictions.equal(result.predictions)
    assert shorter.holdout_mae == result.holdout_mae


def test_predictions_follow_the_order_of_the_test_rows(dataset, fit):
    order = TEST[[15, 0, 2, 29]]
    result = fit(test_rows=order)
    expected = fit().predictions[[15, 0, 2, 29]]
    torch.testing.assert_close(result.predictions, expected, rtol=1e-5, atol=1e-5)
    # Row 0 has no label: it is predicted, and not scored.
    errors = (result.predictions - dataset.target("energy")[order]).abs()
    assert errors.isfinite().tolist() == [True, False, True, True]
    assert result.test_mae == pytest.approx(errors[errors.isfinite()].mean().item(), rel=1e-12)


@pytest.mark.parametrize("name", SMALL)
def test_a_frozen_encoder_keeps_parameters_and_running_statistics(fit_in_place, name):
    encoder = small(name)
    before = state(encoder)
    frozen = fit_in_place(encoder=encoder, frozen_epochs=3, dim_weight=1.0)
    assert all(value.equal(before[name]) for name, value in encoder.state_dict().items())
    assert frozen.predictions.equal(fit_in_place(encoder=encoder, frozen_epochs=3, encoder_lr=1.0).predictions)
    encoder = small(name)
    freed = fit_in_place(encoder=encoder, epochs=12, frozen_epochs=1, lr=1e-2, encoder_lr=1e-2)
    assert freed.best_epoch > 1
    assert not encoder.output.weight.equal(before["output.weight"])


def test_patience_does_not_count_frozen_epochs(fit):
    # The head cannot learn, so the first epoch is the best one as long as the encoder is frozen.
    result = fit(epochs=8, patience=2, frozen_epochs=5, lr=1e-30, encoder_lr=1e-30)
    assert (result.best_epoch, result.epochs) == (1, 7)


def test_each_part_has_its_own_learning_rate(fit_in_place):
    encoder = small()
    before = state(encoder)
    still = fit_in_place(encoder=encoder, encoder_lr=1e-30)
    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=1e-6, atol=1e-7)
    assert not fit_in_place(encoder=encoder, lr=1e-30, encoder_lr=1e-30).predictions.allclose(still.predictions)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_critics_learn_only_where_deep_infomax_is_kept(fit_in_place, weight):
    encoder = small()
    before = state(encoder)
    fit_in_place(encoder=encoder, dim_weight=weight)
    changed = {name for name, value in encoder.state_dict().items() if not value.equal(before[name])}
    assert any("critic" in name for name in changed) == (weight > 0)
    assert "local.output.weight" in changed


def test_the_weight_of_deep_infomax_falls_each_epoch(fit, monkeypatch):
    calls = []
    forward = finetune.DeepInfoMax.forward

    def counted(self, batch, generator=None):
        calls.append(batch.num_graphs)
        return forward(self, batch, generator)

    monkeypatch.setattr(finetune.DeepInfoMax, "forward", counted)
    # Weights 1, 0.1, 0.01 and then 0.001 of the first, which is left out; 24 training crystals of two sites.
    fit(epochs=6, frozen_epochs=1, dim_weight=0.5, dim_decay=0.101)
    assert len(calls) == 3 * 3
    assert sum(calls) == 3 * 24


def test_a_share_of_the_labels_is_held_out(dataset, fit, monkeypatch):
    seen = []
    monkeypatch.setattr(finetune.Supervised, "fit_labels", lambda self, labels: seen.append(labels.numel()))
    for rows, holdout in [(ROWS, 0.2), (ROWS, 1e-9), (ROWS, 1 - 1e-9), (ROWS[:2], 0.2)]:
        fit(rows=rows, holdout=holdout, epochs=1)
    assert seen == [24, 29, 1, 1]


def test_logarithms_of_skewed_labels(dataset, fit):
    skewed = dataset.with_labels({"skewed": (0.1 * dataset.target("energy")).exp()})
    labels = skewed.target("skewed")
    result = fit(data=skewed, target="skewed", log_target=True, epochs=25, lr=1e-2, encoder_lr=1e-2)
    known = labels[TEST].isfinite()
    off = (result.predictions / labels[TEST])[known].log().abs().mean()
    mean_predictor = (labels[TEST].log()[known] - labels[ROWS].log().mean()).abs().mean()
    assert off < 0.6 * mean_predictor
    error = (result.predictions - labels[TEST])[known].abs().mean()
    assert result.test_mae == pytest.approx(error.item(), rel=1e-12)
    with pytest.raises(ValueError, match=r"log_target needs positive labels; 'energy' of row 1 is -5"):
        fit(log_target=True)


def test_the_head_can_see_the_full_readout(fit):
    assert not fit(readout="full").predictions.allclose(fit().predictions)


def test_it_computes_in_the_precision_of_the_data(parquet, fit):
    encoder = small()
    double = fit(encoder=encoder, data=CrystalDataset.from_parquet(parquet, dtype=torch.float64))
    torch.testing.assert_close(double.predictions, fit(encoder=encoder).predictions, rtol=1e-3, atol=1e-3)
    assert next(encoder.parameters()).dtype == torch.float32


def test_many_fits_say_nothing(fit, caplog):
    with warnings.catch_warnings(), caplog.at_level(logging.INFO):
        warnings.simplefilter("error")
        fit(encoder=small().eval(), epochs=1)
    assert not caplog.records


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target": "hardness"}, "no target column 'hardness'"),
        ({"rows": ROWS[:1]}, "rows has 1 rows; fine-tuning needs at least 2"),
        ({"test_rows": TEST[:0]}, "test_rows has 0 rows"),
        ({"rows": torch.tensor([3, 5, 3])}, "row 3 is in rows twice"),
        ({"rows": torch.tensor([3, 5, 6])}, "row 6 is in rows and in test_rows"),
        ({"rows": torch.tensor([0, 5]), "test_rows": TEST[1:]}, "row 0 of rows has no label 'energy'"),
        ({"test_rows": torch.tensor([0])}, "no row of test_rows has a label 'energy'"),
    ],
)
def test_rows_that_make_no_sense_are_named(fit, given, message):
    with pytest.raises(ValueError, match=message):
        fit(**given)


def test_a_fit_that_breaks_says_what_to_do(fit):
    with pytest.raises(FloatingPointError, match="no finite number in 2 epochs: try an lr and an encoder_lr below"):
        fit(lr=1e30, encoder_lr=1e30, patience=2, epochs=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"batch_sites": 0}, "batch_sites must be at least 1"),
        ({"head_channels": 0}, "head_channels must be at least 1"),
        ({"frozen_epochs": 201}, r"frozen_epochs must lie between 0 and epochs \(200\), not 201"),
        ({"frozen_epochs": -1}, "frozen_epochs must lie between 0"),
        ({"holdout": 0.0}, "holdout is a share of the labels, between 0 and 1, not 0.0"),
        ({"holdout": 1.0}, "holdout is a share"),
        ({"lr": 0.0}, "lr must be positive and finite, not 0.0"),
        ({"encoder_lr": float("nan")}, "encoder_lr must be positive and finite"),
        ({"weight_decay": -1.0}, "weight_decay must be finite and not negative"),
        ({"dim_weight": float("inf")}, "dim_weight must be finite and not negative"),
        ({"dim_decay": 0.0}, r"dim_decay must lie in \(0, 1\], not 0.0"),
        ({"readout": "local"}, "unknown readout 'local'; known: global, full"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        FineTuneOptions(**options)
