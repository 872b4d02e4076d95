"""Published CGCNN weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyg_dim.data.elements import MAX_Z
from pyg_dim.models.cgcnn import CGCNN
from pyg_dim.models.weights_file import fill, must_exist, number, read_arrays, read_torch

_THEIRS: Final = {
    r"encoder\.embed_site": "embedding",
    r"encoder\.convolutions\.(\d+)\.linear": r"convs.\1.fc_full",
    r"encoder\.convolutions\.(\d+)\.edge_norm": r"convs.\1.bn1",
    r"encoder\.convolutions\.(\d+)\.sum_norm": r"convs.\1.bn2",
    r"encoder\.output": "conv_to_fc",
    r"layers\.(\d+)": r"fcs.\1",
    r"output": "fc_out",
}
"""How the authors' program calls the layers that have a name (a pattern) here."""
_TWINS_HEAD: Final = "fc_head."
"""Layers of Crystal Twins between the embedding and its loss."""
_COUNTER: Final = "num_batches_tracked"
_scalar: Any = np.float64(0).__reduce__()[0]
_SAFE: Final[list[Any]] = [
    _scalar,
    (_scalar, "numpy.core.multiarray.scalar"),  # its name before NumPy 2
    np.dtype,
    type(np.dtype(np.float64)),
]
"""A number of NumPy, as which the score of a classifier lies beside its weights."""


class CGCNNPredictor(nn.Module):
    """CGCNN with the head of the authors' program: a property of each crystal.

    Args:
        encoder: what represents the crystals.
        layers: number of fully connected layers between the crystal layer and the output.
        outputs: 1 for a number, 2 for the classifiers.

    Attributes:
        mean: mean of the target, in its unit.
        std: its standard deviation.

    Source: Xie and Grossman 2018, the authors' program.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: CGCNN, layers: int = 0, outputs: int = 1) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(0.5 if outputs > 1 else 0.0)
        self.layers = nn.ModuleList(nn.Linear(encoder.channels, encoder.channels) for _ in range(layers))
        self.output = nn.Linear(encoder.channels, outputs)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    def forward(self, batch: Any) -> Tensor:
        """Predict.

        Args:
            batch: crystal batch with the edges of ``encoder.graph``.

        Returns:
            [B] predictions in the unit of the target; [B, 2] logarithms of the probabilities from a classifier.

        Raises:
            ValueError: see :meth:`~pyg_dim.models.CGCNN.represent`.
        """
        hidden = self.dropout(F.softplus(self.encoder(batch)))
        for layer in self.layers:
            hidden = F.softplus(layer(hidden))
        out = self.output(hidden)
        return F.log_softmax(out, dim=-1) if out.size(1) > 1 else out[:, 0] * self.std + self.mean


def load_cgcnn_checkpoint(
    weights: str | Path,
    atom_vectors: str | Path,
    *,
    k: int = 12,
    cutoff: float = 8.0,
    gaussian_step: float = 0.2,
    dtype: torch.dtype = torch.float32,
) -> CGCNNPredictor:
    """Read weights of the authors' program, such as those that were published with it.

    Sizes follow from the weights. The levels of Deep InfoMax, which those weights do not have, get new parameters.

    Args:
        weights: ``.pth.tar`` file of the program (its "state_dict" and "normalizer" are read), or ``.npz`` with
            ``weights/<name>``, ``normalizer/mean`` and ``normalizer/std``.
        atom_vectors: ``atom_init.json`` of the program ({atomic number: vector}), or ``.npz`` with ``Z`` [n] and
            ``vectors`` [n, C].
        k: neighbours of a site that the program was run with.
        cutoff: its radius, in angstrom.
        gaussian_step: its step of Gaussians, in angstrom.
        dtype: type of the parameters.

    Returns:
        The predictor, in evaluation mode; its ``encoder`` pads missing neighbours as the program does.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is not what it should be, lacks something, or does not fit; the message names it.
    """
    path = Path(weights)
    state, mean, std = _read_npz(path) if path.suffix == ".npz" else _read_pth(path)
    encoder = _encoder(state, path, k=k, cutoff=cutoff, gaussian_step=gaussian_step)
    predictor = CGCNNPredictor(encoder, _count(state, "fcs"), _width(state, "fc_out.weight", 0, path))
    predictor.to(dtype)
    _fill(predictor, state, path, encoder)
    predictor.mean.fill_(mean)
    predictor.std.fill_(std)
    _fill_species(encoder, Path(atom_vectors))
    return predictor.eval()


def load_crystal_twins_checkpoint(
    weights: str | Path, atom_vectors: str | Path, *, dtype: torch.dtype = torch.float32
) -> CGCNN:
    """Read a network that was pre-trained by Crystal Twins, such as those that were published with it.

    It is a CGCNN whose embedding is the softplus of the crystal layer. The head that maps embeddings to the vectors of
    the contrastive loss is left out. The levels of Deep InfoMax, which those weights do not have, get new parameters.

    Args:
        weights: ``.pth`` file of the program (its parameters by name), or ``.npz`` with the same names.
        atom_vectors: as for :func:`load_cgcnn_checkpoint`.
        dtype: type of the parameters.

    Returns:
        The encoder, in evaluation mode: 12 nearest neighbours within 8 angstrom, missing ones padded.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is not what it should be, lacks something, or does not fit; the message names it.

    Source: Magar, Wang, Barati Farimani, npj Comput. Mater. 2022, 8, 231.
    """
    path = Path(weights)
    if path.suffix == ".npz":
        arrays = read_arrays(path)
        content: Any = {name: torch.from_numpy(array) for name, array in arrays.items() if array.dtype.kind in "fiu"}
    else:
        content = read_torch(path)
    if not isinstance(content, dict) or not all(
        isinstance(v, Tensor) and isinstance(k, str) for k, v in content.items()
    ):
        raise ValueError(f"{path} is no checkpoint of Crystal Twins: it does not hold parameters by name alone")
    state = {name: value for name, value in content.items() if not name.startswith(_TWINS_HEAD)}
    encoder = _encoder(state, path, output_softplus=True).to(dtype)
    _fill(nn.ModuleDict({"encoder": encoder}), state, path, encoder)
    _fill_species(encoder, Path(atom_vectors))
    return encoder.eval()


def _encoder(state: dict[str, Tensor], path: Path, **options: Any) -> CGCNN:
    """An encoder of the sizes of the weights."""
    return CGCNN(
        site_channels=_width(state, "embedding.weight", 0, path),
        convolutions=_count(state, "convs"),
        crystal_channels=_width(state, "conv_to_fc.weight", 0, path),
        pad=True,
        species_channels=_width(state, "embedding.weight", 1, path),
        **options,
    )


def _read_npz(path: Path) -> tuple[dict[str, Tensor], float, float]:
    arrays = read_arrays(path)
    state = {
        name.removeprefix("weights/"): torch.from_numpy(value)
        for name, value in arrays.items()
        if name.startswith("weights/")
    }
    mean, std = (
        number(arrays.get(f"normalizer/{name}"), f"normalizer/{name}", path, "CGCNN") for name in ("mean", "std")
    )
    return state, mean, std


def _read_pth(path: Path) -> tuple[dict[str, Tensor], float, float]:
    content = read_torch(path, _SAFE)
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise ValueError(f"{path} is a PyTorch file but no checkpoint of CGCNN: it has no 'state_dict'")
    normalizer = content.get("normalizer")
    normalizer = normalizer if isinstance(normalizer, dict) else {}
    mean, std = (number(normalizer.get(name), f"normalizer/{name}", path, "CGCNN") for name in ("mean", "std"))
    return content["state_dict"], mean, std


def _count(state: dict[str, Tensor], part: str) -> int:
    """Number of layers of a list; that of a list with a gap too, so that what is missing there can be named."""
    found = [re.match(rf"{part}\.(\d+)\.", name) for name in state]
    least = 1 if part == "convs" else 0
    return max((int(match[1]) + 1 for match in found if match), default=least)


def _width(state: dict[str, Tensor], name: str, dim: int, path: Path) -> int:
    if name not in state:
        raise ValueError(f"{path} is no checkpoint of CGCNN: it has no {name!r}")
    if state[name].dim() != 2:
        raise ValueError(f"{path}: {name!r} has shape {tuple(state[name].shape)}, not that of a linear layer")
    return state[name].size(dim)


def _their_name(name: str) -> str | None:
    """Name of a parameter or buffer in the authors' program; None where it has no such."""
    layer, _, kind = name.rpartition(".")
    for pattern, theirs in _THEIRS.items():
        if kind != _COUNTER and (match := re.fullmatch(pattern, layer)):
            return f"{match.expand(theirs)}.{kind}"
    return None


