"""Optimizers for JAX that agree with their authors' code, as optax transformations."""

from optim.averaging.evaluation import evaluation_params
from optim.averaging.lawa import (
    ParamsLawaState,
    params_lawa,
)
from optim.averaging.lcsc import (
    LcscInfo,
    lcsc,
)
from optim.averaging.merging import (
    combine_checkpoints,
    ema_weights,
    latest_weights,
    power_weights,
)
from optim.averaging.running import (
    ParamsEmaState,
    ParamsTailAverageState,
    params_ema,
    params_tail_average,
)
from optim.control.agvm import (
    AgvmState,
    agvm,
)
from optim.control.autolrs import (
    AutoLRS,
    AutoLRSDecision,
    AutoLRSState,
    autolrs,
)
from optim.control.batch_size import (
    GradientMoments,
    augmented_inner_product_test,
    coordinate_wise_test,
    gradient_moments,
    inner_product_test,
    merge_moments,
    next_batch_size,
    norm_test,
)
from optim.control.forecast import (
    ExponentialForecast,
    exponential_forecast,
)
from optim.control.gradient_norms import (
    RecordGradientNormsState,
    record_gradient_norms,
)
from optim.control.hard_batches import hard_batches
from optim.control.hyperparams import inject_hyperparams
from optim.control.nonfinite import keep_if_finite
from optim.control.sample_weights import (
    loss_temperature_schedule,
    loss_weights,
)
from optim.curvature.diagonal import (
    empirical_fisher,
    gauss_newton_bartlett,
    hutchinson,
    spatial_average,
)
from optim.curvature.products import (
    OutputLoss,
    empirical_fisher_operator,
    fisher_operator,
    gauss_newton_operator,
    hessian_operator,
    logistic_loss,
    softmax_cross_entropy,
    squared_error,
)
from optim.curvature.spectrum import (
    Eigenpairs,
    HeavyBall,
    LanczosFactorization,
    SpectralQuadrature,
    heavy_ball_from_spectrum,
    lanczos,
    spectral_density,
    spectral_quadrature,
    spectral_sum,
    top_eigenpairs,
)
from optim.elementwise.adagrad_norm import (
    ScaleByAdagradNormState,
    adagrad_norm,
    scale_by_adagrad_norm,
)
from optim.elementwise.adam_mini import (
    ScaleByAdamMiniState,
    adam_mini,
    adam_mini_blocks,
    scale_by_adam_mini,
)
from optim.elementwise.ademamix import (
    ScaleByAdemamixState,
    ademamix,
    scale_by_ademamix,
)
from optim.elementwise.adopt import (
    ScaleByAdoptState,
    adopt,
    scale_by_adopt,
)
from optim.elementwise.ascent import with_ascent_gradient
from optim.elementwise.cautious import cautious
from optim.elementwise.dadapt_adam import (
    DAdaptAdamState,
    dadapt_adam,
)
from optim.elementwise.dadapt_sgd import (
    DAdaptSGDState,
    dadapt_sgd,
)
from optim.elementwise.gradient_noise import (
    GradientNoiseState,
    gradient_noise,
)
from optim.elementwise.implicit_gradient_transport import (
    ScaleByImplicitGradientTransportState,
    TransportedParamsState,
    implicit_gradient_transport,
    scale_by_implicit_gradient_transport,
    transported_params,
)
from optim.elementwise.lamb import (
    ScaleByLambState,
    lamb,
    scale_by_lamb,
)
from optim.elementwise.lars import (
    ScaleByLarsState,
    lars,
    scale_by_lars,
)
from optim.elementwise.lion import (
    ScaleByLionState,
    lion,
    scale_by_lion,
)
from optim.elementwise.mars import (
    ScaleByMarsState,
    mars,
    scale_by_mars,
)
from optim.elementwise.normalized_gradient import (
    normalized_gradient,
    scale_by_normalized_gradient,
)
from optim.elementwise.optimistic import (
    MirrorMap,
    OptimisticState,
    entropic_mirror_map,
    euclidean_mirror_map,
    optimistic,
)
from optim.elementwise.previous_gradient import (
    WithPreviousParamsState,
    with_gradient_change,
    with_previous_gradient,
)
from optim.elementwise.prodigy import (
    ProdigyState,
    prodigy,
)
from optim.elementwise.schedule_free import (
    ScheduleFreeState,
    schedule_free,
    schedule_free_adamw,
    schedule_free_radam,
    schedule_free_sgd,
)
from optim.inspection import describe
from optim.matrix.cosmos import (
    ScaleByCosmosState,
    cosmos,
    scale_by_cosmos,
)
from optim.matrix.kron import (
    ScaleByKronState,
    kron,
    scale_by_kron,
)
from optim.matrix.muon import (
    ScaleByMuonState,
    muon,
    scale_by_muon,
)
from optim.matrix.scion import (
    AutoNorm,
    BiasRMSNorm,
    ColumnNorm,
    RowNorm,
    ScaleByScionState,
    SignNorm,
    SpectralConvNorm,
    SpectralNorm,
    scale_by_scion,
    scion,
    scion_init,
)
from optim.matrix.shampoo import (
    ScaleByShampooState,
    scale_by_shampoo,
    shampoo,
)
from optim.matrix.soap import (
    ScaleBySoapState,
    SoapStack,
    scale_by_soap,
    soap,
)
from optim.quantized.stochastic_rounding import (
    apply_updates,
    stochastic_round,
)
from optim.schedules.ademamix import (
    ademamix_alpha_schedule,
    ademamix_b3_schedule,
)
from optim.schedules.array import array_schedule
from optim.schedules.batch_scaling import scale_with_batch_size
from optim.schedules.budgets import (
    cyclic_cosine_schedule,
    wsd_s_schedule,
)
from optim.schedules.cooldown import cooldown_schedule
from optim.schedules.linear import linear_decay_schedule
from optim.schedules.power import (
    inverse_sqrt_schedule,
    power_schedule,
)
from optim.schedules.refined import refine_schedule
from optim.schedules.step_law import (
    StepLaw,
    step_law,
)
from optim.schedules.update_probability import update_probability_schedule
from optim.schedules.wsd import wsd_schedule
from optim.second_order.adahessian import (
    ScaleByAdahessianState,
    adahessian,
    scale_by_adahessian,
)
from optim.second_order.harpg import (
    ScaleByHarpgState,
    harpg,
    scale_by_harpg,
)
from optim.second_order.mfac import (
    ScaleByMfacState,
    mfac,
    scale_by_mfac,
)
from optim.second_order.regularized_newton import (
    RegularizedNewtonState,
    regularized_newton,
)
from optim.second_order.sketched_newton import (
    SketchedNewton,
    SketchedNewtonInfo,
    SketchedNewtonState,
    kaczmarz_sketch,
    sketched_newton,
)
from optim.second_order.sophia import (
    ScaleBySophiaState,
    scale_by_sophia,
    sophia,
)
from optim.second_order.with_curvature import (
    WithCurvatureState,
    with_curvature,
)
from optim.solvers.bicgstab import bicgstab
from optim.solvers.cg import cg
from optim.solvers.dense import dense_solve
from optim.solvers.derivative import linear_solve
from optim.solvers.gmres import gmres
from optim.solvers.jacobi import jacobi_preconditioner
from optim.solvers.lbfgs_history import lbfgs_preconditioner
from optim.solvers.linear import SolveInfo
from optim.solvers.minres import minres
from optim.solvers.neumann import neumann
from optim.solvers.normal_cg import normal_cg
from optim.solvers.nystrom import nystrom_preconditioner
from optim.solvers.shifted import (
    Metric,
    RankOne,
    shifted_by,
    shifted_dense,
    shifted_diagonal,
    shifted_rank_one,
)
from optim.subspace.greedy import (
    BlockProblem,
    ScaleByGreedyBlockDescentState,
    cyclic_blocks,
    gauss_southwell,
    gauss_southwell_diagonal,
    gauss_southwell_lipschitz,
    gauss_southwell_quadratic,
    greedy_block_descent,
    random_blocks,
    scale_by_greedy_block_descent,
)
from optim.trees import (
    path_labels,
    path_string,
)

