"""Published models: their weights, and themselves as live sides."""
