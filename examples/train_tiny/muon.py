"""Muon: each weight matrix moves by its orthogonalised momentum.

Source: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024). Matrices of one shape
are orthogonalised together, and the processes of a run share that work.
"""

import torch
import torch.distributed as dist


def orthogonal(matrices, iterations=5):
    """Newton-Schulz: [n, rows, columns] with rows <= columns to singular values near 1."""
    x = matrices.bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.float()


class Muon(torch.optim.Optimizer):
    def __init__(self, parameters, lr, momentum=0.95, weight_decay=0.01):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = {}
            for parameter in group["params"]:
                shapes.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in shapes.items():
                self.move(group, shape, parameters)

    def move(self, group, shape, parameters):
        directions = torch.stack([self.direction(group["momentum"], p) for p in parameters])
        tall = shape[0] > shape[1]
        mine = directions.mT if tall else directions
        mine = shared(mine)
        moves = mine.mT if tall else mine
        scale = max(1.0, shape[0] / shape[1]) ** 0.5
        for parameter, move in zip(parameters, moves):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(move, alpha=-group["lr"] * scale)

    def direction(self, momentum, parameter):
        """Nesterov momentum."""
        state = self.state[parameter]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(parameter)
        velocity = state["velocity"]
        velocity.lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(velocity, momentum)


def shared(matrices):
    """Orthogonalises them, each process its part."""
    rank, processes = dist.get_rank(), dist.get_world_size()
    count = -(-len(matrices) // processes)
    padded = torch.cat([matrices, matrices[:1].expand(count * processes - len(matrices), -1, -1)])
    part = orthogonal(padded[rank * count : (rank + 1) * count].contiguous())
    parts = [torch.empty_like(part) for _ in range(processes)]
    dist.all_gather(parts, part)
    return torch.cat(parts)[: len(matrices)]
