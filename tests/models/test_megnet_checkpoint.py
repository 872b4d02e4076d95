from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyg_dim.models import MEGNet, load_megnet_checkpoint
from pyg_dim.models.megnet_checkpoint import MEGNetPredictor, _their_name
from pyg_dim.objectives.deep_infomax import DeepInfoMax

NAMES = ["NaCl", "CaTiO3", "Cu"]
ARGUMENTS: dict[str, Any] = {
    "dim_node_embedding": 5, "dim_edge_embedding": 9, "dim_state_embedding": 2, "ntypes_state": None, "nblocks": 2,
    "hidden_layer_sizes_input": [7, 6], "hidden_layer_sizes_conv": [8, 9, 6], "hidden_layer_sizes_output": [10, 4],
    "nlayers_set2set": 1, "niters_set2set": 2, "activation_type": "softplus2", "is_classification": False,
    "include_state": True, "dropout": None, "graph_transformations": None, "element_types": None,
    "bond_expansion": None, "cutoff": 4.0, "gauss_width": 0.5,
}  # fmt: skip
"""Those of a small model, as matgl writes them down."""
ELEMENTS = [z for z in range(1, 95) if z not in (84, 85, 86, 87, 88)]
NORMALIZER = "Normalizer: Mean=-1.5, Std: 2.5"


def weights_of(elements: int = len(ELEMENTS), **arguments: Any) -> dict[str, torch.Tensor]:
    """Random weights under the names of matgl."""
    given = ARGUMENTS | arguments
    random = torch.Generator().manual_seed(1)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=random) - 0.5

    def layers(name: str, *widths: int) -> dict[str, torch.Tensor]:
        out = {}
        for k, (i, o) in enumerate(itertools.pairwise(widths)):
            out |= {f"{name}.layers.{2 * k}.weight": rand(o, i), f"{name}.layers.{2 * k}.bias": rand(o)}
        return out

    dense, convolution = given["hidden_layer_sizes_input"], given["hidden_layer_sizes_conv"]
    width = dense[-1]
    weights = {
        "bond_expansion.rbf.centers": torch.linspace(0, given["cutoff"] + 1, given["dim_edge_embedding"]),
        "embedding.layer_node_embedding.weight": rand(elements, given["dim_node_embedding"]),
    }
    if given["ntypes_state"]:
        weights["embedding.layer_state_embedding.weight"] = rand(given["ntypes_state"], given["dim_state_embedding"])
    for kind in ("edge", "node", "state"):
        weights |= layers(f"{kind}_encoder", given[f"dim_{kind}_embedding"], *dense)
    for b in range(given["nblocks"]):
        for kind, parts in {"edge": 4, "node": 3, "state": 3}.items():
            if b:
                weights |= layers(f"blocks.{b}.{kind}_func", width, *dense)
            weights |= layers(f"blocks.{b}.conv.{kind}_func", parts * width, *convolution)
    for kind in ("edge", "node"):
        weights |= {
            f"{kind}_s2s.lstm.weight_ih_l0": rand(4 * width, 2 * width), f"{kind}_s2s.lstm.bias_ih_l0": rand(4 * width),
            f"{kind}_s2s.lstm.weight_hh_l0": rand(4 * width, width), f"{kind}_s2s.lstm.bias_hh_l0": rand(4 * width),
        }  # fmt: skip
    return weights | layers("output_proj", 5 * width, *given["hidden_layer_sizes_output"], 1)


def description(transformer: str | None = NORMALIZER, **arguments: Any) -> dict[str, Any]:
    """model.json of matgl: a MEGNet, by itself or with a transformed target."""
    given = ARGUMENTS | arguments
    if transformer is None:
        return {"@class": "MEGNet", "@module": "matgl.models._megnet_pyg", "@model_version": 1, "kwargs": given}
    model = {"@class": "MEGNet", "@module": "matgl.models._megnet_dgl", "@model_version": 1, "init_args": given}
    return {
        "@module": "matgl.models", "@class": "TransformedTargetModel", "@model_version": 1, "metadata": None,
        "kwargs": {"model": model, "target_transformer": transformer},
    }  # fmt: skip


