"""Search: many runs of one recipe's variants within one budget, one process each, with the truth in their folders."""
