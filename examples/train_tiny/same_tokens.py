"""Whether transformers (5.23 or newer) gives the greedy tokens that nightshift gave.

    nightshift run jobs/quickstart.toml && nightshift merge out/quickstart out/merged --format jsonl
    python same_tokens.py MODEL ROWS.jsonl out/merged/*.jsonl

Both compute in F32; the prompts go through the folder's chat template in either.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def rows(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def main():
    folder, questions, *merged = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ours = {row["id"]: row["token_ids"] for path in merged for row in rows(path)}
    different = 0
    for row in rows(questions):
        text = tokenizer.apply_chat_template(row["messages"], tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        expected = ours[row["id"]]
        with torch.inference_mode():
            found = model.generate(prompt, do_sample=False, max_new_tokens=len(expected))
        if found[0, prompt.shape[1]:].tolist() != expected:
            different += 1
            print(row["id"], found[0, prompt.shape[1]:].tolist(), expected)
    print(f"{len(ours) - different} of {len(ours)} rows have the same tokens")
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