@pytest.fixture
def save(tmp_path: Path):
    """``save(weights, description)``: a folder as matgl writes it."""

    def write(weights: object, described: object = None, prefix: str = "model.") -> Path:
        folder = tmp_path / "MEGNet-small"
        folder.mkdir(exist_ok=True)
        (folder / "model.json").write_text(json.dumps(description() if described is None else described))
        if isinstance(weights, dict):
            weights = {prefix + name: value for name, value in weights.items()}
        torch.save(weights, folder / "state.pt")
        return folder

    return write


def save_npz(path: Path, weights: dict, **change: Any) -> Path:
    arrays = {f"w/model.{name}": value.numpy() for name, value in weights.items()}
    arrays |= {"hyperparameters_json": np.array(json.dumps(ARGUMENTS)), "element_Z": np.array(ELEMENTS)}
    arrays |= {"data_mean": np.array(-1.5), "data_std": np.array(2.5)} | change
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


def plain_head(weights: dict, crystal: torch.Tensor) -> torch.Tensor:
    """What follows the representation."""
    for k in (2, 4):
        crystal = torch.log((1 + crystal.exp()) / 2)
        weight, bias = (weights[f"output_proj.layers.{k}.{kind}"].double() for kind in ("weight", "bias"))
        crystal = crystal @ weight.T + bias
    return crystal[:, 0]


def test_every_weight_has_its_place(save, batch_of) -> None:
    """The same shape would not tell; the formulas are tested in test_megnet.py."""
    weights = weights_of()
    predictor = load_megnet_checkpoint(save(weights), dtype=torch.float64)
    assert not predictor.training
    own = {theirs: value for name, value in predictor.state_dict().items() if (theirs := _their_name(name))}
    own["embedding.layer_node_embedding.weight"] = own["embedding.layer_node_embedding.weight"][ELEMENTS]
    assert own.keys() == weights.keys()
    for name, value in weights.items():
        assert own[name].equal(value.double()), name
    encoder = predictor.encoder
    for ours, theirs in {
        encoder.encode_site.linears[1].bias: "node_encoder.layers.2.bias",
        encoder.blocks[1].dense_edge.linears[0].weight: "blocks.1.edge_func.layers.0.weight",
        encoder.blocks[0].site.linears[2].weight: "blocks.0.conv.node_func.layers.4.weight",
        encoder.read_sites.lstm.bias_hh: "node_s2s.lstm.bias_hh_l0",
        encoder.output.weight: "output_proj.layers.0.weight",
        predictor.head[0].weight: "output_proj.layers.2.weight",
    }.items():
        assert ours.equal(weights[theirs].double())

    batch = encoder.graph(batch_of(NAMES))
    expected = plain_head(weights, encoder(batch)) * 2.5 - 1.5
    torch.testing.assert_close(predictor(batch), expected, rtol=1e-12, atol=1e-12)


def test_sizes_are_those_of_the_arguments(save) -> None:
    encoder = load_megnet_checkpoint(save(weights_of())).encoder
    assert isinstance(encoder, MEGNet)
    assert encoder.config | {
        "element_channels": 5, "gaussians": 9, "gaussian_steepness": 0.5, "cutoff": 4.0, "blocks": 2,
        "feature_channels": 6, "dense_hidden": [7], "convolution_hidden": [8, 9], "set2set_steps": 2,
        "fidelities": None, "crystal_channels": 10,
    } == encoder.config  # fmt: skip
    assert all(p.dtype == torch.float32 for p in encoder.parameters())


def test_formats_are_read_alike(save, tmp_path, batch_of) -> None:
    weights = weights_of()
    first = load_megnet_checkpoint(save(weights))
    batch = first.encoder.graph(batch_of(NAMES, torch.float32))
    expected = first(batch)
    assert expected.dtype == torch.float32
    newer = "Normalizer(mean=-1.5, std=2.5)"
    assert load_megnet_checkpoint(save_npz(tmp_path / "w.npz", weights))(batch).equal(expected)
    assert load_megnet_checkpoint(save(weights, description(newer)))(batch).equal(expected)
    bare = load_megnet_checkpoint(save(weights, description(None), prefix=""))(batch)
    torch.testing.assert_close(bare * 2.5 - 1.5, expected)


