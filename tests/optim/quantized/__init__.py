"""Tests of optim.quantized."""
