"""The recordings pass, the known mistakes do not, and the command says so."""

import io
import json
import pathlib
import zipfile

import jax
import numpy as np
import optax
import pytest

from .__main__ import killed_by, main
from .adapters import ADAPTERS, MUTANTS, tolerance
from .recording import Recording, load
from .replay import AdapterError, Pair, call, compare, open_loop, replay, step_by_step, transposed

HERE = pathlib.Path(__file__).parent
TRAJECTORIES = HERE / "trajectories"
RECORDINGS = [load(path) for path in sorted(TRAJECTORIES.glob("*.npz"))]
ADAPTED = [recording for recording in RECORDINGS if recording.name in ADAPTERS]
# Our float32 run may be this many times further from our float64 run than theirs from theirs.
PRECISION_MULTIPLE = 2


def of(name: str) -> list[Recording]:
    return [recording for recording in RECORDINGS if recording.name == name]


@pytest.mark.parametrize("recording", ADAPTED, ids=lambda recording: recording.stem)
def test_recording(recording):
    outcome = replay(recording, ADAPTERS[recording.name], tolerance(recording.name))
    assert outcome.passed, outcome


def test_every_method_has_an_adapter_or_is_listed_as_without():
    listed = (HERE / "expected_without_adapter.txt").read_text().split()
    recorded = {recording.name for recording in RECORDINGS}
    assert listed == sorted(recorded - ADAPTERS.keys())
    assert recorded >= ADAPTERS.keys()


def test_every_adapter_has_mutants():
    assert {name for name, mutants in MUTANTS.items() if mutants} == set(ADAPTERS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mistake"), [(name, mistake) for name in MUTANTS for mistake in MUTANTS[name]]
)
def test_mutants_fail(name, mistake):
    assert killed_by(of(name), MUTANTS[name][mistake]) is not None


@pytest.mark.parametrize("recording", of("lion"), ids=lambda recording: recording.stem)
def test_float32_run_is_as_close_to_float64_as_the_authors(recording):
    adapter = ADAPTERS[recording.name]
    single = adapter(recording, np.float32)
    with jax.enable_x64(True):
        double = adapter(recording, np.float64)
    gap = max(np.abs(single[leaf].ours - double[leaf].ours).max() for leaf in single)
    assert all(pair.ours.dtype == np.float32 for pair in single.values())
    assert 0 < gap <= PRECISION_MULTIPLE * recording.meta["max_abs_f32_minus_f64"]


def test_transposed_shows_flax_layout_and_compares_alike():
    recording = of("lion")[0]
    seen = {}

    def spy(recording, dtype):
        seen.update(recording.tree("p0"))
        return ADAPTERS["lion"](recording, dtype)

    assert replay(recording, transposed(spy), tolerance("lion")).passed
    for leaf, value in recording.tree("p0").items():
        out, *inner = value.shape
        assert seen[leaf].shape == ((*inner[1:], inner[0], out) if inner else (out,))
    kernel = next(leaf for leaf, value in seen.items() if value.ndim == 4)
    assert seen[kernel][1, 2, 3, 0] == recording.tree("p0")[kernel][0, 3, 1, 2]


# Comparisons.


@pytest.mark.parametrize(
    ("ours", "first", "passed"),
    [
        ([1.0, 2.0, 4.0], None, True),
        ([1.0, 2.0, 4.0 + 3e-9], None, True),
        ([1.0, 2.0 + 6e-9, 4.0], 1, False),
        ([1.0, np.nan, 4.0], 1, False),
        ([np.inf, 2.0, 4.0], 0, False),
    ],
)
def test_compare(ours, first, passed):
    exact = Pair(np.zeros((3, 2)), np.zeros((3, 2)), np.zeros(2))
    pair = Pair(np.array(ours)[:, None], np.array([[1.0], [2.0], [4.0]]), np.array([0.0]))
    outcome = compare({"a": exact, "b": pair}, 1e-9)
    assert (outcome.first, outcome.passed) == (first, passed)
    assert outcome.leaf == ("a" if outcome.error == 0 else "b")


def test_a_leaf_that_should_not_move_may_not_move():
    still = np.ones((3, 2))
    assert compare({"a": Pair(still, still, still[0])}, 1e-9).passed
    assert not compare({"a": Pair(still + 1e-12, still, still[0])}, 1e-9).passed