def test_labels_of_the_state(save, batch_of) -> None:
    more = {"ntypes_state": 4, "dim_state_embedding": 3, "niters_set2set": 3, "cutoff": 5.0}
    predictor = load_megnet_checkpoint(save(weights_of(**more), description(**more)))
    batch = predictor.encoder.graph(batch_of(["NaCl"] * 4, torch.float32))
    assert predictor(batch).unique().numel() == 1
    batch.state = torch.arange(4)
    assert predictor(batch).unique().numel() == 4
    batch.state = torch.full((4,), 4)
    with pytest.raises(ValueError, match="knows the states 0 to 3"):
        predictor(batch)


def test_elements_by_name(save, batch_of) -> None:
    names = ["Cl", "Na", "O"]
    weights = weights_of(3)
    predictor = load_megnet_checkpoint(save(weights, description(element_types=names)))
    rows = predictor.encoder.embed_element.weight
    assert rows[[17, 11, 8]].equal(weights["embedding.layer_node_embedding.weight"])
    assert predictor(predictor.encoder.graph(batch_of(["NaCl"], torch.float32))).isfinite().all()
    batch = predictor.encoder.graph(batch_of(["NaCl", "CaTiO3", "Cu"], torch.float32))
    with pytest.raises(ValueError, match="was not trained for the elements Ca, Ti, Cu"):
        predictor(batch)
    assert predictor.train()(batch).isfinite().all()  # where it can learn them


@pytest.mark.parametrize("z", [84, 85, 86, 87, 88, 95, 103])
def test_unknown_elements_are_named(save, batch_of, relabelled, z) -> None:
    predictor = load_megnet_checkpoint(save(weights_of()))
    batch = predictor.encoder.graph(batch_of(["NaCl", relabelled("NaCl", [z, 94])], torch.float32))
    symbol = {84: "Po", 85: "At", 86: "Rn", 87: "Fr", 88: "Ra", 95: "Am", 103: "Lr"}[z]
    with pytest.raises(ValueError, match=f"not trained for the elements {symbol}$"):
        predictor(batch)


def test_the_state_of_a_predictor_brings_all_it_needs(save, batch_of) -> None:
    first = load_megnet_checkpoint(save(weights_of()))
    second = MEGNetPredictor(MEGNet(**first.encoder.config), hidden=[4]).eval()
    second.load_state_dict(first.state_dict())
    batch = first.encoder.graph(batch_of(NAMES, torch.float32))
    assert second(batch).equal(first(batch))
    assert second.known.equal(first.known)


def test_the_encoder_learns_without_labels(save, batch_of, generator) -> None:
    encoder = load_megnet_checkpoint(save(weights_of()), dtype=torch.float64).encoder.train()
    DeepInfoMax(encoder)(encoder.graph(batch_of(NAMES)), generator)["total"].backward()
    assert encoder.blocks[1].edge.linears[0].weight.grad.any()


def without(name: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in weights_of().items() if key != name}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (without("blocks.1.conv.edge_func.layers.4.bias"), r"has no blocks\.1\.conv\.edge_func\.layers\.4\.bias"),
        (without("embedding.layer_node_embedding.weight"), r"has no embedding\.layer_node_embedding\.weight"),
        (without("bond_expansion.rbf.centers"), r"has no bond_expansion\.rbf\.centers"),
        (weights_of(nblocks=3), r"MEGNet does not have: blocks\.2\.edge_func\.layers\.0\.weight"),
        (weights_of(4), r"'embedding\.layer_node_embedding\.weight' has shape \(4, 5\) where \(89, 5\) is needed"),
        (weights_of(dim_edge_embedding=12), r"has shape \(12,\) where \(9,\) is needed"),
        (weights_of() | {"edge_s2s.lstm.bias_hh_l0": torch.full((24,), torch.nan)}, "that are no finite numbers"),
        (weights_of() | {"bond_expansion.rbf.centers": torch.linspace(0, 6, 9)}, r"reach to 6\.000 angstrom"),
    ],
)
def test_weights_that_do_not_fit(save, weights, message) -> None:
    with pytest.raises(ValueError, match=r"MEGNet-small.*" + message):
        load_megnet_checkpoint(save(weights))


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ([], "model.json is no JSON object"),
        ({}, "describes no model of the class MEGNet"),
        ({"@class": "M3GNet", "kwargs": {}}, "describes no model of the class MEGNet"),
        (description() | {"kwargs": {}}, "target is transformed by 'None'"),
        (description("LogTransformer"), "transformed by 'LogTransformer', where a Normalizer with two numbers"),
        (description("Normalizer(mean=tensor(1.), std=tensor(2.))"), "where a Normalizer with two numbers is needed"),
        (description("Normalizer(mean=1.2.3, std=2.0)"), "where a Normalizer with two numbers is needed"),
        (description(activation_type="swish"), "activation_type is 'swish', where only 'softplus2' can be read"),
        (description(nlayers_set2set=2), "nlayers_set2set is 2, where only 1"),
        (description(include_state=False), "include_state is False, where only True"),
        (description(hidden_layer_sizes_conv=[8, 9, 7]), "change the width of features from 6 to 7"),
        (description(hidden_layer_sizes_output=[]), "arguments of the model cannot be used"),
        (description(nblocks="two"), "arguments of the model cannot be used"),
        (description(nblocks=0), "cannot be used: MEGNet: blocks must be at least 1, not 0"),
        (description(cutoff=None), "arguments of the model cannot be used"),
        (description(niters_set2set=2.5), "sizes are whole numbers up to 65536"),
        (description(dim_edge_embedding=10**12), "sizes are whole numbers up to 65536"),
        (description("Normalizer: Mean=-1.5, Std: -2.5"), r"deviation of the target is -2\.5; it must be positive"),
        (description(element_types=["Na", "Xx"]), r"element_types names \['Xx'\], which are no elements"),
        (description(element_types="Na"), r"element_types is no list of names"),
    ],
)
def test_descriptions_that_cannot_be_used(save, described, message) -> None:
    with pytest.raises(ValueError, match=r"MEGNet-small.*" + message):
        load_megnet_checkpoint(save(weights_of(), described))


