"""Memory of one MeZO step, of backpropagation's and of a forward pass, against the model's size.

The decoder of the benchmark `mezo`, width 512, with 3, 12 and 48 layers and a vocabulary of 8192,
on 2,048 tokens in sequences of 256. Programs are compiled, not run: memory is what the compiler
sets aside, arguments, results and temporaries, what is donated counted once. Parameters are float32
for this machine's CPU, and bfloat16 for one chip of a TPU v5e where libtpu is installed, Adam's
moments float32 in both. Of a chip its main memory is counted, not what the compiler keeps beside
the cores: the activations of a forward pass are hardly seen there.

*Reference*: Malladi et al., 2023, arXiv 2305.17333, section 3.4, Figure 3 and Table 12, where
RoBERTa-large in JAX needs 328 MB beyond its parameters for a forward pass, 831 MB for forward
differentiation and 24,156 MB for backpropagation.
"""

import argparse
import concurrent.futures
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.benchmarks.mezo import METHODS, Method
from experiments.figures.target import Paper, Part, Table, Target
from experiments.models.chunked_decoder import ChunkedDecoder
from experiments.tpu_slice import libtpu_folder, run_python, slice_mesh

FORWARD, STREAMED, PORT = "forward pass", "mezo, streamed", "jax.random port"
ADAM, REMAT = "Adam", "Adam, remat"
JUDGED = (FORWARD, STREAMED, PORT, REMAT, ADAM)
DEPTHS, BATCH, LENGTH = (3, 12, 48), 8, 256
PLATFORMS = {"CPU, float32": jnp.float32, "TPU v5e, bfloat16": jnp.bfloat16}
CPU, TPU = PLATFORMS
COLUMNS = ("platform", "method", "layers", "parameter_bytes", "bytes")
Row = tuple[str, str, int, int, int]


def forward(model: ChunkedDecoder) -> Method:
    """A mean loss, by way of the carry."""

    def step(carry: Any, tokens: jax.Array) -> Any:
        return carry, jnp.mean(model.losses(carry, tokens))

    return lambda params: params, step


def adam(model: ChunkedDecoder) -> Method:
    """Backpropagation and Adam with moments in float32."""
    tx = optax.adam(1e-3, mu_dtype=jnp.float32)
    whole = model._replace(chunk=model.vocabulary)

    def init(params: Any) -> Any:
        return params, tx.init(jax.tree.map(lambda x: x.astype(jnp.float32), params))

    def step(carry: Any, tokens: jax.Array) -> Any:
        params, state = carry
        gradient = jax.grad(lambda p: jnp.mean(whole.losses(p, tokens)))(params)
        updates, state = tx.update(gradient, state)
        return optax.apply_updates(params, updates), state

    return init, step


def rematerialized(model: ChunkedDecoder) -> Method:
    """The same, keeping only the inputs of layers."""
    return adam(model._replace(remat=True))


ALL: dict[str, Callable[[ChunkedDecoder], Method]] = {
    FORWARD: forward,
    **METHODS,
    REMAT: rematerialized,
    ADAM: adam,
}


