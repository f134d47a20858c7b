"""Questions and answers from `make_tasks`, as token ids; and the tokenizer that is trained on them."""

import json
import os
import subprocess
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parents[2]
# DeepSeek's pre-tokenizer, decoder and chat template, which the fixtures carry.
TEMPLATE = ROOT / "tests/goldens/a_v2like"
MAKE_TASKS = os.environ.get("MAKE_TASKS", ROOT / "target/release/examples/make_tasks")
BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"


def questions(split, seed, count, needle_tokens, family=None):
    command = [MAKE_TASKS, "--split", split, "--seed", str(seed), "--count", str(count),
               "--needle-tokens", str(needle_tokens)]
    command += ["--family", family] if family else []
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


def turns(row):
    """(prompt, answer) of each turn, as the chat template writes them; an end of sentence follows each answer."""
    said = [message["content"] for message in row["messages"]] + [row["answer"]]
    return [(f"User: {question}\n\nAssistant:", f" {answer}") for question, answer in zip(said[::2], said[1::2])]


def train_tokenizer(path, vocabulary):
    """Byte-level BPE: `vocabulary` - 2 tokens, then the begin and end of a sentence."""
    shape = json.loads((TEMPLATE / "tokenizer.json").read_text())
    draft = Tokenizer(models.BPE())
    draft.pre_tokenizer = Tokenizer.from_file(str(TEMPLATE / "tokenizer.json")).pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=vocabulary - 2, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    rows = questions("train", 0, 60_000, 256)
    texts = ["".join(question + answer for question, answer in turns(row)) for row in rows]
    draft.train_from_iterator(texts, trainer)
    learned = json.loads(draft.to_str())["model"]
    shape["model"]["vocab"], shape["model"]["merges"] = learned["vocab"], learned["merges"]
    assert len(learned["vocab"]) == vocabulary - 2
    for token, content, number in zip(shape["added_tokens"], (BOS, EOS), (vocabulary - 2, vocabulary - 1)):
        assert token["content"] == content
        token["id"] = number
    path.write_text(json.dumps(shape, ensure_ascii=False, indent=1))


class Encoder:
    def __init__(self, path):
        self.tokenizer = Tokenizer.from_file(str(path))
        self.bos, self.eos = self.tokenizer.token_to_id(BOS), self.tokenizer.token_to_id(EOS)

    def conversations(self, rows):
        """(tokens, for each whether it belongs to an answer) of each row."""
        texts = [text for row in rows for turn in turns(row) for text in turn]
        encoded = iter(self.tokenizer.encode_batch(texts, add_special_tokens=False))
        return [self.conversation(turns(row), encoded) for row in rows]

    def conversation(self, turns, encoded):
        tokens, answers = [self.bos], [False]
        for _ in turns:
            question, answer = next(encoded).ids, next(encoded).ids + [self.eos]
            tokens += question + answer
            answers += [False] * len(question) + [True] * len(answer)
        return tokens, answers


def groups(conversations, tokens, generator):
    """Rows of like length together, about `tokens` tokens a group; the groups in random order."""
    conversations = sorted(conversations, key=lambda pair: len(pair[0]))
    found, group = [], []
    for pair in conversations:
        if group and (len(group) + 1) * len(pair[0]) > tokens:
            found.append(group)
            group = []
        group.append(pair)
    found.append(group)
    order = torch.randperm(len(found), generator=generator).tolist()
    return [padded(found[index]) for index in order]


def padded(group):
    """Inputs [rows, length], and next tokens where they belong to answers, -1 elsewhere."""
    longest = max(len(tokens) for tokens, _ in group) - 1
    inputs = torch.zeros(len(group), longest, dtype=torch.long)
    targets = torch.full((len(group), longest), -1)
    for row, (tokens, answers) in enumerate(group):
        inputs[row, : len(tokens) - 1] = torch.tensor(tokens[:-1])
        following = torch.tensor(tokens[1:])
        targets[row, : len(tokens) - 1] = following.where(torch.tensor(answers[1:]), -1)
    return inputs, targets


def flat(groups):
    """The groups' tokens one after another, their shapes, targets, and which positions have one."""
    inputs, targets = zip(*groups)
    targets = torch.cat([t.flatten() for t in targets])
    return torch.cat([i.flatten() for i in inputs]), [i.shape for i in inputs], targets, targets >= 0
