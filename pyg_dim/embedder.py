"""Embeddings as a step of scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from pyg_dim.data.dataset import CrystalDataset
from pyg_dim.data.loader import CrystalLoader
from pyg_dim.data.objects import are_formulas, read_formulas, read_objects
from pyg_dim.data.report import LeftOut, printable
from pyg_dim.evaluate.represent import NOT_FINITE, represent, vector_names
from pyg_dim.models.encoder import Encoder, Readout
from pyg_dim.training.checkpoints import crystal_options, encoder_of, parse_weights, read_checkpoint
from pyg_dim.training.devices import made_resident
from pyg_dim.training.exporting import weights_of

_EXAMPLES: Final = 5
_MODES: Final = ("raise", "nan")


class CrystalEmbedder(TransformerMixin, BaseEstimator):
    """Turn crystals into the vectors of a frozen, pre-trained encoder: a transformer of scikit-learn.

    A crystal is a pymatgen Structure, its dictionary, ASE Atoms, or the path of a CIF or POSCAR file; a list may mix
    them. Cells that repeat themselves are reduced to the primitive one, and oxidation states are had as in the training
    of the encoder. An encoder that needs no structure (Roost) takes a list of formulas, too, such as ``"Fe2O3"``.

    :meth:`fit` learns nothing from the crystals: it reads the encoder. A fitted embedder carries the weights, so a
    pickle of it (joblib) works where the file is not, with the same numbers to the last bit; one that is not fitted
    holds the name alone. In a pickle the weights are the bytes of a safetensors file, not a module. Copies and
    processes share nothing, so ``n_jobs`` of scikit-learn is safe.

    Args:
        model: what :func:`pyg_dim.load` takes: the name of an encoder that comes with the package, a weights file, a
            checkpoint, ``hf://user/repository``.
        readout: ``"global"``, ``"full"`` or ``"decoded"``, see :meth:`pyg_dim.models.Encoder.readout`; that of the
            encoder where None.
        batch_sites: sites that are computed at a time.
        device: where, for example ``"cpu"`` or ``"cuda"``.
        max_sites: crystals with more primitive sites cannot be embedded; the limit of the training where None.
        on_bad: what a crystal that cannot be embedded does: ``"raise"`` stops with its place and the reason, ``"nan"``
            gives it a row of NaN.

    Attributes:
        n_features_out_: length D of the vectors.
        readout_: the readout.
        max_sites_: the limit on sites.
        oxidation_: oxidation states that crystals are given, as in the training of the encoder.
        weights_: bytes of the weights file of the encoder.
    """

    def __init__(
        self,
        model: str | Path = "sitenet-dim",
        readout: Readout | None = None,
        batch_sites: int = 1200,
        device: str = "cpu",
        max_sites: int | None = None,
        on_bad: Literal["raise", "nan"] = "raise",
    ) -> None:
        self.model = model
        self.readout = readout
        self.batch_sites = batch_sites
        self.device = device
        self.max_sites = max_sites
        self.on_bad = on_bad

    def fit(self, X: Sequence[Any], y: Any = None) -> Self:
        """Read the encoder.

        Args:
            X: crystals, which are not looked at but for their number.
            y: not used.

        Returns:
            This object.

        Raises:
            FileNotFoundError: no such encoder.
            ValueError: no such readout or device, another option out of range, or X is no list of crystals.
        """
        _as_list(X)
        if self.on_bad not in _MODES:
            raise ValueError(f"on_bad must be one of {', '.join(_MODES)}, not {self.on_bad!r}")
        checkpoint = read_checkpoint(self.model)
        encoder = encoder_of(checkpoint, self.model)
        readout = encoder.default_readout if self.readout is None else self.readout
        self.n_features_out_ = encoder.readout_channels(readout)
        self.readout_ = readout
        self.max_sites_, self.oxidation_ = crystal_options(checkpoint, self.model)
        if self.max_sites is not None:
            self.max_sites_ = self.max_sites
        self.weights_ = weights_of(checkpoint)
        self._encoder = encoder
        return self

    def transform(self, X: Sequence[Any]) -> np.ndarray:
        """Embed crystals.

        Args:
            X: n crystals, or formulas where the encoder needs no structure.

        Returns:
            [n, D] float32.

        Raises:
            NotFittedError: before :meth:`fit`.
            ValueError: X is no list of crystals, or some cannot be embedded; the message has their places,
                paths and reasons.
        """
        check_is_fitted(self)
        items, encoder = _as_list(X), self._loaded()
        dtype = next(encoder.parameters()).dtype
        dataset: CrystalDataset | None
        if are_formulas(items) and not encoder.needs_structure:
            dataset, faults = read_formulas(items, dtype)
        else:
            dataset, faults = read_objects(items, self.max_sites_, self.oxidation_, dtype)
        if faults and self.on_bad == "raise":
            raise ValueError(_complaint(faults, items))
        out = np.full((len(items), self.n_features_out_), np.nan, dtype=np.float32)
        if dataset is None:
            return out
        device = torch.device(self.device)
        encoder.set_kernels(device.type == "cpu")
        loader = CrystalLoader(
            made_resident(dataset, device), encoder.graph, self.batch_sites, shuffle=False, shard=False
        )
        vectors, rows = represent(encoder, loader, self.readout_, device)
        out[np.array(dataset.ids.to_pylist(), dtype=np.int64)[rows.numpy()]] = vectors.numpy()
        lost = {place for place in np.flatnonzero(~np.isfinite(out).all(axis=1)).tolist() if place not in faults}
        if lost and self.on_bad == "raise":
            raise ValueError(_complaint({place: LeftOut(str(place), NOT_FINITE) for place in lost}, items))
        out[list(lost)] = np.nan
        return out

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Name the numbers of a vector.

        Args:
            input_features: not used.

        Returns:
            [D] names, see :func:`pyg_dim.evaluate.represent.vector_names`.

        Raises:
            NotFittedError: before :meth:`fit`.
        """
        check_is_fitted(self)
        return np.array(vector_names(self._loaded(), self.readout_), dtype=object)

    def _loaded(self) -> Encoder:
        """The encoder, built anew in a copy or a process of its own."""
        if "_encoder" not in self.__dict__:
            self._encoder = encoder_of(parse_weights(self.weights_, self.model), self.model)
        return self._encoder

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_encoder"}

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = tags.input_tags.string = tags.input_tags.dict = True
        tags.no_validation = True
        tags.transformer_tags.preserves_dtype = []  # float32, whatever crystals come as
        return tags


