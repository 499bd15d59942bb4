"""Linear solves, inverse roots and polar factors."""
