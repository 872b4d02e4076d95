"""ProbeRegressor: the probes of fit_probes as an estimator of scikit-learn."""

from __future__ import annotations

import inspect

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.utils.estimator_checks import parametrize_with_checks

import pyg_dim
from pyg_dim.evaluate.probe_regressor import ProbeRegressor
from pyg_dim.evaluate.regressors import CANDIDATES, LEAST_SQUARES, PROBES, fit_probes


def problem(labels: int = 40, skewed: bool = False, zeros: bool = False):
    generator = np.random.default_rng(4)
    x = generator.normal(size=(labels + 30, 5)) * [1, 10, 0.1, 1, 1] + 7
    y = x[:, 0] + np.sin(x[:, 3]) + 0.1 * generator.normal(size=len(x))
    y = np.exp(3 * (y - 7)) if skewed else np.maximum(y - 7, 0) if zeros else y
    return x[:labels], y[:labels], x[labels:], y[labels:]


@pytest.mark.parametrize("case", [{}, {"skewed": True}, {"zeros": True}])
@pytest.mark.parametrize("probe", PROBES)
def test_it_predicts_what_the_probe_predicts(probe, case):
    x, y, x_test, _ = problem(**case)
    expected = fit_probes(x, y, x_test, [probe], seed=3)[probe]
    model = ProbeRegressor(probe, seed=3).fit(x, y)
    np.testing.assert_array_equal(model.predict(x_test), expected.test)
    # A row alone: what is chosen, and the range, go by the labels. Products of other shapes round otherwise.
    np.testing.assert_allclose(model.predict(x_test[3:4]), expected.test[3:4], rtol=1e-9)
    assert sum(model.weights_.values()) == pytest.approx(1)
    if expected.chosen:
        assert set(model.weights_) <= set(CANDIDATES)
        assert max(model.weights_, key=model.weights_.get) in expected.chosen
    else:
        assert model.weights_ == {probe: 1.0}


def test_parameters_and_fits_are_independent():
    x, y, x_test, _ = problem()
    model = pyg_dim.ProbeRegressor()
    assert model.get_params() == {"probe": "blend", "seed": 0}
    before = model.fit(x, y).predict(x_test)
    assert not np.array_equal(clone(model).set_params(seed=1).fit(x, y).predict(x_test), before)
    np.testing.assert_array_equal(model.set_params(probe="ridge").fit(x, y).fit(x, -y).fit(x, y).weights_["ridge"], 1)
    np.testing.assert_array_equal(model.set_params(probe="blend").fit(x, y).predict(x_test), before)


def test_a_fitted_one_is_saved_with_its_numbers(tmp_path):
    x, y, x_test, _ = problem()
    model = ProbeRegressor().fit(x, y)
    joblib.dump(model, tmp_path / "model.joblib")
    np.testing.assert_array_equal(joblib.load(tmp_path / "model.joblib").predict(x_test), model.predict(x_test))


def test_it_is_cross_validated_and_searched():
    x, y, x_test, y_test = problem(60)
    scores = cross_val_score(ProbeRegressor(), x, y, cv=3, scoring="neg_mean_absolute_error")
    assert (scores > -0.5 * np.abs(y - y.mean()).mean()).all()
    search = GridSearchCV(ProbeRegressor(), {"probe": ["dummy", "ridge"]}, cv=3).fit(x, y)
    assert search.best_params_ == {"probe": "ridge"}
    assert np.abs(search.predict(x_test) - y_test).mean() < 0.5


@pytest.mark.parametrize(
    ("probe", "x", "y", "message"),
    [
        ("forest", np.eye(3), [1, 2, 3], "unknown probe 'forest'; known: dummy, least squares, ridge"),
        ("ridge", np.eye(3), [1, 2], "inconsistent numbers of samples"),
        ("ridge", np.eye(3)[:1], [1], "1 sample"),
        ("ridge", np.full((3, 2), np.nan), [1, 2, 3], "NaN"),
        ("ridge", np.eye(3), [1, np.inf, 3], "infinity"),
    ],
)
def test_what_does_not_fit_is_an_error(probe, x, y, message):
    with pytest.raises(ValueError, match=message):
        ProbeRegressor(probe).fit(x, np.array(y))


def test_it_has_to_be_fitted():
    with pytest.raises(NotFittedError):
        ProbeRegressor().predict(np.eye(3))
    with pytest.raises(ValueError, match="expecting 3 features"):
        ProbeRegressor(LEAST_SQUARES).fit(np.eye(3), np.arange(3.0)).predict(np.eye(2))


@parametrize_with_checks([ProbeRegressor(), ProbeRegressor("ridge")])
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)


def test_every_parameter_is_documented():
    for name in ProbeRegressor().get_params():
        assert f"\n    {name}: " in inspect.getdoc(ProbeRegressor)
