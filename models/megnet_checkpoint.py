"""Published MEGNet weights."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from pyg_dim.data.elements import MAX_Z, atomic_numbers, symbols
from pyg_dim.models.megnet import MEGNet
from pyg_dim.models.megnet_block import shifted_softplus
from pyg_dim.models.weights_file import fill, must_exist, number, read_arrays, read_torch

_UNKNOWN: Final = ("Po", "At", "Rn", "Fr", "Ra")
_LAST: Final = 94
"""matgl's own list of elements, for models that name none: those up to plutonium but for the unknown ones."""
_LARGEST: Final = 1 << 16
"""No layer, and no number of them, is larger."""
_CLOSE: Final = 1e-3
"""Difference of lengths in angstrom that rounding explains."""
_FIXED: Final[dict[str, tuple[Any, ...]]] = {
    "activation_type": ("softplus2",), "is_classification": (False,), "include_state": (True,),
    "nlayers_set2set": (1,), "dropout": (None, 0), "bond_expansion": (None,),
}  # fmt: skip
"""Arguments of matgl's MEGNet that have one value here."""
_THEIRS: Final = {
    r"encoder\.centres": "bond_expansion.rbf.centers",
    r"encoder\.embed_element\.weight": "embedding.layer_node_embedding.weight",
    r"encoder\.embed_fidelity\.weight": "embedding.layer_state_embedding.weight",
    r"encoder\.encode_edge\.(.*)": r"edge_encoder.\1",
    r"encoder\.encode_site\.(.*)": r"node_encoder.\1",
    r"encoder\.encode_state\.(.*)": r"state_encoder.\1",
    r"encoder\.(blocks\.\d+)\.dense_edge\.(.*)": r"\1.edge_func.\2",
    r"encoder\.(blocks\.\d+)\.dense_site\.(.*)": r"\1.node_func.\2",
    r"encoder\.(blocks\.\d+)\.dense_state\.(.*)": r"\1.state_func.\2",
    r"encoder\.(blocks\.\d+)\.edge\.(.*)": r"\1.conv.edge_func.\2",
    r"encoder\.(blocks\.\d+)\.site\.(.*)": r"\1.conv.node_func.\2",
    r"encoder\.(blocks\.\d+)\.state\.(.*)": r"\1.conv.state_func.\2",
    r"encoder\.read_edges\.(.*)": r"edge_s2s.\1_l0",
    r"encoder\.read_sites\.(.*)": r"node_s2s.\1_l0",
    r"encoder\.output\.(.*)": r"output_proj.layers.0.\1",
}
"""How matgl calls what has a name (a pattern) here."""
_NUMBER: Final = r"([-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)"
_NORMALIZER: Final = (rf"Normalizer: Mean={_NUMBER}, Std: {_NUMBER}", rf"Normalizer\(mean={_NUMBER}, std={_NUMBER}\)")
"""How versions of matgl write the normalisation of the target down."""


class MEGNetPredictor(nn.Module):
    """MEGNet with the published head: a property of each crystal.

    Args:
        encoder: what represents the crystals; its output layer is the first one of the head.
        hidden: widths of the hidden layers of the head that follow it.

    Attributes:
        mean: mean of the target, in its unit.
        std: its standard deviation.
        known: [104] bool, elements by atomic number that the weights were trained for.

    Source: Chen et al. 2019, as in the published weights.
    """

    mean: Tensor
    std: Tensor
    known: Tensor

    def __init__(self, encoder: MEGNet, hidden: Sequence[int] = (16,)) -> None:
        super().__init__()
        self.encoder = encoder
        widths = [encoder.channels, *hidden, 1]
        self.head = nn.ModuleList(nn.Linear(i, o) for i, o in itertools.pairwise(widths))
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))
        self.register_buffer("known", torch.ones(MAX_Z + 1, dtype=torch.bool))

    def forward(self, batch: Any) -> Tensor:
        """Predict.

        Args:
            batch: crystal batch with the edges of ``encoder.graph``, and ``state`` [B] where the model has labels.

        Returns:
            [B] predictions in the unit of the target.

        Raises:
            ValueError: in evaluation mode: an element, or a label, that the model does not know.
        """
        # Not looked at while training: it makes the host wait for the device.
        if not self.training and (unknown := batch.z[~self.known[batch.z]].unique().tolist()):
            raise ValueError(f"this model was not trained for the elements {', '.join(symbols()[z] for z in unknown)}")
        out = self.encoder(batch)
        for layer in self.head:
            out = layer(shifted_softplus(out))
        return out[:, 0] * self.std + self.mean


