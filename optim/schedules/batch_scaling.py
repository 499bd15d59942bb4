"""How the learning rate follows the batch size.

With a rate r that was tuned at batch size B_0, batch size B has::

    linear    min(r B / B_0, most)          SGD
    sqrt      min(r sqrt(B / B_0), most)    Adam

The largest stable rate of SGD is 2 over the largest eigenvalue of the batch's Hessian. While the
noise of the batch makes that eigenvalue, it falls as 1 / B, and the rate may grow with B; once the
eigenvalue is that of the whole data's Hessian it stays, and so does the rate: `most` is where.

*Reference.* Granziol, Zohren and Roberts, Learning Rates as a Function of Batch Size: A Random
Matrix Theory Approach to Neural Network Training, 2022 (arXiv:2006.09092).
"""

from optim import trees


def scale_with_batch_size(
    learning_rate: float,
    batch_size: int,
    reference_batch_size: int,
    *,
    rule: str = "linear",
    most: float | None = None,
) -> float:
    """The rate for a batch size, from the one tuned at another.

    Args:
      learning_rate: tuned at `reference_batch_size`.
      batch_size: of the run to come.
      reference_batch_size: of the run that is known.
      rule: "linear" (SGD) or "sqrt" (Adam).
      most: the largest rate to give; None for no limit.

    Raises:
      ValueError: a number that is not positive, or an unknown rule.

    >>> import optim
    >>> optim.scale_with_batch_size(0.1, 256, 64)
    0.4
    >>> optim.scale_with_batch_size(0.1, 256, 64, rule="sqrt")
    0.2
    >>> optim.scale_with_batch_size(0.1, 256, 64, most=0.3)
    0.3
    """
    trees.check_positive(
        "scale_with_batch_size",
        learning_rate=learning_rate,
        batch_size=batch_size,
        reference_batch_size=reference_batch_size,
    )
    if rule not in ("linear", "sqrt"):
        raise ValueError(f"scale_with_batch_size: rule is {rule!r}; accepted: 'linear', 'sqrt'.")
    ratio = batch_size / reference_batch_size
    scaled = learning_rate * (ratio if rule == "linear" else ratio**0.5)
    if most is None:
        return scaled
    trees.check_positive("scale_with_batch_size", most=most)
    return min(scaled, most)
