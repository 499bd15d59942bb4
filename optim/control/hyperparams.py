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

import functools
import inspect
import numbers
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


def inject_hyperparams(
    factory: Callable[..., optax.GradientTransformation],
    static_args: str | Iterable[str] = (),
) -> Callable[..., optax.GradientTransformationExtraArgs]:
    """A factory like `factory` whose state holds its hyper-parameters, under `hyperparams`.

    Floats and arrays are held there, defaults of the factory among them, and so is the value of a
    schedule, which setting does not change. Everything else (integers with an integer default,
    booleans, strings, tuples, masks, None) is passed on as it is.

    Args:
      factory: makes a transformation from hyper-parameters, such as `optim.lion`.
      static_args: names of arguments to leave alone besides those that are no real numbers.

    Raises:
      ValueError: a name in static_args is no parameter of the factory.

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
    if not named <= signature.parameters.keys():
        raise ValueError(
            f"inject_hyperparams: static_args is {sorted(named)}; "
            f"accepted: names among {sorted(signature.parameters)}."
        )

    @functools.wraps(factory)
    def build(*args: Any, **kwargs: Any) -> optax.GradientTransformationExtraArgs:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values, static = {}, set(named)
        for name, value in bound.arguments.items():
            if name in named or not _injected(value, signature.parameters[name].default):
                values[name] = value
                static.add(name)
            else:
                values[name] = _in_float32(value)
        return optax.inject_hyperparams(factory, static, jnp.float32)(**values)

    return build


def _injected(value: Any, default: Any) -> bool:
    """Whether the value is a number that may change, or a schedule of one."""
    absent = default is inspect.Parameter.empty
    number = isinstance(default, numbers.Real) and not isinstance(default, bool)
    if isinstance(value, bool):
        return False
    if isinstance(value, numbers.Integral):
        return absent or (number and not isinstance(default, numbers.Integral))
    if isinstance(value, (jax.Array, np.ndarray)):
        return value.dtype != bool
    if isinstance(value, numbers.Real):
        return True
    return callable(value) and (absent or number)


def _in_float32(value: Any) -> Any:
    if isinstance(value, numbers.Real):
        return float(value)
    if callable(value) and not hasattr(value, "update"):  # optax's stateful schedules have one
        return lambda count: jnp.asarray(value(count), jnp.float32)
    return value
