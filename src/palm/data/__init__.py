"""Text as tokens: corpora, tokenizers, windows in training's order, and downloads."""
