"""Another network over the same parameters and buffers."""

from __future__ import annotations

import copy
from itertools import chain

from torch import nn


def clone_sharing_parameters(model: nn.Module) -> nn.Module:
    """A copy of the network's modules, in training, that holds `model`'s own tensors.

    Its modules may be replaced by others that compute the same: to train by it is to train `model`.
    """
    shared = {id(t): t for t in chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared).train()
