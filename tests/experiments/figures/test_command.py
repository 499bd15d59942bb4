"""A target writes its data, figure and verdict, and the verdict follows from the data alone."""

import json

import numpy as np
import pytest
from matplotlib.image import imread

from experiments import figures
from experiments.config import UserError
from experiments.figures import budgets, command, decoder_optimizers, prompted
from experiments.figures.target import Part, verdict
from experiments.registry import entries

TARGETS = entries(figures, "TARGET")


def test_targets_are_found_by_what_they_define():
    assert "river_valley_toy" in TARGETS
    assert not {"command", "target"} & set(TARGETS)


# They compile many programs, some in processes of their own.
SLOW = (
    "adahessian_toys",
    "adaptive_batch",
    "adasketch_newton",
    "autolrs",
    "batch_hessian",
    "bigram_wsd",
    "block_coordinate_rules",
    "budgets",
    "cbo_benchmarks",
    "dataset_distillation",
    "decoder_optimizers",
    "dictionary_learning",
    "dimension_free_rate",
    "fzoos_quadratic",
    "gradient_norm_ratio",
    "gradient_normalized_smoothness",
    "jacobian_precision",
    "mezo_prompt",
    "newton_schulz_spectra",
    "pde_layer_experts",
    "perceptron",
    "qzo",
    "refined_schedules",
    "sample_emphasis",
    "soft_sphere_sensitivity",
    "sophia_toy",
    "sparse_mezo",
    "svm_runtime",
    "tuning_free",
    "zeroth_order_memory",
    "zeroth_order_precision",
    "zo_bench",
)


@pytest.fixture
def nothing_kept(monkeypatch, tmp_path):
    """What an earlier trial has left to be used again is not found."""
    for module, name in ((budgets, "RUNS"), (decoder_optimizers, "RUNS"), (prompted, "KEPT")):
        monkeypatch.setattr(module, name, tmp_path / "kept")


@pytest.mark.usefixtures("nothing_kept")
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in sorted(TARGETS)],
)
def test_quick_run_writes_data_figure_and_verdict(name, tmp_path, capsys):
    assert command.main([name, "--quick", "--output", str(tmp_path)]) == 0
    record = json.loads((tmp_path / f"{name}.json").read_text())
    data = command.read_table(tmp_path / f"{name}.csv")
    parts = TARGETS[name].TARGET.judge(data)
    assert [part.claim for part in parts] == [part["claim"] for part in record["parts"]]
    assert [part.holds for part in parts] == [part["holds"] for part in record["parts"]]
    assert record["verdict"] == verdict(parts)
    assert record["quick"]
    assert imread(tmp_path / f"{name}.png").std() > 0.01  # something is drawn
    assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    printed = capsys.readouterr().out
    assert f"Verdict: {record['verdict']}." in printed
    assert all(part.claim in printed and part.measured in printed for part in parts)


@pytest.mark.parametrize(
    ("held", "expected"),
    [((True, True), "holds"), ((True, False), "holds in part"), ((False,), "does not hold")],
)
def test_verdict_counts_the_parts(held, expected):
    assert verdict([Part("", "", holds) for holds in held]) == expected


def test_verdict_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least one part"):
        verdict([])


def test_table_survives_the_file(tmp_path):
    data = {"name": np.array(["a, b", "c"]), "count": np.array([1, 2]), "x": np.array([0.5, -1e-9])}
    command.write_table(data, tmp_path / "data.csv")
    again = command.read_table(tmp_path / "data.csv")
    assert list(again) == list(data)
    for name, column in data.items():
        assert again[name].dtype.kind == column.dtype.kind
        np.testing.assert_array_equal(again[name], column)


def test_unknown_name_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"^reproduce: 'river' is no entry; accepted: .*\.$"):
        command.main(["river", "--output", str(tmp_path)])
    assert not list(tmp_path.iterdir())
