"""Tests of optim, its folders mirrored."""
