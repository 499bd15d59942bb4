"""The choice of mini-batches is that of the authors' loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optim


def by_the_authors_loop(losses, share):
    """Pairs of number and loss, sorted by falling loss, cut, and put back in order."""
    pairs = sorted(enumerate(losses), key=lambda pair: pair[1], reverse=True)
    return sorted(number for number, _ in pairs[: int(share * len(losses))])


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_chosen_as_by_the_authors_loop(share):
    losses = np.random.default_rng(0).normal(size=11).astype(np.float32).round(1)
    losses[4] = losses[7]  # of equal ones the first is taken first
    found = jax.jit(optim.hard_batches, static_argnums=1)(losses, share)
    assert found.tolist() == by_the_authors_loop(losses.tolist(), share)


def test_rounds_keep_the_losses_of_what_they_leave_out():
    """Losses that halve when trained on: rounds of one alternate as the record says."""
    record, chosen = np.array([4.0, 3.0, 1.0], np.float32), []
    for _ in range(4):
        (number,) = optim.hard_batches(record, 0.34).tolist()
        chosen.append(number)
        record[number] /= 2
    assert chosen == [0, 1, 0, 1]
    assert record.tolist() == [1.0, 0.75, 1.0]


@pytest.mark.parametrize("share", [0.0, 1.5, 0.2])
def test_a_share_that_chooses_nothing_is_named(share):
    with pytest.raises(ValueError, match=f"hard_batches: share is {share} of 4 batches; accepted"):
        optim.hard_batches(jnp.ones(4), share)


def test_losses_that_are_no_vector_are_named():
    with pytest.raises(ValueError, match=r"hard_batches: losses is of shape \(2, 2\)"):
        optim.hard_batches(jnp.ones((2, 2)), 0.5)
