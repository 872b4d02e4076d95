"""Descriptors of crystals that need no training: what pre-trained representations are compared with.

The cost of one crystal of the Materials Project with at most 50 sites (18 on average), on one core of a 2-core machine:
orbital field matrix 0.12 s, X-ray pattern 0.03 s. Magpie features take next to nothing.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from tqdm import tqdm

from pyg_dim.data.composition import element_fractions
from pyg_dim.data.dataset import CrystalDataset
from pyg_dim.data.magpie import magpie_features
from pyg_dim.data.parquet import ID
from pyg_dim.data.replacing import replacing

FRACTIONS: Final = "fractions"
DESCRIPTORS: Final = ("ofm", "xrd", "magpie", FRACTIONS)
"""Orbital field matrix, X-ray diffraction pattern, Magpie features, shares of the elements."""

_LOGGER = logging.getLogger(__name__)

_SETTINGS: Final[dict[str, dict[str, Any]]] = {
    "ofm": {"period_tag": True, "flatten": True},
    "xrd": {"two_theta_range": (0, 127), "bw_method": 0.05, "wavelength": "CuKa"},
}
"""matminer's defaults, but for the period of the elements, which the paper has in its orbital field matrix."""
_WIDTH: Final = {"ofm": 39 * 39, "xrd": 128}
_CHUNK: Final = 500
"""Crystals that are saved at a time: what a run that is stopped may lose."""
_HANDED_OUT: Final = 8
"""Crystals that a process takes at a time."""
_RADIUS: Final = 7.0
"""angstrom; neighbours that a Voronoi cell is first made of. The cells of dense crystals need no more."""
_EXCESS: Final = 1e-6
"""Share of the volume by which Voronoi cells may miss the cell: positions in single precision are symmetric to 1e-7."""
_GEOMETRY: Final = "geometry_checksum"
_VECTOR: Final = "descriptor"
_FAILURE: Final = "failure"

