"""How gradients move the weights: optimizers, sharpness-aware minimisation and learning-rate schedules.

`build.build_optimizer` turns a recipe's section into an `optimizer_set.OptimizerSet`; `schedules.factor` is the
learning rate over the budget; `sharpness.perturbed` wraps a second pass; `memory.state_bytes` is what the plan
counts. `roles`, `schedules` and `memory` do not import torch, so this file imports nothing.
"""
