"""Weights and runs on disk, verified on the way in."""
