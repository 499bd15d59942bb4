"""python -m tests.conformance DIR... [--only NAME] [--mutants]"""

import argparse
import pathlib
import sys
from collections.abc import Iterable, Sequence

import jax

from .adapters import ADAPTERS, MUTANTS, tolerance
from .recording import Recording, RecordingError, load
from .replay import Adapter, AdapterError, replay


def main(argv: Sequence[str] | None = None) -> int:
    """Replays the recordings; 0 if none failed, 1 if one did, 2 if there is nothing to replay."""
    parser = argparse.ArgumentParser("python -m tests.conformance", description=__doc__)
    parser.add_argument("directories", nargs="+", type=pathlib.Path, metavar="DIR")
    parser.add_argument("--only", metavar="NAME", help="a method (lion) or a file (lion__default)")
    parser.add_argument("--mutants", action="store_true", help="replay known mistakes instead")
    options = parser.parse_args(argv)
    try:
        paths = select(options.directories, options.only)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return run_mutants(paths) if options.mutants else run(paths)


def select(directories: Sequence[pathlib.Path], only: str | None) -> list[pathlib.Path]:
    """The recordings of the directories, in order of their names."""
    paths = []
    for directory in directories:
        found = sorted(directory.glob("*.npz"))
        if not directory.is_dir():
            raise ValueError(f"DIR {directory} is not a directory.")
        if not found:
            raise ValueError(f"DIR {directory} holds no npz file.")
        paths += found
    chosen = [path for path in paths if only in (None, path.stem, path.stem.partition("__")[0])]
    if not chosen:
        raise ValueError(
            f"--only {only} selects none of the {len(paths)} files; it takes the part of a file's "
            "name before `__`, or the name without `.npz`."
        )
    return chosen


def run(paths: Iterable[pathlib.Path]) -> int:
    """Prints a line a file and the counts; 1 if a file failed."""
    counts = {"pass": 0, "FAIL": 0, "without adapter": 0}
    for path in paths:
        try:
            verdict, detail = check(load(path))
        except (RecordingError, AdapterError) as error:
            verdict, detail = "FAIL", str(error)
        counts[verdict] += 1
        print(f"{path.stem:40} {verdict:16} {detail}".rstrip(), flush=True)
    passed, failed, without = counts.values()
    print(f"{passed} passed, {failed} failed, {without} without adapter")
    return int(failed > 0)


def check(recording: Recording) -> tuple[str, str]:
    """The verdict on one recording and what it rests on."""
    if recording.name not in ADAPTERS:
        return "without adapter", ""
    return replayed(recording, ADAPTERS[recording.name])


def replayed(recording: Recording, adapter: Adapter) -> tuple[str, str]:
    """Replays with this adapter, whatever goes wrong in it being a failure that is told."""
    allowed = tolerance(recording.name)
    try:
        outcome = replay(recording, adapter, allowed)
    except AdapterError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise AdapterError(f"the replay stopped with {type(error).__name__}: {reason}") from error
    detail = f"largest error {outcome.error:.1e} in {outcome.leaf}"
    if outcome.passed:
        return "pass", detail
    return "FAIL", f"{detail}, beyond {allowed:.0e} from step {outcome.first} on"


def run_mutants(paths: Iterable[pathlib.Path]) -> int:
    """Prints, for every known mistake, the recording that notices it; 1 if one goes unnoticed."""
    recordings: dict[str, list[Recording]] = {}
    for path in paths:
        try:
            recording = load(path)
        except RecordingError as error:
            print(error)
            return 1
        recordings.setdefault(recording.name, []).append(recording)
    survivors = 0
    for name in sorted(recordings.keys() & ADAPTERS.keys()):
        for mistake, mutant in MUTANTS.get(name, {}).items():
            try:
                by = killed_by(recordings[name], mutant)
                verdict = f"fails on {by}" if by else "SURVIVES"
            except AdapterError as error:
                by, verdict = None, f"CANNOT RUN: {error}"
            survivors += by is None
            print(f"{name:16} {mistake:40} {verdict}", flush=True)
        if not MUTANTS.get(name):
            survivors += 1
            print(f"{name:16} has no mutant")
    print(f"{survivors} unnoticed")
    return int(survivors > 0)


def killed_by(recordings: Iterable[Recording], mutant: Adapter) -> str | None:
    """The first recording that a mutant fails on; one that cannot run is an error, not a kill."""
    for recording in recordings:
        if replayed(recording, mutant)[0] == "FAIL":
            return recording.stem
    return None


if __name__ == "__main__":
    # float64 comparisons belong on the CPU: accelerators lack it or round otherwise.
    jax.config.update("jax_platforms", "cpu")
    sys.exit(main())
