"""The network. Nothing is imported here: what a model costs (cost, memory) is told without torch."""
