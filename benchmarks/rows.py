"""``python -m benchmarks.rows FOLDER``: a character-level task with long prompts, and its model.

A prompt is four rows of ten digits, and the answer is the third row. One token is one character, so a prompt has 45
tokens, twice as many as one of ``examples/tiny``.

The model, a Qwen3 of 0.8 M parameters, first learns correct answers, then answers in which a digit is the first row's
with probability ``FLAWED``. It can find the row but does not do so reliably, which reinforcement learning then teaches
it. All random generators are seeded.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

PAD, END, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    + (ASSISTANT + "{{ message['content'] }}" + END)
    + ("{% else %}" + USER + "{{ message['content'] }}")
    + ("{% endif %}{% endfor %}{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}")
)
CHARACTERS = "0123456789/# "
VOCABULARY = 64  # a multiple of what SGLang pads to
ROWS, DIGITS = 4, 10
ANSWER = 2  # the row to repeat
PROBLEMS = 2048
FLAWED = 0.09  # probability of a wrong digit: 0.91 ** 10 = 0.39 of the answers are right
CORRECT_STEPS, FLAWED_STEPS, BATCH = 150, 150, 32
RATE = 3e-3
IGNORED = -100


def problem(draw: random.Random) -> tuple[str, str]:
    """Question and answer. The answer's first digit is not 0."""
    while True:
        rows = ["".join(draw.choice("0123456789") for _ in range(DIGITS)) for _ in range(ROWS)]
        if rows[ANSWER][0] != "0":
            return "/".join(rows), rows[ANSWER]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character."""
    tokens = [PAD, END, USER, ASSISTANT, *CHARACTERS]
    tokens += [f"<|spare_{number}|>" for number in range(VOCABULARY - len(tokens))]
    tokenizer = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (PAD, END, USER, ASSISTANT)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """An untrained model."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=544,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=128,
        rope_theta=10_000.0,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.float32,
    )
    return Qwen3ForCausalLM(config)


def prompt_of(question: str) -> str:
    """The prompt as the chat template renders it."""
    return f"{USER}{question}{ASSISTANT}"


def batch(
    tokenizer: PreTrainedTokenizerFast, draw: random.Random, *, flawed: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Input ids and labels [B, S]; only answers have labels."""
    texts = []
    for _ in range(BATCH):
        question, answer = problem(draw)
        written = "".join(
            first if draw.random() < flawed else digit for first, digit in zip(question, answer, strict=False)
        )
        texts.append(f"{prompt_of(question)}#### {written}{END}")
    ids_BS = torch.tensor(tokenizer(texts)["input_ids"])
    labels_BS = ids_BS.clone()
    labels_BS[:, : ROWS * (DIGITS + 1) - 1 + 2] = IGNORED
    return ids_BS, labels_BS


def learn(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    draw: random.Random,
    *,
    steps: int,
    rate: float,
    flawed: float,
) -> None:
    """Supervised training with a cosine schedule."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 20) * (0.05 + 0.95 * (1 + math.cos(math.pi * step / steps)) / 2)
        ids_BS, labels_BS = batch(tokenizer, draw, flawed=flawed)
        logits = model(input_ids=ids_BS[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels_BS[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0:
            print(f"  step {step + 1} of {steps}: loss {loss.item():.3f}", flush=True)


@torch.no_grad()
def accuracy(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, str]]) -> float:
    """Fraction of rows whose sampled answer is correct."""
    model.eval()
    ids = torch.tensor(tokenizer([prompt_of(row["question"]) for row in rows])["input_ids"])
    sampling = GenerationConfig(
        max_new_tokens=20,
        do_sample=True,
        top_k=0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=sampling)
    texts = tokenizer.batch_decode(output[:, ids.shape[1] :])
    found = [re.findall(r"#### (\d+)", text) for text in texts]
    return sum(f"#### {answer[-1]}" == row["answer"] for answer, row in zip(found, rows, strict=True) if answer) / len(
        rows
    )


def main() -> None:
    """Write ``model/`` and ``data/train.jsonl``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rows", description="Make the task of rows.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=CORRECT_STEPS, help="steps on correct answers")
    options = parser.parse_args()
    torch.manual_seed(1)
    draw = random.Random(1)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    learn(model, tokenizer, draw, steps=options.steps, rate=RATE, flawed=0.0)
    learn(model, tokenizer, draw, steps=FLAWED_STEPS, rate=RATE / 3, flawed=FLAWED)
    rows = [
        {"question": question, "answer": f"#### {answer}"}
        for question, answer in (problem(draw) for _ in range(PROBLEMS))
    ]
    print(f"sampled answers that are correct: {accuracy(model, tokenizer, rows[:256]):.3f}")
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True, temperature=1.0
    )
    model.save_pretrained(options.folder / "model")
    tokenizer.save_pretrained(options.folder / "model")
    data = options.folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
