"""Files: read as if an enemy had written them, written as if the power could go at any moment."""
