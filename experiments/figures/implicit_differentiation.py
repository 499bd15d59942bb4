"""The paper of several reproductions."""

from experiments.figures.target import Paper

PAPER = Paper(
    title="Efficient and Modular Implicit Differentiation",
    authors="Blondel, Berthet, Cuturi, Frostig, Hoyer, Llinares-Lopez, Pedregosa, Vert",
    year=2021,
    arxiv="2105.15183",
)
