"""Bilevel problems, their hypergradients with a certificate, and the algorithms that use them."""

from bilevel.differentiation.implicit import (
    attach_root,
    custom_argmin,
    custom_fixed_point,
    custom_root,
)

__all__ = [
    "attach_root",
    "custom_argmin",
    "custom_fixed_point",
    "custom_root",
]
