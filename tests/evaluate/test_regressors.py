from __future__ import annotations

import numpy as np
import pytest
from sklearn.ensemble import ExtraTreesRegressor, RandomForestRegressor
from sklearn.linear_model import Ridge

from pyg_dim.evaluate import regressors
from pyg_dim.evaluate.regressors import (
    AUTO,
    BLEND,
    CANDIDATES,
    DUMMY,
    EXTRA_TREES,
    GAUSSIAN_PROCESS,
    LEAST_SQUARES,
    MARGIN,
    MEDIAN_TREES,
    NETWORK,
    PLAIN_FOREST,
    PROBES,
    RANDOM_FOREST,
    RIDGE,
    RIDGE_STRENGTHS,
    TREES,
    MedianTrees,
    Prediction,
    best_of,
    blend_of,
    candidates_of,
    fit_probes,
    standardise,
)

LINEAR, BENT, STEP = (
    lambda x: 3 + 2 * x[:, 0] - x[:, 1],
    lambda x: np.sin(2 * x[:, 0]) + x[:, 1] ** 2,
    lambda x: np.where(x[:, 0] > 0, 4.0, -4.0) + np.where(x[:, 1] > 0.5, 1.0, 0.0),
)


def problem(labels: int, function=LINEAR, noise: float = 0.0, features: int = 5, seed: int = 0):
    """Features and labels of some rows, and of 200 others."""
    generator = np.random.default_rng(seed)
    x, x_test = generator.normal(size=(labels, features)), generator.normal(size=(200, features))
    return x, function(x) + noise * generator.normal(size=labels), x_test, function(x_test)


TREES_OF_CHANCE = (EXTRA_TREES, MEDIAN_TREES, PLAIN_FOREST, RANDOM_FOREST)


def error(prediction, y: np.ndarray) -> float:
    return float(np.abs(prediction.test - y).mean())


@pytest.mark.parametrize(
    ("probe", "function", "share"),
    [
        (LEAST_SQUARES, LINEAR, 1e-12),
        (RIDGE, LINEAR, 1e-3),
        (GAUSSIAN_PROCESS, LINEAR, 0.02),
        (NETWORK, LINEAR, 0.1),
        (GAUSSIAN_PROCESS, BENT, 0.5),
        (NETWORK, BENT, 0.5),
        (EXTRA_TREES, STEP, 0.6),
        (MEDIAN_TREES, STEP, 0.6),
        (RANDOM_FOREST, STEP, 0.5),
        (AUTO, LINEAR, 0.02),
        (BLEND, LINEAR, 0.1),
        (BLEND, STEP, 0.5),
    ],
)
def test_each_learns_what_it_can(probe, function, share):
    x, y, x_test, y_test = problem(120, function)
    found = fit_probes(x, y, x_test, [DUMMY, probe])
    np.testing.assert_allclose(found[DUMMY].test, y.mean(), rtol=1e-12)
    assert error(found[probe], y_test) <= share * error(found[DUMMY], y_test)


def test_what_is_asked_for_comes_in_its_order_and_alike_alone_or_together():
    x, y, x_test, _ = problem(30, BENT, noise=0.1)
    order = list(reversed(PROBES))
    found = fit_probes(x, y, x_test, order, seed=2)
    assert list(found) == order
    for probe in PROBES:
        (alone,) = fit_probes(x, y, x_test, [probe], seed=2).values()
        np.testing.assert_array_equal(alone.test, found[probe].test)
        assert alone.test.shape == (200,)
        assert (alone.unseen is None) == (probe in (DUMMY, LEAST_SQUARES, NETWORK, PLAIN_FOREST))
        assert bool(alone.chosen) == (probe in (AUTO, BLEND))
    assert not np.array_equal(fit_probes(x, y, x_test, [EXTRA_TREES])[EXTRA_TREES].test, found[EXTRA_TREES].test)


@pytest.mark.parametrize(("function", "noise"), [(LINEAR, 0.0), (LINEAR, 1.0), (BENT, 0.1), (STEP, 0.1)])
def test_choices_go_by_unseen_labels(function, noise):
    x, y, x_test, _ = problem(50, function, noise)
    found = fit_probes(x, y, x_test, [*CANDIDATES, AUTO, BLEND])
    unseen = {name: np.abs(found[name].unseen - y).mean() for name in CANDIDATES}
    best = min(unseen, key=unseen.get)
    assert found[AUTO].chosen == best
    np.testing.assert_array_equal(found[AUTO].test, found[best].test)

    expected = blend_of({name: found[name] for name in CANDIDATES}, y)
    np.testing.assert_array_equal(found[BLEND].test, expected.test)
    several = np.stack([found[name].test for name in CANDIDATES])
    assert (expected.test >= several.min(axis=0) - 1e-9).all()
    assert (expected.test <= several.max(axis=0) + 1e-9).all()


