"""Parameters as points of a space: the list of their floating leaves, in float32 at least."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optim import trees


class Space:
    """Trees like the parameters and the lists of their floating leaves, promoted."""

    def __init__(self, method: str, params: Any):
        self.structure: Any
        flat, self.structure = jax.tree.flatten_with_path(params)
        leaves = [leaf for _, leaf in flat]
        self.method = method
        self.paths = [trees.path_string(path) for path, _ in flat]
        self.shapes = [jnp.shape(x) for x in leaves]
        self.dtypes = [trees.accumulator_dtype(x) for x in leaves]
        self.floating = [jnp.issubdtype(jnp.result_type(x), jnp.floating) for x in leaves]
        self.floating_paths = [
            path for path, is_float in zip(self.paths, self.floating, strict=True) if is_float
        ]
        for path, dtype in zip(self.paths, self.dtypes, strict=True):
            if jnp.issubdtype(dtype, jnp.complexfloating):
                raise ValueError(
                    f"{method}: the parameter {path!r} has dtype {dtype}; accepted: real ones."
                )

    def function(self, function: Callable[[Any], Any], params: Any) -> Callable[[Any], Any]:
        """The function of parameters as one of their floating leaves; the others are constants."""
        leaves = jax.tree.leaves(params)
        return lambda point: function(self._filled(point, leaves))

    def coordinates(self, vector: Any) -> list[jax.Array]:
        """The leaves of a vector where the parameters are floating."""
        try:
            leaves = self.structure.flatten_up_to(vector)
        except ValueError as error:
            raise ValueError(
                f"{self.method}: the vector is {jax.tree.structure(vector)}; accepted: a tree like "
                f"the parameters, {self.structure}."
            ) from error
        chosen = []
        for i, x in enumerate(leaves):
            if self.floating[i]:
                if described(x) != self.shapes[i]:
                    raise ValueError(
                        f"{self.method}: the vector's leaf {self.paths[i]!r} is {described(x)}; "
                        f"accepted: an array of the parameter's shape, {self.shapes[i]}."
                    )
                chosen.append(trees.as_dtype(x, self.dtypes[i]))
        return chosen

    def tree(self, point: list[jax.Array]) -> Any:
        """A product as a tree like the parameters, with zeros where these are not floating."""
        constants = [
            None if is_float else jnp.zeros(shape, dtype)
            for is_float, shape, dtype in zip(self.floating, self.shapes, self.dtypes, strict=True)
        ]
        return self._filled(point, constants)

    def _filled(self, point: list[Any], others: list[Any]) -> Any:
        left = iter(point)
        pairs = zip(self.floating, others, strict=True)
        return self.structure.unflatten([next(left) if is_float else x for is_float, x in pairs])


def described(value: Any) -> Any:
    """The shape of an array, and of anything else what it is."""
    structure: Any = jax.tree.structure(value)
    return jnp.shape(value) if structure == jax.tree.structure(0) else repr(structure)


def scalar_valued(
    method: str, argument: str, function: Callable[[Any], Any]
) -> Callable[[Any], Any]:
    def checked(point: Any) -> Any:
        value = function(point)
        if described(value) != ():
            raise ValueError(
                f"{method}: {argument} returns {described(value)}; accepted: a scalar."
            )
        return value

    return checked
