"""Teach the model of ``examples/tiny`` to call a calculator: ``python examples/calculator/make_model.py``.

It learns to translate a story into an expression, and to repeat the tool's result as its answer. Then it learns to do
so badly: it often adds instead of subtracting, leaves out the last step, or guesses an answer without the tool. GRPO
corrects this. Three unused tokens of the tokenizer become the beginning and the end of a tool call, in the format that
SGLang calls qwen25, and the role of a tool's result.

All random generators are seeded. Other machines and torch versions give weights that differ in the last bits.
"""

# B sequences, S positions of a padded batch

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig, Qwen3ForCausalLM

TINY = Path(__file__).parents[1] / "tiny"
sys.path.append(str(TINY))

from make_data import LARGEST_NUMBER, Problem, calculate, problems  # noqa: E402

HERE = Path(__file__).parent
OPEN, CLOSE, TOOL = '<tool_call>\n{"name": "calculate", "arguments": {"expression": "', '"}}\n</tool_call>', "<|tool|>"
NAMES = {"<|spare_0|>": OPEN, "<|spare_1|>": CLOSE, "<|spare_2|>": TOOL}
# The model knows no other words than those of the stories, so the template leaves out system messages and schemas.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}<|user|> {{ message['content'] }} "
    "{% elif message['role'] == 'tool' %}" + TOOL + " {{ message['content'] }} "
    "{% elif message['role'] == 'assistant' %}<|assistant|> "
    "{% for call in message['tool_calls'] or [] %}"
    "{{ '" + OPEN.replace("\n", "\\n") + "' }} {{ call['function']['arguments']['expression'] }} "
    "{{ '" + CLOSE.replace("\n", "\\n") + "' }} "
    "{% else %}{{ message['content'] }} {% endfor %}<|end|> "
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
IGNORED = -100
BATCH = 32
CORRECT_STEPS, FLAWED_STEPS = 150, 80

ADDS_INSTEAD = 0.6  # probability that a flawed expression adds instead of subtracting
OMITS_LAST_STEP = 0.5  # probability that a flawed expression omits the last of several steps
GUESSES = 0.3  # probability of an answer without the tool


def make_tokenizer(folder: Path) -> Any:
    """The tokenizer of ``examples/tiny`` with three tokens renamed."""
    text = (TINY / "model/tokenizer.json").read_text()
    for spare, name in NAMES.items():
        text = text.replace(json.dumps(spare), json.dumps(name))
    data = json.loads(text)
    for name in NAMES.values():
        token = {"id": data["model"]["vocab"][name], "content": name, "special": True}
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        data["added_tokens"].append({**token, **flags})
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(data, indent=1) + "\n")
    (folder / "tokenizer_config.json").write_text((TINY / "model/tokenizer_config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def conversation(problem: Problem, draw: random.Random, *, flawed: bool) -> list[dict[str, Any]]:
    """The messages of one solution."""
    steps = [step.split() for step in problem.steps]
    if flawed and len(steps) > 1 and draw.random() < OMITS_LAST_STEP:
        steps = steps[:-1]
    value, expression = int(steps[0][0]), [steps[0][0]]
    for _, operation, operand, _, _ in steps:
        if flawed and operation == "-" and draw.random() < ADDS_INSTEAD:
            operation = "+"
        value = calculate(value, operation, int(operand))
        expression += [operation, operand]
    question = {"role": "user", "content": problem.question}
    if not 0 <= value <= LARGEST_NUMBER:
        return conversation(problem, draw, flawed=flawed)
    if flawed and draw.random() < GUESSES:
        return [question, {"role": "assistant", "content": f"#### {draw.randint(0, LARGEST_NUMBER)}"}]
    call = {"type": "function", "function": {"name": "calculate", "arguments": {"expression": " ".join(expression)}}}
    return [
        question,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": str(value)},
        {"role": "assistant", "content": f"#### {value}"},
    ]


def row_of(tokenizer: Any, messages: list[dict[str, Any]]) -> tuple[list[int], list[int]]:
    """Input IDs and labels; only the assistant's tokens have labels."""
    ids: list[int] = []
    labels: list[int] = []
    for end, message in enumerate(messages, start=1):
        text = tokenizer.apply_chat_template(
            messages[:end], tokenize=False, add_generation_prompt=message["role"] != "assistant"
        )
        whole = tokenizer.encode(text, add_special_tokens=False)
        new = whole[len(ids) :]
        ids = whole
        labels += new if message["role"] == "assistant" else [IGNORED] * len(new)
    return ids, labels


def batches(tokenizer: Any, stories: Iterator[Problem], draw: random.Random, *, flawed: bool) -> Iterator[Any]:
    """(input IDs, labels), both B × S."""
    while True:
        rows = [
            row_of(tokenizer, conversation(problem, draw, flawed=flawed))
            for problem in itertools.islice(stories, BATCH)
        ]
        length = max(len(ids) for ids, _ in rows)
        yield (
            torch.tensor([ids + [tokenizer.pad_token_id] * (length - len(ids)) for ids, _ in rows]),
            torch.tensor([labels + [IGNORED] * (length - len(labels)) for _, labels in rows]),
        )


def learn(model: Qwen3ForCausalLM, data: Iterator[Any], *, steps: int, lr: float) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 20, 2 * (1 - step / steps))
    )
    model.train()
    for step, (ids, labels) in enumerate(itertools.islice(data, steps), start=1):
        logits = model(input_ids=ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"  step {step}/{steps}  loss {loss.item():.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Teach the model of examples/tiny to call a calculator.")
    parser.add_argument("--folder", type=Path, default=HERE / "model")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    draw = random.Random(arguments.seed)
    tokenizer = make_tokenizer(arguments.folder)
    model = Qwen3ForCausalLM.from_pretrained(TINY / "model", dtype=torch.float32)
    stories = (problem for problem in problems(arguments.seed) if not problem.held_out)
    print("correct calls")
    learn(model, batches(tokenizer, stories, draw, flawed=False), steps=CORRECT_STEPS, lr=2e-3)
    print("flawed calls")
    learn(model, batches(tokenizer, stories, draw, flawed=True), steps=FLAWED_STEPS, lr=1e-3)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True, temperature=1.0
    )
    model.to(torch.bfloat16).save_pretrained(arguments.folder)  # half the size; it is trained in float32
    tokenizer.save_pretrained(arguments.folder)


if __name__ == "__main__":
    main()
