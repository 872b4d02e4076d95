from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pyg_dim import native, record
from pyg_dim.constituents import Constituents
from pyg_dim.data import CompositionDataset
from pyg_dim.data.elements import symbols
from pyg_dim.models import Roost, build
from pyg_dim.models.element_vectors import ElementVectors, read_element_vectors
from pyg_dim.models.residual import ResidualNetwork
from pyg_dim.models.weighted_attention import WeightedAttention

SMALL = {"site_channels": 8, "layers": 2, "heads": 2, "hidden_channels": 9, "trunk": [16, 12], "crystal_channels": 10}
TEXTS = ["Fe", "NaCl", "Fe2O3", "Hg0.7Cd0.3Te", "Ba0.5Sr0.5Co0.8Fe0.2O3"]


def batch_of_formulas(model: Roost, texts: list[str]):
    dataset = CompositionDataset.from_formulas(texts, dtype=torch.float64)
    return model.graph(dataset.gather(torch.arange(len(texts))))


@pytest.fixture
def model() -> Roost:
    return Roost(**SMALL).double()


def test_attention_written_out() -> None:
    attention = WeightedAttention(3, 4, 5, 6, heads=2).double()
    z, weight = torch.randn(7, 3).double(), torch.rand(7).double() + 0.1
    index = torch.tensor([0, 0, 0, 2, 2, 3, 3])
    found = attention(Constituents((z, None)), weight, index, 4)
    hidden = torch.nn.functional.leaky_relu(attention.hidden(z), 0.01)
    for head in range(2):
        gate = hidden[:, 5 * head : 5 * head + 5] @ attention.gate_weight[head] + attention.gate_bias[head]
        own = hidden[:, 10 + 6 * head : 16 + 6 * head]
        message = own @ attention.message_weight[head].T + attention.message_bias[head]
        for group in range(4):
            here = index == group
            if not here.any():
                assert not found[group].any(), "an empty set has nothing, and no NaN"
                continue
            share = weight[here] ** attention.power[head] * (gate[here] - gate[here].max()).exp()
            expected = (share / (share.sum() + 1e-10)) @ message[here]
            torch.testing.assert_close(found[group, head], expected, rtol=1e-12, atol=1e-12)


def test_large_gates_do_not_overflow() -> None:
    attention = WeightedAttention(2, 2, 3, 3, heads=1)
    torch.nn.init.constant_(attention.gate_bias, 1e4)
    z = torch.randn(4, 2, requires_grad=True)
    out = attention(Constituents((1e3 * z, None)), torch.ones(4), torch.tensor([0, 0, 1, 1]), 2)
    out.sum().backward()
    assert out.isfinite().all()
    assert z.grad.isfinite().all()


@pytest.mark.skipif(native.fault() is not None, reason="kernels cannot be built here")
def test_kernels_give_the_numbers_and_gradients_of_the_plain_path(monkeypatch) -> None:
    model = Roost(**SMALL | {"hidden_channels": 32}).double()
    batch = batch_of_formulas(model, TEXTS)
    calls, fused = [], WeightedAttention._fused
    monkeypatch.setattr(WeightedAttention, "_fused", lambda *given: calls.append(1) or fused(*given))
    found = []
    for enabled in (False, True):
        model.set_kernels(enabled)
        model.zero_grad()
        out = model(batch)
        out.square().sum().backward()
        found.append([out.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(calls) == len(model.messages)
    assert len(found[0]) == len(found[1])
    for plain, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-12)
    # Pairs that are not sorted by target take the plain path.
    batch.edge_index = batch.edge_index.flip(1)
    torch.testing.assert_close(model(batch), found[0][0], rtol=1e-10, atol=1e-12)
    assert len(calls) == len(model.messages)


def test_residual_layers_go_around_by_the_identity_where_they_can() -> None:
    network = ResidualNetwork([4, 4, 3]).double()
    x = torch.randn(5, 4).double()
    first = network.layers[0](x).relu() + x
    expected = network.layers[1](first).relu() + first @ network.around[1].weight.T
    torch.testing.assert_close(network(x), expected)
    assert len(list(network.around.parameters())) == 1


def test_a_formula_may_be_multiplied_and_written_in_any_order(model) -> None:
    texts = [("Fe2O3", "O6Fe4"), ("Hg0.7Cd0.3Te", "Te10Cd3Hg7"), ("CH3CH2OH", "C2H6O")]
    first, second = (model(batch_of_formulas(model, list(column))) for column in zip(*texts, strict=True))
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)


def test_fractions_count(model) -> None:
    vectors = model(batch_of_formulas(model, ["FeO", "Fe2O3", "Fe3O4", "Fe0.001O"]))
    assert torch.pdist(vectors).min() > 1e-4


def test_batched_equals_one_by_one(model) -> None:
    together = model.readout(batch_of_formulas(model, TEXTS), "full")
    alone = torch.cat([model.readout(batch_of_formulas(model, [text]), "full") for text in TEXTS])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


def test_levels_have_stoichiometric_weights(model) -> None:
    batch = batch_of_formulas(model, ["Fe2O3", "Fe"])
    with record(model, batch) as tape:
        out = model.represent(batch)
    *messages, pool = tape.records
    assert [entry.scope for entry in tape.records] == ["site", "site", "crystal"]
    share = torch.tensor([0.6, 0.4, 1.0], dtype=torch.float64)  # oxygen, iron; iron
    torch.testing.assert_close(pool.weight, share)
    torch.testing.assert_close(pool.constituents.dense(), out.site)
    source = batch.edge_index[0]
    for entry in messages:
        torch.testing.assert_close(entry.weight, share[source])
        # What comes in is the node before the layer, and its share.
        torch.testing.assert_close(entry.constituents.dense()[:, -1], share[source])
    torch.testing.assert_close(messages[0].constituents.dense()[:, -2], share[source])


