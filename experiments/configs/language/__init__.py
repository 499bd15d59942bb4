"""Language models on bytes."""
