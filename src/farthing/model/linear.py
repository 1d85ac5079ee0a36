"""Linear and Embedding without torch's own initialisation.

torch fills new layers from the global random state. Here a new parameter is NaN until model/init.py or a checkpoint
has written it, so that nothing can be left uninitialised unseen and nobody's random state is touched.
"""

from __future__ import annotations

import torch
from torch import nn


class Linear(nn.Linear):
    """y = x W^T + b, with W [out, in]."""

    def reset_parameters(self) -> None:
        """Mark as not yet initialised."""
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.fill_(torch.nan)


class Embedding(nn.Embedding):
    """A row for each token or position."""

    def reset_parameters(self) -> None:
        """Mark as not yet initialised."""
        with torch.no_grad():
            self.weight.fill_(torch.nan)
