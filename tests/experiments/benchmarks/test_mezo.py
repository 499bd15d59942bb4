"""The MeZO benchmark times steps that are what they are called, at the memory that it tells of."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import mezo
from experiments.models.chunked_decoder import ChunkedDecoder

SMALL = ChunkedDecoder(layers=2, width=16, hidden=32, heads=2, vocabulary=64, chunk=16)
TOKENS = jax.random.randint(jax.random.key(1), (2, 9), 0, 64)


@functools.cache
def change(name, rate):
    """(parameters before, change over -rate) of a step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mezo, "RATE", rate)
        params = SMALL.init(jax.random.key(0))
        init, step = mezo.METHODS[name](SMALL)
        after = jax.jit(step)(init(params), TOKENS)
    after = getattr(after, "params", after[0] if isinstance(after, tuple) else after)
    return params, jax.tree.map(lambda a, b: (b - a) / rate, after, params)


def flat(tree):
    return jnp.concatenate([x.reshape(-1) for x in jax.tree.leaves(tree)])


def gradient(params):
    return flat(jax.grad(lambda p: jnp.mean(SMALL.losses(p, TOKENS)))(params))


@pytest.mark.slow
def test_sgd_moves_against_the_gradient():
    params, moved = change("SGD", 1.0)
    np.testing.assert_allclose(flat(moved), gradient(params), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in mezo.METHODS if name != "SGD"])
def test_the_others_move_by_the_slope_along_one_direction(name):
    """c z has the slope c^2 and the squared length c^2 z'z, z'z about the number of weights."""
    params, moved = change(name, 1.0)
    moved = flat(moved)
    slope = moved @ gradient(params)
    assert slope > 0
    assert moved @ moved / slope == pytest.approx(moved.size, rel=0.05)


@pytest.mark.slow
def test_streamed_and_treewise_steps_have_the_same_bits():
    (_, ours), (_, copies) = (change(f"mezo, {name}", 1.0) for name in ("streamed", "tree-wise"))
    np.testing.assert_array_equal(flat(ours), flat(copies))


@pytest.mark.slow
def test_a_streamed_step_has_the_temporaries_of_a_forward_pass(monkeypatch):
    """Within one layer and one chunk, where copies take one of all parameters and more."""
    model = ChunkedDecoder(layers=6, width=64, hidden=256, heads=2, vocabulary=2048, chunk=128)
    found = {
        name: mezo.candidate(model, name, 32)
        for name in ("two forwards", "mezo, streamed", "mezo, tree-wise")
    }
    temporaries = {
        name: mezo.compile_candidate(x).facts["temporary_bytes"] for name, x in found.items()
    }
    params = model.init(jax.random.key(0))
    total = sum(x.nbytes for x in jax.tree.leaves(params))
    layer = sum(x.nbytes for x in jax.tree.leaves(params["blocks"])) // model.layers
    chunk = model.chunk * model.width * 4
    beyond = temporaries["mezo, streamed"] - temporaries["two forwards"]
    assert beyond < layer + chunk < total / 4
    assert temporaries["mezo, tree-wise"] > total
    shown = found["mezo, tree-wise"].findings["over the parameters"]
    assert shown == f"{temporaries['mezo, tree-wise'] / total:.2f}"


def test_the_decoder_has_the_parameters_that_the_docstring_says():
    shapes = jax.eval_shape(ChunkedDecoder().init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == pytest.approx(42e6, rel=0.01)


def test_all_of_one_number_of_tokens_are_divided_by_its_forward_passes():
    comparison = mezo.candidates(quick=False)
    assert len(comparison.candidates) == 18
    for name, reference in comparison.reference.items():
        assert reference == f"{name.split(':')[0]}: two forwards"
