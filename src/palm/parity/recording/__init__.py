"""What one side computed, and how it is kept."""
