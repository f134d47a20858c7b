"""Trains the tiny model: `run.sh` calls it. Stopped at any point, the same command continues from the last checkpoint.

A chunk of questions is a function of its number, a batch of its chunk, so the same machine and thread count
take the same road.
"""

import argparse
import json
import math
import shutil
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import data
from model import CONFIG, DeepseekV2

FAMILIES = ("arithmetic", "sort", "words", "story", "needle", "json")
CHUNK = 8_000
# A batch is so many groups of rows of like length: one alone would be all of one family.
GROUPS = 4
# Texts around needles grow while training goes on: (share of the steps, longest text in tokens).
LENGTHS = ((0.25, 128), (0.75, 512), (1.0, 2400))


def main():
    options = arguments()
    torch.manual_seed(options.seed)
    options.work.mkdir(parents=True, exist_ok=True)
    tokenizer = options.work / "tokenizer.json"
    if not tokenizer.exists():
        data.train_tokenizer(tokenizer, CONFIG["vocab_size"])
    encoder = data.Encoder(tokenizer)
    model = DeepseekV2(CONFIG)
    optimizer = make_optimizer(model)
    step, chunk = restore(options.work, model, optimizer)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, from step {step}", flush=True)
    begin = time.time()
    seen = 0
    while step < options.steps:
        longest = next(tokens for share, tokens in LENGTHS if step < share * options.steps)
        rows = data.questions("train", 1 + chunk, CHUNK, longest)
        order = torch.Generator().manual_seed(chunk)
        groups = data.batches(encoder.pairs(rows), options.tokens // GROUPS, order)
        for first in range(0, len(groups) - GROUPS + 1, GROUPS):
            batch = groups[first : first + GROUPS]
            rate = learning_rate(step, options)
            loss, routes = update(model, optimizer, rate, batch)
            seen += sum(inputs.numel() for inputs, _, _ in batch)
            step += 1
            if step % 50 == 0:
                speed = seen / (time.time() - begin)
                spread = (routes.max(1).values / routes.float().mean(1)).max()
                print(f"step {step} loss {loss:.4f} rate {rate:.1e} {speed:.0f} tokens/s imbalance {spread:.2f}", flush=True)
            if step % 1000 == 0:
                report(model, encoder, min(longest, 2048), 60)
            if step >= options.steps:
                break
        chunk += 1
        save(options.work, model, optimizer, step, chunk)
    export(model, encoder, tokenizer, options)


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=data.ROOT / "out/train_tiny", help="checkpoints")
    parser.add_argument("--out", type=Path, default=data.ROOT / "examples/tiny", help="the finished model")
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--tokens", type=int, default=8_192, help="tokens of a batch")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def make_optimizer(model):
    wide = [p for p in model.parameters() if p.dim() == 2]
    norms = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": wide, "weight_decay": 0.05}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-9, fused=True)


def learning_rate(step, options):
    """Warm-up, a plateau, and a linear fall over the last quarter."""
    warm = min(1.0, (step + 1) / 400)
    fall = min(1.0, (options.steps - step) / (0.25 * options.steps))
    return options.rate * warm * fall


def update(model, optimizer, rate, batch):
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    answers = sum(wanted.sum() for _, _, wanted in batch)
    total, routes = 0.0, 0
    for inputs, targets, wanted in batch:
        logits, balance, counts = model(inputs, wanted)
        loss = F.cross_entropy(logits, targets[wanted], reduction="sum") / answers
        (loss + CONFIG["aux_loss_alpha"] / len(batch) * balance).backward()
        total, routes = total + loss.item(), routes + counts
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return total, routes


@torch.no_grad()
def report(model, encoder, longest, count):
    """Greedy accuracy on held-out questions: an answer is right if every token of it is the most probable one."""
    scores = {}
    for family in FAMILIES:
        pairs = encoder.pairs(data.questions("eval", 7, count, longest, family))
        right = 0
        for inputs, targets, wanted in data.batches(pairs, 16_384, torch.Generator().manual_seed(0)):
            logits, _, _ = model(inputs, wanted)
            hit = torch.ones_like(wanted)
            hit[wanted] = logits.argmax(-1) == targets[wanted]
            right += hit.all(1).sum().item()
        scores[family] = right / count
    print("held out: " + "  ".join(f"{name} {score:.3f}" for name, score in scores.items()), flush=True)
    return scores


def save(folder, model, optimizer, step, chunk):
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "chunk": chunk}
    torch.save(state, folder / "checkpoint.tmp")
    (folder / "checkpoint.tmp").rename(folder / "checkpoint.pt")


def restore(folder, model, optimizer):
    path = folder / "checkpoint.pt"
    if not path.exists():
        return 0, 0
    state = torch.load(path)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["chunk"]


def export(model, encoder, tokenizer, options):
    """The Hugging Face folder, in BF16, scored as it is written."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().float())
    scores = report(model, encoder, 2048, 400)
    options.out.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().bfloat16().contiguous() for name, p in model.named_parameters()}
    save_file(tensors, options.out / "model.safetensors", metadata={"format": "pt"})
    write = lambda name, value: (options.out / name).write_text(json.dumps(value, indent=2) + "\n")
    write("config.json", CONFIG)
    write("generation_config.json", {"bos_token_id": encoder.bos, "eos_token_id": encoder.eos, "do_sample": False})
    shutil.copy(tokenizer, options.out / "tokenizer.json")
    shutil.copy(data.TEMPLATE / "tokenizer_config.json", options.out / "tokenizer_config.json")
    print(json.dumps(scores))


if __name__ == "__main__":
    main()
