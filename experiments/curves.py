"""The figures of one run and of its branches, drawn from their metrics.jsonl."""

import pathlib
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from experiments.records import read_metrics

STYLE = pathlib.Path(__file__).parent / "figures" / "style.mplstyle"
CURVES = {
    "loss": "loss",
    "learning_rate": "learning rate",
    "gradient_norm": "gradient norm (before clipping)",
    "batch_size": "batch size",
}


def draw(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Write figures/<name>.png for every curve that has points; returns their paths."""
    lines = read_metrics(workdir)
    paths = []
    for name, label in CURVES.items():
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            paths.append(_draw(workdir / "figures" / f"{name}.png", label, points, lines))
    return paths


def _draw(
    path: pathlib.Path, label: str, points: list[Any], lines: list[dict[str, Any]]
) -> pathlib.Path:
    path.parent.mkdir(exist_ok=True)
    with plt.style.context(STYLE):
        figure, axes = plt.subplots()
        axes.plot(*zip(*points), label="training")
        if path.stem == "loss":
            validation = [
                (m["step"], m["validation_loss"]) for m in lines if "validation_loss" in m
            ]
            if validation:
                axes.plot(*zip(*validation), marker="o", label="validation")
                axes.legend()
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        figure.savefig(path)
        plt.close(figure)
    return path


def draw_branches(workdir: pathlib.Path) -> pathlib.Path:
    """Write figures/branches.png: the run and what is in branches/, loss above, rate below.

    A branch is joined to the point of the run that was recorded last before it.
    """
    path = workdir / "figures" / "branches.png"
    path.parent.mkdir(exist_ok=True)
    run = read_metrics(workdir)
    names = (path.parent for path in workdir.glob("branches/*/metrics.jsonl"))
    branches = [(name.name, lines) for name in names if (lines := read_metrics(name))]
    branches.sort(key=lambda branch: (branch[1][-1]["step"], branch[0]))
    with plt.style.context(STYLE):
        figure, (above, below) = plt.subplots(
            2, sharex=True, figsize=(5.6, 4.6), gridspec_kw={"height_ratios": (2, 1)}
        )
        for place, (name, lines) in enumerate([("", run), *branches]):
            before = [line for line in run if "loss" in line and line["step"] < lines[0]["step"]]
            lines = [*(before[-1:] if name else []), *lines]
            style: dict[str, Any] = {"color": f"C{place}"}
            above.plot(*_points(lines, "loss"), alpha=0.6, linewidth=0.8, **style)
            dots = {"markersize": 4} if name else {"markersize": 7, "markerfacecolor": "none"}
            label = f"branch {name}" if name else "run"
            above.plot(*_points(lines, "validation_loss"), "o", label=label, **dots, **style)
            below.plot(*_points(lines, "learning_rate"), **style)
        if run:  # the first steps would leave no room to the rest
            above.set_ylim(top=np.quantile(_points(run, "loss")[1], 0.98))
        above.set_ylabel("loss (dots: validation)")
        above.legend()
        below.set_xlabel("step")
        below.set_ylabel("learning rate")
        figure.savefig(path)
        plt.close(figure)
    return path


def _points(lines: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    found = [line for line in lines if name in line]
    return [line["step"] for line in found], [line[name] for line in found]
