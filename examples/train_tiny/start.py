"""The weights that training starts from.

Whoever looks something up in a text must find the place where the same words stood before. Attention learns that late
and all at once, since heads that carry words to their neighbours and heads that compare them help only together
(Olsson et al., "In-context Learning and Induction Heads", 2022). So both are there at the start and training shapes
them: head h of the first layer looks h + 1 tokens back, and the heads of the others compare what stands in two places
(the second after Trockman and Kolter, "Mimetic Initialization of Self-Attention Layers", 2023).
"""

import torch
from torch import nn

EMBEDDING = 0.5
# What a layer adds to the stream at first, as a share of its input.
ADDED = 0.05
# Sharpness of the heads that look back, and the pairs of rotated dimensions that they use: the fast ones.
GAIN, PAIRS = 4.5, 8


@torch.no_grad()
def initialise(model):
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            adds = name.endswith(("o_proj.weight", "down_proj.weight"))
            width = 0.02 if "gate.weight" in name else parameter.shape[1] ** -0.5 * (ADDED if adds else 1.0)
            nn.init.normal_(parameter, std=EMBEDDING if "embed" in name else width)
    first, *others = [layer.self_attn for layer in model.model.layers]
    # The first dimension is the same for all tokens: what looks back without regard to what is there.
    model.model.embed_tokens.weight[:, 0] = 1.0
    look_back(first, model.frequencies)
    for attention in others:
        compare(attention)


def look_back(attention, frequencies):
    """The score of a key d tokens back is a sum of cos((d - h - 1) * frequency)."""
    a, turns = attention, frequencies[:PAIRS]
    a.q_a_proj.weight[0] = 0
    a.q_a_proj.weight[0, 0] = 1.0
    query, key = heads(a.q_b_proj, a.heads), a.kv_a_proj_with_mqa.weight[a.latent :]
    query[:, : a.nope] *= 0.1
    query[:, a.nope :] = 0
    key.zero_()
    key[0 : 2 * PAIRS : 2, 0] = GAIN
    for head in range(a.heads):
        rotated = query[head, a.nope : a.nope + 2 * PAIRS, 0]
        rotated[0::2] = GAIN * torch.cos((head + 1) * turns)
        rotated[1::2] = -GAIN * torch.sin((head + 1) * turns)
    # All heads carry a token in one way, so that places are alike whose last tokens are.
    value, out = heads(a.kv_b_proj, a.heads)[:, a.nope :], a.o_proj.weight.view(-1, a.heads, a.value)
    value[:] = value[:1].clone()
    nn.init.normal_(a.o_proj.weight, std=2 * EMBEDDING * a.o_proj.weight.shape[1] ** -0.5)
    out[:] = out[:, :1].clone()


def compare(attention):
    """Queries are made as keys are."""
    a = attention
    a.q_a_proj.weight[: a.latent] = a.kv_a_proj_with_mqa.weight[: a.latent]
    query, key = heads(a.q_b_proj, a.heads), heads(a.kv_b_proj, a.heads)
    query[:, : a.nope] = 0
    query[:, : a.nope, : a.latent] = key[:, : a.nope]
    query[:, a.nope :] *= 0.1


def heads(projection, count):
    """Its weights, head by head: [heads, width, inputs]."""
    return projection.weight.view(count, -1, projection.weight.shape[1])
