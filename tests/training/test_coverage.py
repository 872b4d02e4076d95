from __future__ import annotations

import logging

import pytest

from pyg_dim.models import build
from pyg_dim.objectives.deep_infomax import DeepInfoMax
from pyg_dim.training.coverage import coverage_notes, scarce_text, skipped_text, starved_text
from pyg_dim.training.module import TrainingModule, tag
from pyg_dim.training.run import train

SCARCE = "false samples that were often impossible: global_level/permutation in 62 % of groups"
SKIPPED = "false samples that mean nothing at a level are left out there, as they should be: permutation at local_level"
MISSING = "not one valid false sample was found for"
STARVED = f"{MISSING} local_level, so nothing is learned there"
MEANS = {
    "total": 1.0,
    "js/local": 1.2,
    "js/local/coverage": 1.0,
    "detail/local_level/js/coverage": 1.0,
    "detail/local_level/other/coverage": 0.5,
    "detail/global_level/other/coverage": 1.0,
    "detail/global_level/js": 1.0,
    "detail/global_level/js/coverage": 0.4,
    "detail/global_level/permutation": 0.7,
    "detail/global_level/permutation/coverage": 0.38,
}
NOTHING = MEANS | {"detail/local_level/js/coverage": 0.0, "detail/local_level/other/coverage": 0.0}


def tagged(part, means):
    return {tag(part, name): value for name, value in means.items()}


def test_kinds_that_were_impossible_for_most_groups_are_listed():
    assert scarce_text(MEANS) == SCARCE
    assert starved_text(MEANS) is None
    assert scarce_text(NOTHING) == SCARCE.replace("global", "local_level/other in 100 % of groups, global", 1)


def test_a_level_with_nothing_is_named_with_what_to_do():
    assert starved_text(NOTHING).startswith(f"{STARVED}: add kinds (--kinds), or raise --batch-sites")


def test_a_level_without_edges_has_an_advice_of_its_own():
    assert starved_text(NOTHING).endswith("; a level whose crystals have no edges at all needs a larger cutoff of the "
                                          "encoder instead")  # fmt: skip


def test_levels_of_a_list_are_one_entry():
    means = {f"detail/{level}/js/coverage": 0.0 for level in ("edge.0", "site.0", "edge.1", "site.1", "site.2", "all")}
    means |= {"detail/site.0/js/coverage": 1.0, "detail/edge.0/other/coverage": 0.1}
    means |= {f"detail/site.{n}/other/coverage": share for n, share in enumerate((0.3, 0.04, 0.8))}
    means |= {f"detail/site.{n}/polymorph/coverage": 0.0 for n in range(3)}
    means |= {f"detail/site.{n}/permutation/coverage": 0.9 for n in range(3)}
    entries = scarce_text(means).removeprefix("false samples that were often impossible: ").split(", ")
    assert entries == [
        "edge.0/other in 90 % of groups",
        "site.*/other in 20 to 96 % of groups",
        "site.*/polymorph in 100 % of groups",
    ]
    assert starved_text(means).startswith(f"{MISSING} edge.*, site.1, site.2, all, so nothing")


def test_kinds_that_have_no_meaning_are_listed_by_level():
    means = {f"detail/{level}/js/coverage": 1.0 for level in ("edge.0", "edge.1", "site.0", "site.1", "all")}
    means |= {f"{name.removesuffix('js/coverage')}other/coverage": 0.0 for name in means}
    means |= {"detail/all/permutation/coverage": 1.0, "detail/edge.1/composition/coverage": 0.1}
    text = skipped_text(means)
    assert text.endswith("should be: composition at edge.0, site.*, all; permutation at edge.*, site.*")
    assert skipped_text({"total": 1.0, "mae/energy": 1.0, "mae/energy/coverage": 1.0}) is None
    assert skipped_text({f"detail/{level}/{kind}/coverage": 1.0 for level in "ab" for kind in ("js", "other")}) is None


def test_there_is_nothing_to_say_of_labels_and_of_what_is_often_possible():
    assert scarce_text({"mae/energy": 1.0, "mae/energy/coverage": 0.1}) is None
    assert scarce_text(MEANS | {"detail/global_level/permutation/coverage": 0.5}) is None
    assert coverage_notes({"train/mae/energy": 1.0, "detail/train/mae/energy/coverage": 0.0}) == []


def test_notes_are_of_training_or_else_of_validation():
    both = tagged("train", MEANS) | tagged("val", NOTHING)
    assert coverage_notes(both) == [f"training: {SCARCE}", f"training: {SKIPPED}"]
    notes = coverage_notes(tagged("val", NOTHING))
    assert notes[0].startswith(f"validation: {STARVED}")
    assert len(notes) == 3


def test_it_is_told_once_after_the_first_epoch_and_noted_in_the_summary(options, caplog):
    with caplog.at_level(logging.INFO, "pyg_dim"):
        result = train(options(kinds="permutation", epochs=2))
    # Two sites of two elements exchange to the same crystal, and pairs cannot be permuted.
    told = [record for record in caplog.records if MISSING in record.getMessage()]
    assert [record.levelname for record in told] == ["WARNING"]
    text = (result.directory / "summary.md").read_text()
    assert f"- note: training: {MISSING} local_level, global_level" in text
    # The levels have no Jensen-Shannon loss, so that a note is all there is of it.
    assert "| js/" not in text


class Trainer:
    def __init__(self, first):
        self.is_global_zero = first


@pytest.mark.parametrize("first", [True, False])
def test_only_the_first_process_tells(monkeypatch, caplog, first):
    module = TrainingModule(DeepInfoMax(build("sitenet")), lr=1e-4, weight_decay=0.0, seed=0, about={})
    monkeypatch.setattr(TrainingModule, "trainer", Trainer(first))
    monkeypatch.setattr(TrainingModule, "current_epoch", 0)
    monkeypatch.setattr(TrainingModule, "log", lambda *a, **o: None)
    monkeypatch.setattr(TrainingModule, "log_dict", lambda *a, **o: None)
    monkeypatch.setattr(module.train_meter, "means", lambda: MEANS)
    with caplog.at_level(logging.INFO, "pyg_dim"):
        module.on_train_epoch_end()
        module.on_train_epoch_end()
    assert [record.getMessage() for record in caplog.records] == [SCARCE, SKIPPED] * first
