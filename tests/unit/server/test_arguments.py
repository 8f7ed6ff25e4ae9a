"""config.sglang and servers.args → SGLang's arguments, checked against the ServerArgs that is installed."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from areal_api.config import SGLangConfig
from areal_server import launch
from areal_server.arguments import STAND_INS, Flag, server_arguments, server_environment


@pytest.fixture(scope="module")
def flags() -> dict[str, Flag]:
    return launch.sglang_flags(launch.sglang_parser())


def command(
    flags: Mapping[str, Flag], extra: dict[str, Any] | None = None, *, device: Any = "cpu", **sglang: Any
) -> list[str]:
    return server_arguments(
        SGLangConfig(**{"dtype": "float32", **sglang}), extra or {}, device=device, model_path="/models/m",
        tokenizer_path=None, tensor_parallel=2, host="127.0.0.1", port=30000, random_seed=7, flags=flags,
    )  # fmt: skip


def parsed(argv: list[str]) -> Any:
    """What SGLang itself makes of the arguments."""
    return launch.sglang_parser().parse_args(argv)


def test_every_key_of_our_section_is_a_field_of_server_args(flags: dict[str, Flag]) -> None:
    from sglang.srt.server_args import ServerArgs

    fields = {field.name for field in msgspec.structs.fields(ServerArgs)}
    assert set(SGLangConfig.model_fields) <= fields
    assert set(SGLangConfig.model_fields) <= set(flags)


def test_sglang_reads_what_was_configured(flags: dict[str, Flag]) -> None:
    extra = {"stream_interval": 4, "enable_tf32_matmul": False, "preferred_sampling_params": {"top_k": 5}}
    argv = command(
        flags, extra, device="cuda", mem_fraction_static=0.8, chunked_prefill_size=-1, disable_radix_cache=True
    )
    args = parsed(argv)
    assert (args.model_path, args.device, args.tp_size, args.host, args.port) == (
        "/models/m", "cuda", 2, "127.0.0.1", 30000,
    )  # fmt: skip
    assert args.mem_fraction_static == 0.8
    assert args.chunked_prefill_size == -1
    assert args.disable_radix_cache is True
    assert args.disable_overlap_schedule is False
    assert args.stream_interval == 4
    assert args.enable_tf32_matmul is False
    assert args.preferred_sampling_params == {"top_k": 5}
    assert args.random_seed == 7


def test_a_configured_seed_wins_over_that_of_the_run(flags: dict[str, Flag]) -> None:
    assert "--random-seed=3" in command(flags, random_seed=3)


def test_a_cpu_server_gets_what_it_needs_by_itself(flags: dict[str, Flag]) -> None:
    argv = command(flags)
    assert {"--device=cpu", "--dtype=float32", "--attention-backend=areal_padded", "--sleep-on-idle"} <= set(argv)
    assert {"--max-total-tokens=65536", "--disable-overlap-schedule", "--enable-metrics"} <= set(argv)
    assert not [word for word in argv if word.startswith("--mem-fraction")]


def test_what_is_configured_wins_over_the_defaults_of_a_cpu_server(flags: dict[str, Flag]) -> None:
    argv = command(flags, {"sleep_on_idle": False}, max_total_tokens=100, attention_backend="torch_native")
    assert {"--max-total-tokens=100", "--attention-backend=torch_native"} <= set(argv)
    assert "--sleep-on-idle" not in argv


def test_server_args_win_over_the_section(flags: dict[str, Flag]) -> None:
    argv = command(flags, {"max_total_tokens": 5, "mem_fraction_static": 0.5}, max_total_tokens=100)
    assert {"--max-total-tokens=5", "--mem-fraction-static=0.5"} <= set(argv)


def test_nothing_of_the_cpu_is_on_a_gpu_server(flags: dict[str, Flag]) -> None:
    assert server_environment("cuda", {}) == {}
    argv = command(flags, device="cuda", dtype="bfloat16")
    assert "--sleep-on-idle" not in argv
    assert not [word for word in argv if "attention-backend" in word or "max-total-tokens" in word]


def test_the_environment_of_the_caller_is_kept() -> None:
    env = server_environment("cpu", {"OMP_NUM_THREADS": "3", "PYTHONPATH": "/mine"})
    assert "OMP_NUM_THREADS" not in env
    assert env["SGLANG_USE_CPU_ENGINE"] == "1"
    assert env["PYTHONPATH"] == f"{STAND_INS}{os.pathsep}/mine"
    assert (STAND_INS / "sgl_kernel.py").is_file()


def test_ranks_on_a_cpu_share_its_cores() -> None:
    env = server_environment("cpu", {}, tensor_parallel=2, cores=[0, 1, 4, 5])
    assert env["SGLANG_CPU_OMP_THREADS_BIND"] == "0,4|1,5"
    with pytest.raises(ValueError, match=r"servers\.tensorParallel: 3 on cpu needs as many cores, this server has 2"):
        server_environment("cpu", {}, tensor_parallel=3, cores=[0, 1])


def test_a_process_that_has_the_environment_needs_no_more() -> None:
    assert server_environment("cpu", server_environment("cpu", {})) == {}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"mem_fraction_sttic": 0.5}, r"servers\.args\.mem_fraction_sttic: 0\.5: .*did you mean 'mem_fraction_static'"),
        ({"enable_metrics": "yes"}, r"servers\.args\.enable_metrics: 'yes' must be true or false"),
        ({"port": 5}, r"servers\.args\.port: 5 cannot be set here"),
        ({"api_key": "x"}, r"servers\.args\.api_key: .*API key file"),
        ({"tp_size": 4}, r"servers\.args\.tp_size: 4 cannot be set here; it comes from servers\.tensorParallel"),
    ],
)
def test_what_sglang_would_not_take_is_refused(flags: dict[str, Flag], extra: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        command(flags, extra)


def test_a_value_that_sglang_does_not_know_is_refused_in_one_line(flags: dict[str, Flag]) -> None:
    argv = command(flags, {"schedule_policy": "bogus"}, device="cuda")
    with pytest.raises(ValueError, match=r"SGLang refuses argument --schedule-policy: invalid choice: 'bogus'"):
        parsed(argv)


def test_a_type_left_open_is_refused_on_a_cpu(flags: dict[str, Flag]) -> None:
    with pytest.raises(ValueError, match=r"sglang\.dtype: 'auto'.*float32"):
        command(flags, dtype="auto")


def test_no_gpu_is_an_error_that_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=r"servers\.device: 'cuda'.*shows 0; set servers\.device: cpu"):
        launch.check_machine("cuda", 1, "127.0.0.1", 0)


def test_a_port_in_use_is_an_error_that_names_it() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"--port {port}: .*in use"):
            launch.check_machine("cpu", 1, "127.0.0.1", port)


def test_a_path_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json"):
        launch.check_model(str(tmp_path))
    for missing in (str(tmp_path / "no"), "./no/model", "examples/no/model"):
        with pytest.raises(ValueError, match="no such directory"):
            launch.check_model(missing)
    (tmp_path / "config.json").write_text("{}")
    launch.check_model(str(tmp_path))
    launch.check_model("Qwen/Qwen2-1.5B-Instruct")


def test_an_empty_key_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("secret\n")
    assert launch.read_key(str(file)) == "secret"
    file.write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        launch.read_key(str(file))


def test_the_stand_in_names_the_kernel_that_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(STAND_INS))
    monkeypatch.delitem(sys.modules, "sgl_kernel", raising=False)
    import sgl_kernel

    with pytest.raises(RuntimeError, match=r"sgl_kernel\.verify_tree_greedy_cpu"):
        sgl_kernel.verify_tree_greedy_cpu()
    monkeypatch.delitem(sys.modules, "sgl_kernel")
