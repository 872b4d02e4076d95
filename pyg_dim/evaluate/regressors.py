"""The small models that are fitted on frozen representations, and how one is chosen by the labels alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy.optimize import linprog
from scipy.stats import skew
from sklearn.compose import TransformedTargetRegressor
from sklearn.dummy import DummyRegressor
from sklearn.ensemble import ExtraTreesRegressor, RandomForestRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression, RidgeCV
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import validate_data
from threadpoolctl import threadpool_limits

from pyg_dim.evaluate.gaussian_process import GaussianProcess

LEAST_SQUARES: Final = "least squares"
RIDGE: Final = "ridge"
NETWORK: Final = "network"
RANDOM_FOREST: Final = "random forest"
PLAIN_FOREST: Final = "plain forest"
"""Random forest with the defaults of scikit-learn, on labels as they are: the one that tables in print show."""
EXTRA_TREES: Final = "extra trees"
MEDIAN_TREES: Final = "median trees"
"""Extra trees whose median is the prediction: the mean absolute error wants the median of what a label can be."""
GAUSSIAN_PROCESS: Final = "gaussian process"
DUMMY: Final = "dummy"
"""Predicts the mean of its labels, whatever the crystal."""
AUTO: Final = "auto"
"""The one of :data:`CANDIDATES` with the lowest error on labels that it has not seen."""
BLEND: Final = "blend"
"""A convex mixture of :data:`CANDIDATES` with a low error on labels that they have not seen."""

CANDIDATES: Final = (RIDGE, MEDIAN_TREES, GAUSSIAN_PROCESS)
RIDGE_STRENGTHS: Final = np.logspace(-3, 6, 19)
DECAYS: Final = (1.0, 10.0)
"""Weight decays that the network is tried with, on labels of unit spread."""
SKEWED: Final = 1.0
"""Skewness above which positive labels are learned as logarithms."""
MARGIN: Final = 0.1
"""Regularised probes predict no further beyond the range of their labels than this share of it, nor below zero where no
label is."""
COMMON: Final = 0.2
"""Share of the labels that are one and the same number from which on that number is a value of its own."""
EQUAL_AFTER: Final = 25
"""Labels after which half the weight of a blend is what they say, and half is shared out equally."""
CONSTANT: Final = 1e-6
"""A column whose spread is below this share of its largest magnitude is constant in single precision."""
TREES: Final = 100
MOST_TRIED: Final = 64
"""Features that a split of a tree looks at, at most; a third of them where those are fewer."""


class MedianTrees(ExtraTreesRegressor):
    """Extra trees that predict the median of their trees."""

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Predict the median of what the trees predict.

        Args:
            X: [m, D] features.

        Returns:
            [m] labels.
        """
        return np.median(self.of_trees(X), axis=0)

    def of_trees(self, X: np.ndarray) -> np.ndarray:
        """Predict by each tree.

        Args:
            X: [m, D] features.

        Returns:
            [T, m] labels.
        """
        # Once; the own predict of a tree would check and convert all rows anew.
        X = validate_data(self, X, dtype=np.float32, reset=False)
        return np.stack([tree.tree_.predict(X)[:, 0] for tree in self.estimators_])


@dataclass(frozen=True)
class Prediction:
    """What a probe makes of its labels.

    Attributes:
        test: [m] predictions for the test rows, in the unit of the label.
        unseen: [n] predictions for its own labels, each by a model that was fitted without it (leave-one-out, or trees
            that did not draw it); None where a probe has none.
        chosen: What was chosen, for the probes that choose; empty for others.
    """

    test: np.ndarray
    unseen: np.ndarray | None = None
    chosen: str = ""


@dataclass(frozen=True)
class FittedProbe:
    """A probe that has been fitted.

    Attributes:
        model: Predicts what it was fitted on, labels or their logarithms, from standardised features.
        unseen: [n] what it makes of its own labels, see :class:`Prediction`.
        logarithmic: Whether it was fitted on logarithms.
        lowest: No prediction lies below it.
        highest: No prediction lies above it.
    """

    model: Any
    unseen: np.ndarray | None
    logarithmic: bool
    lowest: float
    highest: float

    def prediction(self, x: np.ndarray) -> Prediction:
        """Predict.

        Args:
            x: [m, D] features, standardised like those of the fit.

        Returns:
            The prediction.
        """
        return Prediction(self._label(self.model.predict(x)), None if self.unseen is None else self._label(self.unseen))

    def _label(self, values: np.ndarray) -> np.ndarray:
        if self.logarithmic:
            with np.errstate(over="ignore"):  # infinities are set to the range
                values = np.exp(values)
        return np.clip(values, self.lowest, self.highest)


