"""A model of which only the logits are seen."""
