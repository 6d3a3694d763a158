"""A training run in either backend: its loop, its folder, its plot."""