def predictions(count: int, labels: int = 40) -> tuple[dict[str, Prediction], np.ndarray]:
    """Predictions of labels with errors of their own, by name; the first ones are the best."""
    generator = np.random.default_rng(5)
    y = generator.normal(10, 3, size=labels)
    unseen = [y + (1 + 0.3 * k) * generator.normal(size=labels) for k in range(count)]
    return {f"p{k}": Prediction(generator.normal(size=7), values) for k, values in enumerate(unseen)}, y


def test_a_blend_has_the_lowest_error_that_weights_can_have(monkeypatch):
    monkeypatch.setattr(regressors, "EQUAL_AFTER", 0)
    found, y = predictions(3)
    blended = blend_of(found, y)
    lowest = np.abs(blended.unseen - y).mean()
    unseen, test = (np.stack([getattr(p, part) for p in found.values()]) for part in ("unseen", "test"))
    assert lowest < np.abs(best_of(found, y).unseen - y).mean()
    grid = np.array([(a, b, 50 - a - b) for a in range(51) for b in range(51 - a)]) / 50
    errors = np.abs(grid @ unseen - y).mean(axis=1)
    assert errors.min() - 0.01 < lowest <= errors.min() + 1e-12
    # The weights are the same for labels and tests, sum to one, and do not hang on the unit.
    weights = np.linalg.lstsq(unseen.T, blended.unseen, rcond=None)[0]
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-9)
    assert (weights > -1e-9).all()
    np.testing.assert_allclose(weights @ test, blended.test, rtol=1e-6, atol=1e-9)
    told = dict(part.rsplit(" ", 1) for part in blended.chosen.split(", "))
    assert told == {f"p{k}": f"{weight:.2f}" for k, weight in enumerate(weights) if weight > 0.01}
    larger = {name: Prediction(1e6 * p.test, 1e6 * p.unseen) for name, p in found.items()}
    np.testing.assert_allclose(blend_of(larger, 1e6 * y).test, 1e6 * blended.test, rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("labels", [2, 25, 1000])
def test_few_labels_draw_the_weights_of_a_blend_to_equal_ones(labels):
    found, y = predictions(4, labels)
    found["p2"] = Prediction(found["p2"].test, y)  # knows it all
    share = 25 / (labels + 25)
    weights = [share / 4] * 4
    weights[2] += 1 - share
    blended = blend_of(found, y)
    expected = sum(weight * prediction.test for weight, prediction in zip(weights, found.values(), strict=True))
    np.testing.assert_allclose(blended.test, expected, rtol=1e-6, atol=1e-9)
    assert best_of(found, y).chosen == "p2"


def test_what_says_nothing_of_its_own_labels_cannot_be_chosen():
    for choose in (best_of, blend_of):
        with pytest.raises(ValueError, match="without predictions for its own labels cannot be chosen"):
            choose({"a": Prediction(np.ones(3))}, np.ones(2))


def test_unseen_predictions_of_ridge_are_leave_one_out():
    x, y, x_test, _ = problem(25, LINEAR, noise=1.0, features=40)
    found = fit_probes(x, y, x_test, [RIDGE])[RIDGE]
    x, x_test = standardise(x, x_test)

    def leave_one_out(strength: float) -> np.ndarray:
        rest = [np.arange(25) != row for row in range(25)]
        return np.array([Ridge(strength).fit(x[r], y[r]).predict(x[~r])[0] for r in rest])

    errors = {strength: ((leave_one_out(strength) - y) ** 2).mean() for strength in RIDGE_STRENGTHS}
    best = min(errors, key=errors.get)
    margin = MARGIN * np.ptp(y)
    expected = np.clip(leave_one_out(best), y.min() - margin, y.max() + margin)
    np.testing.assert_allclose(found.unseen, expected, rtol=1e-8)
    np.testing.assert_allclose(found.test, Ridge(best).fit(x, y).predict(x_test), rtol=1e-8)


def test_skewed_positive_labels_are_learned_as_logarithms():
    x, y, x_test, y_test = problem(80, lambda x: np.exp(LINEAR(x)))
    found = fit_probes(x, y, x_test, PROBES)
    # Labels beyond the range of those that are known are cut off.
    known = y_test < y.max()
    for probe, share in ((RIDGE, 0.02), (LEAST_SQUARES, 1.0)):
        assert (np.abs(found[probe].test - y_test)[known].mean() < share * y.mean()) == (probe == RIDGE)
    assert (found[RIDGE].test > 0).all()
    assert found[RIDGE].test.max() <= y.max() + MARGIN * np.ptp(y)
    assert np.abs(found[RIDGE].unseen - y).mean() < 0.1 * y.mean()
    # Least squares and the mean are what they are for others.
    np.testing.assert_allclose(found[DUMMY].test, y.mean(), rtol=1e-12)
    shifted = fit_probes(x, y - y.min(), x_test, [RIDGE])
    assert error(shifted[RIDGE], y_test - y.min()) > 5 * error(found[RIDGE], y_test)
    # Positive, but not skewed.
    x, y, x_test, y_test = problem(80, lambda x: 20 + LINEAR(x))
    assert error(fit_probes(x, y, x_test, [RIDGE])[RIDGE], y_test) < 1e-3


@pytest.mark.parametrize("probe", [name for name in PROBES if name not in (*TREES_OF_CHANCE, AUTO, BLEND)])
def test_order_and_scale_of_features_and_labels_do_not_matter(probe):
    x, y, x_test, _ = problem(40, BENT, noise=0.1)
    # A network is not trained to the end, and rounding grows on its way.
    within = 0.1 if probe == NETWORK else 1e-4
    expected = fit_probes(x, y, x_test, [probe])[probe].test
    scale = np.array([1e-3, 1.0, 10.0, 1e4, 7.0])
    scaled = fit_probes(x * scale + 5, y, x_test * scale + 5, [probe])[probe].test
    np.testing.assert_allclose(scaled, expected, rtol=1e-4, atol=within)
    in_other_units = fit_probes(x, 1000 * y, x_test, [probe])[probe].test
    np.testing.assert_allclose(in_other_units, 1000 * expected, rtol=1e-4, atol=1000 * within)
    if probe != NETWORK:  # whose first weights belong to columns, and whose folds to rows
        order, columns = np.random.default_rng(1).permutation(40), np.array([4, 2, 0, 1, 3])
        permuted = fit_probes(x[order][:, columns], y[order], x_test[:, columns], [probe])[probe].test
        np.testing.assert_allclose(permuted, expected, rtol=1e-4, atol=1e-4)


def test_median_trees_predict_medians_of_labels_and_unseen_ones_of_trees_that_did_not_draw_them():
    x, y, x_test, _ = problem(40, BENT, noise=0.3)
    found = fit_probes(x, y, x_test, [MEDIAN_TREES], seed=3)[MEDIAN_TREES]
    scaled, scaled_test = standardise(x, x_test)
    model = ExtraTreesRegressor(TREES, max_features=1, bootstrap=True, random_state=3).fit(scaled, y)
    expected = np.median([tree.predict(scaled_test) for tree in model.estimators_], axis=0)
    np.testing.assert_array_equal(found.test, expected)
    for row in range(40):
        left = [
            tree.predict(scaled[row : row + 1])[0]
            for tree, drawn in zip(model.estimators_, model.estimators_samples_, strict=True)
            if row not in drawn
        ]
        assert len(left) > 10
        np.testing.assert_allclose(found.unseen[row], np.median(left), rtol=1e-12)


def test_median_trees_refuse_rows_of_another_width():
    x, y, x_test, _ = problem(40)
    model = MedianTrees(5, random_state=0).fit(x, y)
    with pytest.raises(ValueError, match="4 features"):
        model.predict(x_test[:, :4])


def test_a_plain_forest_is_that_of_scikit_learn():
    generator = np.random.default_rng(0)
    x, y, x_test = generator.normal(size=(40, 3)), np.exp(3 * generator.normal(size=40)), generator.normal(size=(9, 3))
    found = fit_probes(x, y, x_test, ["plain forest"], seed=2)["plain forest"].test
    x, x_test = regressors.standardise(x, x_test)
    assert np.allclose(found, RandomForestRegressor(random_state=2).fit(x, y).predict(x_test), rtol=1e-12)


def test_the_median_wins_where_half_of_the_labels_are_equal():
    generator = np.random.default_rng(7)
    x, x_test = generator.normal(size=(200, 5)), generator.normal(size=(400, 5))

    def gap(rows: np.ndarray) -> np.ndarray:
        return np.maximum(rows[:, 0] + 0.5 * generator.normal(size=len(rows)), 0)

    y, y_test = gap(x), gap(x_test)
    found = fit_probes(x, y, x_test, [EXTRA_TREES, MEDIAN_TREES])
    assert error(found[MEDIAN_TREES], y_test) < 0.95 * error(found[EXTRA_TREES], y_test)
    assert (found[MEDIAN_TREES].test == 0).mean() > 0.3


@pytest.mark.parametrize(("equal", "told"), [(10, True), (7, False)])
def test_a_label_that_a_fifth_shares_is_told_by_the_trees(equal, told):
    generator = np.random.default_rng(2)
    y = generator.normal(size=40)
    y[:equal] = 0.5
    trees = Prediction(np.where(np.arange(9) < 3, 0.5, 0.7), np.where(np.arange(40) < 20, 0.5, 0.1))
    smooth = Prediction(np.arange(9.0), np.arange(40.0))
    found = candidates_of({RIDGE: smooth, MEDIAN_TREES: trees, GAUSSIAN_PROCESS: smooth, NETWORK: smooth}, y)
    assert list(found) == list(CANDIDATES)
    np.testing.assert_array_equal(found[MEDIAN_TREES].test, trees.test)
    for probe in (RIDGE, GAUSSIAN_PROCESS):
        np.testing.assert_array_equal(found[probe].test[3:], smooth.test[3:])
        assert (found[probe].test[:3] == 0.5).all() == told
        np.testing.assert_array_equal(found[probe].unseen[20:], smooth.unseen[20:])
        assert (found[probe].unseen[:20] == 0.5).all() == told
    x, _, x_test, _ = problem(40)
    y = np.maximum(LINEAR(x) - 3, 0)
    alone = fit_probes(x, y, x_test, [*CANDIDATES, AUTO, BLEND])
    assert (alone[BLEND].test == 0).sum() == (alone[MEDIAN_TREES].test == 0).sum() > 20


@pytest.mark.parametrize("shift", [0.0, -0.5])
def test_nothing_is_predicted_below_zero_where_no_label_is(shift):
    x, _, x_test, _ = problem(60)
    y = np.maximum(LINEAR(x), 0) + shift
    for probe, found in fit_probes(x, y, 3 * x_test, [RIDGE, GAUSSIAN_PROCESS, AUTO, BLEND]).items():
        assert (found.test.min() < 0) == bool(shift), probe
        assert (found.unseen.min() < 0) == bool(shift), probe


def test_regularised_predictions_stay_near_the_labels():
    x, y, _, _ = problem(30)
    far = fit_probes(x, y, 1000 * np.eye(5), PROBES)
    margin = MARGIN * np.ptp(y)
    for probe in PROBES:
        inside = (far[probe].test >= y.min() - margin - 1e-9) & (far[probe].test <= y.max() + margin + 1e-9)
        assert inside.all() == (probe != LEAST_SQUARES)
    np.testing.assert_allclose(far[RIDGE].test[0], y.max() + margin, rtol=1e-12)


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_constant_labels_are_predicted_without_a_warning(value, recwarn):
    x, _, x_test, _ = problem(12)
    for probe, found in fit_probes(x, np.full(12, value), x_test, PROBES).items():
        np.testing.assert_allclose(found.test, value, atol=1e-6, err_msg=probe)
    assert not [str(warning.message) for warning in recwarn if issubclass(warning.category, RuntimeWarning)]


def test_two_labels_are_enough():
    x, y, x_test, _ = problem(2)
    for probe, found in fit_probes(x, y, x_test, PROBES).items():
        assert np.isfinite(found.test).all(), probe
    with pytest.raises(ValueError, match="at least 2 labels, got 1"):
        fit_probes(x[:1], y[:1], x_test, [RIDGE])


def test_columns_that_vary_by_rounding_alone_are_left_out():
    x, y, x_test, y_test = problem(60)
    noise = 1000 * (1 + 1e-8 * np.random.default_rng(3).normal(size=(260, 3)))
    found = fit_probes(np.hstack([x, noise[:60]]), y, np.hstack([x_test, noise[60:]]), [LEAST_SQUARES, RIDGE])
    assert error(found[LEAST_SQUARES], y_test) < 1e-9
    assert error(found[RIDGE], y_test) < 1e-2
    train, test = standardise(noise[:60], noise[60:])
    assert not train.any()
    assert not test.any()


@pytest.mark.parametrize(
    ("x", "y", "x_test", "probes", "message"),
    [
        ((5, 3), 5, (2, 3), [RIDGE, "forest"], r"unknown probes \['forest'\]; known: dummy, least squares, ridge"),
        ((5, 3), 4, (2, 3), [RIDGE], r"do not fit: \(5, 3\), \(2, 3\), \(4,\)"),
        ((5, 3), 5, (2, 4), [RIDGE], "do not fit"),
        ((5,), 5, (2, 3), [RIDGE], "do not fit"),
    ],
)
def test_what_does_not_fit_is_an_error(x, y, x_test, probes, message):
    with pytest.raises(ValueError, match=message):
        fit_probes(np.ones(x), np.ones(y), np.ones(x_test), probes)
