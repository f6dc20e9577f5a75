"""Humanward fine-tunes language models toward what people prefer, and shows that people prefer the result."""

__version__ = "0.1.0"
