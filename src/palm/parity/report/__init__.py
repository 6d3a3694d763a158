"""A comparison for the reader: terminal and HTML."""
