"""The benchmarks: variants take turns, ratios are paired, tables come from JSON; every one runs at a tiny size."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from pyg_dim.data import load_dataset
from pyg_dim.data.prototypes import decorated_prototypes
from pyg_dim.native import pair_rows

ROOT = Path(__file__).parents[1]
FOLDER = str(ROOT / "benchmarks")
sys.path.insert(0, FOLDER)  # the benchmarks import one another as their command does
try:
    import alternate
    import processes
    import programs
    import render
    import results
    import run
    import sitenet_speed
    from memory import peak_memory
finally:
    sys.path.remove(FOLDER)


class Clock:
    """Time passes when somebody works."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, []

    def __call__(self) -> float:
        return self.now

    def worker(self, name: str, seconds: list[float], work: float = 1.0):
        def call(number: int) -> float:
            self.calls.append((name, number))
            self.now += seconds[sum(called == name for called, _ in self.calls) - 1]
            return work

        return call


def test_variants_take_turns_on_the_same_rounds() -> None:
    clock = Clock()
    variants = {name: clock.worker(name, [1.0] * 9) for name in "abc"}
    alternate.alternate(variants, rounds=3, warmup=2, clock=clock)
    first, warm = [*"abc"], [*"abc", *"cba"]
    assert [name for name, _ in clock.calls] == [*first, *warm, *"abc", *"cba", *"abc"]
    assert [number for _, number in clock.calls] == [0] * 3 + [0] * 3 + [1] * 3 + [0] * 3 + [1] * 3 + [2] * 3


def test_ratios_are_paired_and_the_first_call_stands_apart() -> None:
    clock = Clock()
    slow, fast = [99.0, 7.0, 2.0, 8.0, 6.0], [50.0, 7.0, 1.0, 4.0, 2.0]
    variants = {"slow": clock.worker("slow", slow, 12), "fast": clock.worker("fast", fast, 12)}
    found = alternate.alternate(variants, rounds=3, warmup=1, clock=clock)
    assert found["slow"] == alternate.Timing(99, (2, 8, 6), (12, 12, 12))
    assert found["fast"].first == 50
    # Of 2, 2 and 3; the ratio of the medians would be 3.
    assert found["fast"].times(found["slow"]) == alternate.Spread(median=2, lower=2, upper=2.5)
    first, second = alternate.rows(found)
    assert first["times slow"] == 1
    assert first["ms a step"] == alternate.Spread(6000, 4000, 7000)
    assert second["crystals/s"] == alternate.Spread(6, 4.5, 9)
    assert second["first call, s"] == 50


def test_a_drifting_machine_does_not_change_the_ratio() -> None:
    clock = Clock()
    speed = [1.0, 1.0, 10.0, 2.0, 5.0]
    variants = {name: clock.worker(name, [k * s for s in speed]) for name, k in (("a", 3.0), ("b", 1.0))}
    found = alternate.alternate(variants, rounds=4, warmup=0, clock=clock)
    assert found["b"].times(found["a"]) == alternate.Spread(3, 3, 3)


def test_quartiles() -> None:
    assert alternate.Spread.of([4, 1, 3, 2, 5]) == alternate.Spread(3, 2, 4)
    assert alternate.Spread.of([7]) == alternate.Spread(7, 7, 7)


@pytest.mark.parametrize(("variants", "rounds", "text"), [({}, 1, "nothing to time"), ({"a": int}, 0, "one round")])
def test_nothing_to_time_is_an_error(variants, rounds, text) -> None:
    with pytest.raises(ValueError, match=text):
        alternate.alternate(variants, rounds)


def test_peak_memory_is_what_is_held_at_a_time() -> None:
    def call() -> None:
        for _ in range(3):
            torch.ones(1_000_000)
        kept = [torch.ones(1_000_000) for _ in range(2)]
        del kept

    assert 8e6 <= peak_memory(call) < 8.1e6