def fit_probes(
    x: np.ndarray, y: np.ndarray, x_test: np.ndarray, probes: Sequence[str], seed: int = 0
) -> dict[str, Prediction]:
    r"""Fit probes on a few labels and predict others.

    Columns are standardised on the labelled rows. All but least squares are regularised by what the labels alone say:
    ridge by leave-one-out, the Gaussian process by the marginal likelihood, the weight decay of the network (one hidden
    layer of 64, ReLU) by three-fold cross-validation. They learn the logarithm of labels that are positive and skewed
    (skewness above 1), and predict within the range of the labels widened by a tenth of it, but not below zero where no
    label is. Least squares is the minimum-norm solution as it is.

    Random forest and extra trees predict the mean of their trees, ``median trees`` the median of extra trees: each
    fully grown tree tells one of the labels, and their median is what the mean absolute error wants, most of all where
    many labels are equal, as the gaps of metals are. ``plain forest`` is scikit-learn's random forest with its
    defaults, to compare with numbers in print: a split looks at all features, and labels are learned as they are.

    ``auto`` takes the candidate with the lowest mean absolute error on labels that it has not seen; these predictions
    are leave-one-out for ridge and the Gaussian process (with parameters found from all n labels) and out-of-bag for
    trees. ``blend`` mixes the candidates by such errors, see :func:`blend_of`. What they choose among is told of
    common labels by the trees, see :func:`~pyg_dim.evaluate.regressors.candidates_of`.

    Args:
        x: [n, D] features of the labelled rows.
        y: [n] labels.
        x_test: [m, D] features to predict from.
        probes: Names out of :data:`PROBES`.
        seed: Seed of trees and networks.

    Returns:
        Predictions by name.

    Raises:
        ValueError: An unknown probe, fewer than two labels, or shapes that do not fit.

    Source: Moran et al., Digital Discovery 2025, 4, 790, fig. 8 (least squares, network); Meinshausen, J. Mach. Learn.
    Res. 2006, 7, 983 (medians of forests).
    """
    if unknown := [name for name in probes if name not in PROBES]:
        raise ValueError(f"unknown probes {unknown}; known: {', '.join(PROBES)}")
    if x.ndim != 2 or x_test.ndim != 2 or x.shape[1] != x_test.shape[1] or y.shape != x.shape[:1]:
        raise ValueError(f"features [n, D] and [m, D] and labels [n] do not fit: {x.shape}, {x_test.shape}, {y.shape}")
    if len(y) < 2:
        raise ValueError(f"a probe needs at least 2 labels, got {len(y)}")
    x, x_test = standardise(x, x_test)
    chooses = any(name in CHOICES for name in probes)
    wanted = dict.fromkeys([*(name for name in probes if name in _FITS), *(CANDIDATES if chooses else ())])
    with threadpool_limits(1):
        found = {name: fitted.prediction(x_test) for name, fitted in fit_models(x, y, list(wanted), seed).items()}
    if chooses:
        candidates = candidates_of(found, y)
        found |= {name: choose(candidates, y) for name, choose in CHOICES.items() if name in probes}
    return {name: found[name] for name in probes}


def fit_models(x: np.ndarray, y: np.ndarray, names: Sequence[str], seed: int = 0) -> dict[str, FittedProbe]:
    """Fit the models of probes, see :func:`fit_probes`.

    Args:
        x: [n, D] standardised features.
        y: [n] labels.
        names: Names out of :data:`PROBES`, without those that choose.
        seed: Seed of trees and networks.

    Returns:
        Fitted probes by name.
    """
    # The skewness of labels that are all the same is rounding.
    skewed = bool((y > 0).all()) and y.std() > CONSTANT * y.max() and skew(y) > SKEWED
    margin = MARGIN * np.ptp(y)
    lowest = y.min() - margin if y.min() < 0 else max(y.min() - margin, 0.0)
    fitted = {}
    # These matrices are small: more threads wait for each other, ten times as long on a machine that is shared.
    with threadpool_limits(1):
        for name in names:
            logarithmic = skewed and name not in (LEAST_SQUARES, DUMMY, PLAIN_FOREST)
            model, unseen = _FITS[name](x, np.log(y) if logarithmic else y, seed)
            bounds = (-np.inf, np.inf) if name == LEAST_SQUARES else (lowest, y.max() + margin)
            fitted[name] = FittedProbe(model, unseen, logarithmic, *bounds)
    return fitted


