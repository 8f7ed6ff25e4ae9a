"""Train the model of the tiny example: `python examples/tiny/make_model.py` writes examples/tiny/model (4 minutes).

A Qwen3 with 0.8 M parameters and a tokenizer with one token per word. It learns arithmetic tables from drills, then
correct solutions, and finally flawed ones with wrong operations or a missing last step. So it can reason but does not
do so reliably, which GRPO then teaches it. Held-out problems are used only to print the accuracy.

All random generators are seeded. Other machines and torch versions give weights that differ in the last bits.
"""

# B sequences, S positions of a padded batch

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from make_data import LARGEST_NUMBER, Problem, calculate, problems
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

HERE = Path(__file__).parent
PAD, END, UNKNOWN, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|unknown|>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}" + ASSISTANT + " {{ message['content'] }} " + END + " "
    "{% else %}" + USER + " {{ message['content'] }} {% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}"
)
# SGLang pads the vocabulary to a multiple of this and silently accepts padded IDs, so leave no padding.
VOCABULARY_MULTIPLE = 64
IGNORED = -100
INITIALIZER_RANGE = 0.05
WARMUP_STEPS = 20
# Number embeddings are initialised with sinusoids of these wavelengths, which makes addition easy to learn.
NUMBER_PERIODS = (2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100, 120)

ADDS_INSTEAD = 0.6  # probability that a flawed solution adds instead of subtracting
WRONG_OPERATION = 0.2  # probability of a wrong operation in each other step
OMITS_LAST_STEP = 0.65  # probability that a flawed solution omits the last of several steps
DRILLS_PER_ROW = 8


@dataclass(frozen=True)
class Stage:
    steps: int
    batch: int
    muon_lr: float
    adamw_lr: float


DRILLS = Stage(steps=800, batch=16, muon_lr=2e-2, adamw_lr=4e-3)
CORRECT = Stage(steps=800, batch=32, muon_lr=1e-2, adamw_lr=2e-3)
FLAWED = Stage(steps=250, batch=32, muon_lr=5e-3, adamw_lr=1e-3)


def words_of(text: str) -> list[str]:
    """Split like the tokenizer's `Whitespace`: runs of letters and digits, runs of other characters."""
    return re.findall(r"\w+|[^\w\s]+", text)


def make_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    words = sorted({word for text in texts for word in words_of(text) if not word.isdigit()})
    numbers = [str(number) for number in range(LARGEST_NUMBER + 1)]
    tokens = [PAD, END, UNKNOWN, USER, ASSISTANT, *numbers, *words]
    spare = -len(tokens) % VOCABULARY_MULTIPLE
    tokens += [f"<|spare_{i}|>" for i in range(spare)]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (PAD, END, UNKNOWN, USER, ASSISTANT)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=128,
        padding_side="left",
    )


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=544,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=128,
        rope_theta=10_000.0,
        tie_word_embeddings=True,
        initializer_range=INITIALIZER_RANGE,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.float32,
    )
    model = Qwen3ForCausalLM(config)
    numbers = torch.arange(LARGEST_NUMBER + 1)
    rows = torch.tensor(tokenizer.convert_tokens_to_ids([str(number) for number in numbers.tolist()]))
    phases = 2 * math.pi * numbers[:, None] / torch.tensor(NUMBER_PERIODS)
    waves = torch.cat([phases.cos(), phases.sin()], dim=1) * math.sqrt(2) * INITIALIZER_RANGE
    with torch.no_grad():
        model.get_input_embeddings().weight[rows, : waves.shape[1]] = waves
    return model


class Writer:
    """Writes drills and flawed solutions."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def drill(self) -> str:
        """One line of the arithmetic tables, with all numbers within 0…LARGEST_NUMBER."""
        operation = self._random.choice("++--*")
        if operation == "*":
            left, right = self._random.randint(2, 7), self._random.randint(2, 7)
        else:
            left, right = self._random.randint(1, 50), self._random.randint(2, 15)
        result = calculate(left, operation, right)
        return f"{left} {operation} {right} = {result}." if 0 <= result <= LARGEST_NUMBER else self.drill()

    def solution(self, problem: Problem) -> str:
        """A solution in the correct format with frequent mistakes."""
        steps = [step.split() for step in problem.steps]
        if len(steps) > 1 and self._random.random() < OMITS_LAST_STEP:
            steps = steps[:-1]
        written: list[str] = []
        value = int(steps[0][0])
        for _, operation, operand, _, _ in steps:
            operation = self._operation(value, operation, int(operand))
            result = calculate(value, operation, int(operand))
            written.append(f"{value} {operation} {operand} = {result}.")
            value = result
        return " ".join(written) + f"\n#### {value}"

    def _operation(self, left: int, correct: str, right: int) -> str:
        possible = [o for o in "+-*" if 0 <= calculate(left, o, right) <= LARGEST_NUMBER]
        draw = self._random.random()
        if correct == "-" and "+" in possible and draw < ADDS_INSTEAD:
            return "+"
        others = [operation for operation in possible if operation != correct]
        if correct not in possible or (others and correct != "-" and draw < WRONG_OPERATION):
            return self._random.choice(others)
        return correct


def read_problems(name: str) -> list[dict[str, str]]:
    with (HERE / "data" / f"{name}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def prompt_ids(tokenizer: PreTrainedTokenizerFast, question: str) -> list[int]:
    message = [{"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert isinstance(ids, list)
    return ids


def padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    length = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows])


def drill_batches(tokenizer: PreTrainedTokenizerFast, writer: Writer) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(input ids, labels), both B × S. Only the results have labels; the rest of a drill is random."""
    equals = tokenizer.convert_tokens_to_ids("=")
    while True:
        texts = [" ".join(writer.drill() for _ in range(DRILLS_PER_ROW)) for _ in range(DRILLS.batch)]
        ids = torch.tensor(tokenizer(texts)["input_ids"])
        after_equals = torch.roll(ids, 1, dims=1) == equals
        yield ids, torch.where(after_equals, ids, IGNORED)