def test_a_step_on_the_same_batch_finds_its_rows_again(data, monkeypatch) -> None:
    found = []
    monkeypatch.setattr(pair_rows, "pair_rows", lambda *given, of=pair_rows.pair_rows: found.append(1) or of(*given))
    program = programs.programs(["symmetry"], 0, 8, "cpu")["symmetry"]
    prepared = program.prepare(programs.first_batches(load_dataset(data), 1, 60, 0)[0])
    before, counts = prepared.keys(), []
    for call in (program.learn, program.embed):
        for _ in range(3):
            found.clear()
            call(prepared)
            counts.append(len(found))
    # Of classes and of all pairs.
    assert counts in ([2, 2, 2, 1, 1, 1], [0] * 6)
    assert prepared.keys() == before


def test_growth_is_the_slope_of_the_logarithms() -> None:
    def row(pairs: float) -> dict[str, object]:
        return {"pairs a crystal": pairs, "crystals/s": alternate.Spread.of([5.0 / pairs**1.5])}

    assert sitenet_speed.growth([row(10), row(40), row(90)]) == pytest.approx(1.5)
    assert sitenet_speed.growth([row(10)]) != sitenet_speed.growth([row(10)])


@pytest.fixture(autouse=True)
def _importable(monkeypatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)  # for programs that are imported when they run, and for other processes


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "few.parquet"
    decorated_prototypes(60).to_parquet(path)
    return path


def called(name: str, folder: Path, *words: str | Path) -> dict:
    run.main([name, "--json", str(folder / f"{name}.json"), *map(str, words)])
    return results.read(folder / f"{name}.json")


def page_for(*names: str) -> str:
    return "# Title\n\n" + "".join(f"About {n}.\n\n<!-- begin: {n} -->\n<!-- end: {n} -->\n\nMore.\n" for n in names)


def test_step_from_command_to_page(tmp_path, data, capsys) -> None:
    page = tmp_path / "page.md"
    page.write_text(page_for("step", "embedding"))
    made = called(
        "step", tmp_path, "--data", data, "--batch-sites", 60, "--supercell-sites", 12, "--rounds", 2,
        "--variants", "published", "eager", "--markdown", page,
    )  # fmt: skip
    (table,) = made["tables"]
    published, eager = table["rows"]
    assert [published["variant"], eager["variant"]] == ["published", "eager"]
    assert published["times published"] == 1
    assert eager["times published"].keys() == {"median", "lower", "upper"}
    assert eager["most memory, MB"] > 0
    assert [len(case["seconds"]) for case in made["timings"]] == [2, 2]
    assert made["timings"][0]["work"] == made["timings"][1]["work"]  # the same crystals
    assert made["settings"] == {
        "data": "few.parquet", "device": "cpu", "seed": 0, "rounds": 2, "batch_sites": 60, "supercell_sites": 12,
        "variants": ["published", "eager"],
    }  # fmt: skip
    assert made["machine"].keys() >= {"processor", "cores", "threads", "torch", "load before"}
    assert str(data.parent) not in json.dumps(made)
    assert str(tmp_path) not in json.dumps(made)
    assert made["command"].startswith("python benchmarks/run.py step --data few.parquet --rounds 2")

    text = page.read_text()
    assert f"About step.\n\n<!-- begin: step -->\n\n{render.block(made)}\n\n<!-- end: step -->\n\nMore.\n" in text
    assert "<!-- begin: embedding -->\n<!-- end: embedding -->" in text
    assert render.block(made) in capsys.readouterr().out
    run.main(["--render", "--json", str(tmp_path), "--markdown", str(page)])
    assert page.read_text() == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.md", "step.json"]


def test_embedding(tmp_path, data) -> None:
    words = ["--data", data, "--batch-sites", 60, "--rounds", 1, "--variants", "eager", "published"]
    rows = called("embedding", tmp_path, *words)["tables"][0]["rows"]
    assert [row["variant"] for row in rows] == ["eager", "published"]
    assert "times eager" in rows[1]