def test_comparing_nothing_or_other_shapes_is_an_error():
    with pytest.raises(AdapterError, match="compared nothing"):
        compare({}, 1e-9)
    with pytest.raises(AdapterError, match="leaf a has shape"):
        compare({"a": Pair(np.zeros((2, 1)), np.zeros((2, 3)), np.zeros(3))}, 1e-9)


@pytest.mark.parametrize("hyper", [{"lr": 0.1, "nesterov": True}, {}])
def test_hyper_parameters_that_do_not_fit_are_an_error(hyper):
    recording = Recording("sgd__case", "sgd", hyper, {}, {})
    with pytest.raises(AdapterError, match=r"the adapter of sgd is .*(nesterov|lr)"):
        call(lambda lr: optax.sgd(lr), recording)


def test_step_by_step_takes_a_float32_number_for_all_that_round_to_it():
    """Roundings do not add up; one that is off by the next number is noticed."""
    start, g = np.full(2, 1.3, np.float32), np.full((50, 2), 0.7, np.float32)
    recorded = np.empty_like(g)
    for t, before in enumerate([start, *recorded[:-1]]):
        recorded[t] = before - np.float32(1e-3) * g[t]
    adapter = step_by_step(lambda lr: optax.sgd(lr))

    def error(p):
        arrays = {"p0/w": start, "g/w": g, "p/w": p}
        recording = Recording("sgd__case", "sgd", {"lr": 1e-3}, {}, arrays)
        return replay(recording, adapter, 1e-7).error

    assert error(recorded) < 1e-7
    wrong = recorded.copy()
    wrong[20, 1] = np.nextafter(wrong[20, 1], np.float32(2))
    assert error(wrong) > 1e-6
    wrong[20, 1] = np.nan
    assert np.isnan(error(wrong))


# The command.


def write(path: pathlib.Path, arrays: dict, **changes) -> pathlib.Path:
    """A lion recording written anew, with other arrays or another meta."""
    source = of("lion")[0]
    meta = dict(source.meta, **changes)
    kept = {**source.arrays, "meta": np.array(json.dumps(meta)), **arrays}
    np.savez(path, **{key: value for key, value in kept.items() if value is not None})
    return path


def test_command_passes_and_counts(capsys):
    assert main([str(TRAJECTORIES), "--only", "lion"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == f"{len(of('lion'))} passed, 0 failed, 0 without adapter"
    assert [line.split()[:2] for line in lines] == [[r.stem, "pass"] for r in of("lion")]


def test_command_selects_one_file(capsys):
    assert main([str(TRAJECTORIES), "--only", "lion__default"]) == 0
    assert capsys.readouterr().out.endswith("\n1 passed, 0 failed, 0 without adapter\n")


def test_command_counts_methods_without_adapter(tmp_path, capsys):
    write(tmp_path / "novel__case.npz", {}, name="novel", hyper={"beta": float("inf")})
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith("\n0 passed, 0 failed, 1 without adapter\n")


def test_command_knows_a_file_by_its_meta_alone(tmp_path, capsys):
    leaves = {
        f"{group}/renamed": of("lion")[0].arrays[f"{group}/w"] for group in ("p0", "g", "p64")
    }
    gone = {key: None for key in of("lion")[0].arrays}
    write(tmp_path / "whatever.npz", {**gone, **leaves})
    assert main([str(tmp_path)]) == 0
    assert "in renamed" in capsys.readouterr().out


def test_command_reports_the_first_wrong_step(tmp_path, capsys):
    wrong = of("lion")[0].arrays["p64/w"].copy()
    wrong[3:, 0, 0] += 1e-6
    write(tmp_path / "lion__wrong.npz", {"p64/w": wrong})
    assert main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "FAIL" in out and "in w, beyond 1e-09 from step 3 on" in out
    assert out.endswith("\n0 passed, 1 failed, 0 without adapter\n")


def test_command_fails_on_a_hyper_parameter_it_does_not_know(tmp_path, capsys):
    hyper = {**of("lion")[0].hyper, "amsgrad": False}
    write(tmp_path / "lion__unknown.npz", {}, hyper=hyper)
    assert main([str(tmp_path)]) == 1
    assert "amsgrad" in capsys.readouterr().out


def test_command_fails_when_our_result_is_nan(tmp_path, capsys, monkeypatch):
    nan = optax.stateless(lambda updates, _: jax.tree.map(lambda u: u * np.nan, updates))
    monkeypatch.setitem(ADAPTERS, "lion", open_loop(lambda **hyper: nan))
    assert main([str(TRAJECTORIES), "--only", "lion__default"]) == 1
    assert "largest error nan" in capsys.readouterr().out


@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.99])
def test_command_names_a_truncated_file(tmp_path, capsys, kept):
    whole = (TRAJECTORIES / "lion__default.npz").read_bytes()
    path = tmp_path / "lion__default.npz"
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    assert main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "FAIL             lion__default.npz is corrupt or truncated" in out
    assert out.endswith("\n0 passed, 1 failed, 0 without adapter\n")


