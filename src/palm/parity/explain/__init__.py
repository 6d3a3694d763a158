"""Where a side departs from the specification, and why."""
