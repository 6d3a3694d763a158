"""The instrument: run two sides, judge their difference by rounding, and say why they differ."""
