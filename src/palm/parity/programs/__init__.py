"""Two programs of anyone's: aligned by the values they compute, in float64."""
