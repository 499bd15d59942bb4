"""The Step Law: the published numbers, the authors' fits, the warnings."""

import warnings

import pytest

import optim


def test_published_constants():
    rate, batch = optim.step_law(2.5e8, 1e10)
    assert rate == pytest.approx(1.79 * 2.5e8**-0.713 * 1e10**0.307, rel=1e-12)
    assert batch == pytest.approx(0.58 * 1e10**0.571, rel=1e-12)


@pytest.mark.parametrize(("n", "d"), [(214_663_680, 4e9), (536_872_960, 5e10), (1.07e9, 1e11)])
def test_agrees_with_the_means_of_the_authors_fits(n, d):
    """exp(0.58631) N^-0.71292 D^0.30749 and exp(-0.54354) D^0.57094, as their tool takes them."""
    ours = optim.step_law(n, d)
    assert ours.learning_rate == pytest.approx(1.7973 * n**-0.71292 * d**0.30749, rel=0.02)
    assert ours.batch_tokens == pytest.approx(0.58069 * d**0.57094, rel=0.01)


def test_powers():
    """Ten times the tokens at 2 x 10^8 more parameters: ratios are powers alone."""
    small, large = optim.step_law(3e8, 5e9), optim.step_law(9e8, 5e10)
    assert large.learning_rate / small.learning_rate == pytest.approx(3**-0.713 * 10**0.307)
    assert large.batch_tokens / small.batch_tokens == pytest.approx(10**0.571)


@pytest.mark.parametrize(
    ("n", "d", "message"),
    [
        (7e9, 5e10, r"parameters is 7e\+09; the law was fitted between 2.147e\+08 and 1.074e\+09"),
        (1e8, 5e10, r"parameters is 1e\+08; the law"),
        (5e8, 1e12, r"tokens is 1e\+12; the law was fitted between 4e\+09 and 1e\+11"),
        (5e8, 1e9, r"tokens is 1e\+09; the law"),
    ],
)
def test_warns_beyond_the_runs(n, d, message):
    with pytest.warns(UserWarning, match=f"step_law: {message}") as caught:
        optim.step_law(n, d)
    assert len(caught) == 1 and caught[0].filename == __file__


def test_is_silent_at_the_ends_of_the_range():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optim.step_law(214_663_680, 4e9)
        optim.step_law(1_073_741_824, 1e11)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="step_law: parameters is 0; accepted: parameters > 0"):
        optim.step_law(0, 1e10)
    with pytest.raises(ValueError, match="step_law: tokens is -1; accepted: tokens > 0"):
        optim.step_law(3e8, -1)