def test_command_names_a_damaged_file(tmp_path, capsys):
    damaged = bytearray((TRAJECTORIES / "lion__default.npz").read_bytes())
    for offset in range(2_000, len(damaged) - 10_000, 1_000):
        damaged[offset] ^= 0xFF
    (tmp_path / "lion__default.npz").write_bytes(damaged)
    assert main([str(tmp_path)]) == 1
    assert "lion__default.npz" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arrays", "changes", "message"),
    [
        ({"meta": None}, {}, "has no text called meta"),
        ({"meta": np.array("{")}, {}, "its meta is not JSON"),
        ({"meta": np.array([1, 2])}, {}, "has no text called meta"),
        ({}, {"name": 3}, "needs a string `name`"),
        ({}, {"T": 11}, "12] steps where meta has 11"),
        ({"g/w": None}, {}, "p0 and g hold different leaves"),
        ({"p0/w": None}, {}, "p0 and p64 hold different leaves"),
        ({"g/w": np.zeros((12, 3), np.float32)}, {}, r"g/w has shape (12, 3)"),
        ({"p64/w": np.full((12, 24, 16), np.nan)}, {}, "p64/w holds something else"),
        ({"g/w": np.array([None, {}])}, {}, "holds object, not plain numbers"),
    ],
)
def test_command_names_a_malformed_file(tmp_path, capsys, arrays, changes, message):
    write(tmp_path / "lion__bad.npz", arrays, **changes)
    assert main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "lion__bad.npz is no recording" in out and message in out


def test_header_larger_than_its_entry_is_refused_before_allocation(tmp_path, capsys):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 9)}
    )
    path = write(tmp_path / "lion__huge.npz", {})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("p0/huge.npy", header.getvalue())
    assert main([str(tmp_path)]) == 1
    assert "p0/huge.npy is not as long as its shape" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/absent"], "is not a directory."),
        (["{tmp}"], "holds no npz file."),
        ([str(TRAJECTORIES), "{tmp}"], "holds no npz file."),
        ([str(TRAJECTORIES), "--only", "lio"], "--only lio selects none of the"),
    ],
)
def test_command_refuses_an_empty_selection(tmp_path, capsys, arguments, message):
    assert main([argument.format(tmp=tmp_path) for argument in arguments]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1 and message in output.err


def test_command_shows_which_recording_notices_each_mutant(capsys):
    assert main([str(TRAJECTORIES), "--only", "lion", "--mutants"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == "0 unnoticed" and len(lines) == len(MUTANTS["lion"])
    assert all("fails on lion__" in line for line in lines)


def test_command_fails_when_a_mutant_survives_cannot_run_or_is_missing(capsys, monkeypatch):
    monkeypatch.setitem(MUTANTS, "lion", {"none": ADAPTERS["lion"], "broken": open_loop(dict.pop)})
    assert main([str(TRAJECTORIES), "--only", "lion", "--mutants"]) == 1
    out = capsys.readouterr().out
    assert "SURVIVES" in out and "CANNOT RUN" in out and out.endswith("2 unnoticed\n")
    monkeypatch.setitem(MUTANTS, "lion", {})
    assert main([str(TRAJECTORIES), "--only", "lion", "--mutants"]) == 1
    assert "has no mutant" in capsys.readouterr().out
