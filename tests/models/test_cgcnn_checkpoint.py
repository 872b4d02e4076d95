from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pyg_dim.data.batch import CrystalBatch
from pyg_dim.models import CGCNN, build, load_cgcnn_checkpoint, load_crystal_twins_checkpoint
from pyg_dim.models.batch_norm import BatchNorm
from pyg_dim.objectives.deep_infomax import DeepInfoMax

NAMES = ["NaCl", "CaTiO3", "Cu"]
SITE, CRYSTAL, EDGE, SPECIES = 6, 5, 41, 7


def weights_of(convolutions: int = 2, layers: int = 0, outputs: int = 1) -> dict[str, torch.Tensor]:
    """Random weights under the names of the authors' program."""
    random = torch.Generator().manual_seed(1)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=random) - 0.4

    def linear(name: str, inputs: int, outputs: int) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": rand(outputs, inputs), f"{name}.bias": rand(outputs)}

    def norm(name: str, width: int) -> dict[str, torch.Tensor]:
        values = {kind: rand(width) for kind in ("weight", "bias", "running_mean")} | {"running_var": rand(width) + 1}
        values["num_batches_tracked"] = torch.tensor(9)
        return {f"{name}.{kind}": value for kind, value in values.items()}

    weights = linear("embedding", SPECIES, SITE)
    for k in range(convolutions):
        weights |= linear(f"convs.{k}.fc_full", 2 * SITE + EDGE, 2 * SITE)
        weights |= norm(f"convs.{k}.bn1", 2 * SITE) | norm(f"convs.{k}.bn2", SITE)
    weights |= linear("conv_to_fc", SITE, CRYSTAL)
    for k in range(layers):
        weights |= linear(f"fcs.{k}", CRYSTAL, CRYSTAL)
    return weights | linear("fc_out", CRYSTAL, outputs)


def vectors() -> dict[int, list[float]]:
    """Atom vectors of all elements but those from 90 on."""
    random = np.random.default_rng(2)
    return {z: random.integers(0, 2, SPECIES).astype(float).tolist() for z in range(1, 90)}


@pytest.fixture
def atoms(tmp_path: Path) -> Path:
    path = tmp_path / "atom_init.json"
    path.write_text(json.dumps(vectors()))
    return path


@pytest.fixture
def save(tmp_path: Path):
    """``save(weights)``: a file as the authors' program writes it."""

    def write(weights: dict, **content: object) -> Path:
        path = tmp_path / "model.pth.tar"
        normalizer = {"mean": torch.tensor(-1.5), "std": torch.tensor(2.5)}
        # The score of a classifier is a number of NumPy.
        whole = {"epoch": 3, "state_dict": weights, "best_mae_error": np.float64(0.1), "normalizer": normalizer,
                 "args": {"atom_fea_len": SITE, "task": "regression"}}  # fmt: skip
        torch.save(whole | content, path)
        return path

    return write


