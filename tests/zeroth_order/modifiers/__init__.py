"""Tests of directions made of others."""
