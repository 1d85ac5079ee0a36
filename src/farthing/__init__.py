"""Farthing spends a fixed budget on the best small GPT it can buy, and proves what bought it."""

__version__ = "0.1.0"
