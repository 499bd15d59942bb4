"""What `python -m experiments reproduce` can reproduce: one file a figure or table of a paper."""
