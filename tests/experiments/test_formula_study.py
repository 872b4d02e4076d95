"""Formulas of pre-training, the teacher, and the tables and figures, on encoders that train in seconds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pyg_dim.cli import main
from pyg_dim.data import CompositionDataset
from pyg_dim.data.composition import composition_keys
from pyg_dim.data.embeddings import read_embeddings
from pyg_dim.experiments import workspace
from pyg_dim.experiments.features import untrained_encoder
from pyg_dim.experiments.formula_figures import FINE_TUNED, FORMULA_FIGURES
from pyg_dim.experiments.formula_page import write_formula_tables
from pyg_dim.experiments.scales import FORMULA_SCALES, STRATEGIES
from pyg_dim.experiments.transferring import RANDOM, Start
from pyg_dim.training.finetune import FineTuneOptions


def keys(path):
    return set(composition_keys(CompositionDataset.from_csv(path)))


def test_both_versions_draw_the_same_formulas_but_those_of_the_sets(formulas):
    formulas.directory.mkdir()
    tests = set(composition_keys(formulas.tasks[0].dataset))
    seen, unseen = keys(formulas._formulas()), keys(replace(formulas, split="unseen")._formulas())
    assert seen & tests
    assert not unseen & tests
    assert seen - tests <= unseen
    assert len(seen) > 100


def test_the_teacher_has_the_mean_embedding_of_each_formula(formulas, finished):
    formulas.directory.mkdir()
    taught = replace(formulas, teacher=finished.checkpoint)
    path, table = taught._taught()
    # Each formula of these crystals is there in two structures.
    assert len(keys(path)) == 60
    embeddings = read_embeddings(table)
    assert len(embeddings.names) == 60
    assert embeddings.vectors.isfinite().all()
    assert not formulas.runs.exists()
    unseen, _ = replace(taught, split="unseen")._taught()
    assert keys(unseen) < keys(path)
    assert not keys(unseen) & set(composition_keys(formulas.tasks[0].dataset))


def test_vectors_of_elements_that_were_read_are_given_to_new_parameters_too(formulas, tmp_path):
    symbols, generator = ["Li", "Na", "K", "Mg", "Ca", "Al", "F", "Cl", "Br", "O", "S", "N"], np.random.default_rng(0)
    vectors = generator.normal(size=(len(symbols), 5))
    np.savez(tmp_path / "some.npz", element=np.array(symbols), embedding=vectors)
    formulas.directory.mkdir()
    checkpoint = replace(formulas, elements=str(tmp_path / "some.npz")).pretrained("FL")
    options = FineTuneOptions()
    trained, new = (Start(checkpoint, trained, options).encoder(seed=4) for trained in (True, False))
    assert torch.equal(new.elements.vectors[3], torch.from_numpy(vectors[0]).float())
    assert torch.equal(new.elements.vectors.nan_to_num(), trained.elements.vectors.nan_to_num())
    assert not torch.equal(new.embed_element.weight, trained.embed_element.weight)
    torch.manual_seed(4)
    assert torch.equal(untrained_encoder(checkpoint, 4).embed_element.weight, new.embed_element.weight)


def test_all_tables_and_figures_are_computed_once(formulas, monkeypatch):
    formulas.directory.mkdir()
    formulas.keep_to_settings()
    for name in FORMULA_FIGURES:
        FORMULA_FIGURES[name](formulas)
    transfer, probes = formulas.transfer_table().read(), formulas.probe_table().read()
    assert set(transfer["start"]) == {RANDOM, *FINE_TUNED}
    assert set(probes["features"]) == {"magpie", "fractions", "untrained", *STRATEGIES}
    frozen = probes[probes["study"] == "rp-table3"]
    # All labels of a fold, none left for the sake of equal numbers.
    assert set(frozen["labels"] + frozen["tests"]) == {312}
    assert set(probes[probes["study"] == "rp-fig10"]["n"]) == {20}
    for name in ("rp-fig9-all.png", "rp-fig10-all.png", "rp-map-steels-all.png", "rp-map-steels-all.csv"):
        assert (formulas.directory / name).stat().st_size > 0

    monkeypatch.setattr(workspace, "train", None)
    for name in FORMULA_FIGURES:
        FORMULA_FIGURES[name](formulas)
    assert len(formulas.probe_table().read()) == len(probes)
    text = write_formula_tables(formulas).read_text()
    for section in ("rp-pretraining", "rp-table2-all", "rp-table3-all", "rp-table4-all", "rp-fig9-all", "rp-fig10-all"):
        assert f"## {section}\n" in text
    assert "| in print | 5 | 230 ± 9.7 | 130 ± 20.30 |" in text
    assert "rp-unseen" not in text
    other = replace(formulas, split="unseen")
    other.probe_table().add(probes.to_dict("records"))
    assert "| steels, SSL, frozen |" in write_formula_tables(formulas).read_text()


def test_settings_of_another_study_are_refused(formulas):
    formulas.directory.mkdir()
    formulas.keep_to_settings()
    with pytest.raises(ValueError, match="choose another --out"):
        replace(formulas, elements="one_hot").keep_to_settings()
    replace(formulas, sets=("jdft2d",)).keep_to_settings()
    replace(formulas, split="unseen").keep_to_settings()
    with pytest.raises(ValueError, match="sets left out"):
        replace(formulas, sets=("jdft2d",), split="unseen").keep_to_settings()


def test_fine_tuning_has_steps_enough_on_small_sets_and_few_on_large_ones():
    small, large = (FORMULA_SCALES["small"].fine_tuning(n, 4.0) for n in (250, 3811))
    assert small.batch_sites == 4 * 32
    assert large.batch_sites == 4 * 128
    assert small.patience * 7 >= FORMULA_SCALES["small"].patience_steps - 7
    assert large.epochs * 27 <= FORMULA_SCALES["small"].tuning_steps


def test_the_command_needs_the_data_of_its_study(formulas, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["reproduce", "rp-table2", "--pool", formulas.pool])
    assert "rp-table2 needs --compositions" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["reproduce", "fig8", "--data", "some"])
    assert "fig8 needs --phonons" in capsys.readouterr().err
    command = ["reproduce", "rp-tables", "--compositions", formulas.compositions, "--pool", formulas.pool,
               "--structures", formulas.structures, "--scale", "smoke", "--out", str(tmp_path / "o")]  # fmt: skip
    assert main([*command, "--sets", "iron"]) == 1
    assert "--sets iron: unknown; known: steels" in capsys.readouterr().err
    assert main(command) == 0
    assert (tmp_path / "o" / "roost" / "tables.md").exists()
