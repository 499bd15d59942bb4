"""The bench command finds every entry, writes what it prints, and names what it does not know."""

import json

import jax
import jax.numpy as jnp
import pytest

from experiments import benchmarks, registry
from experiments.benchmarks import command, harness, lion
from experiments.config import UserError

ENTRIES = registry.entries(benchmarks, "candidates")


def test_entries_are_found_by_what_they_define():
    assert "lion" in ENTRIES
    assert not {"command", "harness", "registry", "table"} & set(ENTRIES)


# They compile many programs.
SLOW = ("curvature", "hypergradient", "matrix", "mezo", "soap")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in sorted(ENTRIES)],
)
def test_quick_run_writes_a_record(name, tmp_path, capsys):
    assert command.main([name, "--quick", "--repeats", "2", "--output", str(tmp_path)]) == 0
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert record["quick"] and record["repeats"] == 2
    records = record["candidates"]
    assert {measured["peer"] for measured in records.values()} <= set(records)
    assert record["environment"]["jax"] == jax.__version__
    assert record["environment"]["platform"] == jax.default_backend()
    printed = capsys.readouterr().out
    for candidate, measured in record["candidates"].items():
        assert len(measured["seconds"]) == 2
        assert measured["temporary_bytes"] is not None
        assert candidate in printed


def test_list_names_every_entry_and_runs_none(capsys, monkeypatch):
    monkeypatch.setattr(lion, "candidates", None)
    assert command.main(["--list"]) == 0
    assert lion.__doc__.splitlines()[0] in capsys.readouterr().out


def test_unknown_name_is_one_sentence_and_writes_nothing(tmp_path):
    with pytest.raises(UserError, match=r"^bench: 'lino' is no entry; accepted: .*lion.*\.$"):
        command.main(["lino", "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_no_rounds_are_refused(capsys):
    with pytest.raises(SystemExit):
        command.main(["lion", "--repeats", "0"])
    assert "at least 1" in capsys.readouterr().err


def test_both_lions_take_the_same_step():
    """A comparison of times means something only between two that do the same."""
    ours, theirs = (build() for build in lion.candidates(quick=True).candidates.values())
    (stepped, _), (expected, _) = (
        jax.jit(candidate.step)(candidate.carry, candidate.inputs) for candidate in (ours, theirs)
    )
    largest = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), stepped, expected)
    assert max(jax.tree.leaves(largest)) <= 1e-7 * 0.02 + 1e-8


def test_the_tree_has_the_parameters_that_the_docstring_says():
    comparison = lion.candidates(quick=False)
    assert comparison.ideal_bytes / lion.BYTES_PER_PARAMETER == pytest.approx(50e6, rel=0.02)


def test_an_entry_may_bound_its_rounds_and_have_programs_that_are_not_run(
    tmp_path, capsys, monkeypatch
):
    abstract = jax.ShapeDtypeStruct((3,), jnp.float32)

    def small(quick):
        return harness.Comparison(
            {"run": lambda: harness.Candidate(jnp.add, jnp.zeros(3), jnp.ones(3))},
            reference="run",
            ideal_bytes=None,
            most_repeats=2,
            compiled_only={"not run": lambda: harness.Candidate(jnp.add, abstract, abstract)},
        )

    monkeypatch.setattr(lion, "candidates", small)
    assert command.main(["lion", "--output", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "lion.json").read_text())
    assert record["repeats"] == 2 and len(record["candidates"]["run"]["seconds"]) == 2
    assert record["compiled_only"]["not run"]["argument_bytes"] == 24
    assert "not run" in capsys.readouterr().out


def test_findings_are_columns_and_each_candidate_may_have_a_peer_of_its_own(
    tmp_path, capsys, monkeypatch
):
    def add(**findings):
        return lambda: harness.Candidate(jnp.add, jnp.zeros(3), jnp.ones(3), findings)

    def grouped(quick):
        return harness.Comparison(
            {"a: 1": add(steps=3, error=0.25), "a: 2": add(steps=None), "b: 1": add()},
            reference={"a: 1": "a: 1", "a: 2": "a: 1", "b: 1": "b: 1"},
            ideal_bytes=None,
            x64=True,
        )

    monkeypatch.setattr(lion, "candidates", grouped)
    assert command.main(["lion", "--repeats", "1", "--output", str(tmp_path)]) == 0
    records = json.loads((tmp_path / "lion.json").read_text())["candidates"]
    assert records["a: 1"]["findings"] == {"steps": 3, "error": 0.25}
    assert {name: list(r["ratio_to"]) for name, r in records.items()} == {
        "a: 1": ["a: 1"],
        "a: 2": ["a: 1"],
        "b: 1": ["b: 1"],
    }
    assert records["b: 1"]["argument_bytes"] == 48
    header, _, *rows = capsys.readouterr().out.splitlines()[2:7]
    assert header.split()[:3] == ["candidate", "steps", "error"]
    assert "over its group's first" in header and "memory bandwidth" not in header
    assert [row.split()[2:4] for row in rows] == [["3", "2.5e-01"], ["-", "-"], ["-", "-"]]
