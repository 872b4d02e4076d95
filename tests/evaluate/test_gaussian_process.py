from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern, WhiteKernel

from pyg_dim.evaluate.gaussian_process import MOST_FOR_PARAMETERS, GaussianProcess, _negative_likelihood

FEATURES = 12
PARAMETERS = [(1.0, 1.0, 0.1, 0.1), (0.3, 4.0, 2.0, 0.01), (20.0, 0.4, 1e-4, 1.5)]


def problem(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Standardised features, and labels with a linear part, a bend and noise."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(rows, FEATURES))
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    return x, 5 + x[:, 0] - 2 * x[:, 1] + np.sin(2 * x[:, 2]) + 0.1 * generator.normal(size=rows)


def scikit(parameters) -> GaussianProcessRegressor:
    """The same model; its r and x x' are not divided by the number of features."""
    variance, length, slope, noise = parameters
    kernel = (
        ConstantKernel(variance) * Matern(length * np.sqrt(FEATURES), nu=1.5)
        + ConstantKernel(slope / FEATURES) * DotProduct(sigma_0=0.0, sigma_0_bounds="fixed")
        + WhiteKernel(noise)
    )
    return GaussianProcessRegressor(kernel, alpha=0.0, optimizer=None, normalize_y=True)


def compared(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.linalg.norm(x[:, None] - x, axis=2) / np.sqrt(FEATURES), x @ x.T / FEATURES


@pytest.mark.parametrize("parameters", PARAMETERS)
def test_the_likelihood_and_its_gradient(parameters):
    x, y = problem(40)
    targets, logs = (y - y.mean()) / y.std(), np.log(parameters)
    value, gradient = _negative_likelihood(logs, *compared(x), targets)
    assert value == pytest.approx(-scikit(parameters).fit(x, y).log_marginal_likelihood_value_, rel=1e-9)
    numeric = approx_fprime(logs, lambda at: _negative_likelihood(at, *compared(x), targets)[0], 1e-6)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-4, atol=1e-4)


def test_it_predicts_what_scikit_learn_does_with_its_parameters():
    (x, y), (x_test, _) = problem(60), problem(25, seed=1)
    model = GaussianProcess().fit(x, y)
    reference = scikit(model.parameters_).fit(x, y)
    np.testing.assert_allclose(model.predict(x_test), reference.predict(x_test), rtol=1e-8, atol=1e-8)
    # The parameters are those of a maximum: the search ends there within its tolerance.
    likelihood = reference.log_marginal_likelihood_value_
    for place in range(4):
        for factor in (0.9, 1.1):
            other = model.parameters_.copy()
            other[place] *= factor
            assert scikit(other).fit(x, y).log_marginal_likelihood_value_ < likelihood + 1e-3


def test_predictions_of_its_own_labels_are_leave_one_out():
    x, y = problem(30)
    model = GaussianProcess().fit(x, y)
    expected = []
    for row in range(30):
        rest = np.arange(30) != row
        # Mean and spread of the labels stay those of all, as do the parameters.
        reference = scikit(model.parameters_).set_params(normalize_y=False)
        reference.fit(x[rest], (y[rest] - y.mean()) / y.std())
        expected.append(reference.predict(x[[row]])[0] * y.std() + y.mean())
    np.testing.assert_allclose(model.unseen_, expected, rtol=1e-8, atol=1e-8)


def test_many_labels_enter_the_prediction_while_some_find_the_parameters():
    (x, y), (x_test, y_test) = problem(MOST_FOR_PARAMETERS + 60), problem(50, seed=1)
    model = GaussianProcess(seed=4).fit(x, y)
    chosen = np.random.default_rng(4).permutation(len(y))[:MOST_FOR_PARAMETERS]
    targets = (y - y.mean()) / y.std()
    _, gradient = _negative_likelihood(np.log(model.parameters_), *compared(x[chosen]), targets[chosen])
    assert np.abs(gradient).max() < 0.05
    reference = scikit(model.parameters_).fit(x, y)
    np.testing.assert_allclose(model.predict(x_test), reference.predict(x_test), rtol=1e-7, atol=1e-7)
    assert model.unseen_.shape == y.shape
    assert np.abs(model.predict(x_test) - y_test).mean() < 0.5 * np.abs(y_test - y.mean()).mean()
    again = GaussianProcess(seed=4).fit(x, y)
    np.testing.assert_array_equal(model.parameters_, again.parameters_)
    assert not np.array_equal(model.parameters_, GaussianProcess(seed=5).fit(x, y).parameters_)


def test_labels_or_features_without_spread():
    x, y = problem(10)
    constant = GaussianProcess().fit(x, np.full(10, 7.0))
    np.testing.assert_allclose(constant.predict(x + 1.0), 7.0, rtol=1e-12)
    np.testing.assert_allclose(constant.unseen_, 7.0, rtol=1e-12)
    model = GaussianProcess().fit(np.zeros((10, FEATURES)), y)
    np.testing.assert_allclose(model.predict(np.zeros((1, FEATURES))), y.mean(), rtol=1e-6)
