"""Gradient estimates from loss values: (loss, params, key) -> SeededGradient."""