@dataclass(frozen=True)
class _Published:
    """What a file of weights holds, whatever its format."""

    path: Path
    arguments: dict[str, Any]
    state: dict[str, Tensor]
    elements: list[int]
    mean: float
    std: float


def load_megnet_checkpoint(weights: str | Path, *, dtype: torch.dtype = torch.float32) -> MEGNetPredictor:
    """Read weights of matgl's MEGNet, such as those that were published with it.

    Sizes follow from the arguments of the model that lie beside the weights. The levels of Deep InfoMax, and the
    vectors of elements that the weights do not know, get new parameters.

    Args:
        weights: folder that matgl wrote (``model.json`` and ``state.pt`` are read), of a MEGNet or of one with its
            target transformed by a mean and a standard deviation; or ``.npz`` with ``w/<name>``,
            ``hyperparameters_json``, ``element_Z``, ``data_mean`` and ``data_std``.
        dtype: type of the parameters.

    Returns:
        The predictor, in evaluation mode.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is not what it should be, lacks something, or does not fit; the message names it.
    """
    path = Path(weights)
    found = _read_folder(path) if path.is_dir() else _read_npz(path)
    encoder, hidden = _encoder(found)
    predictor = MEGNetPredictor(encoder, hidden).to(dtype)
    if not found.std > 0:
        raise ValueError(f"{path}: the standard deviation of the target is {found.std}; it must be positive")
    own = {theirs: value for name, value in predictor.state_dict().items() if (theirs := _their_name(name))}
    # Their rows are elements in an order of their own.
    rows = torch.empty(len(found.elements), encoder.embed_element.embedding_dim, dtype=dtype)
    own["embedding.layer_node_embedding.weight"] = rows
    fill(own, found.state, found.path, "MEGNet")
    if abs(float(encoder.centres[-1]) - encoder.config["cutoff"] - 1) > _CLOSE:
        raise ValueError(
            f"{path}: the Gaussians reach to {encoder.centres[-1]:.3f} angstrom, which is not the cutoff + 1"
        )
    with torch.no_grad():
        encoder.embed_element.weight[found.elements] = rows
    predictor.mean.fill_(found.mean)
    predictor.std.fill_(found.std)
    predictor.known.fill_(False)[found.elements] = True
    return predictor.eval()


def _read_npz(path: Path) -> _Published:
    arrays = read_arrays(path)
    for name in ("hyperparameters_json", "element_Z"):
        if name not in arrays:
            raise ValueError(f"{path} is no checkpoint of MEGNet: it has no {name!r}")
    weights = {name.removeprefix("w/"): value for name, value in arrays.items() if name.startswith("w/")}
    if texts := [name for name, value in weights.items() if value.dtype.kind not in "fiu"]:
        raise ValueError(f"{path}: {', '.join(texts)} hold no numbers")
    state = {name: torch.from_numpy(value) for name, value in weights.items()}
    mean, std = (number(arrays.get(name), name, path, "MEGNet") for name in ("data_mean", "data_std"))
    arguments = _json(str(arrays["hyperparameters_json"]), f"{path}: hyperparameters_json")
    if arrays["element_Z"].dtype.kind not in "iu" or arrays["element_Z"].ndim != 1:
        raise ValueError(f"{path}: element_Z holds no atomic numbers")
    elements = arrays["element_Z"].tolist()
    if foreign := [z for z in elements if not 1 <= z <= MAX_Z]:
        raise ValueError(f"{path}: element_Z holds numbers of no element: {foreign}")
    if len(set(elements)) < len(elements):
        raise ValueError(f"{path}: element_Z names an element twice")
    return _Published(path, arguments, _without_prefix(state), elements, mean, std)


