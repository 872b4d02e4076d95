from __future__ import annotations

import gzip

import numpy as np
import pytest
import torch
from torch_geometric.loader import DataLoader

from pyg_dim.data import CompositionDataset, CompositionGraph, CrystalLoader, NearestNeighbors, load_dataset
from pyg_dim.data.composition import chemical_system_groups, composition_groups
from pyg_dim.data.compositions import holds_formulas
from pyg_dim.data.fingerprints import fingerprint_table
from pyg_dim.data.graphs import DenseSupercell, RadiusGraph
from pyg_dim.data.line_graph import LineGraph
from pyg_dim.data.magpie import MAGPIE_NAMES
from pyg_dim.data.splits import given_parts, matbench_folds, split
from pyg_dim.evaluate.families import chemical_families
from pyg_dim.evaluate.intrinsic import ELECTRONEGATIVITY, intrinsic_targets

FORMULAS = ["Fe", "NaCl", "Fe2O3", "Hg0.7Cd0.3Te", "K6S6", "KS"]


@pytest.fixture
def formulas() -> CompositionDataset:
    labels = {"gap": [0.0, 8.5, 2.0, float("nan"), 1.0, 1.1]}
    return CompositionDataset.from_formulas(FORMULAS, labels=labels, dtype=torch.float64)


@pytest.fixture
def write(tmp_path):
    """``write("table.csv", text)``: a file in a folder of its own."""

    def make(name: str, text: str):
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    return make


def test_flat_tensors(formulas):
    assert len(formulas) == 6
    assert formulas.z.tolist() == [26, 11, 17, 8, 26, 48, 52, 80, 16, 19, 16, 19]
    assert formulas.amount.tolist() == [1, 1, 1, 3, 2, 0.3, 1, 0.7, 6, 6, 1, 1]
    assert formulas.ptr.tolist() == [0, 1, 3, 5, 8, 10, 12]
    assert formulas.num_sites.tolist() == [1, 2, 2, 3, 2, 2]
    assert [formulas.formula(row) for row in range(6)] == ["Fe", "NaCl", "Fe2O3", "Cd0.3Hg0.7Te", "KS", "KS"]
    assert repr(formulas) == "CompositionDataset(6 formulas, 12 elements, labels=['gap'])"
    assert formulas.num_bytes == 8 * (12 + 12 + 12 + 6)


def test_parts_of_a_data_set(formulas):
    part = formulas.subset(torch.tensor([3, 0]))
    assert isinstance(part, CompositionDataset)
    assert (part.z.tolist(), part.amount.tolist()) == ([48, 52, 80, 26], [0.3, 1, 0.7, 1])
    assert part.ids.to_pylist() == ["3", "0"]
    assert part.target("gap")[1] == 0
    assert formulas.subset([3, 0]).amount.equal(part.amount)
    assert len(formulas) == 6, "the data set is left as it was"
    batch = formulas.gather(torch.tensor([2, 4]), ["gap"])
    assert batch.y.tolist() == [[2.0], [1.0]]
    assert (batch.z.tolist(), batch.amount.tolist(), batch.max_sites) == ([8, 26, 16, 19], [3, 2, 6, 6], 2)
    assert not {"pos", "cell", "x"} & set(batch.keys())
    assert formulas.to("meta").amount.device.type == "meta"


def test_loader_fills_a_budget_of_elements(formulas):
    batches = list(CrystalLoader(formulas, CompositionGraph(), batch_sites=4, shuffle=False, targets=["gap"]))
    assert [batch.z.numel() for batch in batches] == [3, 2, 3, 4]
    assert torch.cat([batch.row for batch in batches]).tolist() == list(range(6))
    assert all(batch.edge_index.size(1) == batch.ptr.diff().square().sum() for batch in batches)


def test_one_formula_and_batches_of_pyg(formulas):
    one = formulas[-3]
    assert (one.id, one.num_nodes, one.amount.tolist()) == ("3", 3, [0.3, 1, 0.7])
    graph = CompositionGraph()
    assert graph(one).edge_index.tolist() == [[0, 1, 2] * 3, [0, 0, 0, 1, 1, 1, 2, 2, 2]]
    (ours,) = CrystalLoader(formulas, graph, shuffle=False)
    for theirs in (
        next(iter(DataLoader([graph(formulas[row]) for row in range(6)], batch_size=6))),
        graph(next(iter(DataLoader([formulas[row] for row in range(6)], batch_size=6)))),
    ):
        for key in ("z", "amount", "batch", "ptr", "edge_index"):
            assert theirs[key].equal(ours[key]), key
        assert theirs.max_sites == ours.max_sites


def test_groups_and_splits(formulas):
    group = composition_groups(formulas)
    assert group[4] == group[5]
    assert group.unique().numel() == 5
    more = CompositionDataset.from_formulas(["Hg7Cd3Te10", "Hg0.7Cd0.3Te", "HgCdTe2", "O2Cd0.1", "CdO20"])
    group = composition_groups(more)
    assert (group[0], group[3]) == (group[1], group[4])
    assert group.unique().numel() == 3
    assert chemical_system_groups(more).unique().numel() == 2
    train, val = split(formulas, 0.3, by="formula")
    assert (4 in train) == (5 in train)
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(6))


