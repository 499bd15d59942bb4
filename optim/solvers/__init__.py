"""Linear solves, preconditioners, inverse roots and windowed inverses, on pytrees."""
