"""Each side in a process of its own."""
