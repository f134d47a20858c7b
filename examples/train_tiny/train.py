"""Trains the tiny model: `run.sh` calls it. Stopped at any point, the same command continues from the last checkpoint.

A chunk of questions is a function of its number and a batch of its chunk, so the same number of processes takes the
same road. Each process has one thread: small products gain little from a second one.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import torch.nn.functional as F
from safetensors.torch import save_file

import data
from model import CONFIG, DeepseekV2
from muon import Muon

FAMILIES = ("arithmetic", "sort", "words", "story", "needle", "json")
CHUNK = 8_000
# A batch is so many groups of rows of like length: one alone would be all of one family.
GROUPS = 8
# Texts around needles grow while training goes on: (share of the steps, longest text in tokens).
LENGTHS = ((0.45, 128), (0.8, 512), (1.0, 2700))


def main():
    options = arguments()
    options.work.mkdir(parents=True, exist_ok=True)
    if not (options.work / "tokenizer.json").exists():
        data.train_tokenizer(options.work / "tokenizer.json", CONFIG["vocab_size"])
    (options.work / "meeting").unlink(missing_ok=True)
    multiprocessing.spawn(train, (options,), options.processes)


def train(rank, options):
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    store = dist.FileStore(str(options.work / "meeting"), options.processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=options.processes)
    encoder = data.Encoder(options.work / "tokenizer.json")
    model = DeepseekV2(CONFIG)
    optimizers = make_optimizers(model, options)
    step, chunk = restore(options.work, model, optimizers)
    say = print if rank == 0 else lambda *words, **options: None
    say(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, from step {step}", flush=True)
    begin, seen, losses = time.time(), 0, []
    while step < options.steps:
        longest = next(tokens for share, tokens in LENGTHS if step < share * options.steps)
        rows = data.questions("train", 1 + chunk, CHUNK, longest)
        order = torch.Generator().manual_seed(chunk)
        groups = data.groups(encoder.conversations(rows), options.tokens // GROUPS, order)
        for first in range(0, len(groups) - GROUPS + 1, GROUPS):
            batch = groups[first : first + GROUPS]
            loss, routes = update(model, optimizers, learning_rate(step, options), batch)
            losses.append(loss)
            seen += sum(inputs.numel() for inputs, _ in batch)
            step += 1
            if step % 100 == 0:
                speed = seen / (time.time() - begin)
                spread = (routes.max(1).values / routes.mean(1)).max()
                say(f"step {step} loss {sum(losses) / len(losses):.4f} {speed:.0f} tokens/s imbalance {spread:.2f}", flush=True)
                losses.clear()
            if step % 1000 == 0:
                say(scores_line(report(model, encoder, min(longest, 2048), 100)), flush=True)
            if step >= options.steps:
                break
        chunk += 1
        if rank == 0:
            save(options.work, model, optimizers, step, chunk)
    if rank == 0:
        export(model, encoder, options)
    dist.barrier()


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=data.ROOT / "out/train_tiny", help="checkpoints")
    parser.add_argument("--out", type=Path, default=data.ROOT / "examples/tiny", help="the finished model")
    parser.add_argument("--steps", type=int, default=10_100)
    parser.add_argument("--tokens", type=int, default=4_096, help="tokens of a batch")
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    return parser.parse_args()


def make_optimizers(model, options):
    """Muon for the matrices between embedding and head, Adam for the rest."""
    inner, outer = [], []
    for name, parameter in model.named_parameters():
        plain = parameter.dim() != 2 or "embed" in name or "lm_head" in name or "gate.weight" in name
        (outer if plain else inner).append(parameter)
    adam = torch.optim.AdamW(outer, lr=0.3 * options.rate, betas=(0.9, 0.98), eps=1e-9, weight_decay=0.0)
    optimizers = [Muon(inner, lr=options.rate), adam]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["full"] = group["lr"]
    return optimizers


def learning_rate(step, options):
    """Share of the full rate: warm-up, a plateau, and a linear fall over the last third."""
    warm = min(1.0, (step + 1) / 300)
    fall = min(1.0, (options.steps - step) / (0.35 * options.steps))
    return warm * fall


def update(model, optimizers, rate, batch):
    """One step; each process takes some of the batch's groups, as even in tokens as they come."""
    model.zero_grad(set_to_none=True)
    tokens, shapes, targets, wanted = data.flat(own_part(batch))
    logits, balance, counts = model(tokens, shapes, wanted)
    loss = F.cross_entropy(logits, targets[wanted], reduction="sum")
    answers = sum((targets >= 0).sum() for _, targets in batch)
    processes = dist.get_world_size()
    (loss / answers + CONFIG["aux_loss_alpha"] / processes * balance).backward()
    total, routes = sum_up(model, loss.detach() / answers, counts)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["full"]
        optimizer.step()
    return total, routes