def used(method: str, model: ChunkedDecoder, dtype: Any, sharding: Any = None) -> tuple[int, int]:
    """Bytes of the parameters, and of all that one step needs."""

    def abstract(tree: Any) -> Any:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    params = jax.eval_shape(lambda key: model.init(key, dtype), jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((BATCH, LENGTH + 1), jnp.int32)
    init, step = ALL[method](model)
    carry = jax.eval_shape(init, params)
    lowered = jax.jit(step, donate_argnums=0).lower(abstract(carry), abstract(tokens))
    memory: Any = lowered.compile().memory_analysis()
    total = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    total += memory.output_size_in_bytes - memory.alias_size_in_bytes
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
    return size, total


def compiled(platform: str, quick: bool, sharding: Any = None) -> list[Row]:
    """All methods at all depths; if quick, two shallow narrow ones.

    A program takes long to compile for a TPU: there, as if quick, those methods that are judged, at
    the least and the largest depth.
    """
    rows: list[Row] = []
    for layers in (2, 4) if quick else DEPTHS if platform == CPU else (DEPTHS[0], DEPTHS[-1]):
        small = ChunkedDecoder(layers, 64, 256, 4, 1024, 128)
        model = small if quick else ChunkedDecoder(layers=layers)
        for method in JUDGED if quick or platform == TPU else ALL:
            sizes = used(method, model, PLATFORMS[platform], sharding)
            rows.append((platform, method, layers, *sizes))
    return rows


def compiled_for_tpu() -> list[Row]:
    """In a process that finds libtpu."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.json")
        if run_python(["-m", "experiments.figures.zeroth_order_memory", str(file)]):
            raise RuntimeError("zeroth_order_memory: compiling for a TPU failed, see above.")
        return json.loads(file.read_text())


def measure(quick: bool) -> Table:
    """On this machine, and for a TPU where libtpu is installed and it is not the quick trial."""
    if quick or libtpu_folder() is None:
        rows = compiled(CPU, quick)
    else:
        with concurrent.futures.ThreadPoolExecutor(max_workers=1) as pool:
            ahead = pool.submit(compiled_for_tpu)
            rows = compiled(CPU, quick) + ahead.result()
    columns = zip(*rows, strict=True)
    return {name: np.array(column) for name, column in zip(COLUMNS, columns, strict=True)}


def of(data: Table, platform: str, method: str, column: str = "bytes") -> np.ndarray:
    """Of one method, by the number of layers."""
    return data[column][(data["platform"] == platform) & (data["method"] == method)]


def judge(data: Table) -> list[Part]:
    parts = []
    for platform in dict.fromkeys(data["platform"].tolist()):
        parts += [
            as_inference(data, platform),
            no_growth(data, platform),
            copies(data, platform),
            twelve(data, platform),
        ]
    return parts


def as_inference(data: Table, platform: str) -> Part:
    ratios = of(data, platform, STREAMED) / of(data, platform, FORWARD)
    return Part(
        f"{platform}: a streamed step needs the memory of a forward pass",
        f"{ratios.min():.3f} to {ratios.max():.3f} of it",
        bool(ratios.max() <= 1.1),
    )


def excess(data: Table, platform: str, method: str) -> np.ndarray:
    return of(data, platform, method) - of(data, platform, method, "parameter_bytes")


def no_growth(data: Table, platform: str) -> Part:
    layers, beyond = of(data, platform, STREAMED, "layers"), excess(data, platform, STREAMED)
    return Part(
        f"{platform}: what a streamed step needs beyond the parameters does not grow with layers",
        f"{beyond[0] / 2**20:.1f} MiB at {layers[0]}, {beyond[-1] / 2**20:.1f} at {layers[-1]}",
        bool(beyond[-1] <= 1.1 * beyond[0]),
    )


def copies(data: Table, platform: str) -> Part:
    size = of(data, platform, PORT, "parameter_bytes")[-1]
    port, streamed = (excess(data, platform, m)[-1] / size for m in (PORT, STREAMED))
    return Part(
        f"{platform}: written down with jax.random, it needs two copies of the parameters and more",
        f"{port:.2f} copies beyond them at the largest, streamed {streamed:.2f}",
        bool(port >= 2),
    )


def twelve(data: Table, platform: str) -> Part:
    ratios = of(data, platform, ADAM) / of(data, platform, STREAMED)
    remat = of(data, platform, REMAT) / of(data, platform, STREAMED)
    return Part(
        f"{platform}: MeZO needs up to 12 times less memory than training with Adam",
        f"up to {ratios.max():.1f} times less, {remat.max():.1f} than with rematerialization",
        bool(ratios.max() >= 12),
    )


def plot(data: Table) -> Figure:
    """All that a step needs, and what it needs beyond the parameters, by their size."""
    platforms = list(dict.fromkeys(data["platform"].tolist()))
    figure, rows = plt.subplots(len(platforms), 2, figsize=(9, 3.3 * len(platforms)), squeeze=False)
    for (total, beyond), platform in zip(rows, platforms, strict=True):
        draw(total, data, platform, of)
        total.set(title=f"{platform}: memory of a step, MiB")
        draw(beyond, data, platform, excess)
        beyond.set(title="Beyond the parameters, MiB")
    figure.legend(*rows[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    plt.close(figure)
    return figure


def draw(axes: Axes, data: Table, platform: str, values: Callable[..., np.ndarray]) -> None:
    for place, method in enumerate(dict.fromkeys(data["method"].tolist())):
        size = of(data, platform, method, "parameter_bytes") / 2**20
        # One more than the style has colours.
        style: dict[str, Any] = {"color": "0.5", "linestyle": "-"} if method == ADAM else {}
        style |= {"marker": "o^svDPX*"[place], "markersize": 4}
        axes.plot(size, values(data, platform, method) / 2**20, label=method, **style)
    axes.set(xscale="log", yscale="log", xlabel="parameters, MiB")


def main() -> None:
    """Compiles for one chip of a TPU v5e, in a process that found libtpu before it imported jax."""
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    mesh = slice_mesh("v5e:2x2", (1,), ("chip",))
    rows = compiled(TPU, False, NamedSharding(mesh, PartitionSpec()))
    arguments.output.write_text(json.dumps(rows))


TARGET = Target(
    paper=Paper(
        title="Fine-Tuning Language Models with Just Forward Passes",
        authors="Malladi, Gao, Nichani, Damian, Lee, Chen, Arora",
        year=2023,
        arxiv="2305.17333",
    ),
    figure="Figure 3 and Table 12, on decoders of width 512 with 3 to 48 layers, 2,048 tokens, "
    "from the compilers' plans; the paper's are OPT to 66 B on GPUs",
    claim="MeZO has the memory footprint of inference, up to 12 times less than training by "
    "backpropagation.",
    rule="the memory of a forward pass: at most 1.1 times it at every depth; no growth: at most "
    "1.1 times as much at the largest depth as at the least; the others as they say.",
    measure=measure,
    judge=judge,
    plot=plot,
)


if __name__ == "__main__":
    main()
