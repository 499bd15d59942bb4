"""Replays of trajectories recorded from the authors' own code."""