def _as_list(X: Any) -> list[Any]:
    """The crystals; what is one crystal itself has a length too."""
    is_one = isinstance(X, str | Path | Mapping) or hasattr(X, "lattice") or hasattr(X, "get_atomic_numbers")
    if is_one or not hasattr(X, "__len__"):
        raise ValueError(
            f"X must be a list of crystals (structures, their dictionaries, ASE Atoms, paths of CIF files), not one "
            f"{type(X).__name__}: for one crystal give a list of one"
        )
    if getattr(X, "ndim", 1) != 1:
        raise ValueError(f"X must have one dimension, a crystal an entry; it has shape {X.shape}")
    items = list(X)
    if not items:
        raise ValueError("X holds no crystal (0 samples); at least 1 is needed")
    return items


def _complaint(faults: Mapping[int, LeftOut], items: Sequence[Any]) -> str:
    lines = []
    for place, fault in sorted(faults.items()):
        path = str(items[place]) if isinstance(items[place], str | Path) else ""
        # The details of some faults are the path, or the formula, itself.
        name = f" ({printable(path)})" if path and path not in fault.detail else ""
        lines.append(f"X[{place}]{name}: {fault.reason}" + (f" ({fault.detail})" if fault.detail else ""))
    more = [f"and {len(lines) - _EXAMPLES} more"] if len(lines) > _EXAMPLES else []
    return (
        f"{len(faults)} of {len(items)} crystals cannot be embedded; leave them out, or set on_bad='nan' for rows of "
        "NaN: " + "; ".join(lines[:_EXAMPLES] + more)
    )
