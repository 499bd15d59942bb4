"""One file a method: its adapters, from official hyper-parameters to ours, and its mutants."""
