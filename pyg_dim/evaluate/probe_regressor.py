"""A probe as an estimator of scikit-learn."""

from __future__ import annotations

from typing import Self

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

from pyg_dim.evaluate.regressors import (
    BLEND,
    CANDIDATES,
    PROBES,
    WEIGHTS,
    Prediction,
    candidates_of,
    fit_models,
    mixed,
    shift_and_scale,
)


class ProbeRegressor(RegressorMixin, BaseEstimator):
    """Predict a label from vectors of crystals, with tens to a thousand labels to learn from: a probe for scikit-learn.

    It standardises the columns and fits a small model, or several that are mixed as the labels alone say: what
    ``pyg-dim probe`` measures, see :func:`pyg_dim.evaluate.regressors.fit_probes`. It is the last step of a pipeline
    that begins with :class:`pyg_dim.CrystalEmbedder`, and takes other features as well.

    Args:
        probe: a name out of :data:`pyg_dim.evaluate.regressors.PROBES`, for example ``"blend"`` (ridge, medians of
            trees and a Gaussian process, mixed), ``"auto"`` (the best of them) or ``"ridge"``.
        seed: seed of trees and networks.

    Attributes:
        weights_: weight of each model in the prediction, by name.
        n_features_in_: number D of features.
    """

    def __init__(self, probe: str = BLEND, seed: int = 0) -> None:
        self.probe = probe
        self.seed = seed

    def fit(self, X: np.ndarray, y: np.ndarray) -> Self:
        """Learn from labels.

        Args:
            X: [n, D] features, at least two rows.
            y: [n] labels.

        Returns:
            This object.

        Raises:
            ValueError: an unknown probe, numbers that are not finite, or shapes that do not fit.
        """
        if self.probe not in PROBES:
            raise ValueError(f"unknown probe {self.probe!r}; known: {', '.join(PROBES)}")
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        y = y.astype(np.float64)
        self.shift_, self.scale_ = shift_and_scale(X)
        names = CANDIDATES if self.probe in WEIGHTS else (self.probe,)
        x = (X - self.shift_) * self.scale_
        self.models_ = fit_models(x, y, names, self.seed)
        self.labels_ = y
        self.weights_ = {self.probe: 1.0}
        if self.probe in WEIGHTS:
            self.weights_ = WEIGHTS[self.probe](candidates_of(self._found(x), y), y)
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Predict labels.

        Args:
            X: [m, D] features.

        Returns:
            [m] float64, in the unit of the labels.

        Raises:
            NotFittedError: before :meth:`fit`.
            ValueError: numbers that are not finite, or another number of features.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        found = self._found((X - self.shift_) * self.scale_)
        if self.probe not in WEIGHTS:
            return found[self.probe].test
        return mixed(candidates_of(found, self.labels_), self.weights_).test

    def _found(self, x: np.ndarray) -> dict[str, Prediction]:
        with threadpool_limits(1):
            return {name: model.prediction(x) for name, model in self.models_.items()}