def test_an_argument_that_is_missing(save) -> None:
    described = description()
    del described["kwargs"]["model"]["init_args"]["gauss_width"]
    with pytest.raises(ValueError, match="no checkpoint of MEGNet: its arguments have no 'gauss_width'"):
        load_megnet_checkpoint(save(weights_of(), described))


def test_files_that_are_something_else(save, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*absent"):
        load_megnet_checkpoint(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no file .*model\.json"):
        load_megnet_checkpoint(tmp_path / "empty")
    folder = save(weights_of())
    (folder / "state.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*state\.pt"):
        load_megnet_checkpoint(folder)
    (folder / "state.pt").write_text("no weights")
    with pytest.raises(ValueError, match=r"state\.pt is not a readable PyTorch file"):
        load_megnet_checkpoint(folder)
    for content in ([1, 2], {"a": 1}):
        with pytest.raises(ValueError, match=r"state\.pt is a PyTorch file but no weights of a model"):
            load_megnet_checkpoint(save(content))
    torch.save({"code": Path}, folder / "state.pt")
    with pytest.raises(ValueError, match=r"state\.pt is not a readable"):
        load_megnet_checkpoint(folder)
    (folder / "model.json").write_text("{")
    with pytest.raises(ValueError, match=r"model\.json is no JSON"):
        load_megnet_checkpoint(folder)
    (folder / "model.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(ValueError, match=r"model\.json is no JSON"):
        load_megnet_checkpoint(folder)

    path, weights = tmp_path / "w.npz", weights_of()
    for change, message in (
        ({"hyperparameters_json": None}, "has no 'hyperparameters_json'"),
        ({"hyperparameters_json": np.array("none")}, "hyperparameters_json is no JSON"),
        ({"element_Z": None}, "has no 'element_Z'"),
        ({"element_Z": np.arange(89) + 16}, r"element_Z holds numbers of no element: \[104\]"),
        ({"element_Z": np.array(["Na"])}, "element_Z holds no atomic numbers"),
        ({"element_Z": np.array([11, 11])}, "element_Z names an element twice"),
        ({"data_std": None}, "has no number 'data_std'"),
        ({"data_std": np.array(np.nan)}, "'data_std' is nan, not a finite number"),
        ({"w/output_proj.layers.4.bias": np.array(["a"])}, "output_proj.layers.4.bias hold no numbers"),
        ({"data_mean": np.array("a")}, "has no number 'data_mean'"),
    ):
        with pytest.raises(ValueError, match=re.escape(str(path)) + ".*" + message):
            load_megnet_checkpoint(save_npz(path, weights, **change))
    path.write_text("text")
    with pytest.raises(ValueError, match=r"w\.npz is not a readable \.npz file"):
        load_megnet_checkpoint(path)