_Crystal = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Atomic numbers [S], positions [S, 3] and lattice vectors [3, 3]."""
_Key = tuple[str, str]
"""Identifier and checksum."""


def orbital_field_matrix(dataset: CrystalDataset, rows: Tensor, workers: int = 1) -> tuple[Tensor, Tensor]:
    r"""Orbital field matrices: which valence subshells lie next to which.

    With :math:`v_i` the one-hot vector of the valence subshells and the period of site i, and :math:`w_{ij}` the solid
    angle under which i sees the Voronoi face to j, as a share of its largest one, this is the mean over the sites i of
    :math:`\sum_j v_j v_i^\top w_{ij} / d_{ij}`, from matminer's ``OrbitalFieldMatrix(period_tag=True)``.

    Args:
        dataset: The crystals.
        rows: [k] int64, rows of the data set.
        workers: Processes.

    Returns:
        ``(vectors, rows_ok)``: vectors [m, 1521] float64, and [m] int64, the rows they are of, in the order of
        ``rows``. Crystals on which it fails are left out and logged.

    Raises:
        ValueError: If ``rows`` is empty or matminer is not installed.

    Source: Lam Pham et al., Sci. Technol. Adv. Mater. 2017, 18, 756; a baseline of Moran et al., Digital Discovery
    2025, 4, 790, figs. 8 and 11.
    """
    return descriptor_table("ofm", dataset, rows, workers=workers)


def xray_pattern(dataset: CrystalDataset, rows: Tensor, workers: int = 1) -> tuple[Tensor, Tensor]:
    """X-ray powder patterns: density of the diffracted intensity at every degree of the angle 2 theta.

    They are those of matminer's ``XRDPowderPattern`` with its defaults: 2 theta from 0 to 127 degrees, Cu K-alpha
    radiation, smeared by Gaussians of 0.05 standard deviations of the pattern. Peaks count by whole percents of the
    highest one, and rounding may split a peak in two; so crystals in single precision have patterns that differ from
    those in double precision by up to some percent of the highest value.

    Args:
        dataset: The crystals.
        rows: [k] int64, rows of the data set.
        workers: Processes.

    Returns:
        ``(vectors, rows_ok)``: vectors [m, 128] float64 in 1/degree, and [m] int64, the rows they are of, in the order
        of ``rows``. Crystals on which it fails are left out and logged.

    Raises:
        ValueError: If ``rows`` is empty or matminer is not installed.

    Source: a baseline of Moran et al., Digital Discovery 2025, 4, 790, figs. 8 and 11.
    """
    return descriptor_table("xrd", dataset, rows, workers=workers)


def descriptor_table(
    name: str, dataset: CrystalDataset, rows: Tensor, cache: str | Path | None = None, workers: int = 1
) -> tuple[Tensor, Tensor]:
    """Vectors of one descriptor, as far as possible from a file.

    The file is Parquet, with the identifier of each crystal, a checksum of its species, positions and lattice vectors,
    the vector, and the reason where there is none. What is missing is computed and added to it, 500 crystals at a time,
    so that a run that was stopped goes on where it was. Only one run at a time may fill a file.

    Args:
        name: One of :data:`DESCRIPTORS`.
        dataset: The crystals.
        rows: [k] int64, rows of the data set.
        cache: File, made where it is not there; None for no file. Magpie features and shares need none.
        workers: Processes that compute what is missing. With more than one, a script that calls this needs the guard
            ``if __name__ == "__main__":``.

    Returns:
        ``(vectors, rows_ok)``: vectors [m, D] float64 on the CPU, and [m] int64, the rows they are of, in the order of
        ``rows``. Crystals on which the descriptor fails are left out; each is logged with the reason.

    Raises:
        ValueError: If there is no such descriptor, ``rows`` is empty, ``workers`` is below 1, matminer is not installed
            and something has to be computed, the file holds something else, or a descriptor of structures is asked of
            formulas.
    """
    if name not in DESCRIPTORS:
        raise ValueError(f"no descriptor {name!r}; there are {', '.join(DESCRIPTORS)}")
    if not rows.numel():
        raise ValueError("rows is empty: there is nothing to describe")
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    dataset, rows = dataset.to("cpu"), rows.cpu()
    if name in ("magpie", FRACTIONS):
        index, ptr = dataset.sites(rows)
        compute = magpie_features if name == "magpie" else element_fractions
        return compute(dataset.z[index], ptr, None if dataset.amount is None else dataset.amount[index]), rows
    if dataset.amount is not None:
        raise ValueError(f"the descriptor {name} needs structures, and these are formulas: take magpie or {FRACTIONS}")
    crystals = [_crystal(dataset, row) for row in rows.tolist()]
    ids = dataset.ids.take(pa.array(rows.numpy())).to_pylist()
    keys = list(zip(ids, map(_checksum, crystals), strict=True))

    path = None if cache is None else Path(cache)
    table = _read(path, name) if path is not None and path.exists() else _schema(name).empty_table()
    known = set(_keys(table))
    missing = {key: crystal for key, crystal in zip(keys, crystals, strict=True) if key not in known}
    if missing:
        table = _filled(table, name, missing, path, workers)

    place = {key: position for position, key in enumerate(_keys(table))}
    chosen = table.take(pa.array([place[key] for key in keys]))
    failures = chosen[_FAILURE].to_pylist()
    for key, failure in dict(zip(keys, failures, strict=True)).items():
        if failure is not None:
            _LOGGER.warning("%s: crystal %s is left out: %s", name, key[0], failure)
    vectors = chosen[_VECTOR].combine_chunks().flatten().to_numpy().reshape(len(keys), _WIDTH[name])
    ok = torch.tensor([failure is None for failure in failures])
    return torch.from_numpy(vectors.copy())[ok], rows[ok]


def _crystal(dataset: CrystalDataset, row: int) -> _Crystal:
    sites = slice(int(dataset.ptr[row]), int(dataset.ptr[row + 1]))
    return dataset.z[sites].numpy(), dataset.pos[sites].double().numpy(), dataset.cell[row].double().numpy()


def _checksum(crystal: _Crystal) -> str:
    return hashlib.blake2b(b"".join(part.tobytes() for part in crystal), digest_size=12).hexdigest()


def _filled(table: pa.Table, name: str, missing: dict[_Key, _Crystal], path: Path | None, workers: int) -> pa.Table:
    """The table with more crystals, saved after every chunk."""
    _require_matminer(name)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    keys, crystals = list(missing), list(missing.values())
    with _mapping(workers) as each, tqdm(total=len(keys), desc=name, unit="crystal", disable=None) as bar:
        for start in range(0, len(keys), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            found: list[np.ndarray | str] = []
            for vector in each(functools.partial(_describe, name), crystals[chunk]):
                found.append(vector)
                bar.update()
            table = pa.concat_tables([table, _part(name, keys[chunk], found)])
            if path is not None:
                with replacing(path) as file:
                    pq.write_table(table, file, compression="zstd")
            _LOGGER.info("%s: %d of %d crystals are done", name, start + len(found), len(keys))
    return table


def _schema(name: str) -> pa.Schema:
    settings = ", ".join(f"{option}={value!r}" for option, value in _SETTINGS[name].items())
    fields = {
        ID: pa.string(),
        _GEOMETRY: pa.string(),
        _VECTOR: pa.list_(pa.float64(), _WIDTH[name]),
        _FAILURE: pa.string(),
    }
    return pa.schema(list(fields.items()), metadata={_VECTOR: f"{name}({settings})"})


def _part(name: str, keys: list[_Key], found: list[np.ndarray | str]) -> pa.Table:
    nothing = np.full(_WIDTH[name], np.nan)
    flat = np.concatenate([nothing if isinstance(vector, str) else vector for vector in found])
    columns = [
        pa.array([key[0] for key in keys]),
        pa.array([key[1] for key in keys]),
        pa.FixedSizeListArray.from_arrays(pa.array(flat), _WIDTH[name]),
        pa.array([vector if isinstance(vector, str) else None for vector in found], pa.string()),
    ]
    return pa.table(columns, schema=_schema(name))


def _keys(table: pa.Table) -> Iterator[_Key]:
    return zip(table[ID].to_pylist(), table[_GEOMETRY].to_pylist(), strict=True)


def _read(path: Path, name: str) -> pa.Table:
    wanted = _schema(name)
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} is no cache of descriptors ({error}): choose another file, or delete it") from error
    metadata, expected = table.schema.metadata or {}, wanted.metadata or {}
    found = metadata.get(_VECTOR.encode(), b"something else").decode("utf-8", "replace")
    if metadata.get(_VECTOR.encode()) != expected[_VECTOR.encode()] or table.schema.names != wanted.names:
        raise ValueError(
            f"{path} holds {found}, not {expected[_VECTOR.encode()].decode()}: every descriptor needs a file of its own"
        )
    return table.cast(wanted)


def _require_matminer(name: str) -> None:
    try:
        import matminer.featurizers.structure  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f'the descriptor {name!r} needs matminer, which is not installed: pip install "pyg-dim[baselines]"'
        ) from error


@functools.cache
def _featurizer(name: str) -> Any:
    from matminer.featurizers.structure import OrbitalFieldMatrix, XRDPowderPattern

    return {"ofm": OrbitalFieldMatrix, "xrd": XRDPowderPattern}[name](**_SETTINGS[name])


def _describe(name: str, crystal: _Crystal) -> np.ndarray | str:
    """The vector of one crystal, or why there is none."""
    from pymatgen.core import Structure

    z, pos, cell = crystal
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            structure = Structure(cell, z.tolist(), pos, coords_are_cartesian=True)
            vector = _orbital_fields(structure) if name == "ofm" else None
            if vector is None:
                vector = np.asarray(_featurizer(name).featurize(structure), dtype=np.float64)
    except Exception as error:  # any: a featurizer does not say what it may raise
        return f"{type(error).__name__}: {error}"
    return vector if np.isfinite(vector).all() else "the descriptor is not finite"


def _orbital_fields(structure: Any) -> np.ndarray | None:
    """What matminer's ``OrbitalFieldMatrix.featurize`` returns, by smaller tessellations; None where they may differ.

    matminer takes all neighbours within 13 angstrom, in a supercell of 3 x 3 x 3 cells, which makes distances unique.
    Here the neighbours come from the cell, and only their distances are taken in the supercell. Neighbours that are
    left out can only make Voronoi cells larger: where these fill the cell and no more, none of them matters.
    """
    from pymatgen.analysis.local_env import VoronoiNN
    from pymatgen.core import Lattice, PeriodicSite
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    supercell = Lattice(3 * structure.lattice.matrix)

    def placed(site: Any) -> Any:
        return PeriodicSite(site.species, site.coords, supercell, coords_are_cartesian=True)

    featurizer = _featurizer("ofm")
    voronoi = VoronoiNN(cutoff=_RADIUS, allow_pathological=True, compute_adj_neighbors=False)
    volume, fields = 0.0, []
    try:
        orbits = SpacegroupAnalyzer(structure).get_symmetrized_structure().equivalent_indices
        for orbit in orbits:
            faces = voronoi.get_nn_info(structure, orbit[0])
            volume += len(orbit) * sum(face["poly_info"]["volume"] for face in faces)
            neighbours = [{"site": placed(face["site"]), "weight": face["weight"]} for face in faces]
            fields.append(featurizer.get_single_ofm(placed(structure[orbit[0]]), neighbours))
    except (RuntimeError, ValueError):  # for example, too few neighbours for a tessellation
        return None
    if abs(volume / structure.volume - 1) > _EXCESS:
        return None
    return np.asarray(featurizer.get_mean_ofm(fields, [len(orbit) for orbit in orbits])).ravel()


@contextmanager
def _mapping(workers: int) -> Iterator[Callable[..., Iterator[np.ndarray | str]]]:
    """Something like ``map`` that uses several processes."""
    if workers == 1:
        # These matrices are small: more threads would wait for each other.
        with threadpool_limits(1):
            yield map
        return
    # Not forked from this process: libraries with threads of their own do not survive that. A server that has imported
    # what is needed, and does nothing else, can be forked; where there is none, every process imports it again.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: BaseContext = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["__main__", __name__, "matminer.featurizers.structure"])
    pool = ProcessPoolExecutor(workers, context, initializer=_prepare)
    try:
        yield functools.partial(pool.map, chunksize=_HANDED_OUT)
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare() -> None:
    threadpool_limits(1)
    # Ctrl-C goes to all processes; the first one decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A pool's process waits for work even when the program that made it was killed.
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
