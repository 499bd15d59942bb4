"""Tests of experiments/checkpoints.py: what is restored is whole and of this state."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.checkpoints import Checkpoints, Counters, fields, fingerprints, read_params
from experiments.config import UserError


def make_state(seed: int = 0, dtype: Any = jnp.float32) -> dict[str, Any]:
    key = jax.random.key(seed)
    params = {
        "w": jax.random.normal(key, (300, 40), dtype),
        "empty": jnp.zeros((0, 3)),
        "b": jnp.ones(()),
    }
    tx = optax.chain(optax.adamw(1e-3), optax.ema(0.9))
    return {"params": params, "optimizer": tx.init(params), "key": jax.random.key(seed + 1)}


def as_target(state: Any) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def save(directory: pathlib.Path, losses: dict[int, float | None], keep: int = 3) -> Any:
    checkpoints = Checkpoints(directory, keep)
    states = {step: make_state(step) for step in losses}
    for step, loss in losses.items():
        checkpoints.save(states[step], Counters(step, 8 * step), loss)
    checkpoints.close()
    return states


def restore(directory: pathlib.Path, target: Any, said: list[str] | None = None) -> Any:
    checkpoints = Checkpoints(directory, 3)
    try:
        return checkpoints.restore(target, [].append if said is None else said.append)
    finally:
        checkpoints.close()


def assert_same(left: Any, right: Any) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_the_newest_comes_back_bit_for_bit(tmp_path):
    states = save(tmp_path, {1: None, 2: None})
    state, counters = restore(tmp_path, as_target(states[2]))
    assert_same(state, states[2])
    assert counters == Counters(2, 16)


def test_an_empty_directory_restores_nothing(tmp_path):
    assert restore(tmp_path, as_target(make_state())) is None


def test_the_newest_and_the_best_evaluated_are_kept(tmp_path):
    save(tmp_path, {1: 3.0, 2: 1.0, 3: 2.0, 4: None, 5: 4.0, 6: None}, keep=2)
    assert {int(p.name) for p in tmp_path.iterdir()} == {2, 5, 6}


def damage_by_truncation(files: list[pathlib.Path]) -> None:
    largest = max(files, key=lambda f: f.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def damage_by_one_bit(files: list[pathlib.Path]) -> None:
    largest = max(files, key=lambda f: f.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def damage_by_removal(files: list[pathlib.Path]) -> None:
    for file in files:
        file.unlink()


def damage_the_record(files: list[pathlib.Path]) -> None:
    record = next(f for f in files if f.parent.name == "record" and f.name == "metadata")
    record.write_text(record.read_text()[:50])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "damage", [damage_by_truncation, damage_by_one_bit, damage_by_removal, damage_the_record]
)
def test_a_damaged_checkpoint_is_passed_over_and_kept_aside(tmp_path, damage):
    directory = tmp_path / "checkpoints"
    states = save(directory, {1: None, 2: None})
    damage(
        [
            f
            for f in (directory / "2").rglob("*")
            if f.is_file() and f.name != "_CHECKPOINT_METADATA"
        ]
    )
    said: list[str] = []
    state, counters = restore(directory, as_target(states[1]), said)
    assert_same(state, states[1])
    assert counters.step == 1
    assert len(said) == 1 and "Checkpoint 2" in said[0] and "damaged" in said[0]
    assert (tmp_path / "damaged_checkpoints" / "2").is_dir()
    save(directory, {2: None})
    assert restore(directory, as_target(states[1]))[1].step == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_only_damaged_checkpoints_stop_the_run_and_stay(tmp_path):
    directory = tmp_path / "checkpoints"
    states = save(directory, {1: None})
    damage_by_truncation([f for f in (directory / "1").rglob("*") if f.is_file()])
    with pytest.raises(UserError, match="all checkpoints .* are damaged"):
        restore(directory, as_target(states[1]))
    assert (directory / "1").is_dir()


def change_dtype(state: Any) -> Any:
    return state | {"params": state["params"] | {"w": state["params"]["w"].astype(jnp.bfloat16)}}


def change_shape(state: Any) -> Any:
    return state | {"params": state["params"] | {"w": jnp.zeros((300, 41))}}


def add_a_leaf(state: Any) -> Any:
    return state | {"params": state["params"] | {"w2": jnp.zeros(3)}}


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        (change_dtype, r"params/w is float32\[300,40\] there and bfloat16\[300,40\] here"),
        (change_shape, r"params/w is float32\[300,40\] there and float32\[300,41\] here"),
        (add_a_leaf, r"params/w2 is absent there and float32\[3\] here"),
    ],
)
def test_another_state_stops_the_load_and_names_the_field(tmp_path, change, phrase):
    states = save(tmp_path, {1: None})
    with pytest.raises(UserError, match=phrase):
        restore(tmp_path, as_target(change(states[1])))
    assert (tmp_path / "1").is_dir()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8, jnp.bool_, jnp.uint32])
def test_a_fingerprint_sees_every_single_change(dtype):
    values = (jnp.arange(12).reshape(3, 4) % 2).astype(dtype)
    seen = {fingerprints({"x": values})["x"]}
    for index in np.ndindex(values.shape):
        flipped = values.at[index].set((1 - values[index].astype(jnp.int32)).astype(dtype))
        seen.add(fingerprints({"x": flipped})["x"])
    assert len(seen) == 13


def test_a_fingerprint_sees_float64_and_exchanged_elements():
    with jax.enable_x64(True):
        values = jnp.arange(4.0)
        assert values.dtype == jnp.float64
        swapped = values[jnp.array([1, 0, 2, 3])]
        nudged = values.at[1].set(jnp.nextafter(values[1], jnp.inf))
        assert len({fingerprints({"x": v})["x"] for v in (values, swapped, nudged)}) == 3


def test_fields_name_path_dtype_and_shape():
    assert fields({"a": {"b": jnp.zeros((2, 3), jnp.bfloat16)}}) == {"a/b": "bfloat16[2,3]"}


def test_parameters_are_read_alone_from_any_step(tmp_path):
    states = save(tmp_path, {1: None, 2: None})
    target = as_target(states[1])["params"]
    for step in (1, 2):
        assert_same(read_params(tmp_path, step, target), states[step]["params"])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_parameters_that_are_missing_other_or_damaged_are_one_sentence(tmp_path):
    states = save(tmp_path, {1: None, 2: None})
    target = as_target(states[1])["params"]
    with pytest.raises(UserError, match=r"^there is no checkpoint 3 in .*\.$"):
        read_params(tmp_path, 3, target)
    for change, difference in (
        (change_dtype, r"params/w is float32\[300,40\] there and bfloat16\[300,40\] here"),
        (add_a_leaf, r"params/w2 is absent there and float32\[3\] here"),
    ):
        other = as_target(change(states[1]))["params"]
        with pytest.raises(UserError, match=f"checkpoint 1 in .* is of other .*: {difference}"):
            read_params(tmp_path, 1, other)
    for step, damage in ((1, damage_by_truncation), (2, damage_by_one_bit)):
        damage([f for f in (tmp_path / str(step) / "state").rglob("*") if f.is_file()])
        with pytest.raises(UserError, match=f"^checkpoint {step} in .* is damaged: .*"):
            read_params(tmp_path, step, target)
