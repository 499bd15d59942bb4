"""Muon: the momentum of a matrix, its singular values brought near 1.

With gradient `G` and momentum `M` (0 at the start) of a matrix with `m` rows and `n` columns, rows
being what the layer contracts, parameters `P`, rate `lr` and decay `wd`::

    M = b1 M + (1 - b1) G
    U = b1 M + (1 - b1) G if nesterov else M
    P = (1 - lr wd) P - lr scale(m, n) NewtonSchulz(U)

    scale:  keller  max(1, n / m)^(1/2)        moonlight  0.2 max(m, n)^(1/2)

`optim.solvers.newton_schulz` has the iteration and its polynomials. Embeddings, heads, gains and
biases are no matrices in this sense: they go to the `auxiliary` optimizer.

*Moonlight.* Its momentum is M = b1 M + G, U = G + b1 M, which is ours divided by 1 - b1, and
Newton-Schulz forgets scales but for `eps`. So it is `scale="moonlight", eps=1e-7 * (1 - b1)`
exactly, and to rounding with any small eps; its rate and decay default to 1e-3 and 0.1.

*Differences.*

1. From Keller Jordan's code: its factor of a convolution is that of the last two axes, the window,
   and so 1; here it is that of the flattened matrix, as for any other.
2. From both: heads, fused query-key-value kernels and stacked layers can be declared as matrices of
   their own; the iteration's polynomials are a choice, and their number is the number of steps.
3. From `optax.contrib.muon`: no bias correction, which is applied there with other exponents to M
   and to G and turns the early directions; the iteration in bfloat16, as the authors do, unless
   `dtype` asks otherwise; decay and rate of the auxiliary optimizer are its own.

*Cost.* One momentum: 4 bytes a parameter, 2 with `mu_dtype="bfloat16"`. Five steps are
20 m^2 n + 10 m^3 multiplications a matrix with m <= n; `form="gram"` makes that 8 m^2 n + 28 m^3
where n >= 2 m. On a mesh with `mesh_axis`, one all-to-all a group each way.

*Reference.* Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024;
KellerJordan/Muon@857d1adc159e, muon.py. Liu et al., Muon is Scalable for LLM Training, 2025
(arXiv:2502.16982); MoonshotAI/Moonlight@c2ad5b20c605, examples/toy_train.py.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jax.typing import ArrayLike, DTypeLike

from optim import matrices as stacks
from optim import trees
from optim.solvers import newton_schulz
from optim.solvers.newton_schulz import Coefficients

Scale = Callable[[int, int], float]

SCALES: dict[str, Scale] = {
    "keller": lambda rows, columns: math.sqrt(max(1, columns / rows)),
    "moonlight": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
}


class ScaleByMuonState(NamedTuple):
    """State of `scale_by_muon`."""

    mu: optax.Updates  # like the parameters, float32 or wider (or mu_dtype): momentum M


def _kernel(
    coefficients: str | Coefficients, form: str, levels: int, eps: ArrayLike
) -> Callable[[jax.Array], jax.Array]:
    """The iteration on ([batch,] m, n) with m <= n."""
    if form not in ("plain", "gram"):
        raise ValueError(f"muon: form is {form!r}; accepted: 'plain', 'gram'.")
    trees.check_at_least("muon", 0, levels=levels, eps=eps)
    rows, safety, scale_rows = newton_schulz.polynomials("muon", coefficients)

    def kernel(x: jax.Array) -> jax.Array:
        m, n = x.shape[-2:]
        # The Gram form multiplies less only where the matrix is wide.
        gram = form == "gram" and n >= 2 * m
        iterate = newton_schulz.gram_newton_schulz if gram else newton_schulz.newton_schulz
        return iterate(x, rows, safety=safety, scale_rows=scale_rows, eps=eps, levels=levels)

    return kernel


def _scale_rule(scale: str | Scale) -> Scale:
    if callable(scale):
        return scale
    if scale not in SCALES:
        accepted = ", ".join(map(repr, SCALES))
        raise ValueError(
            f"muon: scale is {scale!r}; accepted: {accepted}, or a function of (rows, columns)."
        )
    return SCALES[scale]


def scale_by_muon(
    matrices: stacks.Matrices = None,
    *,
    b1: ArrayLike = 0.95,
    nesterov: bool = True,
    coefficients: str | Coefficients = "standard",
    form: str = "plain",
    levels: int = 0,
    scale: str | Scale = "keller",
    eps: ArrayLike = 1e-7,
    dtype: DTypeLike | None = "bfloat16",
    mu_dtype: DTypeLike | None = None,
    chunk: int | None = None,
    mesh_axis: stacks.MeshAxis = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction scale(m, n) NewtonSchulz(U) of Muon, without rate or weight decay.

    Every leaf with something to train must be a matrix; `muon` hands the others to its auxiliary
    optimizer. A leaf of the gradient that is None leaves its momentum as it is.

    Args:
      matrices: pattern for the whole path of a leaf -> layout such as "m n", "m 3n", "m b n",
        "b m n", or None for no matrix; without it a leaf of two axes or more is one matrix, its
        last axis the columns. `optim.matrices` has the rules.
      b1: decay of the momentum, in [0, 1).
      nesterov: whether U looks one step of the momentum ahead.
      coefficients: "standard" (Keller Jordan's), "dion", "polar_express", "aol", or (a, b, c) of
        each step; their number is the number of steps.
      form: "plain", or "gram": iterate on the Gram matrices where columns >= 2 rows.
      levels: depth of the blocks by which symmetric products are halved.
      scale: "keller", "moonlight", or a function of (rows, columns).
      eps: added to the norm that U is divided by.
      dtype: of the iteration; None means that of the momentum.
      mu_dtype: dtype of the momentum; by default the parameter's, float32 at least.
      chunk: matrices of one shape that are worked on at a time; by default 1 on a CPU, all
        elsewhere.
      mesh_axis: axis or axes of the mesh over which the matrices of one shape are spread; both
        init and update then run under `jax.set_mesh`.

    Raises:
      ValueError: b1 is a number outside [0, 1), a name is unknown, a rule of matrices is wrong, a
        leaf is no matrix, or the mesh lacks mesh_axis.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.scale_by_muon(coefficients="polar_express")
    >>> params = jnp.zeros((2, 3))
    >>> updates, _ = tx.update(jnp.array([[3.0, 0, 0], [0, 1e-2, 0]]), tx.init(params), params)
    >>> bool((abs(updates[0, 0] - 1.22) < 0.18) & (abs(updates[1, 1] - 1.22) < 0.18))
    True
    """
    trees.check_fractions("muon", b1=b1)
    if chunk is not None:
        trees.check_at_least("muon", 1, chunk=chunk)
    kernel = stacks.in_chunks(_kernel(coefficients, form, levels, eps), chunk)
    factor = _scale_rule(scale)

    def init(params: optax.Params) -> ScaleByMuonState:
        stacks.check_mesh_axis("muon", mesh_axis)
        stacks.check_all_matrices("muon", params, matrices)
        return ScaleByMuonState(trees.zeros_like(params, mu_dtype))

    def update(
        updates: optax.Updates,
        state: ScaleByMuonState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByMuonState]:
        del params, extra_args

        def rule(g: jax.Array, m: jax.Array) -> tuple[jax.Array, jax.Array]:
            m = trees.average(b1, m, g)
            return trees.average(b1, m, g) if nesterov else m, m

        ahead, (mu,) = trees.map_leaves(rule, updates, (state.mu,))
        structure: Any
        leaves, structure = jax.tree.flatten(ahead)
        for group in stacks.group_matrices("muon", updates, matrices):
            x = stacks.distributed(kernel, stacks.stack(group, leaves, dtype), mesh_axis)
            directions = stacks.unstack(group, x, leaves)
            for member in group.members:
                _, rows, columns = member.axes.shape
                was = leaves[member.position]
                direction = directions[member.position].astype(was.dtype)
                leaves[member.position] = factor(rows, columns) * direction
        return structure.unflatten(leaves), ScaleByMuonState(mu)

    return optax.GradientTransformationExtraArgs(init, update)


