"""What any program computed, operation by operation: the data, and the tracer of NumPy programs."""
