"""Checkpoints that are whole or not used: orbax, with what it does not check.

A checkpoint holds the training state and, as JSON, the counters (steps, samples, the next batch's
size), the path, shape and dtype of every leaf, and a fingerprint of every leaf's bits. It is
restored against a target: a field that differs stops the load, since orbax would cast its dtype
silently. Damage that the storage layer does not notice shows in the fingerprint.
"""

import contextlib
import dataclasses
import gc
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from orbax.checkpoint.checkpoint_managers import preservation_policy

import optim
from experiments.config import UserError


@dataclasses.dataclass
class Counters:
    """How far a run has come; the next batch is `batch_size` samples from `samples` on."""

    step: int = 0
    samples: int = 0
    batch_size: int = 0


class Checkpoints:
    """The checkpoints of one run: the newest ones and the best evaluated one."""

    def __init__(self, directory: pathlib.Path, keep: int):
        self.directory = directory
        policies = [
            preservation_policy.LatestN(keep),
            preservation_policy.BestN(
                get_metric_fn=lambda metrics: metrics["primary"],
                reverse=True,
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
        )
        self.manager = ocp.CheckpointManager(directory, options=options)

    def save(self, state: Any, counters: Counters, primary: float | None) -> None:
        """Start writing; returns when the state may be donated. Lower `primary` is better."""
        record = {
            **dataclasses.asdict(counters),
            "fields": fields(state),
            "fingerprints": fingerprints(state),
        }
        self.manager.save(
            counters.step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_storable(state)), record=ocp.args.JsonSave(record)
            ),
            metrics=None if primary is None else {"primary": primary},
        )

    def latest(self) -> int | None:
        """The newest step that is complete on disk, after waiting for the one being written."""
        self.manager.wait_until_finished()
        return self.manager.latest_step()

    def restore(self, target: Any, say: Callable[[str], None]) -> tuple[Any, Counters] | None:
        """The newest whole checkpoint, laid out as `target`, or None where there is none.

        Args:
            target: a tree of jax.ShapeDtypeStruct with shardings.
            say: told, one sentence a checkpoint, which ones are damaged and passed over.

        Raises:
            UserError: a checkpoint is whole and is not one of this state, or all are damaged.
        """
        steps = sorted(self.manager.all_steps(), reverse=True)
        for step in steps:
            try:
                with _quiet_readers():
                    state, counters = self._read(step, target)
            except _Damaged as damage:
                say(f"Checkpoint {step} of {self.directory} is damaged: {damage}; trying the next.")
                continue
            # Their steps are trained and saved again, which orbax does once a step, so the damaged
            # ones must go. They are kept aside: they may still be of use to a person.
            for newer in (s for s in steps if s > step):
                _set_aside(self.directory / str(newer))
            self.manager.reload()
            return state, counters
        if steps:
            raise UserError(
                f"all checkpoints in {self.directory} are damaged ({', '.join(map(str, steps))}); "
                f"move them away to start again."
            )
        return None

    def _read(self, step: int, target: Any) -> tuple[Any, Counters]:
        try:
            record = self.manager.restore(
                step, args=ocp.args.Composite(record=ocp.args.JsonRestore())
            )
            found = record["record"]
            stored, expected = found["fields"], fields(target)
        except Exception as error:
            raise _Damaged(_first_line(error)) from error
        difference = first_difference(stored, expected)
        if difference is not None:
            raise UserError(
                f"checkpoint {step} in {self.directory} is of another state: {difference}."
            )
        try:
            _read_through(self.directory / str(step) / "state")
            restored = self.manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(_storable(target)))
            )
        except Exception as error:
            raise _Damaged(_first_line(error)) from error
        state = jax.tree.map(_as_target, target, restored["state"])
        _check_bits(state, found["fingerprints"])
        return state, Counters(found["step"], found["samples"], found.get("batch_size", 0))

    def close(self) -> None:
        self.manager.wait_until_finished()
        self.manager.close()


def steps_of(workdir: pathlib.Path) -> list[int]:
    """The steps of the checkpoints that are complete: one in the making has another name."""
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())


