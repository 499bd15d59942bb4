"""Hyper-parameters that can be read and set while a program runs.

`optax.inject_hyperparams`, with two of its habits changed:

1. Hyper-parameters are float32, whatever the parameters are. optax casts them to the parameters'
   dtype, and b2 = 0.999 is 1 in bfloat16.
2. Only what is a real number is injected. optax injects integers, which then break what is decided
   when a function is traced (a rank, a number of steps), and takes every function for a schedule,
   masks among them. Here an integer is injected where the factory's own default is a float or is
   absent; a function is a schedule where the default is a number or is absent.

*Cost.* 4 bytes a hyper-parameter.

*Reference.* optax 0.2.8, schedules/_inject.py; its issues #412 and #1414.
"""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
import optax


def inject_hyperparams(
    factory: Callable[..., optax.GradientTransformation],
    static_args: str | Iterable[str] = (),
) -> Callable[..., optax.GradientTransformationExtraArgs]:
    """A factory like `factory` whose state holds its hyper-parameters, under `hyperparams`.

    Args:
      factory: makes a transformation from hyper-parameters, such as `optim.lion`.
      static_args: names of arguments to leave alone besides those that are no real numbers.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.inject_hyperparams(optim.lion)(learning_rate=0.5)
    >>> params = jnp.array([1.0, 2.0])
    >>> state = tx.init(params)
    >>> state.hyperparams["learning_rate"] = jnp.float32(0.25)
    >>> tx.update(jnp.array([3.0, -3.0]), state, params)[0].tolist()
    [-0.25, 0.25]
    """
    signature = inspect.signature(factory)
    named = {static_args} if isinstance(static_args, str) else {*static_args}

    def build(*args: Any, **kwargs: Any) -> optax.GradientTransformationExtraArgs:
        given = signature.bind(*args, **kwargs).arguments
        static = {
            n for n, value in given.items() if _static(value, signature.parameters[n].default)
        }
        # What is left to its default is no user's to change: a number that decides a trace stays.
        static |= {
            n
            for n, parameter in signature.parameters.items()
            if n not in given and not isinstance(parameter.default, float)
        }
        return optax.inject_hyperparams(
            factory, static_args=named | static, hyperparam_dtype=jnp.float32
        )(*args, **kwargs)

    return build


def _static(value: Any, default: Any) -> bool:
    absent = default is inspect.Parameter.empty
    if isinstance(value, bool) or value is None:
        return True
    if isinstance(value, int):
        return not (absent or isinstance(default, float))
    if callable(value):
        return not (absent or (isinstance(default, (int, float)) and not isinstance(default, bool)))
    return False