def muon(
    learning_rate: optax.ScalarOrSchedule,
    *,
    matrices: stacks.Matrices = None,
    auxiliary: optax.GradientTransformation | None = None,
    b1: ArrayLike = 0.95,
    nesterov: bool = True,
    coefficients: str | Coefficients = "standard",
    form: str = "plain",
    levels: int = 0,
    scale: str | Scale = "keller",
    eps: ArrayLike = 1e-7,
    dtype: DTypeLike | None = "bfloat16",
    mu_dtype: DTypeLike | None = None,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: optax.Params | Callable[[optax.Params], Any] | None = None,
    chunk: int | None = None,
    mesh_axis: stacks.MeshAxis = None,
) -> optax.GradientTransformationExtraArgs:
    """Muon for the matrices, another optimizer for the rest.

    Weight decay is multiplied by the rate alone, without scale(m, n), as in both codes. The
    authors' rate is 0.02 (Moonlight's 1e-3); here, as in optax, it has to be given. The authors'
    auxiliary optimizer is Adam with betas (0.9, 0.95), eps 1e-10 and rate 3e-4.

    Args:
      learning_rate: rate lr, or a schedule of it; of the matrices alone.
      matrices: pattern for the whole path of a leaf -> layout such as "m n", "m 3n", "m b n",
        "b m n", or None for no matrix; without it a leaf of two axes or more is one matrix, its
        last axis the columns. `optim.matrices` has the rules.
      auxiliary: any transformation, with rate and decay of its own, for the leaves that are no
        matrices; without it such a leaf is an error.
      b1: decay of the momentum, in [0, 1).
      nesterov: whether U looks one step of the momentum ahead.
      coefficients: "standard" (Keller Jordan's), "dion", "polar_express", "aol", or (a, b, c) of
        each step; their number is the number of steps.
      form: "plain", or "gram": iterate on the Gram matrices where columns >= 2 rows.
      levels: depth of the blocks by which symmetric products are halved.
      scale: "keller", "moonlight", or a function of (rows, columns).
      eps: added to the norm that U is divided by.
      dtype: of the iteration; None means that of the momentum.
      mu_dtype: dtype of the momentum; by default the parameter's, float32 at least.
      weight_decay: decoupled decay wd of the matrices, or a schedule of it.
      mask: tree of booleans like the parameters (or a function from them to it): which matrices
        decay.
      chunk: matrices of one shape that are worked on at a time; by default 1 on a CPU, all
        elsewhere.
      mesh_axis: axis or axes of the mesh over which the matrices of one shape are spread; both
        init and update then run under `jax.set_mesh`.

    Raises:
      ValueError: b1 is a number outside [0, 1), a name is unknown, a rule of matrices is wrong, a
        leaf is no matrix and there is no auxiliary, or the mesh lacks mesh_axis.

    >>> import jax.numpy as jnp, optax, optim
    >>> rules = {"layers/.*": "m n", "embed": None}
    >>> tx = optim.muon(0.02, matrices=rules, auxiliary=optax.adam(3e-4, b2=0.95, eps=1e-10))
    >>> params = {"embed": jnp.ones((5, 4)), "layers": [jnp.ones((4, 4))]}
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> print(f"{updates['embed'][0, 0]:.4f}", updates["layers"][0].shape)
    -0.0003 (4, 4)
    """
    direction = scale_by_muon(
        matrices,
        b1=b1,
        nesterov=nesterov,
        coefficients=coefficients,
        form=form,
        levels=levels,
        scale=scale,
        eps=eps,
        dtype=dtype,
        mu_dtype=mu_dtype,
        chunk=chunk,
        mesh_axis=mesh_axis,
    )
    main = optax.chain(
        direction,
        trees.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )
    return stacks.with_auxiliary("muon", main, auxiliary, matrices)
