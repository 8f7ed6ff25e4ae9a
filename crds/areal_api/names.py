"""Names shared by processes and users: environment variables, exit statuses, files of a run directory."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from areal_api.config import GRPOConfig

SERVER_ADDRS = "AREAL_LLM_SERVER_ADDRS"  # host:port,host:port
SERVER_ADDRS_FILE = "AREAL_SERVER_ADDRS_FILE"  # JSON list of host:port; replaces SERVER_ADDRS where servers can move
CONFIG = "AREAL_CONFIG"  # path of the resolved configuration
RUN_DIR = "AREAL_RUN_DIR"
API_KEY_FILE = "AREAL_API_KEY_FILE"
GATEWAY_KEY_FILE = "AREAL_GATEWAY_KEY_FILE"  # the gateway's admin key; unset: a random one
GATEWAY_ADDRESS = "AREAL_GATEWAY_ADDRESS"  # host:port that the gateway listens on; unset: as rollout.agent says
GATEWAY_URL = "AREAL_GATEWAY_URL"  # base URL of the gateway, for agents in pods
PROGRESS_URL = "AREAL_PROGRESS_URL"  # unset: no reports
PROGRESS_TOKEN_FILE = "AREAL_PROGRESS_TOKEN_FILE"
POD_IP = "AREAL_POD_IP"  # primary address of a server's pod; decides the IP version it listens on
SERVER_INDEX = "AREAL_SERVER_INDEX"  # ordinal of a server's pod
TERMINATION_LOG = "AREAL_TERMINATION_LOG"  # file for one line on why a process ended; unset: none
DEVICE = "AREAL_DEVICE"  # cuda or cpu: spec.trainer.device
LOG_FORMAT = "AREAL_LOG_FORMAT"  # text (default) or json, for every process
EXIT_STOPPED = 143  # of a rank that was asked to stop
EXIT_LOST_RANK = 76  # of a rank that ended because another rank was lost
SERVER_WEIGHTS_PATH = "/areal/weights"  # POST downloads a published version; needs the API key
SERVER_EXIT_PATH = "/areal/exit"  # POST ends a server at once, also if its scheduler hangs; needs the API key
BUCKET = "AREAL_BUCKET"  # spec.storage.bucket as JSON, for the trainer; unset: none
GIT_USERNAME = "AREAL_GIT_USERNAME"  # of the user of code.git.url
GIT_PASSWORD = "AREAL_GIT_PASSWORD"  # or a token
WEIGHTS_URL = "AREAL_WEIGHTS_URL"  # base URL of the trainer's published weights; unset: servers see the run directory
TRAINER_PYTHON = "AREAL_TRAINER_PYTHON"  # Python interpreter of the trainer; unset: that of grpo

IMAGE_ROOT = PurePosixPath("/opt/areal")  # working directory of the images; relative paths start here
TORCHRUN_SHUTDOWN_TIMEOUT = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"  # seconds; the default of 30 is too short for a checkpoint


def tool_url(tool: str) -> str:
    """Environment variable with the base URL of a tool of ``spec.tools``."""
    return f"AREAL_TOOL_{tool.upper().replace('-', '_')}_URL"


def run_dir(config: GRPOConfig) -> Path:
    """``<cluster.fileroot>/<experiment_name>/<trial_name>``."""
    return Path(config.cluster.fileroot) / config.experiment_name / config.trial_name


def config_file(run: Path) -> Path:
    """The resolved configuration."""
    return run / "config.yaml"


def stats_file(run: Path) -> Path:
    """One JSON line per step."""
    return run / "stats.jsonl"


def server_addresses_file(run: Path) -> Path:
    """host:port of every server where servers can move: a JSON list, empty texts for servers that run nowhere."""
    return run / "server-addresses.json"


def summary_file(run: Path) -> Path:
    """Outcome and final figures."""
    return run / "summary.json"


def reward_plot(run: Path) -> Path:
    """The learning curve."""
    return run / "reward.png"


def weights_dir(run: Path) -> Path:
    """Published weights, one directory per version."""
    return run / "weights"


def weights_version_dir(run: Path, version: int) -> Path:
    """Published weights of one version."""
    return weights_dir(run) / f"v{version}"


def weight_version(version: int) -> str:
    """The version that a server reports after loading published version ``version``."""
    return f"v{version}"


def recover_dir(run: Path) -> Path:
    """Recovery checkpoints, one directory per step."""
    return run / "recover"


def recover_step_dir(run: Path, step: int) -> Path:
    """Recovery checkpoint after ``step`` steps."""
    return recover_dir(run) / f"step{step}"


def checkpoints_dir(run: Path) -> Path:
    """Hugging Face checkpoints."""
    return run / "checkpoints"


def checkpoint_dir(run: Path, epoch: int, step: int) -> Path:
    """Hugging Face checkpoint after ``step`` steps, in epoch ``epoch``."""
    return checkpoints_dir(run) / f"epoch{epoch}step{step}"


def best_checkpoint_dir(run: Path) -> Path:
    """Hugging Face checkpoint of the best evaluation."""
    return checkpoints_dir(run) / "best"


def evaluations_dir(run: Path) -> Path:
    """Samples of evaluations."""
    return run / "evaluations"


def rollouts_dir(run: Path) -> Path:
    """Dumped samples."""
    return run / "rollouts"


def traces_dir(run: Path) -> Path:
    """Spans, a file for each start of a rank."""
    return run / "traces"


def profiles_dir(run: Path) -> Path:
    """Torch's profiles and records of GPU memory of chosen steps."""
    return run / "profiles"


def judge_file(run: Path, term: str) -> Path:
    """What the judge of a term of the reward has cost."""
    return run / f"judge-{term}.json"


def gateway_file(run: Path) -> Path:
    """Address and admin key of the session gateway in online mode."""
    return run / "gateway.json"


def code_dir(run: Path) -> Path:
    """Copies of the user's code, outside of Kubernetes."""
    return run / "code"


def logs_dir(run: Path) -> Path:
    """One log file per process."""
    return run / "logs"
