"""An ill-conditioned quadratic with gradient noise; everything about it is known.

    loss of sample i:  ½ Σ_j λ_j x_j² + noise · ξ_iᵀ x,   ξ_i ~ N(0, I)
    λ_j = condition^(-j / (dimension - 1)),  j = 0 .. dimension - 1:  from 1 down to 1 / condition

so a batch's gradient is λ x plus noise of variance noise² / batch in each coordinate. The stream of
samples never ends: ξ_i is a function of the seed and i. Validation is the objective without noise.
The axes of the quadratic are the coordinates: a method with a rate for each coordinate can undo the
conditioning completely, so it says nothing on how such a method copes with rotated curvature.
"""

import dataclasses
import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtri

from experiments.data.order import uniform
from experiments.tasks.task import Batch, Params, Place, Task


@dataclasses.dataclass
class Quadratic:
    """Starts at a standard normal point."""

    dimension: int = 100
    condition: float = 1000.0  # largest eigenvalue over smallest; the largest is 1
    noise: float = 0.1  # deviation of one sample's gradient in each coordinate

    def build(self) -> Task:
        """Raises ValueError where a field is out of range."""
        if self.dimension < 1 or not self.condition >= 1 or not self.noise >= 0:
            raise ValueError(
                f"Quadratic: dimension = {self.dimension}, condition = {self.condition}, noise = "
                f"{self.noise}; accepted: dimension and condition at least 1, noise at least 0."
            )
        exponents = np.arange(self.dimension) / max(self.dimension - 1, 1)
        eigenvalues = (self.condition**-exponents).astype(np.float32)

        def init(key: jax.Array) -> Params:
            named = jax.random.fold_in(key, zlib.crc32(b"quadratic"))
            return {"x": jax.random.normal(named, (self.dimension,))}

        def batches(seed: int, samples: int, count: int) -> Batch:
            sample = np.arange(samples, samples + count)[:, None]
            draws = ndtri(uniform(seed, sample, np.arange(self.dimension)))
            return {"noise": (self.noise * draws).astype(np.float32)}

        objective = jax.jit(functools.partial(_objective, eigenvalues))

        def evaluate(params: Params, place: Place) -> dict[str, float]:
            return {"loss": float(objective(params))}

        return Task(
            init=init,
            loss=functools.partial(_loss, eigenvalues),
            batches=batches,
            evaluate=evaluate,
            facts={
                "loss_unit": "objective",
                "primary": "loss",
                "tokens_per_sample": 1,
                "samples": None,
                "baselines": {"expected start": float(eigenvalues.sum() / 2), "optimum": 0.0},
                "provenance": {"source": "synthetic quadratic", **dataclasses.asdict(self)},
            },
        )


def _objective(eigenvalues: np.ndarray, params: Params) -> jax.Array:
    return jnp.sum(eigenvalues * params["x"] ** 2) / 2


def _loss(
    eigenvalues: np.ndarray, params: Params, batch: Batch, key: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    objective = _objective(eigenvalues, params)
    noise = jnp.mean(batch["noise"], axis=0) @ params["x"]
    return objective + noise, {"objective": objective}