def test_official_folds_by_name(shared):
    dataset = load_dataset(shared("data/compositions/matbench_steels.csv"))
    with np.load(shared("fixtures/matbench_folds.npz"), allow_pickle=False) as file:
        expected = torch.from_numpy(file[next(name for name in file.files if "steels" in name)]).long()
    assert matbench_folds(dataset).equal(expected)
    _, val = given_parts(dataset, "matbench:2")
    assert val.equal((expected == 2).nonzero()[:, 0])


def test_magpie_features_are_those_of_matminer(shared):
    with np.load(shared("fixtures/magpie_features.npz"), allow_pickle=False) as file:
        formulas, names, expected = file["formula"], file["feature_names"], file["features_fast_true"]
    assert len(names) == len(MAGPIE_NAMES)
    dataset = CompositionDataset.from_formulas(formulas.tolist(), dtype=torch.float64)
    found = fingerprint_table(dataset, ["magpie"]).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


def test_magpie_features_do_not_depend_on_what_a_formula_is_multiplied_by():
    texts = ["Hg0.7Cd0.3Te", "Hg7Cd3Te10", "Fe0.5O0.75", "Fe2O3", "Na0.5O0.5", "NaO"]
    values = fingerprint_table(CompositionDataset.from_formulas(texts, dtype=torch.float64), ["magpie"])
    torch.testing.assert_close(values[::2], values[1::2], rtol=1e-10, atol=1e-10)
    assert values[:, MAGPIE_NAMES.index("compound possible")].tolist() == [1, 1, 1, 1, 0, 0]


def test_what_needs_a_structure_is_refused(formulas):
    with pytest.raises(ValueError, match="no fingerprint 'radial': take 'magpie' alone"):
        fingerprint_table(formulas, ["magpie", "radial"])
    batch = formulas.gather(torch.tensor([0, 1]))
    for graph in (NearestNeighbors(), RadiusGraph(4.0), DenseSupercell(), LineGraph(NearestNeighbors())):
        with pytest.raises(ValueError, match=r"holds formulas, without positions.*roost"):
            graph(batch)
    with pytest.raises(ValueError, match=r"OPTIMADE columns hold structures"):
        formulas.to_parquet("formulas.parquet")
    with pytest.raises(ValueError, match="use from_csv or from_formulas"):
        CompositionDataset.from_sound()


def test_properties_that_follow_from_a_formula(formulas):
    targets = intrinsic_targets(formulas)
    assert set(targets) == {ELECTRONEGATIVITY}
    oxide = (2 * 1.83 + 3 * 3.44) / 5
    assert targets[ELECTRONEGATIVITY][2] == pytest.approx(oxide)
    more = CompositionDataset.from_formulas(["La2O2Cl", "LaOCl", "La0.1OCl2", "Fe", "FeNi"])
    assert chemical_families(more) == ["oxide", "oxide", "halide", "element", "intermetallic"]


def test_csv(write):
    path = write(
        "gaps.csv", "material_id,composition,gap (eV),note,,is_metal\nx,NaN,1.5,a,0,true\ny,Fe2O3,,b,1,false\n"
    )
    dataset = CompositionDataset.from_csv(path, torch.float64)
    assert dataset.ids.to_pylist() == ["x", "y"]
    assert dataset.z[:2].tolist() == [7, 11], "sodium nitride is no missing value"
    assert list(dataset.labels) == ["gap", "is_metal"]
    assert dataset.units == {"gap": "eV"}
    assert dataset.target("gap")[0] == 1.5
    assert dataset.target("gap")[1].isnan()
    assert dataset.target("is_metal").tolist() == [1, 0]
    assert "2 of 2 formulas kept" in str(dataset.report)
    assert "column 'note' is not numeric and was not read" in str(dataset.report)


def test_compressed_and_numbered(write):
    dataset = load_dataset(write("table.csv.gz", "\ufeffformula,target\nNaCl,1\nFe,2\n"))
    assert isinstance(dataset, CompositionDataset)
    assert dataset.ids.to_pylist() == ["0", "1"]
    assert dataset.pos.dtype == dataset.amount.dtype == torch.float32


def test_bad_rows_are_left_out_and_told(write):
    lines = [
        "id,formula,y", "a,NaCl,1", "b,Xx2,2", "c,D2O,3", "d,,4", "e,Fe-2,5", "a,KCl,6", "f,CsCl,inf", "g,LiF,oops",
        "h,Fe,1,2", "i,LiCl,7",
    ]  # fmt: skip
    dataset = CompositionDataset.from_csv(write("rows.csv", "\n".join(lines) + "\n"))
    assert dataset.ids.to_pylist() == ["a", "g", "i"]
    assert dataset.target("y").nan_to_num(-1).tolist() == [1, -1, 7]
    report = str(dataset.report)
    assert dataset.report.num_read == 10
    assert dataset.report.num_kept == 3
    for text in (
        "3 of 10 formulas kept", "unknown or unsupported element: 1 (b (line 3: Xx in Xx2))",
        "isotope of hydrogen, write H: 1 (c (line 4: D in D2O))", "empty formula: 1 (d (line 5))",
        "negative amount: 1 (e (line 6: Fe-2))",
        "identifier already taken: 1 (a (line 7))", "non-finite label: 1 (f (line 8: y = inf))",
        "row does not fit the columns: 1 (8 (line 10: 4 values for 3 columns))",
        "label y: 1 values that are no number, treated as missing (g: oops)",
    ):  # fmt: skip
        assert text in report