def test_vectors_of_the_elements_that_come_along() -> None:
    z = torch.tensor([0, 1, 26, 103])
    one_hot = ElementVectors("one_hot", 1)(z)
    assert one_hot.shape == (4, 103)
    assert one_hot.sum(dim=1).tolist() == [0, 1, 1, 1]
    assert one_hot[2].argmax() == 25
    magpie = ElementVectors("magpie", 1)
    assert magpie.channels == 22
    every = magpie(torch.arange(1, 104))
    torch.testing.assert_close(every.mean(dim=0), torch.zeros(22), rtol=0, atol=1e-5)
    torch.testing.assert_close(every.std(dim=0, correction=0), torch.ones(22), rtol=1e-5, atol=0)
    learned = ElementVectors("learned", 7)
    assert not learned(z)[0].any()
    learned(z).sum().backward()
    assert not learned.learned.weight.grad[0].any(), "hidden stays hidden"


def write_table(path, vectors: dict[str, list[float]]) -> None:
    if path.suffix == ".json":
        path.write_text(json.dumps(vectors))
    elif path.suffix == ".csv":
        path.write_text("element,a,b\n" + "".join(f"{s},{','.join(map(str, v))}\n" for s, v in vectors.items()))
    else:
        np.savez(path, element=np.array(list(vectors)), embedding=np.array(list(vectors.values())))


@pytest.mark.parametrize("suffix", [".csv", ".json", ".npz"])
def test_tables_of_vectors(tmp_path, suffix) -> None:
    path = tmp_path / f"table{suffix}"
    write_table(path, {"Fe": [1.0, 2.0], "O": [3.0, -4.0]})
    table = read_element_vectors(path)
    assert table[25].tolist() == [1, 2]
    assert table[7].tolist() == [3, -4]
    assert table.isnan().all(dim=1).sum() == 101
    model = build("roost", **SMALL, elements=str(path)).double()
    assert model.config["elements"] == "table"
    assert model.config["element_channels"] == 2
    batch = batch_of_formulas(model, ["Fe2O3"])
    # The state brings the table where the file is not.
    twin = build("roost", **model.config).double()
    with pytest.raises(ValueError, match=r"no vectors for the elements O, Fe: .*has not been read"):
        twin(batch)
    twin.load_state_dict(model.state_dict())
    assert twin(batch).equal(model(batch))
    with pytest.raises(ValueError, match="no vectors for the elements Na, Cl"):
        model.eval()(batch_of_formulas(model, ["NaCl"]))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"Fe": [1, 2], "Xx": [3, 4]}', "no known element: 'Xx'"),
        ("b.json", '{"Fe": [1, 2], "O": [3]}', "differ in length"),
        ("c.json", '{"Fe": [1, NaN]}', "vector of Fe holds values that are no finite numbers"),
        ("d.json", "[1, 2]", "is no table of vectors of the elements"),
        ("e.json", "{", "is no table of vectors of the elements"),
        ("f.csv", "element,a\nFe,x\n", "is no table of vectors of the elements"),
        ("g.csv", "", "or there are none"),
        ("h.npz", "no archive", "is not a readable .npz file"),
        ("i.pkl", "", r"unknown elements '.*i.pkl'; known: learned, one_hot, magpie, or a file that ends in"),
    ],
)
def test_files_that_are_no_tables(tmp_path, name, text, message) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_element_vectors(tmp_path / name)


def test_a_missing_table_is_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.npz"):
        Roost(elements=str(tmp_path / "absent.npz"))
    with pytest.raises(ValueError, match=r"unknown elements 'matscholar'"):
        Roost(elements="matscholar")


def test_matscholar(shared_file) -> None:
    table = read_element_vectors(shared_file("fixtures/matscholar200.npz"))
    assert table.shape == (103, 200)
    torch.testing.assert_close(table.norm(dim=1), torch.ones(103, dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.fixture
def shared_file():
    from pathlib import Path

    def find(name: str):
        path = Path(__file__).parents[2] / "../shared" / name
        if not path.exists():
            pytest.skip(f"{name} is not there: parity data lie outside the repository")
        return path

    return find


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"site_channels": 1}, "site_channels must be at least 2, not 1"),
        ({"layers": 0}, "layers must be at least 1, not 0"),
        ({"heads": 0}, "heads must be at least 1"),
        ({"trunk": []}, "every width of trunk must be at least 1, not 0"),
        ({"trunk": [4, -1]}, "every width of trunk must be at least 1, not -1"),
    ],
)
def test_bad_arguments_are_named(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        Roost(**(SMALL | options))


def test_every_element_has_a_place(model) -> None:
    vectors = model(batch_of_formulas(model, list(symbols()[1:])))
    assert vectors.isfinite().all()
    assert torch.pdist(vectors).min() > 0


def test_trace_elements_in_single_precision() -> None:
    """Exponents start from normal numbers; the smallest shares of a steel are 1e-5."""
    model = Roost(**SMALL)
    for attention in (*model.messages, model.pool):
        torch.nn.init.constant_(attention.power, -3.0)
    dataset = CompositionDataset.from_formulas(["Fe0.62C0.00095Nb0.0000616Ni0.2", "Fe"])
    out = model(model.graph(dataset.gather(torch.arange(2))))
    out.square().sum().backward()
    assert out.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert out.detach().sum().isfinite()
