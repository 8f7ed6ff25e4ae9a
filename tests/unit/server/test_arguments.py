"""config.sglang and servers.args become SGLang's arguments, validated against the installed ServerArgs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from areal_api.config import SGLangConfig
from areal_server import launch
from areal_server.arguments import STUBS_DIR, Flag, server_arguments, server_environment
from areal_server.node_group import Member


@pytest.fixture(scope="module")
def flags() -> dict[str, Flag]:
    return launch.sglang_flags(launch.sglang_parser())


def command(
    flags: Mapping[str, Flag],
    extra: dict[str, Any] | None = None,
    *,
    device: Any = "cpu",
    member: Member | None = None,
    replay: bool = False,
    **sglang: Any,
) -> list[str]:
    return server_arguments(
        SGLangConfig(**{"dtype": "float32", **sglang}), extra or {}, device=device, model_path="/models/m",
        tokenizer_path=None, tensor_parallel=2, host="127.0.0.1", port=30000, random_seed=7, flags=flags,
        member=member, reports_experts=replay,
    )  # fmt: skip


def parsed(argv: list[str]) -> Any:
    """The arguments as SGLang parses them."""
    return launch.sglang_parser().parse_args(argv)


def test_every_key_of_our_section_is_a_field_of_server_args(flags: dict[str, Flag]) -> None:
    from sglang.srt.server_args import ServerArgs

    fields = {field.name for field in msgspec.structs.fields(ServerArgs)}
    assert set(SGLangConfig.model_fields) <= fields
    assert set(SGLangConfig.model_fields) <= set(flags)


def test_sglang_parses_the_configured_values(flags: dict[str, Flag]) -> None:
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


def test_configured_seed_overrides_the_run_seed(flags: dict[str, Flag]) -> None:
    assert "--random-seed=3" in command(flags, random_seed=3)


def test_cpu_server_has_defaults(flags: dict[str, Flag]) -> None:
    argv = command(flags)
    assert {"--device=cpu", "--dtype=float32", "--attention-backend=areal_padded", "--sleep-on-idle"} <= set(argv)
    assert {"--max-total-tokens=65536", "--disable-overlap-schedule", "--enable-metrics"} <= set(argv)
    assert not [word for word in argv if word.startswith("--mem-fraction")]


def test_configured_values_override_the_cpu_defaults(flags: dict[str, Flag]) -> None:
    argv = command(flags, {"sleep_on_idle": False}, max_total_tokens=100, attention_backend="torch_native")
    assert {"--max-total-tokens=100", "--attention-backend=torch_native"} <= set(argv)
    assert "--sleep-on-idle" not in argv


def test_server_args_override_the_section(flags: dict[str, Flag]) -> None:
    argv = command(flags, {"max_total_tokens": 5, "mem_fraction_static": 0.5}, max_total_tokens=100)
    assert {"--max-total-tokens=5", "--mem-fraction-static=0.5"} <= set(argv)


def test_gpu_server_has_no_cpu_defaults(flags: dict[str, Flag]) -> None:
    assert server_environment("cuda", {}) == {}
    argv = command(flags, device="cuda", dtype="bfloat16")
    assert "--sleep-on-idle" not in argv
    assert not [word for word in argv if "attention-backend" in word or "max-total-tokens" in word]


def test_environment_of_the_caller_is_kept() -> None:
    env = server_environment("cpu", {"OMP_NUM_THREADS": "3", "PYTHONPATH": "/mine"})
    assert "OMP_NUM_THREADS" not in env
    assert env["SGLANG_USE_CPU_ENGINE"] == "1"
    assert env["PYTHONPATH"] == f"{STUBS_DIR}{os.pathsep}/mine"
    assert (STUBS_DIR / "sgl_kernel.py").is_file()


def test_cpu_ranks_divide_the_cores() -> None:
    env = server_environment("cpu", {}, tensor_parallel=2, cores=[0, 1, 4, 5])
    assert env["SGLANG_CPU_OMP_THREADS_BIND"] == "0,4|1,5"
    with pytest.raises(ValueError, match=r"servers\.tensorParallel: 3 on cpu needs as many cores, this server has 2"):
        server_environment("cpu", {}, tensor_parallel=3, cores=[0, 1])


def test_gloo_of_a_loopback_server_uses_the_loopback_interface() -> None:
    assert server_environment("cuda", {}, host="127.0.0.1") == {"GLOO_SOCKET_IFNAME": "lo"}
    assert server_environment("cpu", {}, host="127.0.0.1")["GLOO_SOCKET_IFNAME"] == "lo"
    assert "GLOO_SOCKET_IFNAME" not in server_environment("cpu", {}, host="0.0.0.0")
    assert server_environment("cuda", {"GLOO_SOCKET_IFNAME": "eth0"}, host="127.0.0.1") == {}


def test_environment_is_complete_after_one_pass() -> None:
    assert server_environment("cpu", server_environment("cpu", {})) == {}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"mem_fraction_sttic": 0.5}, r"servers\.args\.mem_fraction_sttic: 0\.5: .*did you mean 'mem_fraction_static'"),
        ({"enable_metrics": "yes"}, r"servers\.args\.enable_metrics: 'yes' must be true or false"),
        ({"port": 5}, r"servers\.args\.port: 5 cannot be set here"),
        ({"api_key": "x"}, r"servers\.args\.api_key: .*API key file"),
        ({"tp_size": 4}, r"servers\.args\.tp_size: 4 cannot be set here; it is set from servers\.tensorParallel"),
    ],
)
def test_invalid_server_args_are_rejected(flags: dict[str, Flag], extra: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        command(flags, extra)


def test_invalid_value_is_rejected_in_one_line(flags: dict[str, Flag]) -> None:
    argv = command(flags, {"schedule_policy": "bogus"}, device="cuda")
    with pytest.raises(ValueError, match=r"SGLang rejects argument --schedule-policy: invalid choice: 'bogus'"):
        parsed(argv)


def test_auto_dtype_is_rejected_on_a_cpu(flags: dict[str, Flag]) -> None:
    with pytest.raises(ValueError, match=r"sglang\.dtype: 'auto'.*float32"):
        command(flags, dtype="auto")


def test_a_node_of_a_server_gets_its_rank_and_its_share_of_the_cores() -> None:
    environment = server_environment("cpu", {}, tensor_parallel=4, nodes=2, cores=[0, 1, 2, 3])
    assert environment["SGLANG_CPU_OMP_THREADS_BIND"] == "0,2|1,3"
    one_each = server_environment("cpu", {}, tensor_parallel=2, nodes=2, cores=[5])
    assert one_each["SGLANG_CPU_OMP_THREADS_BIND"] == "5"
    with pytest.raises(ValueError, match="needs as many cores, this server has 1 on one of its 2 nodes"):
        server_environment("cpu", {}, tensor_parallel=4, nodes=2, cores=[0])


def test_sglang_parses_a_nodes_place_in_its_server(flags: dict[str, Flag]) -> None:
    args = parsed(command(flags, device="cuda", member=Member(2, 1, "exp-server-0.exp-server.ns.svc", 30100)))
    assert (args.nnodes, args.node_rank, args.dist_init_addr) == (2, 1, "exp-server-0.exp-server.ns.svc:30101")
    six = command(flags, device="cuda", member=Member(2, 0, "fd00::1", 30100))
    assert parsed(six).dist_init_addr == "[fd00::1]:30101"
    assert parsed(command(flags, device="cuda")).nnodes == 1
    with pytest.raises(ValueError, match=r"servers\.args\.nnodes: 2 cannot be set here; .* servers\.nodesPerServer"):
        command(flags, {"nnodes": 2})


def test_router_replay_makes_servers_report_experts(flags: dict[str, Flag]) -> None:
    name, option = "enable_return_routed_experts", "--enable-return-routed-experts"
    assert option in command(flags, replay=True)
    assert option not in command(flags)
    assert command(flags, {name: True}, replay=True).count(option) == 1
    with pytest.raises(ValueError, match=r"enable_return_routed_experts: False, but actor\.router_replay"):
        command(flags, {name: False}, replay=True)
