"""Any PyTorch program, traced in float64."""
