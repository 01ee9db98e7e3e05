"""A model whose states and head are all free parameters, for tests of what is exact there."""

import torch

from probing.kernels.output_head import Unembedding
from probing.metrics.displacement import free_feature_rate

WIDTH, VOCABULARY = 5, 13


class FreeModel:
    """Every context has a state of its own, and all states and the unembedding are parameters."""

    def __init__(self, generator, head=None):
        self.weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)
        self.generator, self.contexts = generator, {}
        self.head = head or (lambda states: states @ self.weight.T)

    def states(self, ids):
        for k in range(len(ids)):
            fresh = torch.randn(WIDTH, generator=self.generator, dtype=torch.float64, requires_grad=True)
            self.contexts.setdefault(tuple(ids[:k]), fresh)
        return torch.stack([self.contexts[tuple(ids[:k])] for k in range(len(ids))])

    def logprob(self, ids):
        return self.head(self.states(ids)).log_softmax(dim=1)[torch.arange(len(ids)), torch.tensor(ids)].sum()

    def rate(self, chosen, rejected):
        """<grad ln p(y+), grad (ln p(y+) - ln p(y-))> by autograd."""
        plus, minus = self.logprob(chosen), self.logprob(rejected)
        parameters = [self.weight, *self.contexts.values()]
        gradients = [torch.autograd.grad(value, parameters, allow_unused=True) for value in (plus, minus)]
        total = 0.0
        for a, b in zip(*gradients, strict=True):
            if a is not None:
                total += float((a * (a if b is None else a - b)).sum())
        return total

    def ours(self, chosen, rejected, head=None):
        states = [self.states(ids).detach() for ids in (chosen, rejected)]
        ids = [torch.tensor(ids) for ids in (chosen, rejected)]
        return float(free_feature_rate(*states, *ids, head or Unembedding(self.weight.detach())))


PAIRS = [([3], [7]), ([1, 2, 3], [4, 5]), ([1, 2, 3], [1, 2, 4, 5]), ([1, 2], [1, 2, 3])]
PAIRS += [([6, 6, 6], [6, 1]), ([0], [2, 2])]