def plain_prediction(weights: dict, batch: CrystalBatch, table: dict) -> torch.Tensor:
    """The authors' program as the paper tells it, for all crystals; output before the normalisation."""
    w = {name: value.double() for name, value in weights.items()}

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        scaled = (x - w[f"{name}.running_mean"]) / (w[f"{name}.running_var"] + 1e-5).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    x = linear("embedding", torch.tensor([table[int(z)] for z in batch.z], dtype=torch.float64))
    neighbour, distance = batch.edge_index[0].view(len(x), 12), batch.edge_dist.view(len(x), 12)
    e = torch.exp(-(((distance[..., None] - torch.arange(41, dtype=torch.float64) * 0.2) / 0.2) ** 2))
    for k in range(sum("fc_full.bias" in name for name in w)):
        message = torch.cat([x[:, None].expand(-1, 12, -1), x[neighbour], e], dim=-1)
        gate, core = norm(f"convs.{k}.bn1", linear(f"convs.{k}.fc_full", message)).chunk(2, dim=-1)
        x = F.softplus(x + norm(f"convs.{k}.bn2", (gate.sigmoid() * F.softplus(core)).sum(1)))
    pooled = torch.stack([x[batch.batch == c].mean(0) for c in range(batch.num_graphs)])
    crystal = F.softplus(linear("conv_to_fc", F.softplus(pooled)))
    for k in range(sum(name.startswith("fcs") for name in w) // 2):
        crystal = F.softplus(linear(f"fcs.{k}", crystal))
    return linear("fc_out", crystal)


@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("convolutions", [1, 3])
def test_predictions(save, atoms, batch_of, convolutions, layers) -> None:
    weights = weights_of(convolutions, layers)
    predictor = load_cgcnn_checkpoint(save(weights), atoms, dtype=torch.float64)
    assert not predictor.training
    batch = predictor.encoder.graph(batch_of(NAMES))
    expected = plain_prediction(weights, batch, vectors())[:, 0] * 2.5 - 1.5
    torch.testing.assert_close(predictor(batch), expected, rtol=1e-12, atol=1e-12)


def test_classifiers_give_logarithms_of_probabilities(save, atoms, batch_of) -> None:
    weights = weights_of(outputs=2)
    predictor = load_cgcnn_checkpoint(save(weights), atoms, dtype=torch.float64)
    batch = predictor.encoder.graph(batch_of(NAMES))
    out = predictor(batch)
    torch.testing.assert_close(out, plain_prediction(weights, batch, vectors()).log_softmax(1))
    torch.testing.assert_close(out.exp().sum(1), torch.ones(3, dtype=torch.float64))
    assert not predictor.train()(batch).equal(predictor(batch))  # dropout


def test_both_formats_are_read_alike(save, atoms, tmp_path, batch_of) -> None:
    weights = weights_of()
    arrays = {f"weights/{name}": value.numpy() for name, value in weights.items() if "tracked" not in name}
    np.savez(tmp_path / "w.npz", **arrays, **{"normalizer/mean": -1.5, "normalizer/std": 2.5})
    np.savez(tmp_path / "a.npz", Z=np.array(list(vectors())), vectors=np.array(list(vectors().values())))
    a = load_cgcnn_checkpoint(save(weights), atoms)
    b = load_cgcnn_checkpoint(tmp_path / "w.npz", tmp_path / "a.npz")
    batch = a.encoder.graph(batch_of(NAMES, torch.float32))
    assert a(batch).equal(b(batch))
    assert a(batch).dtype == torch.float32


def test_files_of_old_versions_of_numpy_are_read(save, atoms, tmp_path) -> None:
    """There the score of a classifier lies under another name."""
    old = tmp_path / "old.pth.tar"
    with zipfile.ZipFile(save(weights_of())) as new, zipfile.ZipFile(old, "w") as file:
        for name in new.namelist():
            content = new.read(name)
            if name.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in content
                content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            file.writestr(name, content)
    load_cgcnn_checkpoint(old, atoms)


def test_sizes_are_those_of_the_weights(save, atoms) -> None:
    encoder = load_cgcnn_checkpoint(save(weights_of(3)), atoms, k=6, dtype=torch.float64).encoder
    assert isinstance(encoder, CGCNN)
    assert encoder.config["site_channels"] == SITE
    assert encoder.config["convolutions"] == 3
    assert encoder.channels == CRYSTAL
    assert encoder.site_input.species.shape[1] == SPECIES
    assert repr(encoder.graph) == "NearestNeighbors(k=6, cutoff=8.0, pad=True, ties=False)"
    assert all(p.dtype == torch.float64 for p in encoder.parameters())


def test_the_encoder_learns_without_labels(save, atoms, batch_of, generator) -> None:
    encoder = load_cgcnn_checkpoint(save(weights_of()), atoms, dtype=torch.float64).encoder.train()
    before = encoder.convolutions[0].linear.weight.clone()
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    DeepInfoMax(encoder)(encoder.graph(batch_of(NAMES)), generator)["total"].backward()
    optimizer.step()
    assert not encoder.convolutions[0].linear.weight.equal(before)
    assert all(module.num_batches_tracked == 1 for module in encoder.modules() if isinstance(module, BatchNorm))


def test_an_element_without_vector_is_named(save, atoms, batch_of, relabelled) -> None:
    predictor = load_cgcnn_checkpoint(save(weights_of()), atoms)
    batch = predictor.encoder.graph(batch_of(["NaCl", relabelled("NaCl", [92, 90])], torch.float32))
    with pytest.raises(ValueError, match=re.escape("no atom vectors for the elements with atomic numbers [90, 92]")):
        predictor(batch)


def without(name: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in weights_of(3).items() if key != name}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (without("embedding.weight"), "has no 'embedding.weight'"),
        (without("convs.1.bn2.running_var"), r"has no convs\.1\.bn2\.running_var"),
        (without("fc_out.bias"), r"has no fc_out\.bias"),
        ({k: v for k, v in weights_of(3).items() if "convs.1" not in k}, r"has no convs\.1\.fc_full\.weight, convs"),
        ({k: v for k, v in weights_of(3).items() if "convs" not in k}, r"has no convs\.0\.fc_full\.weight, convs"),
        (weights_of() | {"attention.weight": torch.ones(1)}, r"CGCNN does not have: attention\.weight"),
        (weights_of() | {"fc_out.weight": torch.ones(5)}, r"'fc_out.weight' has shape \(5,\), not that of a linear"),
        (weights_of() | {"embedding.bias": torch.ones(3)}, r"'embedding.bias' has shape \(3,\) where \(6,\)"),
        (
            weights_of() | {"convs.0.fc_full.weight": torch.ones(12, 50)},
            r"'convs.0.fc_full.weight' has shape \(12, 50\) where \(12, 53\) is needed, with 41 Gaussians",
        ),
    ],
)
def test_weights_that_do_not_fit(save, atoms, weights, message) -> None:
    with pytest.raises(ValueError, match=r"model\.pth\.tar.*" + message):
        load_cgcnn_checkpoint(save(weights), atoms)