def candidates_of(found: Mapping[str, Prediction], y: np.ndarray) -> dict[str, Prediction]:
    """Take what ``auto`` and ``blend`` choose among, corrected for a label that many crystals share.

    Where a fifth of the labels (:data:`COMMON`) or more are one and the same number, as the zero gaps of metals are,
    smooth models come near it but never tell it. They predict it here wherever the median of the trees is that number.

    Args:
        found: Predictions of one set of features with all :data:`CANDIDATES` among them.
        y: [n] labels.

    Returns:
        The candidates by name.
    """
    candidates = {name: found[name] for name in CANDIDATES}
    values, counts = np.unique(y, return_counts=True)
    common, trees = values[counts.argmax()], found[MEDIAN_TREES]
    if counts.max() < max(COMMON * len(y), 2):
        return candidates
    unseen = _unseen(trees) == common
    return {
        name: Prediction(
            np.where(trees.test == common, common, prediction.test), np.where(unseen, common, _unseen(prediction))
        )
        for name, prediction in candidates.items()
    }


def standardise(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give columns mean zero and spread one, by the first of two sets of rows.

    Args:
        train: [n, D] rows that set mean and spread.
        test: [m, D] rows that are treated alike.

    Returns:
        Both. A column that is constant but for rounding becomes zero: it would be blown up to unit variance otherwise.
    """
    mean, scale = shift_and_scale(train)
    return (train - mean) * scale, (test - mean) * scale


def shift_and_scale(train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find what standardises columns: subtract the first, multiply by the second, see :func:`standardise`.

    Args:
        train: [n, D] rows.

    Returns:
        [D] means; [D] reciprocal spreads, zero for a column that is constant but for rounding.
    """
    mean, spread = train.mean(axis=0), train.std(axis=0)
    constant = spread <= CONSTANT * np.abs(train).max(axis=0)
    return mean, np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, spread))


_Fit = tuple[Any, np.ndarray | None]
"""A model that predicts, and its predictions for its own labels by models that were fitted without them."""


def _least_squares(x: np.ndarray, y: np.ndarray, _: int) -> _Fit:
    return LinearRegression().fit(x, y), None


def _ridge(x: np.ndarray, y: np.ndarray, _: int) -> _Fit:
    model = RidgeCV(RIDGE_STRENGTHS, gcv_mode="svd", store_cv_results=True, scoring="neg_mean_squared_error")
    model.fit(x, y)
    # With a scoring, scikit-learn keeps the leave-one-out predictions themselves.
    return model, model.cv_results_[:, list(model.alphas).index(model.alpha_)]


def _gaussian_process(x: np.ndarray, y: np.ndarray, seed: int) -> _Fit:
    model = GaussianProcess(seed).fit(x, y)
    return model, model.unseen_


def _network(x: np.ndarray, y: np.ndarray, seed: int) -> _Fit:
    network = MLPRegressor(hidden_layer_sizes=(64,), solver="lbfgs", max_iter=100, random_state=seed)
    search: Any = network.set_params(alpha=DECAYS[-1])
    if len(y) >= 6:
        search = GridSearchCV(network, {"alpha": DECAYS}, scoring="neg_mean_absolute_error", cv=3)
    model = TransformedTargetRegressor(search, transformer=StandardScaler())
    with warnings.catch_warnings():
        # The number of iterations is a part of the regularisation.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x, y), None


def _forest(kind: Callable[..., Any]) -> Callable[..., _Fit]:
    def fit(x: np.ndarray, y: np.ndarray, seed: int) -> _Fit:
        model = kind(TREES, max_features=_tried(x), bootstrap=True, oob_score=True, random_state=seed)
        with warnings.catch_warnings():
            # A label that all trees have drawn, as can happen among very few.
            warnings.filterwarnings("ignore", message=".*out-of-bag|.*OOB.*")
            model.fit(x, y)
        return model, model.oob_prediction_

    return fit


def _median_trees(x: np.ndarray, y: np.ndarray, seed: int) -> _Fit:
    model = MedianTrees(TREES, max_features=_tried(x), bootstrap=True, random_state=seed).fit(x, y)
    own = model.of_trees(x)
    for values, drawn in zip(own, model.estimators_samples_, strict=True):
        values[drawn] = np.nan
    # A label that all trees have drawn, as can happen among very few.
    own[:, np.isnan(own).all(axis=0)] = np.median(y)
    return model, np.nanmedian(own, axis=0)


def _plain_forest(x: np.ndarray, y: np.ndarray, seed: int) -> _Fit:
    return RandomForestRegressor(TREES, random_state=seed).fit(x, y), None


