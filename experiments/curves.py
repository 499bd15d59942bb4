"""The figures of one run, drawn from its metrics.jsonl."""

import pathlib
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

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