def test_other_gaussians_are_an_option(save, atoms) -> None:
    weights = weights_of(1) | {"convs.0.fc_full.weight": torch.ones(12, 12 + 13)}
    encoder = load_cgcnn_checkpoint(save(weights), atoms, cutoff=6.0, gaussian_step=0.5).encoder
    assert encoder.gaussians == 13
    assert encoder.graph.cutoff == 6.0


def test_files_that_are_something_else(save, atoms, tmp_path) -> None:
    good = save(weights_of())
    with pytest.raises(FileNotFoundError, match=r"no file .*absent\.pth\.tar"):
        load_cgcnn_checkpoint(tmp_path / "absent.pth.tar", atoms)
    with pytest.raises(FileNotFoundError, match=r"no file .*absent\.npz"):
        load_cgcnn_checkpoint(tmp_path / "absent.npz", atoms)
    for name in ("text.pth.tar", "text.npz"):
        (tmp_path / name).write_text("no weights")
        with pytest.raises(ValueError, match=rf"{name} is not a readable"):
            load_cgcnn_checkpoint(tmp_path / name, atoms)
    torch.save({"weights": torch.ones(3)}, tmp_path / "other.pth.tar")
    with pytest.raises(ValueError, match="no checkpoint of CGCNN: it has no 'state_dict'"):
        load_cgcnn_checkpoint(tmp_path / "other.pth.tar", atoms)
    for normalizer in (None, {"mean": torch.tensor(0.0)}, {"mean": 0.0, "std": torch.ones(3)}):
        with pytest.raises(ValueError, match=r"has no number 'normalizer/(mean|std)'"):
            load_cgcnn_checkpoint(save(weights_of(), normalizer=normalizer), atoms)
    good = save(weights_of())
    torch.save({"state_dict": {}, "code": Path}, tmp_path / "code.pth.tar")
    with pytest.raises(ValueError, match=r"code\.pth\.tar is not a readable"):
        load_cgcnn_checkpoint(tmp_path / "code.pth.tar", atoms)

    for text, message in {
        "[1, 2]": "holds no atom vectors",
        "no json": "holds no atom vectors",
        '{"Na": [1, 0]}': "holds no atom vectors",
        '{"1": [1, 0]}': r"vector of element 1 has the shape \(2,\), where the weights want 7 numbers",
        '{"1": 1}': r"vector of element 1 has the shape \(\), where the weights want 7 numbers",
        '{"1": ["a"]}': "holds no atom vectors",
        '{"1": null}': "holds no atom vectors",
        '{"1": [1, 0, 0, 0, 0, 0, NaN]}': "vector of element 1 holds a number that is not finite",
        '{"0": []}': "no element with atomic number 0",
        '{"104": []}': "no element with atomic number 104",
    }.items():
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match=rf"bad\.json.*{message}"):
            load_cgcnn_checkpoint(good, tmp_path / "bad.json")
    np.savez(tmp_path / "bad.npz", Z=np.arange(3))
    with pytest.raises(ValueError, match=r"bad\.npz holds no atom vectors, .*'vectors'"):
        load_cgcnn_checkpoint(good, tmp_path / "bad.npz")
    with pytest.raises(FileNotFoundError, match=r"no file .*absent\.json"):
        load_cgcnn_checkpoint(good, tmp_path / "absent.json")