def own_part(batch):
    parts, sizes = [[] for _ in range(dist.get_world_size())], [0] * dist.get_world_size()
    for group in sorted(batch, key=lambda group: -group[0].numel()):
        least = sizes.index(min(sizes))
        parts[least].append(group)
        sizes[least] += group[0].numel()
    return parts[dist.get_rank()]


def sum_up(model, loss, counts):
    """Sums gradients, loss and routes over the processes, in one message."""
    for parameter in model.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    values = [p.grad for p in model.parameters()] + [loss, counts.float()]
    message = torch.cat([value.flatten() for value in values])
    dist.all_reduce(message)
    for value, part in zip(values, message.split([value.numel() for value in values])):
        value.copy_(part.view_as(value))
    return values[-2].item(), values[-1]


@torch.no_grad()
def report(model, encoder, longest, count):
    """Greedy accuracy on questions of the validation: an answer is right if every token of it is the most probable one.

    Each process scores some of them.
    """
    rank, processes = dist.get_rank(), dist.get_world_size()
    right = torch.zeros(len(FAMILIES))
    for family, name in enumerate(FAMILIES):
        rows = encoder.conversations(data.questions("valid", 7, count, longest, name))
        for group in data.groups(rows, 4_096, torch.Generator().manual_seed(0))[rank::processes]:
            tokens, shapes, targets, wanted = data.flat([group])
            logits, _, _ = model(tokens, shapes, wanted)
            hit = torch.ones_like(wanted)
            hit[wanted] = logits.argmax(-1) == targets[wanted]
            right[family] += hit.view(shapes[0]).all(1).sum()
    dist.all_reduce(right)
    return dict(zip(FAMILIES, (right / count).tolist()))


def scores_line(scores):
    return "validation: " + "  ".join(f"{name} {score:.3f}" for name, score in scores.items())


def save(folder, model, optimizers, step, chunk):
    states = [optimizer.state_dict() for optimizer in optimizers]
    state = {"model": model.state_dict(), "optimizers": states, "step": step, "chunk": chunk}
    torch.save(state, folder / "checkpoint.tmp")
    (folder / "checkpoint.tmp").rename(folder / "checkpoint.pt")


def restore(folder, model, optimizers):
    path = folder / "checkpoint.pt"
    if not path.exists():
        return 0, 0
    state = torch.load(path)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"]):
        optimizer.load_state_dict(saved)
    return state["step"], state["chunk"]


def export(model, encoder, options):
    """The Hugging Face folder, in BF16."""
    options.out.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().bfloat16().contiguous() for name, p in model.named_parameters()}
    save_file(tensors, options.out / "model.safetensors", metadata={"format": "pt"})
    write = lambda name, value: (options.out / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    write("config.json", CONFIG)
    write("generation_config.json", {"bos_token_id": encoder.bos, "eos_token_id": encoder.eos, "do_sample": False})
    shutil.copy(options.work / "tokenizer.json", options.out / "tokenizer.json")
    template = json.loads((data.TEMPLATE / "tokenizer_config.json").read_text())
    write("tokenizer_config.json", template | {"model_max_length": CONFIG["max_position_embeddings"]})


if __name__ == "__main__":
    main()
