"""Data that scikit-learn brings, as the tests of derivatives split it."""

import functools

import numpy as np
from sklearn import datasets, model_selection, preprocessing


@functools.cache
def diabetes():
    """x, y to train on and x, y to validate on: 296 and 146 rows of norm one."""
    x, y = datasets.load_diabetes(return_X_y=True)
    split = model_selection.train_test_split(
        preprocessing.normalize(x), y, test_size=0.33, random_state=0
    )
    return split[0], split[2], split[1], split[3]


@functools.cache
def digits_in_two(features):
    """Eights or not, as +1 or -1, by the pixels of most variance: 300 rows each."""
    x, y = datasets.load_digits(return_X_y=True)
    x = x[:, np.argsort(-x.var(axis=0))[:features]]
    x, y = (x - x.mean(axis=0)) / x.std(axis=0), np.where(y == 8, 1.0, -1.0)
    return x[:300], y[:300], x[300:600], y[300:600]
