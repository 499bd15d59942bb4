"""Tasks: dataclasses whose build() gives (init, loss, batches, evaluate) as plain functions."""
