"""The mathematics that both wings compute, without a framework, and the float64 referee."""