def twins_of(**changes: object) -> dict:
    """Random weights under the names of Crystal Twins."""
    weights = {name: value for name, value in weights_of().items() if not name.startswith("fc_out")}
    return weights | {"fc_head.0.weight": torch.ones(CRYSTAL, CRYSTAL), "fc_head.0.bias": torch.ones(CRYSTAL)} | changes


def test_embeddings_of_crystal_twins_are_the_softplus_of_the_crystal_layer(save, atoms, tmp_path, batch_of) -> None:
    torch.save(twins_of(), tmp_path / "model.pth")
    encoder = load_crystal_twins_checkpoint(tmp_path / "model.pth", atoms, dtype=torch.float64)
    batch = encoder.graph(batch_of(NAMES))
    layer = load_cgcnn_checkpoint(save(weights_of()), atoms, dtype=torch.float64).encoder(batch)
    assert encoder(batch).equal(F.softplus(layer))
    assert not encoder.training
    # A checkpoint of a run rebuilds it from its options and its state.
    again = build("cgcnn", **encoder.config).double().eval()
    again.load_state_dict(encoder.state_dict())
    assert again(batch).equal(encoder(batch))


def test_files_that_are_not_of_crystal_twins(atoms, tmp_path) -> None:
    for content, message in (
        ({"state_dict": {}}, "does not hold parameters by name alone"),
        ([1], "does not hold parameters by name alone"),
        ({1: torch.ones(1)}, "does not hold parameters by name alone"),
        ({name: v for name, v in twins_of().items() if name != "conv_to_fc.bias"}, r"has no conv_to_fc\.bias"),
        (twins_of(other=torch.ones(1)), "CGCNN does not have: other"),
        (weights_of(), r"CGCNN does not have: fc_out\.weight, fc_out\.bias"),
    ):
        torch.save(content, tmp_path / "model.pth")
        with pytest.raises(ValueError, match=rf"model\.pth .*{message}"):
            load_crystal_twins_checkpoint(tmp_path / "model.pth", atoms)
    np.savez(tmp_path / "table.npz", names=np.array(["a", "b"]), embedding=np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"table\.npz is no checkpoint of CGCNN: it has no 'embedding.weight'"):
        load_crystal_twins_checkpoint(tmp_path / "table.npz", atoms)
    with pytest.raises(FileNotFoundError, match=r"no file .*absent\.npz"):
        load_crystal_twins_checkpoint(tmp_path / "absent.npz", atoms)
