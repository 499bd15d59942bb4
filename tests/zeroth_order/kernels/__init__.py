"""Tests of zeroth_order/kernels."""
