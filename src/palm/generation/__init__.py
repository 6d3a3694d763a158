"""Text from a model of either backend."""