def test_numbers_of_rows_are_those_of_the_file(write):
    dataset = CompositionDataset.from_csv(write("rows.csv", "formula,y\nNaCl,1\nFe,1,2\nD2O,3\nKCl,4\n"))
    assert dataset.ids.to_pylist() == ["0", "3"]


def test_rows_that_are_left_out_are_told_by_the_line_of_the_file(write):
    """Empty lines count, and so do those within quotes; identifiers number the rows alone."""
    text = 'formula,note,y\nNaCl,,1\n\nNaCl2x,"two\nlines",2\nFe,1\n\nXx,,3\n'
    dataset = CompositionDataset.from_csv(write("rows.csv", text))
    assert [str(item) for item in dataset.report.left_out] == [
        "2 (line 6: 2 values for 3 columns)", "1 (line 4: 'NaCl2x')", "3 (line 8: Xx in Xx)",
    ]  # fmt: skip
    # Longer than the csv module reads: lines are not known from there on.
    dataset = CompositionDataset.from_csv(write("long.csv", f"formula,y\nFe,1\nXy,1\nKCl,{'9' * 200_000}\nXx,1\n"))
    assert [str(item) for item in dataset.report.left_out] == ["1 (line 3: Xy in Xy)", "2 (y = inf)", "3 (Xx in Xx)"]


def test_semicolons_are_asked_for(write):
    with pytest.raises(ValueError, match=r"its columns are 'formula;y'; is it separated by semicolons\?"):
        CompositionDataset.from_csv(write("table.csv", "formula;y\nNaCl;1,5\n"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.csv", "formula,y\nD2O,1\n", "no usable formula\n.*0 of 1 formulas kept"),
        ("empty.csv", "", "has no column composition or formula"),
        ("other.csv", "name,y\nNaCl,1\n", "has no column composition or formula; its columns are 'name', 'y'"),
        ("twice.csv", "formula,y,y (eV)\nNaCl,1,2\n", "y"),
    ],
)
def test_files_without_formulas(write, name, text, message):
    with pytest.raises(ValueError, match=message):
        CompositionDataset.from_csv(write(name, text))


def test_a_damaged_file_is_named(write, tmp_path):
    path = tmp_path / "broken.csv.gz"
    rows = "".join(f"NaCl,{row**3 % 7919}\n" for row in range(9999))
    path.write_bytes(gzip.compress(f"formula,y\n{rows}".encode())[:-200])
    with pytest.raises(ValueError, match=r"broken.csv.gz is no readable CSV file"):
        CompositionDataset.from_csv(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        CompositionDataset.from_csv(tmp_path / "absent.csv")


def test_tables_of_structures_stay_what_they_are(write, tmp_path):
    assert holds_formulas(write("a.csv", "formula,y\n"))
    assert not holds_formulas(write("b.csv", "formula,cif\n"))
    assert not holds_formulas(write("c.txt", "formula,y\n"))
    assert not holds_formulas(tmp_path)
    with pytest.raises(ValueError, match="no oxidation states here: use zero"):
        load_dataset(write("d.csv", "formula\nNaCl\n"), oxidation="guess")


def test_lists_of_another_length():
    with pytest.raises(ValueError, match="ids has 1 entries for 2 formulas"):
        CompositionDataset.from_formulas(["Fe", "O"], ids=["a"])
    with pytest.raises(ValueError, match="y has 3 entries for 2 formulas"):
        CompositionDataset.from_formulas(["Fe", "O"], labels={"y": [1, 2, 3]})


def test_crystals_are_counted(batch_of):
    batch = batch_of(["TiO2", "Cu", "triclinic"])
    CompositionGraph()(batch)
    assert batch.z.tolist() == [8, 22, 29, 3, 8, 15, 26]
    assert batch.amount.tolist() == [4, 2, 1, 2, 3, 1, 1]
    assert batch.ptr.tolist() == [0, 2, 3, 7]
    assert batch.batch.tolist() == [0, 0, 1, 2, 2, 2, 2]
    assert not {"pos", "cell", "x", "oxidation", "edge_dist", "edge_shift"} & set(batch.keys())
    source, target = batch.edge_index
    assert target.equal(target.sort(stable=True).values)
    assert batch.batch[source].equal(batch.batch[target])
    assert source.numel() == 4 + 1 + 16
    again = CompositionGraph()(batch.clone())
    assert all(again[key].equal(batch[key]) for key in ("z", "amount", "ptr", "batch", "edge_index"))
