"""CrystalEmbedder as a step of scikit-learn."""

from __future__ import annotations

import inspect
import pickle
import re
import shutil

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from ase.build import bulk
from pymatgen.core import Lattice, Structure
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import validate_data

from pyg_dim import CrystalEmbedder, models
from pyg_dim.data import CompositionDataset, CrystalDataset, CrystalLoader
from pyg_dim.evaluate.represent import represent
from pyg_dim.training import export, load_encoder

ALLOY = Structure(Lattice.cubic(3.8), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]])
CATIONS, ANIONS = ("Li", "Na", "K", "Rb"), ("F", "Cl", "Br")


def salt(cation: str, anion: str, edge: float) -> Structure:
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(edge), [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]])


@pytest.fixture(scope="module")
def salts() -> list[Structure]:
    return [salt(a, x, 4.0 + 0.4 * i + 0.3 * k) for i, a in enumerate(CATIONS) for k, x in enumerate(ANIONS)]


@pytest.fixture(scope="module")
def energies(salts) -> np.ndarray:
    return np.array([s.density for s in salts])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights file of an untrained Site-Net."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    export(models.build("sitenet", supercell_sites=8, post_pool=[64, 32]), path)
    return path


@pytest.fixture
def embedder(weights) -> CrystalEmbedder:
    return CrystalEmbedder(weights)


def test_vectors_are_those_of_represent(embedder, weights, salts):
    encoder = load_encoder(weights)
    dataset = CrystalDataset.from_structures(salts)
    for readout in (None, "global", "full"):
        expected, _ = represent(encoder, CrystalLoader(dataset, encoder.graph, shuffle=False), readout)
        found = clone(embedder).set_params(readout=readout).fit_transform(salts)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected.numpy())
    one_by_one = np.concatenate([embedder.fit([s]).transform([s]) for s in salts])
    np.testing.assert_allclose(one_by_one, embedder.transform(salts), rtol=1e-4, atol=1e-5)
    small = CrystalEmbedder(weights, batch_sites=4).fit_transform(salts)
    np.testing.assert_allclose(small, one_by_one, rtol=1e-4, atol=1e-5)


def test_all_forms_of_a_crystal_give_its_vector(embedder, tmp_path):
    structure = salt("Na", "Cl", 5.64)
    structure.to(str(tmp_path / "salt.cif"))
    forms = [structure, structure.as_dict(), bulk("NaCl", "rocksalt", 5.64, cubic=True), tmp_path / "salt.cif"]
    forms.append(str(forms[-1]))
    vectors = embedder.fit_transform(forms)
    np.testing.assert_allclose(vectors, vectors[:1].repeat(5, axis=0), rtol=1e-4, atol=1e-5)
    series, array = pd.Series(forms, index=list("abcde")), np.empty(5, dtype=object)
    array[:] = forms
    for same in (tuple(forms), series, array):
        np.testing.assert_array_equal(embedder.transform(same), vectors)


def test_names_and_pandas_output(embedder, salts):
    embedder.set_params(readout="full").set_output(transform="pandas")
    frame = embedder.fit_transform(pd.Series(salts, index=[f"s{k}" for k in range(12)]))
    assert frame.index[3] == "s3"
    assert list(frame.columns) == list(embedder.get_feature_names_out())
    assert frame.columns[0] == "global0"
    assert frame.columns[-1] == "site_max63"
    assert frame.shape == (12, embedder.n_features_out_)