def _fill(module: nn.Module, state: dict[str, Tensor], path: Path, encoder: CGCNN) -> None:
    """Copy the weights; all but the parameters of the levels must be there, in the right shape."""
    fill(
        {theirs: value for name, value in module.state_dict().items() if (theirs := _their_name(name))},
        {name: value for name, value in state.items() if not name.endswith(_COUNTER)},
        path,
        "CGCNN",
        hint=lambda name: f", with {encoder.gaussians} Gaussians for an edge" if "fc_full" in name else "",
    )


def _fill_species(encoder: CGCNN, path: Path) -> None:
    """Put the vectors of a file into the rows of their elements."""
    table = encoder.site_input.species
    assert table is not None  # noqa: S101 - it was built with a table
    try:
        if path.suffix == ".npz":
            arrays = read_arrays(path)
            pairs = list(zip(arrays["Z"].tolist(), arrays["vectors"].tolist(), strict=True))
        else:
            must_exist(path)
            pairs = list(json.loads(path.read_text()).items())
        vectors = {int(z): torch.tensor(vector, dtype=table.dtype) for z, vector in pairs}
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} holds no atom vectors, neither as JSON {{atomic number: [numbers]}} nor as arrays Z and vectors: "
            f"{error}"
        ) from error
    for z, vector in vectors.items():
        if not 1 <= z <= MAX_Z:
            raise ValueError(f"{path}: there is no element with atomic number {z} here; the last is {MAX_Z}")
        if vector.shape != table[z].shape:
            raise ValueError(
                f"{path}: the vector of element {z} has the shape {tuple(vector.shape)}, where the weights want "
                f"{table.size(1)} numbers"
            )
        if not vector.isfinite().all():
            raise ValueError(f"{path}: the vector of element {z} holds a number that is not finite")
        table[z] = vector
