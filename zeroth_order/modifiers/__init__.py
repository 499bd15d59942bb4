"""Directions made of other directions: sparse, of low rank, on the sphere."""