def read_params(directory: pathlib.Path, step: int, target: Any) -> Any:
    """The parameters alone of one checkpoint of a finished run; the optimizer's state stays unread.

    Args:
        directory: the folder of the run's checkpoints.
        step: of the checkpoint.
        target: the parameters as jax.ShapeDtypeStruct with shardings.

    Raises:
        UserError: there is no such checkpoint, it is of other parameters, or it is damaged.
    """
    path = directory / str(step)
    if not path.is_dir():
        raise UserError(f"there is no checkpoint {step} in {directory}.")
    target = {"params": target}
    storable = _storable(target)
    restore_args = ocp.checkpoint_utils.construct_restore_args(storable)
    try:
        with _quiet_readers():
            record = _restored(path / "record", ocp.JsonCheckpointHandler(), ocp.args.JsonRestore())
            stored = {k: v for k, v in record["fields"].items() if k.startswith("params/")}
            difference = first_difference(stored, fields(target))
            if difference is not None:
                raise UserError(
                    f"checkpoint {step} in {directory} is of other parameters: {difference}."
                )
            whole = ocp.args.PyTreeRestore(storable, restore_args, partial_restore=True)
            restored = _restored(path / "state", ocp.PyTreeCheckpointHandler(), whole)
            params = jax.tree.map(_as_target, target, restored)
            _check_bits(params, record["fingerprints"])
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"checkpoint {step} in {directory} is damaged: {_first_line(error)}."
        ) from error
    return params["params"]


def _restored(path: pathlib.Path, handler: Any, arguments: Any) -> Any:
    with ocp.Checkpointer(handler) as checkpointer:
        return checkpointer.restore(path, arguments)


class _Damaged(Exception):
    """A checkpoint that cannot be read whole."""


def _check_bits(tree: Any, stored: dict[str, int]) -> None:
    for path, value in fingerprints(tree).items():
        if value != stored[path]:
            raise _Damaged(f"the bits of {path} have changed")


def fields(tree: Any) -> dict[str, str]:
    """Path -> dtype and shape, such as "float32[3,4]", of every leaf."""
    return {
        optim.path_string(path): f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def first_difference(stored: dict[str, Any], expected: dict[str, Any]) -> str | None:
    """A phrase about the first key, in the order of what is expected, that the two do not share."""
    for path in (*expected, *stored):
        if stored.get(path) != expected.get(path):
            was, wanted = stored.get(path, "absent"), expected.get(path, "absent")
            return f"{path} is {was} there and {wanted} here"
    return None


def fingerprints(tree: Any) -> dict[str, int]:
    """Path -> a 32-bit checksum of the leaf's bits, the same for every sharding.

    The sum of (2i + 1) times the i-th 32-bit word, modulo 2^32: any single changed word changes it,
    and it is a plain reduction, so no device gathers another's part.
    """
    values = jax.device_get(_fingerprints(_storable(tree)))
    return {optim.path_string(path): int(v) for path, v in jax.tree.leaves_with_path(values)}


@jax.jit
def _fingerprints(tree: Any) -> Any:
    def fingerprint(leaf: jax.Array) -> jax.Array:
        if leaf.dtype == jnp.bool_:
            leaf = leaf.astype(jnp.uint8)
        bits = jnp.dtype(f"uint{min(8 * leaf.dtype.itemsize, 32)}")
        words = jax.lax.bitcast_convert_type(leaf, bits).astype(jnp.uint32)
        weights = jnp.uint32(1)
        for axis in range(words.ndim):
            stride = int(np.prod(words.shape[axis + 1 :])) % 2**32
            index = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
            weights += index * jnp.uint32(2 * stride % 2**32)
        return jnp.sum(words * weights, dtype=jnp.uint32)

    return jax.tree.map(fingerprint, tree)


def _storable(tree: Any) -> Any:
    """What orbax can write: typed keys as their integers, None for what has no element."""

    def convert(leaf: Any) -> Any:
        if leaf.size == 0:
            return None
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            data = jax.eval_shape(jax.random.key_data, leaf)
            return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)
        return jax.random.key_data(leaf)

    return jax.tree.map(convert, tree)


def _as_target(target: Any, leaf: jax.Array | None) -> jax.Array:
    if leaf is None:
        return jnp.zeros(target.shape, target.dtype, device=target.sharding)
    if jnp.issubdtype(target.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(leaf)
    return leaf


def _read_through(directory: pathlib.Path) -> None:
    """Raise where a stored byte cannot be read: orbax's own reads print tracebacks as they fail."""
    base = f"file://{directory}/"
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    for key in store.list().result():
        store.read(key).result()


def _set_aside(path: pathlib.Path) -> None:
    if jax.process_index() == 0:
        target = path.parent.parent / "damaged_checkpoints" / path.name
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        path.rename(target)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:100]


@contextlib.contextmanager
def _quiet_readers() -> Iterator[None]:
    """Keep the readers that an unreadable file leaves unfinished from printing their tracebacks."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
    except BaseException:
        gc.collect()
        raise
    finally:
        sys.unraisablehook = hook
