"""Averages of the parameters, and evaluation_params, which finds the parameters to evaluate."""
