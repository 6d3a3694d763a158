"""Tokenizers of the packages of Hugging Face and SentencePiece, trained on a line of text."""

from __future__ import annotations

import io

import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers


def byte_level(line: str) -> Tokenizer:
    """A byte-level BPE as GPT-2's: every text comes back to the letter."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator([line] * 20, trainer)
    return made


def sentences(line: str) -> bytes:
    """The file of a SentencePiece model that falls back to bytes."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line.strip()] * 50),
        model_writer=written,
        vocab_size=300,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return written.getvalue()
