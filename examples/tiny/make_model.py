"""Make the model of the tiny example: `python examples/tiny/make_model.py` writes examples/tiny/model (4 minutes).

A Qwen3 of 0.8 M parameters with a tokenizer of one token a word. It learns the tables of the three operations from
drills, then problems from the solutions of a careful pupil, and last from those of a careless one: the wrong operation
here, a forgotten last step there. So it can reason when it comes to reinforcement learning, but does not do so
reliably: that is what GRPO is to teach it. Held-out problems are read only to print how good the model is.

Every source of chance is seeded. The same machine and torch give the same weights; others differ in the last bits.
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
# SGLang pads the vocabulary to a multiple of this and would take ids of the padding in silence: leave no padding.
VOCABULARY_MULTIPLE = 64
IGNORED = -100
INITIALIZER_RANGE = 0.05
WARM_UP_STEPS = 20
# Numbers begin as waves of their value (these are the wavelengths), which sums are easily made of.
NUMBER_PERIODS = (2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100, 120)

ADDED_INSTEAD = 0.6  # chance that the careless pupil adds where it is to subtract
WRONG_OPERATION = 0.2  # chance that it takes a wrong operation, for each other step
FORGOTTEN_STEP = 0.65  # chance that the careless pupil stops before the last of several steps
DRILLS_IN_A_ROW = 8


@dataclass(frozen=True)
class Stage:
    steps: int
    batch: int
    muon_lr: float
    adamw_lr: float


DRILLS = Stage(steps=800, batch=16, muon_lr=2e-2, adamw_lr=4e-3)
CAREFUL = Stage(steps=800, batch=32, muon_lr=1e-2, adamw_lr=2e-3)
CARELESS = Stage(steps=250, batch=32, muon_lr=5e-3, adamw_lr=1e-3)


def words_of(text: str) -> list[str]:
    """As the tokenizer's `Whitespace` splits: runs of letters and digits, runs of other signs."""
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


class Pupil:
    """Writes drills and careless solutions."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def drill(self) -> str:
        """One line of the tables, every number within 0…LARGEST_NUMBER."""
        operation = self._random.choice("++--*")
        if operation == "*":
            left, right = self._random.randint(2, 7), self._random.randint(2, 7)
        else:
            left, right = self._random.randint(1, 50), self._random.randint(2, 15)
        result = calculate(left, operation, right)
        return f"{left} {operation} {right} = {result}." if 0 <= result <= LARGEST_NUMBER else self.drill()

    def solution(self, problem: Problem) -> str:
        """What this pupil would write: in the right form, often wrong."""
        steps = [step.split() for step in problem.steps]
        if len(steps) > 1 and self._random.random() < FORGOTTEN_STEP:
            steps = steps[:-1]
        written: list[str] = []
        value = int(steps[0][0])
        for _, operation, operand, _, _ in steps:
            operation = self._operation(value, operation, int(operand))
            result = calculate(value, operation, int(operand))
            written.append(f"{value} {operation} {operand} = {result}.")
            value = result
        return " ".join(written) + f"\n#### {value}"

    def _operation(self, left: int, right_one: str, right: int) -> str:
        possible = [o for o in "+-*" if 0 <= calculate(left, o, right) <= LARGEST_NUMBER]
        chance = self._random.random()
        if right_one == "-" and "+" in possible and chance < ADDED_INSTEAD:
            return "+"
        others = [operation for operation in possible if operation != right_one]
        if right_one not in possible or (others and right_one != "-" and chance < WRONG_OPERATION):
            return self._random.choice(others)
        return right_one


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


def drill_batches(tokenizer: PreTrainedTokenizerFast, pupil: Pupil) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(input ids, labels), both B × S: only the results are learned, the rest of a drill is chance."""
    equals = tokenizer.convert_tokens_to_ids("=")
    while True:
        texts = [" ".join(pupil.drill() for _ in range(DRILLS_IN_A_ROW)) for _ in range(DRILLS.batch)]
        ids = torch.tensor(tokenizer(texts)["input_ids"])
        after_equals = torch.roll(ids, 1, dims=1) == equals
        yield ids, torch.where(after_equals, ids, IGNORED)


def solution_batches(
    tokenizer: PreTrainedTokenizerFast, pupil: Pupil, stories: Iterator[Problem], *, careless: bool, batch: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(input ids, labels), both B × S: new problems in every batch, of which the solutions are learned."""
    while True:
        rows: list[list[int]] = []
        labels: list[list[int]] = []
        for problem in itertools.islice(stories, batch):
            prompt = prompt_ids(tokenizer, problem.question)
            text = pupil.solution(problem) if careless else problem.answer
            solution = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
            rows.append(prompt + solution)
            labels.append([IGNORED] * len(prompt) + solution)
        yield padded(rows, tokenizer.pad_token_id), padded(labels, IGNORED)


def learn(model: Qwen3ForCausalLM, batches: Iterator[tuple[torch.Tensor, torch.Tensor]], stage: Stage) -> None:
    """Muon for the matrices (the tables take half the steps that they take AdamW), AdamW for the rest."""
    embedding = model.get_input_embeddings().weight
    matrices = [weight for weight in model.parameters() if weight.ndim == 2 and weight is not embedding]
    others = [weight for weight in model.parameters() if weight.ndim != 2 or weight is embedding]
    muon = torch.optim.Muon(matrices, lr=stage.muon_lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, lr=stage.adamw_lr, betas=(0.9, 0.98), weight_decay=0.0)
    optimizers: list[torch.optim.Optimizer] = [muon, adamw]

    def share_of_lr(step: int) -> float:
        return min(1.0, (step + 1) / WARM_UP_STEPS, 2 * (stage.steps - step) / stage.steps)

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, share_of_lr) for optimizer in optimizers]
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
    """The share of problems whose answer ends in the right `#### N`."""
    model.eval()
    prompts = [prompt_ids(tokenizer, problem["question"]) for problem in problems]
    length = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[tokenizer.pad_token_id] * (length - len(prompt)) + prompt for prompt in prompts])
    made = model.generate(
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
    right = 0
    for completion, problem in zip(tokenizer.batch_decode(made[:, length:]), problems, strict=True):
        found = re.findall(r"#### (\d+)", completion)
        right += bool(found) and found[-1] == problem["answer"].rsplit("#### ", 1)[1]
    return right / len(problems)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the tokenizer and the warmed-up model of the tiny example.")
    parser.add_argument("--folder", type=Path, default=HERE / "model")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()

    train = read_problems("train")
    tokenizer = make_tokenizer([text for problem in train for text in problem.values()])
    model = make_model(tokenizer, arguments.seed)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    pupil = Pupil(arguments.seed)
    print("drills")
    learn(model, drill_batches(tokenizer, pupil), DRILLS)
    stories = (problem for problem in problems(arguments.seed) if not problem.held_out)
    for name, stage in (("careful", CAREFUL), ("careless", CARELESS)):
        print(f"solutions of a {name} pupil")
        batches = solution_batches(tokenizer, pupil, stories, careless=stage is CARELESS, batch=stage.batch)
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
