"""The transformations under contract. Adding one is a row."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optim
from optim.matrices import with_auxiliary

from .harness import KERNEL, STEPS, Row


def _clipped_adamw(rate: Any) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate))


def _losses(params: Any, gradients: Any, step: jax.Array) -> dict[str, Any]:
    """Losses of eight examples, other ones each step."""
    del params, gradients
    return {"value": jax.random.exponential(jax.random.fold_in(jax.random.key(4), step), (8,))}


def _gradient_of_a_quartic(params: Any, gradients: Any, step: jax.Array) -> dict[str, Any]:
    """Of sum p^4 / 4 over the floats, for a wrapper that asks for a gradient elsewhere."""
    del params, gradients, step

    def cube(p: Any) -> Any:
        floats = jnp.issubdtype(p.dtype, jnp.inexact)
        return p**3 if floats else np.zeros(p.shape, jax.dtypes.float0)

    return {"grad_fn": lambda params: jax.tree.map(cube, params)}


def _key(params: Any, gradients: Any, step: jax.Array) -> dict[str, Any]:
    del params, gradients
    return {"key": jax.random.fold_in(jax.random.key(3), step)}


_RANK = 2


_COSMOS_BYTES = 4 + 4 * _RANK * (1 / KERNEL[0] + 1 / KERNEL[1])


def _cosmos(rate: Any) -> optax.GradientTransformation:
    # A compiler may keep more digits in bfloat16 steps than the dtype says.
    return optim.cosmos(rate, rank=_RANK, dtype=None, weight_decay=0.1)


def _scale_by_cosmos(rate: Any) -> optax.GradientTransformation:
    del rate
    return optim.scale_by_cosmos(rank=_RANK, dtype=None)


# Inner products of a window of four gradients, shared by all parameters.
_MFAC_GRAM_BYTES = 4 * 4 * 4 / (KERNEL[0] * KERNEL[1])


# Two triangular factors, 4 bytes each, a parameter of a square matrix; one is not.
_KRON_BYTES = 4 + 4 * (KERNEL[0] / KERNEL[1] + KERNEL[1] / KERNEL[0])


def _halves(params: Any, gradients: Any, step: jax.Array) -> dict[str, Any]:
    """The gradient and another tree, in place of the gradients of halves of a batch."""
    del params, step
    other = jax.tree.map(lambda g: jnp.flip(g) if g.dtype != jax.dtypes.float0 else g, gradients)
    return {"half_gradients": (gradients, other)}


def _neurons(params: Any) -> Any:
    """A block for each neuron of a matrix, for each element of anything else."""
    return jax.tree.map(lambda p: "1 *" if p.ndim == 2 else "*", params)


def _no_scalars(params: Any) -> Any:
    """At rate 1, a scalar as long as its step arrives at zero, or at a rounding beside it."""
    return jax.tree.map(lambda p: p.ndim > 0, params)


# Two moments, two factors and their bases; KERNEL is not square, whose 24 bytes would be 8 + 16.
_SOAP_BYTES = 8 + 8 * (KERNEL[0] / KERNEL[1] + KERNEL[1] / KERNEL[0])


def _full_rank_basis(factor: jax.Array) -> jax.Array:
    """The first factor of a long side has a null space, whose basis rounding would choose."""
    spread = jnp.arange(factor.shape[-1], dtype=factor.dtype)
    return jnp.linalg.eigh(factor + jnp.diag(spread))[1]


def _soap(rate: Any) -> optax.GradientTransformation:
    return optim.soap(rate, weight_decay=0.1, frequency=1, initial_basis=_full_rank_basis)


def _scale_by_soap(rate: Any) -> optax.GradientTransformation:
    del rate
    return optim.scale_by_soap(initial_basis=_full_rank_basis)


# Two factors and two roots, 4 bytes each, a parameter of a square matrix; one is not.
_SHAMPOO_BYTES = 4 + 8 * (KERNEL[0] / KERNEL[1] + KERNEL[1] / KERNEL[0])


def _scale_by_shampoo(rate: Any) -> optax.GradientTransformation:
    del rate
    # The authors' eps, 1e-12, multiplies rounding where there is no gradient yet by 1000.
    return optim.scale_by_shampoo(b2=0.99, eps=1e-3)


def _shampoo(rate: Any) -> optax.GradientTransformation:
    squares = optax.scale_by_rms(0.99, eps=1e-8)
    return optim.shampoo(rate, eps=1e-3, frequency=2, grafting=squares, weight_decay=0.1)


def _diagonal(params: Any, gradients: Any, step: jax.Array) -> dict[str, Any]:
    """A positive curvature of every coordinate, other ones each step."""
    del gradients

    def leaf(p: Any) -> Any:
        angles = (jnp.arange(p.size, dtype=jnp.int32) + step).astype(jnp.float32)
        return 0.5 + jnp.abs(jnp.sin(angles)).reshape(p.shape)

    return {"curvature": jax.tree.map(leaf, params)}


def _curvature_of_a_quartic(params: Any, gradients: Any, step: jax.Array) -> dict[str, Any]:
    """Of sum p^4 / 4 over the floats, for a wrapper that asks for an estimate."""

    def loss(params: Any) -> Any:
        floats = [p for p in jax.tree.leaves(params) if jnp.issubdtype(p.dtype, jnp.inexact)]
        return sum(jnp.sum(p**4) for p in floats) / 4

    return {"curvature_fn": optim.hutchinson(loss), **_key(params, gradients, step)}


def _changing_gradient(params: Any, gradients: Any, step: jax.Array) -> dict[str, Any]:
    return {"gradient_change": _diagonal(params, gradients, step)["curvature"]}


def _keyed_gradient_of_a_quartic(params: Any, gradients: Any, step: jax.Array) -> dict[str, Any]:
    return _key(params, gradients, step) | _gradient_of_a_quartic(params, gradients, step)


def _greedy_block_descent(rate: Any) -> optax.GradientTransformation:
    rule = optim.gauss_southwell_diagonal
    return optim.greedy_block_descent(rate, blocks=7, select=rule, newton=True)


def _loss_around(params: Any, gradients: Any, step: jax.Array) -> dict[str, Any]:
    """A loss of these gradients at these parameters, and less than its curvature.

    It takes trees without some of the leaves, as masks and labels leave them.
    """
    del step
    centre = dict(jax.tree.leaves_with_path(params))
    slopes = dict(jax.tree.leaves_with_path(gradients))

    def value_fn(moved: Any) -> jax.Array:
        total = jnp.zeros(())
        for path, leaf in jax.tree.leaves_with_path(moved):
            if path in slopes and jnp.issubdtype(leaf.dtype, jnp.inexact):
                d = leaf.astype(jnp.float32) - centre[path].astype(jnp.float32)
                total += jnp.sum(slopes[path].astype(jnp.float32) * d + 1.5 * d**2)
        return total

    return {"value": jnp.zeros(()), "value_fn": value_fn, "hessian_fn": lambda params: lambda v: v}


# A row named as a public function of optim stands for it.
ROWS: tuple[Row, ...] = (
    Row("lion", lambda rate: optim.lion(rate, weight_decay=0.1), state_bytes=4),
    Row("scale_by_lion", lambda rate: optim.scale_by_lion(), state_bytes=4),
    Row(
        "keep_if_finite",
        lambda rate: optim.keep_if_finite(optim.lion(rate, weight_decay=0.1)),
        state_bytes=4,
    ),
    Row(
        "params_ema",
        lambda rate: optax.chain(optim.lion(rate, weight_decay=0.1), optim.params_ema(0.9)),
        state_bytes=8,
    ),
    Row(
        "params_tail_average",
        lambda rate: optax.chain(optim.lion(rate, weight_decay=0.1), optim.params_tail_average(1)),
        state_bytes=8,
    ),
    Row(
        "params_lawa",
        lambda rate: optax.chain(optim.lion(rate, weight_decay=0.1), optim.params_lawa(3, 2)),
        state_bytes=4 + 4 * 3,
    ),
    Row(
        "record_gradient_norms",
        # As many as the first steps: what is not reached is NaN by design.
        lambda rate: optax.chain(
            optim.record_gradient_norms(STEPS), optim.lion(rate, weight_decay=0.1)
        ),
        state_bytes=4,
    ),
    Row(
        "dadapt_adam",
        lambda rate: optim.dadapt_adam(rate, d0=0.01, weight_decay=0.1),
        state_bytes=12,
    ),
    Row(
        "dadapt_sgd",
        lambda rate: optim.dadapt_sgd(rate, d0=0.01, momentum=0.9, weight_decay=0.1),
        state_bytes=8,
    ),
    Row("prodigy", lambda rate: optim.prodigy(rate, d0=0.01, weight_decay=0.1), state_bytes=16),
    Row(
        "prodigy of slices",
        lambda rate: optim.prodigy(
            rate, d0=0.01, weight_decay=0.1, decouple=False, use_bias_correction=True, slice_p=4
        ),
        state_bytes=10,
    ),
    Row(
        "schedule_free",
        lambda rate: optim.schedule_free(optax.sgd(rate), rate, weight_decay=0.1, warmup_steps=2),
        state_bytes=4,
    ),
    Row(
        "schedule_free_adamw",
        lambda rate: optim.schedule_free_adamw(rate, weight_decay=0.1, inner_momentum=0.9),
        state_bytes=12,
    ),
    Row(
        "schedule_free_radam",
        lambda rate: optim.schedule_free_radam(rate, weight_decay=0.1, silent_sgd_phase=False),
        state_bytes=8,
    ),
    Row(
        "schedule_free_sgd",
        lambda rate: optim.schedule_free_sgd(rate, weight_decay=0.1, r=0.5),
        state_bytes=4,
    ),
    Row("adopt", lambda rate: optim.adopt(rate, weight_decay=0.1), state_bytes=8),
    Row(
        "adopt, decoupled",
        lambda rate: optim.adopt(rate, weight_decay=0.1, decouple=True),
        state_bytes=8,
    ),
    Row("scale_by_adopt", lambda rate: optim.scale_by_adopt(), state_bytes=8),
    Row(
        "ademamix",
        lambda rate: optim.ademamix(
            rate,
            b3=optim.ademamix_b3_schedule(0.9999, b1=0.9, warmup_steps=8),
            alpha=optim.ademamix_alpha_schedule(2.0, warmup_steps=8),
            weight_decay=0.1,
        ),
        state_bytes=12,
    ),
    Row("scale_by_ademamix", lambda rate: optim.scale_by_ademamix(), state_bytes=12),
    Row("adagrad_norm", lambda rate: optim.adagrad_norm(rate), state_bytes=0),
    Row("scale_by_adagrad_norm", lambda rate: optim.scale_by_adagrad_norm(), state_bytes=0),
    Row("normalized_gradient", lambda rate: optim.normalized_gradient(rate), _losses, 0),
    Row(
        "scale_by_normalized_gradient",
        lambda rate: optim.scale_by_normalized_gradient(),
        _losses,
        0,
    ),
    Row(
        "implicit_gradient_transport",
        lambda rate: optim.implicit_gradient_transport(rate),
        state_bytes=8,
    ),
    Row(
        "scale_by_implicit_gradient_transport",
        lambda rate: optim.scale_by_implicit_gradient_transport(),
        state_bytes=4,
    ),
    Row(
        "transported_params",
        lambda rate: optax.chain(optim.lion(rate), optim.transported_params(0.5)),
        state_bytes=8,
    ),
    Row("optimistic", lambda rate: optim.optimistic(rate), state_bytes=4),
    Row(
        "optimistic, rate by variation",
        lambda rate: optim.optimistic(rate, offset=1.0),
        state_bytes=8,
    ),
    Row(
        "with_ascent_gradient",
        lambda rate: optim.with_ascent_gradient(optim.lion(rate, weight_decay=0.1)),
        _gradient_of_a_quartic,
        4,
    ),
    Row(
        "muon",
        lambda rate: optim.muon(rate, auxiliary=optim.lion(rate), weight_decay=0.1, dtype=None),
        state_bytes=4,
    ),
    Row(
        "scale_by_muon",
        lambda rate: with_auxiliary("muon", optim.scale_by_muon(dtype=None), optim.lion(rate)),
        state_bytes=4,
    ),
    Row(
        "scion",
        lambda rate: optim.scion(rate, b1=0.9, norms={".*": optim.AutoNorm(2.0)}, dtype=None),
        state_bytes=4,
    ),
    Row("scale_by_scion", lambda rate: optim.scale_by_scion(0.9, dtype=None), state_bytes=4),
    Row("mars", lambda rate: optim.mars(rate, weight_decay=0.1), state_bytes=12),
    Row("scale_by_mars", lambda rate: optim.scale_by_mars(), state_bytes=12),
    Row("mars, shampoo", lambda rate: optim.mars(rate, form="shampoo", dtype=None), state_bytes=8),
    Row(
        "with_previous_gradient",
        lambda rate: optim.with_previous_gradient(
            optim.mars(rate, approximate=False, amsgrad=True)
        ),
        extras=_gradient_of_a_quartic,
        state_bytes=16,
        waive={
            "bfloat16": "It keeps the last parameters, which are bfloat16 and round no further."
        },
    ),
    Row("cosmos", _cosmos, state_bytes=_COSMOS_BYTES),
    Row("scale_by_cosmos", _scale_by_cosmos, state_bytes=_COSMOS_BYTES),
    Row("kron", lambda rate: optim.kron(rate, weight_decay=0.1), _key, state_bytes=_KRON_BYTES),
    Row("scale_by_kron", lambda rate: optim.scale_by_kron(), _key, state_bytes=_KRON_BYTES),
    Row(
        "adam_mini",
        lambda rate: optim.adam_mini(rate, blocks=_neurons, weight_decay=0.1),
        state_bytes=4 + 4 / KERNEL[0],  # a momentum, and a mean square for each neuron
    ),
    Row(
        "scale_by_adam_mini",
        lambda rate: optim.scale_by_adam_mini(blocks=_neurons),
        state_bytes=4 + 4 / KERNEL[0],  # a momentum, and a mean square for each neuron
    ),
    Row(
        "agvm",
        lambda rate: optim.agvm(
            optim.lion(rate, weight_decay=0.1),
            {".*(kernel|scale)": "body", "(?!.*(kernel|scale)).*": "head"},
            anchor="body",
            every=2,
            start=0,
        ),
        _halves,
    ),
    Row(
        "cautious",
        lambda rate: optax.chain(
            optim.cautious(optim.scale_by_lion()), optax.scale_by_learning_rate(rate)
        ),
        state_bytes=4,
    ),
    Row(
        "gradient_noise",
        lambda rate: optax.chain(optim.gradient_noise(), optax.scale_by_learning_rate(rate)),
        _key,
        state_bytes=0,
    ),
    Row("greedy_block_descent", _greedy_block_descent, _diagonal, state_bytes=0),
    Row(
        "scale_by_greedy_block_descent",
        lambda rate: optim.scale_by_greedy_block_descent(7, select=optim.random_blocks),
        _key,
        state_bytes=0,
    ),
    Row("lamb", optim.lamb, state_bytes=8),
    Row(
        "scale_by_lamb",
        lambda rate: optim.scale_by_lamb(trust_ratio_mask=_no_scalars),
        state_bytes=8,
    ),
    Row("lars", lambda rate: optim.lars(rate, weight_decay=0.1), state_bytes=4),
    Row("scale_by_lars", lambda rate: optim.scale_by_lars(), state_bytes=4),
    Row(
        "scion, unconstrained, without momentum",
        lambda rate: optim.scion(rate, unconstrained=True, dtype=None),
        state_bytes=0,
    ),
    Row(
        "mfac",
        lambda rate: optim.mfac(rate, window_size=4, damping=0.1, momentum=0.9, weight_decay=0.1),
        state_bytes=4 * 4 + 4 + _MFAC_GRAM_BYTES,
    ),
    Row(
        "scale_by_mfac",
        lambda rate: optim.scale_by_mfac(4, 0.1),
        state_bytes=4 * 4 + _MFAC_GRAM_BYTES,
    ),
    Row("sophia", lambda rate: optim.sophia(rate, gamma=1.0), _diagonal, state_bytes=8),
    Row(
        "scale_by_sophia",
        lambda rate: optim.scale_by_sophia(variant="paper", gamma=1.0),
        _diagonal,
        state_bytes=8,
    ),
    Row(
        "adahessian",
        lambda rate: optim.adahessian(rate, weight_decay=0.1),
        _diagonal,
        state_bytes=8,
    ),
    Row(
        "scale_by_adahessian",
        lambda rate: optim.scale_by_adahessian(hessian_power=0.5, averaging="windows"),
        _diagonal,
        state_bytes=8,
    ),
    Row("harpg", lambda rate: optim.harpg(rate), _changing_gradient, state_bytes=4),
    Row(
        "scale_by_harpg",
        lambda rate: optim.scale_by_harpg(0.25, normalize=False),
        _changing_gradient,
        state_bytes=4,
    ),
    Row(
        "with_gradient_change",
        lambda rate: optim.with_gradient_change(optim.harpg(rate)),
        _keyed_gradient_of_a_quartic,
        state_bytes=8,
        waive={"bfloat16": "keeps the last parameters in their own dtype."},
    ),
    Row(
        "with_curvature",
        lambda rate: optim.with_curvature(optim.sophia(rate, gamma=1.0), every=2),
        _curvature_of_a_quartic,
        state_bytes=8,
    ),
    Row("soap", _soap, state_bytes=_SOAP_BYTES),
    Row("scale_by_soap", _scale_by_soap, state_bytes=_SOAP_BYTES),
    Row("shampoo", _shampoo, state_bytes=_SHAMPOO_BYTES + 4),
    Row("scale_by_shampoo", _scale_by_shampoo, state_bytes=_SHAMPOO_BYTES),
    Row(
        "regularized_newton",
        lambda rate: optim.regularized_newton(gamma=rate),
        extras=_loss_around,
        state_bytes=4,
    ),
    Row(
        "optax.chain(clip_by_global_norm, adamw)",
        _clipped_adamw,
        state_bytes=8,
        waive={
            "bfloat16": "optax.adamw holds its moments and updates in the dtype of the parameters.",
            "strict_promotion": "optax.adamw raises a float to the power of its integer count.",
            "none_gradients": "optax.adamw casts moments like parameters that it was not given.",
            "integer_leaves": "optax.adamw squares gradients of dtype float0, which is an error.",
        },
    ),
)

# Public functions that are no transformations: each has tests of its own. Schedules, whose names
# end in `_schedule`, and classes need not be listed.
OTHER_FUNCTIONS = frozenset(
    {
        "adam_mini_blocks",
        "apply_updates",
        "augmented_inner_product_test",
        "autolrs",
        "bicgstab",
        "cg",
        "combine_checkpoints",
        "coordinate_wise_test",
        "cyclic_blocks",
        "dense_solve",
        "describe",
        "ema_weights",
        "empirical_fisher",
        "empirical_fisher_operator",
        "entropic_mirror_map",
        "euclidean_mirror_map",
        "evaluation_params",
        "exponential_forecast",
        "fisher_operator",
        "gauss_newton_bartlett",
        "gauss_newton_operator",
        "gauss_southwell",
        "gauss_southwell_diagonal",
        "gauss_southwell_lipschitz",
        "gauss_southwell_quadratic",
        "gmres",
        "gradient_moments",
        "hard_batches",
        "heavy_ball_from_spectrum",
        "hessian_operator",
        "hutchinson",
        "inject_hyperparams",
        "inner_product_test",
        "jacobi_preconditioner",
        "kaczmarz_sketch",
        "lanczos",
        "latest_weights",
        "lbfgs_preconditioner",
        "lcsc",
        "linear_solve",
        "logistic_loss",
        "loss_weights",
        "merge_moments",
        "minres",
        "neumann",
        "next_batch_size",
        "norm_test",
        "normal_cg",
        "nystrom_preconditioner",
        "path_labels",
        "path_string",
        "power_weights",
        "random_blocks",
        "scale_with_batch_size",
        "scion_init",
        "shifted_by",
        "shifted_dense",
        "shifted_diagonal",
        "shifted_rank_one",
        "sketched_newton",
        "softmax_cross_entropy",
        "spatial_average",
        "spectral_density",
        "spectral_quadrature",
        "spectral_sum",
        "squared_error",
        "step_law",
        "stochastic_round",
        "top_eigenpairs",
    }
)
