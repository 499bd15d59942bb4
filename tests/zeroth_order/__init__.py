"""Tests of zeroth_order."""
