"""Two trainings: how far apart they drift."""
