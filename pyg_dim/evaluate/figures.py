"""Figures of representations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor

from pyg_dim.evaluate.families import FAMILIES

COLOURS = ("#d62728", "#2ca02c", "#e6b800", "#1f77b4", "#17becf", "#8c564b", "#7f7f7f", "#000000", "#e377c2")
"""One for each family, the same in every figure."""
FEWEST = 10
"""Crystals; t-SNE of fewer crystals shows nothing."""
COMPONENTS = 50
"""Principal components that t-SNE sees, as its authors advise: distances in fewer dimensions carry less noise."""


def tsne_coordinates(vectors: Tensor, seed: int = 0) -> np.ndarray:
    """Embed representations in the plane by t-SNE.

    The perplexity is 100, or 5 % of the number of crystals where that is less; the columns are standardised.

    Args:
        vectors: [n, D] finite representations.
        seed: Seed of the optimisation.

    Returns:
        [n, 2] coordinates, without unit.

    Raises:
        ValueError: If there are fewer than ten crystals.
    """
    crystals = vectors.shape[0]
    if crystals < FEWEST:
        raise ValueError(f"t-SNE needs at least {FEWEST} crystals, got {crystals}")
    x = StandardScaler().fit_transform(vectors.double().numpy())
    if x.shape[1] > COMPONENTS and crystals > COMPONENTS:
        x = PCA(COMPONENTS, random_state=seed).fit_transform(x)
    # A collapsed representation has no principal axes to start from.
    start = "pca" if np.ptp(x, axis=0).max() > 0 else "random"
    perplexity = max(1.0, min(100.0, 0.05 * crystals))
    # Its threads wait for each other a thousand times by spinning: where cores are shared, one thread is far faster.
    with threadpool_limits(1):
        return TSNE(perplexity=perplexity, init=start, random_state=seed).fit_transform(x)


def tsne_figure(
    vectors: Tensor, families: Sequence[str], values: Tensor, value_name: str, title: str = "", seed: int = 0
) -> Figure:
    """Draw a t-SNE map twice: coloured by chemical family and by a property.

    Args:
        vectors: [n, D] finite representations.
        families: [n] family of each crystal, one of :data:`pyg_dim.evaluate.families.FAMILIES`.
        values: [n] property, NaN where missing (drawn grey).
        value_name: Name of the property, with its unit.
        title: Title of the figure.
        seed: Seed of t-SNE.

    Returns:
        The figure.

    Raises:
        ValueError: If there are fewer than ten crystals.
    """
    points = tsne_coordinates(vectors, seed)
    return map_figure(points, families, values, value_name, title)


def map_figure(
    points: np.ndarray, families: Sequence[str], overlay: Tensor | Sequence[str], name: str, title: str = ""
) -> Figure:
    """Draw a map twice: coloured by chemical family and by something else.

    Args:
        points: [n, 2] coordinates.
        families: [n] family of each crystal, one of :data:`pyg_dim.evaluate.families.FAMILIES`.
        overlay: [n] property, NaN where missing (drawn grey); or [n] names of classes.
        name: Of the property, with its unit, or of the classes.
        title: Title of the figure.

    Returns:
        The figure.
    """
    # Made without pyplot, which would register the figure for a window and keep it alive.
    figure = Figure(figsize=(13, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_classes(left, points, families, FAMILIES)
    left.set_title("chemical family")
    if isinstance(overlay, Tensor):
        _draw_property(right, points, overlay.double().numpy(), name)
    else:
        _draw_classes(right, points, overlay, sorted(set(overlay)))
    right.set_title(name)
    for axes in (left, right):
        axes.set_xticks([])
        axes.set_yticks([])
    figure.suptitle(title or f"t-SNE of {len(points)} crystals")
    return figure


def property_figure(points: Mapping[str, np.ndarray], values: Tensor, name: str, title: str) -> Figure:
    """Draw several maps of the same crystals side by side, coloured by one property.

    Args:
        points: Name of a representation -> [n, 2] coordinates.
        values: [n] property, NaN where missing (drawn grey).
        name: Of the property, with its unit.
        title: Title of the figure.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(4.6 * len(points), 4.4), layout="constrained")
    for axes, (what, xy) in zip(figure.subplots(1, len(points), squeeze=False)[0], points.items(), strict=True):
        _draw_property(axes, xy, values.double().numpy(), name)
        axes.set_title(what)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.suptitle(title)
    return figure


def _draw_classes(axes: Axes, points: np.ndarray, names: Sequence[str], classes: Sequence[str]) -> None:
    every = np.asarray(names)
    for name, colour in zip(classes, COLOURS, strict=False):
        chosen = points[every == name]
        if len(chosen):
            x, y = chosen.T
            axes.scatter(x, y, s=8, color=colour, label=f"{name} ({len(chosen)})", linewidths=0, alpha=0.8)
    axes.legend(fontsize=8, markerscale=2, loc="upper left", bbox_to_anchor=(0, -0.01), ncols=3, frameon=False)


def _draw_property(axes: Axes, points: np.ndarray, labels: np.ndarray, name: str) -> None:
    finite = np.isfinite(labels)
    x, y = points.T
    axes.scatter(x[~finite], y[~finite], s=8, color="#cccccc", linewidths=0)
    # A few extreme labels must not take the whole colour scale.
    low, high = np.percentile(labels[finite], [2, 98]) if finite.any() else (0.0, 1.0)
    shown = {"c": labels[finite], "cmap": "viridis", "vmin": low, "vmax": high}
    dots = axes.scatter(x[finite], y[finite], s=8, linewidths=0, **shown)
    axes.figure.colorbar(dots, ax=axes, label=name, extend="both")
