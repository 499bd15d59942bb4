"""Data that is on the machine: texts, scikit-learn's bundled sets, idx files, generators."""