def test_programs_learn_and_embed_the_same(data) -> None:
    dataset = load_dataset(data)
    (batch,) = programs.first_batches(dataset, 1, 60, seed=0)
    found = programs.programs(["published", "eager"], seed=3, supercell_sites=12, device="cpu")
    published, eager = found.values()
    for a, b in zip(published.encoder.parameters(), eager.encoder.parameters(), strict=True):
        assert torch.equal(a, b)
    prepared = {name: program.prepare(batch) for name, program in found.items()}
    assert "edge_index" not in batch
    assert programs.count_pairs([batch], 12) == prepared["eager"].edge_dist.numel()
    assert published.embed(prepared["published"]) == eager.embed(prepared["eager"]) == batch.num_graphs
    before = [parameter.clone() for parameter in eager.encoder.parameters()]
    assert published.learn(prepared["published"]) == eager.learn(prepared["eager"]) == batch.num_graphs
    for program in (published, eager):
        assert any(not torch.equal(a, b) for a, b in zip(before, program.encoder.parameters(), strict=True))


def test_unknown_variant_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown variant 'faster'; known: published, eager"):
        programs.programs(["faster"], 0, 12, "cpu")


def test_supercell_draws_its_picture_from_json(tmp_path, data) -> None:
    page = tmp_path / "page.md"
    page.write_text(page_for("supercell"))
    words = ["--batch-sites", 40, "--sizes", 8, 16, "--rounds", 1, "--variants", "published", "eager"]
    made = called("supercell", tmp_path, "--data", data, *words, "--markdown", page)
    rows = made["tables"][0]["rows"]
    assert [(row["supercell sites"], row["variant"]) for row in rows] == [
        (8, "published"), (8, "eager"), (16, "published"), (16, "eager"),
    ]  # fmt: skip
    assert rows[0]["pairs a crystal"] < rows[2]["pairs a crystal"]
    assert all(row["µs a pair"] > 0 for row in rows)
    picture = tmp_path / "pictures" / "scaling_supercell.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "(pictures/scaling_supercell.png)" in page.read_text()


def test_supercell_leaves_out_what_memory_does_not_allow(tmp_path, data, monkeypatch) -> None:
    monkeypatch.setattr(sitenet_speed, "free_memory", lambda device: 2.0)
    words = ["--batch-sites", 40, "--sizes", 8, 16, "--rounds", 1, "--variants", "eager"]
    made = called("supercell", tmp_path, "--data", data, *words)
    assert [row["supercell sites"] for row in made["tables"][0]["rows"]] == [8]
    assert re.search(r"supercells of 16 sites: eager would need \S+ GB and was left out", made["notes"][0])


def test_batch_size(tmp_path, data) -> None:
    words = ["--sizes", 20, 40, "--supercell-sites", 8, "--rounds", 1, "--variants", "eager"]
    made = called("batch_size", tmp_path, "--data", data, *words)
    assert [row["sites of a batch"] for row in made["tables"][0]["rows"]] == [20, 40]


def test_data_size(tmp_path, data) -> None:
    words = ["--sizes", 10, 30, 10_000, "--steps", 2, "--batch-sites", 30, "--rounds", 1, "--variant", "eager"]
    made = called("data_size", tmp_path, "--data", data, *words)
    assert [row["variant"] for row in made["tables"][0]["rows"]] == ["all 60 crystals", "10 crystals", "30 crystals"]


def test_processes(tmp_path, data, monkeypatch) -> None:
    monkeypatch.setattr(processes, "TEAMS", {"2 processes": (2, 1)})
    words = ["--steps", 2, "--batch-sites", 30, "--rounds", 2, "--variant", "eager"]
    made = called("processes", tmp_path, "--data", data, *words)
    assert [row["variant"] for row in made["tables"][0]["rows"]] == ["2 processes"]
    dataset = load_dataset(data)
    loader = programs.CrystalLoader(dataset, lambda batch: batch, 30)
    plan = [batch.num_graphs for batch in loader]
    # First call, one to warm up, two that are timed: four batches each, of both processes together.
    assert made["timings"][0]["work"] == [sum(plan[8:12]), sum(plan[12:16])]


def test_models(tmp_path, data) -> None:
    words = ["--models", "alignn", "megnet", "roost", "--crystals", 3, "--rounds", 1, "--small-alignn", "--plain"]
    made = called("models", tmp_path, "--data", data, *words)
    assert [table["title"].split(":")[0] for table in made["tables"]] == ["**alignn**", "**megnet**", "**roost**"]
    variants = {row["variant"] for row in made["tables"][0]["rows"]}
    ours = {"supervised", "supervised, recorded", "Deep InfoMax", "Deep InfoMax, kernels", "embedding"}
    assert variants == {"published program", *ours}
    variants = {row["variant"] for row in made["tables"][2]["rows"]}
    assert variants == {"published program", *ours, "supervised, kernels", "embedding, kernels"}
    assert made["settings"]["plain"] is True


