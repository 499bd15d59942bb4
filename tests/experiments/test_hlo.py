"""Traffic and flops of programs that are worked out by hand, in a process of eight devices."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import hlo
from tests import pretended_devices

ROOT = Path(__file__).parents[2]

PROGRAMS = """
import json
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from experiments import hlo

mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
on = lambda *axes: NamedSharding(mesh, P(*axes))
x = jax.ShapeDtypeStruct((64, 256), jnp.float32, sharding=on("data"))
w = jax.ShapeDtypeStruct((256, 256), jnp.float32, sharding=on(None, "model"))

def loop(x, w):
    def layer(x, _):
        return jax.lax.with_sharding_constraint(jnp.tanh(x @ w), on("data", None)), None
    return jax.lax.scan(layer, x, None, length=7)[0]

def ends_on_data(x, w):
    return jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ w.T, x)

cases = {
    "gather": (lambda x: x, (x,), on()),
    "sum": (lambda x: x.sum(0), (x,), on()),
    "turn": (lambda x: x, (x,), on(None, "data")),
    "loop": (loop, (x, w), on("data")),
}
results = {}
for name, (function, arguments, out) in cases.items():
    text = jax.jit(function, out_shardings=out).lower(*arguments).compile().as_text()
    results[name] = hlo.work(text)
single = jax.ShapeDtypeStruct((64, 64), jnp.float32)
text = jax.jit(ends_on_data).lower(single, single).compile().as_text()
try:
    hlo.work(text)
except ValueError as error:
    results["refused"] = str(error)
results["three trips"] = hlo.work(text, unknown_trips=3)
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results():
    command = [sys.executable, "-c", PROGRAMS]
    run = subprocess.run(
        command,
        cwd=ROOT,
        env=pretended_devices.environment(8),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("name", "kind", "received", "flops"),
    [
        ("gather", "all-gather", 3 * 16 * 256 * 4, 0),
        ("sum", "all-reduce", 2 * 3 / 4 * 256 * 4, 0),
        ("turn", "all-to-all", 3 / 4 * 16 * 256 * 4, 0),
        ("loop", "all-gather", 7 * 16 * 128 * 4, 7 * 2 * 16 * 256 * 128),
    ],
)
def test_a_program_worked_out_by_hand(results, name, kind, received, flops):
    counted, collectives = results[name]
    assert list(collectives) == [kind]
    assert collectives[kind][2] == received
    assert counted == flops


def test_a_loop_that_ends_on_data_needs_a_number(results):
    assert "unknown_trips is None; the loop" in results["refused"]
    assert results["three trips"][0] == 3 * 2 * 64**3


CONDITIONAL = """
%tiny (p: f32[4]) -> f32[4] {
  ROOT %p = f32[4]{0} parameter(0)
}

%large (q: f32[4]) -> f32[4] {
  %q = f32[4]{0} parameter(0)
  ROOT %sum = f32[4]{0} all-reduce(%q), replica_groups=[1,4]<=[4], to_apply=%add
}

ENTRY %main (i: pred[], x: f32[4]) -> f32[4] {
  %i = pred[] parameter(0)
  %x = f32[4]{0} parameter(1)
  ROOT %c = f32[4]{0} conditional(%i, %x, %x), true_computation=%large, false_computation=%tiny
}
"""


def test_branches_are_weighted():
    assert hlo.work(CONDITIONAL).received_bytes == 2 * 3 / 4 * 16
    assert hlo.work(CONDITIONAL, branch_weights={0: 0.9, 1: 0.1}).received_bytes == pytest.approx(
        0.1 * 24
    )


# What the TPU compiler makes of products of matrices: with and without a batch.
CONVOLUTIONS = """
ENTRY %main (x: bf16[2,1024,2048], y: bf16[2,2048,1024]) -> bf16[2,1024,1024] {
  %x = bf16[2,1024,2048]{2,1,0} parameter(0)
  %y = bf16[2,1024,2048]{2,1,0} parameter(1)
  ROOT %c = bf16[2,1024,1024]{2,1,0} convolution(%x, %y), WINDOW, dim_labels=0bf_0oi->0bf
}
"""


@pytest.mark.parametrize(
    ("window", "batched"),
    [
        ("window={size=2 lhs_dilate=2}", True),
        ("window={size=2 pad=1_1 rhs_reversal=1}", True),
        ("window={size=2}", False),
    ],
)
def test_a_batch_that_is_written_as_a_window_is_counted_once(window, batched):
    flops = hlo.work(CONVOLUTIONS.replace("WINDOW", window)).flops
    assert flops == (1 if batched else 2) * 2 * 2 * 1024 * 1024 * 2048
