import numpy as np
import torch

from pyg_dim.data.oxidation import guess_oxidation_states

CELL = 20.0 * np.eye(3)


def crystal(z):
    return z, np.random.default_rng(0).uniform(0, 20, (len(z), 3)), CELL


def test_states_are_guessed_once_for_each_composition_and_counted(make_dataset):
    dataset = make_dataset([crystal(z) for z in ([8, 38, 8, 22, 8], [11, 17], [26, 28], [17, 11, 11, 17], [29])])
    states, note = guess_oxidation_states(dataset)
    assert states.tolist() == [-2, 2, -2, 4, -2, 1, -1, 0, 0, -1, 1, 1, -1, 0]
    assert states.dtype == dataset.pos.dtype
    assert note == (
        "oxidation states: guessed for 3 of 4 compositions; "
        "zero for 1 without a neutral combination and 0 with too many combinations"
    )


def test_mixed_valence_gives_the_mean(make_dataset):
    states, _ = guess_oxidation_states(make_dataset([crystal([26, 26, 26, 8, 8, 8, 8])]))
    torch.testing.assert_close(states, torch.tensor([8 / 3] * 3 + [-2.0] * 4, dtype=torch.float64))


def test_a_composition_with_too_many_combinations_is_not_tried(make_dataset):
    z = [57] * 21 + [26] * 8 + [51] * 7 + [6] * 12 + [16]
    states, note = guess_oxidation_states(make_dataset([crystal(z), crystal([11, 17])]))
    assert states[: len(z)].tolist() == [0] * len(z)
    assert states[len(z) :].tolist() == [1, -1]
    assert note.endswith("and 1 with too many combinations")


def test_choice_reaches_the_features_and_the_report(lay_out):
    from pyg_dim.data.dataset import CrystalDataset
    from pyg_dim.data.report import ImportReport

    crystals = [crystal([11, 17])]
    for choice, expected, words in (("guess", [1.0, -1.0], "guessed for 1 of 1"), ("zero", [0.0, 0.0], "zero for all")):
        dataset = CrystalDataset.from_raw(lay_out(crystals), ImportReport("t", 1), oxidation=choice)
        assert dataset.gather(torch.tensor([0])).x[:, 8].tolist() == expected
        assert any(words in note for note in dataset.report.notes)
