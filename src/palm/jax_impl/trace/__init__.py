"""Any JAX program, traced in float64."""
