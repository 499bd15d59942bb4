"""The Step Law: learning rate and batch size of a language model, from its size and its data.

With N parameters and D tokens::

    learning rate    1.79 N^-0.713 D^0.307
    batch size       0.58 D^0.571            tokens

N leaves out the embeddings: for a layer of width h whose feed-forward part is f wide it counts
4 h^2 + 3 h f. The runs behind the law all end at a rate of 1e-5, whatever their peak: let that, and
not a tenth of the peak, be the `end_value` of the schedule.

The constants are the published ones. The authors' tool takes the means of 1000 fits to resampled
data, 1.797, -0.7129, 0.3075 and 0.5807, 0.5709; ninety per cent of the fits have exponents within
[-0.764, -0.664], [0.277, 0.340] and [0.539, 0.601]. So outside the range of the runs the law is a
guess, and a warning says that. The range is the one of the dense models whose losses the authors
released: N from 214,663,680 to 1,073,741,824, D from 4e9 to 1e11.

*Reference.* Li et al., Predictable Scale: Part I, Optimal Hyperparameter Scaling Law in Large
Language Model Pretraining, 2025 (arXiv:2503.04715); step-law/steplaw@32a8f4c,
data/dense_lr_bs_loss.csv, data/1004_fitted_lr_bs_scaling_model_parameters.csv, code/fit_tool.py.
"""

import warnings
from typing import NamedTuple

from optim import trees

_RANGES = {"parameters": (214_663_680, 1_073_741_824), "tokens": (4e9, 1e11)}


class StepLaw(NamedTuple):
    """What `step_law` recommends."""

    learning_rate: float  # the peak
    batch_tokens: float  # tokens in a batch; divided by the length of sequences, their number


def step_law(parameters: float, tokens: float) -> StepLaw:
    """The peak learning rate and the batch size for a run.

    Args:
      parameters: N, without the embeddings.
      tokens: D, those of the whole run.

    Raises:
      ValueError: a number that is not positive.

    Warns:
      UserWarning: a number beyond those of the runs that the law was fitted to.

    >>> import optim
    >>> rate, batch = optim.step_law(parameters=4.3e8, tokens=4e10)
    >>> round(rate, 5), round(batch / 2048)
    (0.00225, 321)
    """
    trees.check_positive("step_law", parameters=parameters, tokens=tokens)
    for name, value in (("parameters", parameters), ("tokens", tokens)):
        least, most = _RANGES[name]
        if not least <= value <= most:
            warnings.warn(
                f"step_law: {name} is {value:.4g}; the law was fitted between {least:.4g} and "
                f"{most:.4g}.",
                stacklevel=2,
            )
    return StepLaw(1.79 * parameters**-0.713 * tokens**0.307, 0.58 * tokens**0.571)