@pytest.fixture(scope="module")
def of_formulas(tmp_path_factory) -> CrystalEmbedder:
    """An untrained Roost."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "roost.safetensors"
    export(models.build("roost", site_channels=8, layers=1, crystal_channels=8), path)
    return CrystalEmbedder(path)


def test_an_encoder_that_needs_no_structure_takes_formulas(of_formulas, weights, salts):
    texts = ["NaCl", "Fe2O3", "Ca(Ti0.5Zr0.5)O3", "Cl2 Na2"]
    vectors = of_formulas.fit_transform(texts)
    encoder = load_encoder(of_formulas.model)
    dataset = CompositionDataset.from_formulas(texts)
    expected, _ = represent(encoder, CrystalLoader(dataset, encoder.graph, shuffle=False))
    np.testing.assert_array_equal(vectors, expected.numpy())
    np.testing.assert_allclose(vectors[3], vectors[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(of_formulas)).transform(texts), vectors)  # noqa: S301
    # Crystals as well, whose sites are counted.
    of_crystals = of_formulas.transform([salt("Na", "Cl", 5.6)])
    np.testing.assert_allclose(of_crystals, vectors[:1], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"X\[0\]: no path of a CIF or POSCAR file \(NaCl\)"):
        CrystalEmbedder(weights).fit_transform(["NaCl"])


def test_bad_formulas_have_a_place_and_a_reason(of_formulas):
    texts = ["NaCl", "Qq2", "", salt("Na", "Cl", 5.6), "KCl"]
    with pytest.raises(
        ValueError, match=r"3 of 5 .*X\[1\]: unknown .*Qq.*X\[2\]: empty .*X\[3\]: not a formula \(a Str"
    ):
        of_formulas.fit_transform(texts)
    vectors = clone(of_formulas).set_params(on_bad="nan").fit_transform(texts)
    assert np.isnan(vectors).all(axis=1).tolist() == [False, True, True, True, False]
    np.testing.assert_allclose(vectors[[0, 4]], of_formulas.transform(["NaCl", "KCl"]), rtol=1e-5, atol=1e-6)
    assert np.isnan(clone(of_formulas).set_params(on_bad="nan").fit_transform(["Qq"])).all()


def test_bad_crystals_raise_with_place_and_reason(embedder, salts):
    with pytest.raises(
        ValueError, match=r"2 of 4 crystals cannot be embedded; .*on_bad='nan'.*: X\[1\]: partial occup"
    ):
        embedder.fit_transform([salts[0], ALLOY, salts[1], "absent.cif"])
    with pytest.raises(ValueError, match=r"X\[4\].*; and 2 more$"):
        embedder.transform([ALLOY] * 7)
    with pytest.raises(ValueError, match=r"X\[0\]: more than 1 sites \(2\)"):
        embedder.set_params(max_sites=1).fit_transform(salts[:1])


def test_bad_crystals_become_rows_of_nan_when_asked(embedder, salts):
    embedder.set_params(on_bad="nan").fit(salts)
    vectors = embedder.transform([ALLOY, salts[0], None, salts[1]])
    assert np.isnan(vectors[[0, 2]]).all()
    np.testing.assert_allclose(vectors[[1, 3]], embedder.transform(salts[:2]), rtol=1e-4, atol=1e-5)
    assert np.isnan(embedder.transform([ALLOY])).all()
    assert embedder.transform([ALLOY]).shape == (1, 32)


def test_vectors_that_are_not_finite_are_bad_crystals(embedder, salts, monkeypatch):
    def broken(*arguments):
        vectors, rows = represent(*arguments)
        vectors[1, 3] = float("inf")
        return vectors, rows

    monkeypatch.setattr("pyg_dim.embedder.represent", broken)
    with pytest.raises(ValueError, match=r"1 of 3 crystals.*X\[1\]: the encoder gives numbers that are not finite"):
        embedder.fit_transform(salts[:3])
    vectors = embedder.set_params(on_bad="nan").transform(salts[:3])
    assert np.isnan(vectors).all(axis=1).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ([], r"holds no crystal \(0 samples\)"),
        ("a.cif", "not one str: for one crystal give a list of one"),
        (salt("Na", "Cl", 5.6), "not one Structure"),
        (salt("Na", "Cl", 5.6).as_dict(), "not one dict"),
        (bulk("Cu"), "not one Atoms"),
        ((s for s in ()), "not one generator"),
        (np.zeros((2, 3)), r"one dimension.*\(2, 3\)"),
        (pd.DataFrame({"a": [1]}), "one dimension"),
    ],
)
def test_what_is_no_list_of_crystals(embedder, salts, X, message):
    with pytest.raises(ValueError, match=message):
        embedder.fit(X)
    with pytest.raises(ValueError, match=message):
        embedder.fit(salts).transform(X)


def test_a_file_that_cannot_be_read_is_named(embedder, salts, tmp_path):
    (tmp_path / "cut.cif").write_text("nothing")
    embedder.fit(salts)
    with pytest.raises(
        ValueError, match=rf"X\[1\] \({re.escape(str(tmp_path / 'cut.cif'))}\): unreadable CIF \("
    ) as error:
        embedder.transform([salts[0], tmp_path / "cut.cif", "salt.txt"])
    assert "X[2]: no path of a CIF or POSCAR file (salt.txt)" in str(error.value)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"model": "nonet"}, FileNotFoundError, "there is no encoder 'nonet'"),
        ({"readout": "loud"}, ValueError, "unknown readout 'loud'"),
        ({"readout": "decoded"}, ValueError, "trained with the objective fingerprint"),
        ({"on_bad": "skip"}, ValueError, "on_bad must be one of raise, nan, not 'skip'"),
        ({"batch_sites": 0}, ValueError, "batch_sites must be at least 1"),
        ({"max_sites": 0}, ValueError, "max_sites must be at least 1"),
    ],
)
def test_wrong_parameters_are_told_when_fitted(embedder, salts, params, error, message):
    embedder.set_params(**params)
    with pytest.raises(error, match=message):
        embedder.fit_transform(salts)


def test_parameters_count_when_it_is_fitted(embedder, salts):
    before = embedder.fit_transform(salts)
    embedder.set_params(readout="full", model="nonet", max_sites=1)
    np.testing.assert_array_equal(embedder.transform(salts), before)


def test_it_has_to_be_fitted(embedder, salts):
    for call in (lambda: embedder.transform(salts), embedder.get_feature_names_out):
        with pytest.raises(NotFittedError):
            call()


@pytest.mark.parametrize("how", ["pickle", "joblib"])
def test_weights_travel_with_a_fitted_one(weights, salts, tmp_path, how):
    moved = shutil.copy(weights, tmp_path / "moved.safetensors")
    embedder = CrystalEmbedder(moved)
    unfitted = pickle.dumps(embedder)
    expected = embedder.fit_transform(salts)
    (tmp_path / "moved.safetensors").unlink()
    if how == "joblib":
        joblib.dump(embedder, tmp_path / "e.joblib")
        again = joblib.load(tmp_path / "e.joblib")
    else:
        again = pickle.loads(pickle.dumps(embedder))  # noqa: S301
    np.testing.assert_array_equal(again.transform(salts), expected)
    # Bytes of a weights file and plain values: no module.
    assert b"torch" not in pickle.dumps(embedder).replace(again.weights_, b"")
    assert len(unfitted) < 2000
    with pytest.raises(FileNotFoundError):
        pickle.loads(unfitted).fit(salts)  # noqa: S301


def test_a_pipeline_is_cross_validated_and_searched(embedder, salts, energies):
    pipeline = make_pipeline(embedder, StandardScaler(), Ridge())
    by_hand = cross_val_score(
        make_pipeline(StandardScaler(), Ridge()), clone(embedder).fit_transform(salts), energies, cv=3
    )
    scores = cross_val_score(pipeline, salts, energies, cv=3)
    np.testing.assert_allclose(scores, by_hand, rtol=1e-2, atol=1e-2)
    grid = {"crystalembedder__readout": ["global", "full"], "ridge__alpha": [0.1, 1.0]}
    with joblib.parallel_backend("threading"):
        search = GridSearchCV(pipeline, grid, cv=2, n_jobs=2).fit(salts, energies)
    assert search.predict(salts[:2]).shape == (2,)
    assert len(search.cv_results_["params"]) == 4


def test_processes_give_the_same_scores(embedder, salts, energies):
    pipeline = make_pipeline(embedder, StandardScaler(), Ridge())
    alone = cross_val_score(pipeline, salts, energies, cv=2)
    # Another number of threads rounds otherwise, and scaling blows up what hardly varies.
    np.testing.assert_allclose(cross_val_score(pipeline, salts, energies, cv=2, n_jobs=2), alone, rtol=1e-2)


class OfNumbers(CrystalEmbedder):
    """An embedder of rows of numbers: scikit-learn's own checks know no crystals.

    Each row becomes rock salt whose elements and edge follow from the numbers.
    """

    def fit(self, X, y=None):
        return super().fit(self._crystals(X, reset=True), y)

    def transform(self, X):
        if not hasattr(self, "weights_"):
            raise NotFittedError("not fitted")
        return super().transform(self._crystals(X, reset=False))

    def _crystals(self, X, reset):
        X = validate_data(self, X, reset=reset)
        rows = np.tanh(X.sum(axis=1)) * 0.5 + 0.5
        return [bulk(CATIONS[int(3.99 * row)] + ANIONS[int(2.99 * row)], "rocksalt", 5.0 + float(row)) for row in rows]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.one_d_array = tags.input_tags.string = tags.input_tags.dict = False
        tags.no_validation = False
        return tags


@pytest.fixture(scope="module", autouse=True)
def _shipped(weights):
    """The checks make embedders with default parameters: give them an encoder of that name."""
    from pyg_dim.training import pretrained

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained, "shipped_encoders", lambda: {"sitenet-dim": weights})
        yield


@parametrize_with_checks([OfNumbers()])
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)


def test_every_parameter_is_documented():
    text = inspect.getdoc(CrystalEmbedder)
    for name in CrystalEmbedder().get_params():
        assert f"\n    {name}: " in text
