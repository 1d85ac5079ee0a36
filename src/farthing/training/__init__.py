"""The training loop and what it drives: steps, precision, checkpoints, the meter, interruptions, actions.

Called `training` because `farthing.train` is the function that everybody calls.
"""