def test_loader(tmp_path, data) -> None:
    words = ["--models", "megnet", "--batch-sites", 20, "--rounds", 1]
    (row,) = called("loader", tmp_path, "--data", data, *words)["tables"][0]["rows"]
    assert row["model"] == "megnet"
    assert row["loader keeps up"] in ("yes", "no")
    assert row["share of a step"]["median"] > 0


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    """300 crystals, 30 of them in the test fold, with the labels that the benchmark of few labels wants."""
    path, dataset = tmp_path_factory.mktemp("data") / "labelled.parquet", decorated_prototypes(300)
    weight = torch.stack([batch.z.double().mean() for batch in (dataset[row] for row in range(len(dataset)))])
    names = ("formation_energy_per_atom", "band_gap", "last phdos peak")
    dataset.with_labels({name: weight + k for k, name in enumerate(names)}).to_parquet(path)
    return path


def test_few_labels_in_the_page_of_its_own(tmp_path, labelled) -> None:
    for page in set(run.PAGES.values()):
        (tmp_path / page).write_text(page_for("few_labels") if page == "few_labels.md" else "")
    words = ["--labels", 20, "--draws", 5, "--markdown", tmp_path]
    made = called("few_labels", tmp_path, "--data", labelled, "--phonons", labelled, *words)
    assert made["settings"]["phonons"] == made["settings"]["data"] == "labelled.parquet"
    (table,) = made["tables"]
    assert [row["crystals"] for row in table["rows"]] == [30] * 12 + [300] * 6
    errors = {(row["target"].split(",")[0], row["features"], row["model"]): row for row in table["rows"]}
    targets = {target for target, _, _ in errors}
    assert targets == {"formation_energy_per_atom", "band_gap", "last phdos peak"}
    for target in targets:
        usual = errors[target, "Magpie", "random forest"]
        assert usual["against Magpie, random forest"] == ""
        # The label is a Magpie feature: all that learn must beat the mean of the labels.
        mean = errors[target, "none", "mean of the labels"]
        assert usual["error"]["median"] < mean["error"]["median"]
        assert mean["against Magpie, random forest"].startswith("worse, +")
        for (of, _, _), row in errors.items():
            if of == target and row is not usual:
                told = row["against Magpie, random forest"]
                assert re.fullmatch(r"(better|level|worse), [+-]\S+ \[[+-]\S+, [+-]\S+\], \d+-\d+-\d+", told), told
                assert sum(map(int, told.split(", ")[-1].split("-"))) == 5
        better = errors[target, "Magpie", "ProbeRegressor"]
        assert better["error"]["median"] < usual["error"]["median"]
    text = (tmp_path / "few_labels.md").read_text()
    assert render.block(made) in text
    run.main(["--render", "--json", str(tmp_path), "--markdown", str(tmp_path)])
    assert (tmp_path / "few_labels.md").read_text() == text


def test_few_labels_says_what_it_lacks(tmp_path, labelled, data, capsys) -> None:
    made = called("few_labels", tmp_path, "--data", data)
    assert made["tables"] == []
    assert made["notes"] == [
        "left out: formation_energy_per_atom, band_gap, which the data do not have",
        "left out: last phdos peak, of which no data were given",
    ]
    with pytest.raises(ValueError, match="formation_energy_per_atom: 30 labels, of which --labels 30 would leave none"):
        called("few_labels", tmp_path, "--data", labelled, "--labels", 30)


