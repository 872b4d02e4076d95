"""Gaussian process regression for a few hundred labels and many features."""

from __future__ import annotations

from typing import Final, Self

import numpy as np
from scipy.linalg import cholesky
from scipy.linalg.lapack import dpotri
from scipy.optimize import minimize
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.metrics.pairwise import euclidean_distances

MOST_FOR_PARAMETERS: Final = 400
"""Labels that the four parameters of the kernel are found from, at most; all labels enter the prediction."""
_START: Final = np.log([1.0, 1.0, 0.1, 0.1])
_BOUNDS: Final = np.log([(1e-4, 1e3), (1e-1, 1e2), (1e-6, 1e3), (1e-4, 1e1)])
_FAILED: Final = 1e25


class GaussianProcess(RegressorMixin, BaseEstimator):
    r"""Gaussian process with a Matérn and a linear kernel and noise, its parameters by maximum marginal likelihood.

    .. math:: k(x, x') = a (1 + \sqrt 3 r / l)\, e^{-\sqrt 3 r / l} + b\, x \cdot x' / D + c\, \delta_{x x'},
              \qquad r = \lVert x - x' \rVert / \sqrt D

    Distances and products of the D features are computed once, not in each step of the search, so that hundreds of
    features cost what few do. Labels are standardised; features should be.

    Args:
        seed: Chooses the labels that the parameters are found from, where there are more than
            :data:`MOST_FOR_PARAMETERS`.

    Attributes:
        parameters_: [4] Matérn variance a, length l, linear variance b, noise variance c.
        unseen_: [n] prediction for each label from all others, with the parameters found from all.

    Source: Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, algorithm 2.1, eq. 4.17, 5.9 and
    5.12.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def fit(self, X: np.ndarray, y: np.ndarray) -> Self:
        """Find the parameters and condition on the labels.

        Args:
            X: [n, D] standardised features.
            y: [n] labels.

        Returns:
            Itself.
        """
        self.mean_, self.scale_ = float(y.mean()), float(y.std()) or 1.0
        targets = (y - self.mean_) / self.scale_
        self.features_ = X
        distance, product = self._compared(X)
        chosen = np.arange(len(y))
        if len(y) > MOST_FOR_PARAMETERS:
            chosen = np.random.default_rng(self.seed).permutation(len(y))[:MOST_FOR_PARAMETERS]
        some = np.ix_(chosen, chosen)
        found = minimize(
            _negative_likelihood, _START, (distance[some], product[some], targets[chosen]),
            "L-BFGS-B", jac=True, bounds=_BOUNDS, options={"maxiter": 60},
        )  # fmt: skip
        self.parameters_ = np.exp(found.x)
        covariance = self._kernel(distance, product)
        covariance[np.diag_indices_from(covariance)] += self.parameters_[3]
        inverse = _inverse(cholesky(covariance, lower=True, overwrite_a=True))
        self.weights_ = inverse @ targets
        self.unseen_ = (targets - self.weights_ / np.diag(inverse)) * self.scale_ + self.mean_
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Predict labels by the mean of the posterior.

        Args:
            X: [m, D] features, standardised like those of the fit.

        Returns:
            [m] labels.
        """
        return self._kernel(*self._compared(X)) @ self.weights_ * self.scale_ + self.mean_

    def _compared(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scaled distances and products between rows and those of the fit."""
        features = X.shape[1]
        return euclidean_distances(X, self.features_) / np.sqrt(features), X @ self.features_.T / features

    def _kernel(self, distance: np.ndarray, product: np.ndarray) -> np.ndarray:
        variance, length, slope, _ = self.parameters_
        u = np.sqrt(3) / length * distance
        return variance * (1 + u) * np.exp(-u) + slope * product


def _inverse(factor: np.ndarray) -> np.ndarray:
    """Inverse of a matrix from its lower Cholesky factor."""
    lower, _ = dpotri(factor, lower=1)
    return np.tril(lower) + np.tril(lower, -1).T


def _negative_likelihood(
    logs: np.ndarray, distance: np.ndarray, product: np.ndarray, y: np.ndarray
) -> tuple[float, np.ndarray]:
    """Negative log marginal likelihood of the labels, and its gradient by the logarithms of the parameters."""
    variance, length, slope, noise = np.exp(logs)
    u = np.sqrt(3) / length * distance
    decay = variance * np.exp(-u)
    matern, linear = decay * (1 + u), slope * product
    covariance = matern + linear
    covariance[np.diag_indices_from(covariance)] += noise
    try:
        factor = cholesky(covariance, lower=True, check_finite=False)
    except np.linalg.LinAlgError:
        return _FAILED, np.zeros(4)
    inverse = _inverse(factor)
    weights = inverse @ y
    value = 0.5 * y @ weights + np.log(np.diag(factor)).sum() + 0.5 * len(y) * np.log(2 * np.pi)
    # The derivative of the Matérn part by log l is a u² exp(-u).
    outer = inverse - np.outer(weights, weights)
    slopes = [np.vdot(outer, part) for part in (matern, decay * u * u, linear)] + [noise * np.trace(outer)]
    return float(value), 0.5 * np.array(slopes)