def _tried(x: np.ndarray) -> int:
    return max(1, min(MOST_TRIED, x.shape[1] // 3))


def _dummy(x: np.ndarray, y: np.ndarray, _: int) -> _Fit:
    return DummyRegressor().fit(x, y), None


def best_of(found: Mapping[str, Prediction], y: np.ndarray) -> Prediction:
    """Take the prediction with the lowest mean absolute error on labels that it has not seen.

    Args:
        found: Predictions with ``unseen`` by name.
        y: [n] labels.

    Returns:
        The prediction; ``chosen`` is its name.
    """
    return mixed(found, _best_weights(found, y))


def blend_of(found: Mapping[str, Prediction], y: np.ndarray) -> Prediction:
    r"""Mix predictions with weights that have a low mean absolute error on labels that they have not seen.

    .. math:: \min_w \sum_i \Bigl| y_i - \sum_k w_k p_{ik} \Bigr|, \qquad w \ge 0,\; \sum_k w_k = 1

    is solved exactly, as a linear program. Few labels say little of the weights: they are then drawn towards equal
    ones, by the share :math:`m / (n + m)` with m = 25 (:data:`EQUAL_AFTER`; chosen on crystals that no test has).

    Args:
        found: Predictions with ``unseen`` by name.
        y: [n] labels.

    Returns:
        The mixture; ``chosen`` lists the weights above a hundredth.

    Source: Breiman, Stacked Regressions, Machine Learning 1996, 24, 49, with absolute errors.
    """
    return mixed(found, _blend_weights(found, y))


def mixed(found: Mapping[str, Prediction], weights: Mapping[str, float]) -> Prediction:
    """Mix predictions.

    Args:
        found: Predictions with ``unseen`` by name.
        weights: Weights by name, of sum one.

    Returns:
        The mixture; ``chosen`` lists the weights above a hundredth, or is the name of the only one.
    """
    used = {name: weight for name, weight in weights.items() if weight > 0}
    told = ", ".join(f"{name} {weight:.2f}" for name, weight in used.items() if weight > 0.01)
    return Prediction(
        np.sum([weight * found[name].test for name, weight in used.items()], axis=0),
        np.sum([weight * _unseen(found[name]) for name, weight in used.items()], axis=0),
        told if len(used) > 1 else next(iter(used)),
    )


def _best_weights(found: Mapping[str, Prediction], y: np.ndarray) -> dict[str, float]:
    best = min(found, key=lambda name: np.abs(_unseen(found[name]) - y).mean())
    return {best: 1.0}


def _blend_weights(found: Mapping[str, Prediction], y: np.ndarray) -> dict[str, float]:
    unseen = np.stack([_unseen(prediction) for prediction in found.values()], axis=1)
    (n, count), scale = unseen.shape, np.abs(y).max() or 1.0
    # Variables: the weights, then a bound on the error of each label.
    errors = np.block([[unseen / scale, -np.eye(n)], [-unseen / scale, -np.eye(n)]])
    bounds = np.concatenate([y, -y]) / scale
    once = np.concatenate([np.ones(count), np.zeros(n)])
    solved = linprog(1 - once, errors, bounds, once[None], [1.0], method="highs")
    weights = np.clip(solved.x[:count], 0, None)
    share = EQUAL_AFTER / (n + EQUAL_AFTER)
    weights = (1 - share) * weights / weights.sum() + share / count
    return dict(zip(found, weights.tolist(), strict=True))


def _unseen(prediction: Prediction) -> np.ndarray:
    if prediction.unseen is None:
        raise ValueError("a probe without predictions for its own labels cannot be chosen by them")
    return prediction.unseen


_FITS: Final[dict[str, Callable[[np.ndarray, np.ndarray, int], _Fit]]] = {
    DUMMY: _dummy,
    LEAST_SQUARES: _least_squares,
    RIDGE: _ridge,
    NETWORK: _network,
    RANDOM_FOREST: _forest(RandomForestRegressor),
    PLAIN_FOREST: _plain_forest,
    EXTRA_TREES: _forest(ExtraTreesRegressor),
    MEDIAN_TREES: _median_trees,
    GAUSSIAN_PROCESS: _gaussian_process,
}
CHOICES: Final[dict[str, Callable[[Mapping[str, Prediction], np.ndarray], Prediction]]] = {
    AUTO: best_of,
    BLEND: blend_of,
}
"""How the probes that choose make one prediction of several."""
WEIGHTS: Final[dict[str, Callable[[Mapping[str, Prediction], np.ndarray], dict[str, float]]]] = {
    AUTO: _best_weights,
    BLEND: _blend_weights,
}
"""The weights that they give, for :func:`mixed`."""
PROBES: Final = (*_FITS, *CHOICES)
"""Probes by name."""