@pytest.mark.parametrize(
    ("name", "words", "shown"),
    [
        ("import_cif", ["--number", "10", "--rounds", "1"], "10 CIFs of"),
        ("data_layer", ["--crystals", "0", "--batches", "2"], "open:"),
        ("dimpool", ["--rows", "20", "--seconds", "0"], "| rows | module |"),
    ],
)
def test_programs_with_their_own_command_line(name, words, shown, tmp_path, data) -> None:
    threads, source = torch.get_num_threads(), ["--data", data] if "data" in run.options_of(name) else []
    try:
        made = called(name, tmp_path, *source, "--", *words)
    finally:
        torch.set_num_threads(threads)
    assert shown in made["printed"]
    named = "--data few.parquet " if source else ""
    assert made["command"] == f"python benchmarks/run.py {name} {named}-- {' '.join(words)}"
    assert str(data.parent) not in made["printed"]


def test_list_names_every_benchmark_and_option(capsys) -> None:
    run.main(["--list"])
    said = capsys.readouterr().out
    for name in run.BENCHMARKS:
        assert re.search(rf"^{name} +[A-Z].*\.$", said, re.MULTILINE), name
        for option in run.options_of(name):
            assert option == run.PASSED_ON or option in run.HELP, option
            assert option == run.PASSED_ON or run.flag(option) in said


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["stepp"], "no benchmark is called stepp; known: step, embedding"),
        ([], "name at least one benchmark"),
        (["dimpool", "--rounds", "3"], "dimpool: no option --rounds"),
        (["step", "--rounds", "0"], "--rounds must be at least 1"),
        (["step", "--", "--rows", "3"], "arguments after -- are for one program"),
        (["step", "dimpool", "--json", "one.json"], "several results need a folder"),
        (["step", "--variants", "faster"], "invalid choice: 'faster'"),
        (["step", "--markdown", "none.md"], "none.md"),
    ],
)
def test_what_there_is_not_is_an_error(words, text, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        run.main(words)
    assert text in capsys.readouterr().err


def test_a_page_without_a_place_is_refused_before_the_work(tmp_path, capsys) -> None:
    page = tmp_path / "page.md"
    page.write_text(page_for("embedding"))
    with pytest.raises(SystemExit):
        run.main(["step", "--markdown", str(page)])
    assert "needs the lines <!-- begin: step -->" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where there is no GPU")
def test_a_gpu_that_is_not_there_is_an_error(capsys) -> None:
    with pytest.raises(SystemExit):
        run.main(["step", "--device", "cuda"])
    assert "PyTorch finds no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize(
    "page",
    [
        "<!-- begin: a -->\n",
        "<!-- end: a -->\n<!-- begin: a -->\n",
        "<!-- begin: a -->\n<!-- begin: a -->\n<!-- end: a -->\n",
        "<!-- begin: a -->\n<!-- end: a -->\n<!-- end: a -->\n",
    ],
)
def test_broken_markers_are_refused(page) -> None:
    with pytest.raises(ValueError, match="no place for the table of 'a'"):
        render.fill(page, "a", "text")


def test_filling_twice_is_filling_once() -> None:
    page = page_for("a", "b")
    once = render.fill(page, "a", "one\n\ntwo")
    assert render.fill(render.fill(page, "a", "before"), "a", "one\n\ntwo") == once
    assert once.replace("\none\n\ntwo\n\n", "") == page


def test_cells() -> None:
    spread = {"median": 1234.5, "lower": 0.98765, "upper": 2e4}
    rows = [{"a": "x|y", "b": 3}, {"a": "z", "b": 0.5, "c": spread}]
    assert render.table(rows).splitlines() == [
        "| a | b | c |", "| --- | ---: | ---: |", "| x\\|y | 3 |  |", "| z | 0.500 | 1230 [0.988, 20000] |",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "what"), [("{", "not JSON"), ("[]", "not the result"), ('{"a": 1}', "not the result")]
)
def test_other_files_are_no_results(text, what, tmp_path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=rf"x\.json: {what}"):
        results.read(tmp_path / "x.json")


def test_kept_results_and_the_pages_agree() -> None:
    pages = {name: run.page_of(name, run.DOCS).read_text(encoding="utf-8") for name in run.BENCHMARKS}
    for name, page in pages.items():
        render.fill(page, name, "")  # has a place
    for path in run.KEPT.glob("*.json"):
        made = results.read(path)
        assert path.stem == made["benchmark"]
        assert render.block(made) in pages[made["benchmark"]], f"{path.name}: python benchmarks/run.py --render"