__all__ = [
    "AgvmState",
    "AutoLRS",
    "AutoLRSDecision",
    "AutoLRSState",
    "AutoNorm",
    "BiasRMSNorm",
    "BlockProblem",
    "ColumnNorm",
    "DAdaptAdamState",
    "DAdaptSGDState",
    "Eigenpairs",
    "ExponentialForecast",
    "GradientMoments",
    "GradientNoiseState",
    "HeavyBall",
    "LanczosFactorization",
    "LcscInfo",
    "Metric",
    "MirrorMap",
    "OptimisticState",
    "OutputLoss",
    "ParamsEmaState",
    "ParamsLawaState",
    "ParamsTailAverageState",
    "ProdigyState",
    "RankOne",
    "RecordGradientNormsState",
    "RegularizedNewtonState",
    "RowNorm",
    "ScaleByAdagradNormState",
    "ScaleByAdahessianState",
    "ScaleByAdamMiniState",
    "ScaleByAdemamixState",
    "ScaleByAdoptState",
    "ScaleByCosmosState",
    "ScaleByGreedyBlockDescentState",
    "ScaleByHarpgState",
    "ScaleByImplicitGradientTransportState",
    "ScaleByKronState",
    "ScaleByLambState",
    "ScaleByLarsState",
    "ScaleByLionState",
    "ScaleByMarsState",
    "ScaleByMfacState",
    "ScaleByMuonState",
    "ScaleByScionState",
    "ScaleByShampooState",
    "ScaleBySoapState",
    "ScaleBySophiaState",
    "ScheduleFreeState",
    "SignNorm",
    "SketchedNewton",
    "SketchedNewtonInfo",
    "SketchedNewtonState",
    "SoapStack",
    "SolveInfo",
    "SpectralConvNorm",
    "SpectralNorm",
    "SpectralQuadrature",
    "StepLaw",
    "TransportedParamsState",
    "WithCurvatureState",
    "WithPreviousParamsState",
    "adagrad_norm",
    "adahessian",
    "adam_mini",
    "adam_mini_blocks",
    "ademamix",
    "ademamix_alpha_schedule",
    "ademamix_b3_schedule",
    "adopt",
    "agvm",
    "apply_updates",
    "array_schedule",
    "augmented_inner_product_test",
    "autolrs",
    "bicgstab",
    "cautious",
    "cg",
    "combine_checkpoints",
    "cooldown_schedule",
    "coordinate_wise_test",
    "cosmos",
    "cyclic_blocks",
    "cyclic_cosine_schedule",
    "dadapt_adam",
    "dadapt_sgd",
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
    "gradient_noise",
    "greedy_block_descent",
    "hard_batches",
    "harpg",
    "heavy_ball_from_spectrum",
    "hessian_operator",
    "hutchinson",
    "implicit_gradient_transport",
    "inject_hyperparams",
    "inner_product_test",
    "inverse_sqrt_schedule",
    "jacobi_preconditioner",
    "kaczmarz_sketch",
    "keep_if_finite",
    "kron",
    "lamb",
    "lanczos",
    "lars",
    "latest_weights",
    "lbfgs_preconditioner",
    "lcsc",
    "linear_decay_schedule",
    "linear_solve",
    "lion",
    "logistic_loss",
    "loss_temperature_schedule",
    "loss_weights",
    "mars",
    "merge_moments",
    "mfac",
    "minres",
    "muon",
    "neumann",
    "next_batch_size",
    "norm_test",
    "normal_cg",
    "normalized_gradient",
    "nystrom_preconditioner",
    "optimistic",
    "params_ema",
    "params_lawa",
    "params_tail_average",
    "path_labels",
    "path_string",
    "power_schedule",
    "power_weights",
    "prodigy",
    "random_blocks",
    "record_gradient_norms",
    "refine_schedule",
    "regularized_newton",
    "scale_by_adagrad_norm",
    "scale_by_adahessian",
    "scale_by_adam_mini",
    "scale_by_ademamix",
    "scale_by_adopt",
    "scale_by_cosmos",
    "scale_by_greedy_block_descent",
    "scale_by_harpg",
    "scale_by_implicit_gradient_transport",
    "scale_by_kron",
    "scale_by_lamb",
    "scale_by_lars",
    "scale_by_lion",
    "scale_by_mars",
    "scale_by_mfac",
    "scale_by_muon",
    "scale_by_normalized_gradient",
    "scale_by_scion",
    "scale_by_shampoo",
    "scale_by_soap",
    "scale_by_sophia",
    "scale_with_batch_size",
    "schedule_free",
    "schedule_free_adamw",
    "schedule_free_radam",
    "schedule_free_sgd",
    "scion",
    "scion_init",
    "shampoo",
    "shifted_by",
    "shifted_dense",
    "shifted_diagonal",
    "shifted_rank_one",
    "sketched_newton",
    "soap",
    "softmax_cross_entropy",
    "sophia",
    "spatial_average",
    "spectral_density",
    "spectral_quadrature",
    "spectral_sum",
    "squared_error",
    "step_law",
    "stochastic_round",
    "top_eigenpairs",
    "transported_params",
    "update_probability_schedule",
    "with_ascent_gradient",
    "with_curvature",
    "with_gradient_change",
    "with_previous_gradient",
    "wsd_s_schedule",
    "wsd_schedule",
]