def _read_folder(folder: Path) -> _Published:
    path = folder / "model.json"
    must_exist(path)
    content: Any = _json(path.read_bytes(), str(path))
    arguments, mean, std = content.get("kwargs"), 0.0, 1.0
    if content.get("@class") == "TransformedTargetModel" and isinstance(arguments, dict):
        transformer, content = str(arguments.get("target_transformer")), arguments.get("model")
        match = next((m for pattern in _NORMALIZER if (m := re.fullmatch(pattern, transformer))), None)
        if not match:
            raise ValueError(
                f"{path}: the target is transformed by {transformer!r}, where a Normalizer with two numbers is needed"
            )
        mean, std = map(float, match.groups())
        arguments = content.get("init_args") if isinstance(content, dict) else None
    if not isinstance(content, dict) or content.get("@class") != "MEGNet" or not isinstance(arguments, dict):
        raise ValueError(f"{path} describes no model of the class MEGNet, as matgl writes it")
    names = arguments.get("element_types") or [s for s in symbols()[1 : _LAST + 1] if s not in _UNKNOWN]
    if not isinstance(names, list):
        raise ValueError(f"{path}: element_types is no list of names")
    if unknown := [name for name in names if name not in atomic_numbers()]:
        raise ValueError(f"{path}: element_types names {unknown}, which are no elements")
    state = read_torch(folder / "state.pt")
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{folder / 'state.pt'} is a PyTorch file but no weights of a model")
    elements = [atomic_numbers()[name] for name in names]
    return _Published(folder, arguments, _without_prefix(state), elements, mean, std)


def _json(text: str | bytes, where: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{where} is no JSON object")
    return content


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as in the model itself, which lies under "model" where its target is transformed."""
    return {name.removeprefix("model."): value for name, value in state.items()}


def _encoder(found: _Published) -> tuple[MEGNet, list[int]]:
    """A new encoder of the sizes that the arguments name, and the widths of the other hidden layers of the head."""
    arguments = found.arguments
    for name, allowed in _FIXED.items():
        if (value := arguments.get(name, allowed[0])) not in allowed:
            raise ValueError(f"{found.path}: {name} is {value!r}, where only {allowed[0]!r} can be read")
    try:
        *dense, width = arguments["hidden_layer_sizes_input"]
        *convolution, last = arguments["hidden_layer_sizes_conv"]
        crystal, *hidden = arguments["hidden_layer_sizes_output"]
        if last != width:
            raise ValueError(f"the blocks change the width of features from {width} to {last}")
        fidelities = arguments["ntypes_state"]
        sizes = [arguments[name] for name in ("dim_node_embedding", "dim_edge_embedding", "nblocks", "niters_set2set")]
        if not all(isinstance(size, int) and size <= _LARGEST for size in (*sizes, *dense, width, *convolution)):
            raise ValueError(f"sizes are whole numbers up to {_LARGEST}")
        encoder = MEGNet(
            element_channels=arguments["dim_node_embedding"],
            gaussians=arguments["dim_edge_embedding"],
            gaussian_steepness=arguments["gauss_width"],
            cutoff=arguments["cutoff"],
            blocks=arguments["nblocks"],
            feature_channels=width,
            dense_hidden=dense,
            convolution_hidden=convolution,
            set2set_steps=arguments["niters_set2set"],
            fidelities=fidelities,
            fidelity_channels=arguments["dim_state_embedding"] if fidelities else 1,
            crystal_channels=crystal,
        )
    except KeyError as error:
        raise ValueError(f"{found.path} is no checkpoint of MEGNet: its arguments have no {error}") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{found.path}: the arguments of the model cannot be used: {error}") from error
    return encoder, hidden


def _their_name(name: str) -> str | None:
    """Name of a parameter or buffer in matgl; None where it has no such."""
    if match := re.fullmatch(r"head\.(\d+)(.*)", name):
        return f"output_proj.layers.{2 * int(match[1]) + 2}{match[2]}"
    for pattern, theirs in _THEIRS.items():
        if match := re.fullmatch(pattern, name):
            # Their lists hold the activations between the linear layers, too.
            return re.sub(r"linears\.(\d+)", lambda found: f"layers.{2 * int(found[1])}", match.expand(theirs))
    return None
