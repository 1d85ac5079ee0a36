"""Sinks follow the events of a run: the terminal, TensorBoard, Weights & Biases. None of them needs torch."""