def solution_batches(
    tokenizer: PreTrainedTokenizerFast, writer: Writer, stories: Iterator[Problem], *, flawed: bool, batch: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(input ids, labels), both B × S. Each batch has new problems; only the solutions have labels."""
    while True:
        rows: list[list[int]] = []
        labels: list[list[int]] = []
        for problem in itertools.islice(stories, batch):
            prompt = prompt_ids(tokenizer, problem.question)
            text = writer.solution(problem) if flawed else problem.answer
            solution = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
            rows.append(prompt + solution)
            labels.append([IGNORED] * len(prompt) + solution)
        yield padded(rows, tokenizer.pad_token_id), padded(labels, IGNORED)


def learn(model: Qwen3ForCausalLM, batches: Iterator[tuple[torch.Tensor, torch.Tensor]], stage: Stage) -> None:
    """Train with Muon for matrices, which halves the steps for the tables, and AdamW for the rest."""
    embedding = model.get_input_embeddings().weight
    matrices = [weight for weight in model.parameters() if weight.ndim == 2 and weight is not embedding]
    others = [weight for weight in model.parameters() if weight.ndim != 2 or weight is embedding]
    muon = torch.optim.Muon(matrices, lr=stage.muon_lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, lr=stage.adamw_lr, betas=(0.9, 0.98), weight_decay=0.0)
    optimizers: list[torch.optim.Optimizer] = [muon, adamw]

    def lr_factor(step: int) -> float:
        return min(1.0, (step + 1) / WARMUP_STEPS, 2 * (stage.steps - step) / stage.steps)

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor) for optimizer in optimizers]
    model.train()
    for step in range(stage.steps):
        ids, labels = next(batches)
        logits = model(input_ids=ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        model.zero_grad()
        loss.backward()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        if (step + 1) % 100 == 0:
            print(f"  step {step + 1}/{stage.steps}  loss {loss.item():.3f}", flush=True)


@torch.no_grad()
def accuracy(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, problems: Sequence[dict[str, str]], *, greedy: bool
) -> float:
    """The fraction of problems whose completion ends in the correct `#### N`."""
    model.eval()
    prompts = [prompt_ids(tokenizer, problem["question"]) for problem in problems]
    length = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[tokenizer.pad_token_id] * (length - len(prompt)) + prompt for prompt in prompts])
    output = model.generate(
        input_ids=ids,
        attention_mask=(ids != tokenizer.pad_token_id).long(),
        generation_config=GenerationConfig(
            max_new_tokens=20,
            do_sample=not greedy,
            **({} if greedy else {"top_k": 0}),
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
    )
    correct = 0
    for completion, problem in zip(tokenizer.batch_decode(output[:, length:]), problems, strict=True):
        found = re.findall(r"#### (\d+)", completion)
        correct += bool(found) and found[-1] == problem["answer"].rsplit("#### ", 1)[1]
    return correct / len(problems)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the tokenizer and the initial model of the tiny example.")
    parser.add_argument("--folder", type=Path, default=HERE / "model")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()

    train = read_problems("train")
    tokenizer = make_tokenizer([text for problem in train for text in problem.values()])
    model = make_model(tokenizer, arguments.seed)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    writer = Writer(arguments.seed)
    print("drills")
    learn(model, drill_batches(tokenizer, writer), DRILLS)
    stories = (problem for problem in problems(arguments.seed) if not problem.held_out)
    for name, stage in (("correct", CORRECT), ("flawed", FLAWED)):
        print(f"{name} solutions")
        batches = solution_batches(tokenizer, writer, stories, flawed=stage is FLAWED, batch=stage.batch)
        learn(model, batches, stage)

    test = read_problems("test")
    for greedy in (True, False):
        kind = "greedy" if greedy else "sampled at temperature 1"
        print(f"held-out accuracy, {kind}: {accuracy(model, tokenizer, test, greedy=greedy):.3f}")
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True, temperature=1.0
    )
    model.save_pretrained(arguments.folder)
    tokenizer.save_pretrained(arguments.folder)


if __name__ == "__main__":
    main()
