"""Whether transformers (not in requirements.txt; 5.23 or newer) gives the greedy tokens that nightshift gave.

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
    ours = {row["id"]: row for path in merged for row in rows(path)}
    compared, different = rows(questions), 0
    for row in compared:
        text = tokenizer.apply_chat_template(row["messages"], tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        expected, reason = (ours[row["id"]][key] for key in ("token_ids", "finish_reason"))
        # One more than ours, which shows an end that came too early; a limit cuts ours anywhere.
        more = 0 if reason == "length" else 1
        with torch.inference_mode():
            found = model.generate(prompt, do_sample=False, max_new_tokens=len(expected) + more)
        if found[0, prompt.shape[1]:].tolist() != expected:
            different += 1
            print(row["id"], found[0, prompt.shape[1]:].tolist(), expected)
    print(f"{len(compared) - different} of {len(compared)} rows have the same tokens")
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
