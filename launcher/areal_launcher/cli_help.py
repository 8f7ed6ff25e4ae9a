"""Descriptions of the commands, as ``grpo COMMAND --help`` prints them."""

from __future__ import annotations

RUN = """\
Train. EXPERIMENT.yaml is an experiment (kind: GRPOExperiment) or AReaL's gsm8k_grpo.yaml; --config also accepts it.
SCRIPT.py replaces the built-in training loop. key=value overrides a key, relative to spec in an experiment and to the
top level in AReaL's file; +sglang.x=y passes SGLang an argument that has no key.

  grpo run examples/tiny/experiment.yaml config.total_train_steps=20
  grpo run gsm8k_grpo.py --config gsm8k_grpo.yaml actor.path=Qwen/Qwen3-1.7B +sglang.attention_backend=triton

Running the same command again continues from the last recovery checkpoint. Ctrl-C lets the trainer write one and exit;
a second Ctrl-C kills everything immediately.

With --on kubernetes the operator trains the experiment in a cluster. grpo follows it and finally fetches stats.jsonl,
summary.json, config.yaml and reward.png into the local run directory, and the newest checkpoint with --checkpoint. All
files remain on the volume. After Ctrl-C the run continues in the cluster, and the same command follows it again.

  grpo run --on kubernetes examples/tiny/experiment.yaml --namespace team-a --checkpoint

With --on ray the servers and the trainer run on the nodes of a Ray cluster, and grpo on one of them or in a job of Ray.
cluster.fileroot must be a directory that all nodes share.

  grpo run --on ray examples/tiny/experiment.yaml --address 10.0.0.1:6379

With --on slurm grpo submits a job and follows it. After Ctrl-C, or if the terminal is lost, the job continues, and the
same command follows it again. cluster.fileroot must be a directory that all nodes share.

  grpo run --on slurm examples/tiny/experiment.yaml --partition gpu --time 8:00:00"""

EVAL = """\
Evaluate a Hugging Face checkpoint on valid_dataset and evaluator.sets with a local server, and print one line of JSON:
the mean reward, all statistics, and the file with the samples.
CHECKPOINT is a directory, a hub name, or a run directory (its newest checkpoint). Without EXPERIMENT.yaml, the
experiment of the run that contains CHECKPOINT is used.

  grpo eval runs/tiny/trial0
  grpo eval runs/tiny/trial0 --benchmark math500
  grpo eval runs/tiny/trial0 --benchmark aime25=data/aime25.jsonl
  grpo eval Qwen/Qwen3-1.7B --config gsm8k_grpo.yaml"""

RUN_DIR = "<fileroot>/<experiment_name>/<trial_name>"

STATUS = """\
Show the state of a run: of a run directory, or with --on kubernetes of an experiment in a cluster; without RUN of all
experiments there.

  grpo status runs/tiny/trial0
  grpo status runs/tiny/trial0 --json
  grpo status --on kubernetes
  grpo status tiny --on kubernetes --namespace team-a
  grpo status --on slurm"""

LOGS = """\
Print the logs of a run: of its local processes, or with --on kubernetes of its pods. For a crashed container that has
not restarted yet, print the log of its previous run.

  grpo logs runs/tiny/trial0 trainer
  grpo logs tiny --on kubernetes --component servers -f
  grpo logs tiny --on kubernetes --component agents"""

STOP = """\
End a run. The trainer finishes its step and writes a recovery checkpoint, unless --now is given; grpo resume, or the
command that started the run, continues it. In Kubernetes this sets spec.runPolicy.suspend.

  grpo stop runs/tiny/trial0
  grpo stop tiny --on kubernetes
  grpo stop runs/tiny/trial0 --on slurm --now"""

SCALE = """\
Change the number of servers of a run while it trains, up to servers.maxReplicas.

  grpo scale runs/tiny/trial0 3
  grpo scale tiny 3 --on kubernetes"""

CONVERT = """\
Convert AReaL's configuration file to an experiment.yaml. Keys without a counterpart are listed on standard error.

  grpo convert gsm8k_grpo.yaml -o experiment.yaml"""


COMPARE = """\
Compare two evaluations problem by problem: the mean reward of each on the problems that both have, the change with its
95 % confidence interval, and the problems that became better or worse.

  grpo compare runs/tiny/trial0/evaluations/step0.parquet runs/tiny/trial0
  grpo compare runs/tiny/first runs/tiny/second --json"""


CHECK = """\
Check whether an experiment fits, without a GPU: memory of the trainer's and the servers' GPUs, disk space against
storage.size, sequence lengths, and with --nodes the placement. On a machine with GPUs, without --gpu and --nodes, its
own GPUs and free disk count. Only the config.json of the model is read. The exit status is 0 if the experiment fits and
1 if it does not.

  grpo check experiment.yaml --gpu H100-80GB --nodes 2x8
  grpo check experiment.yaml config.gconfig.max_new_tokens=32768 --gpu H200-141GB --json"""

UI = """\
Serve a page that shows runs: curves, events, servers, configuration. Live, read-only.

Prints the address, which contains a token: only who has it can see the page. It listens on this machine only; from
another machine, forward the port (ssh -L 8265:127.0.0.1:8265 HOST).

examples:
  grpo ui
  grpo ui runs/tiny/first ~/other-runs
  grpo ui --on kubernetes --namespace team-a"""

LIST = """\
List the runs below some folders: state, step, reward. grpo status --on kubernetes lists the experiments of a cluster.

  grpo list
  grpo list ~/runs"""

RESUME = """\
Continue a run that was suspended or stopped, from its last recovery checkpoint: a run directory with the experiment
that it was started with, or with --on kubernetes an experiment (also one with runPolicy.suspend: true).

  grpo resume runs/tiny/trial0
  grpo resume gsm8k --on kubernetes"""

SUSPEND = """\
End a run after a recovery checkpoint, to continue it with grpo resume. In Kubernetes this sets spec.runPolicy.suspend.

  grpo suspend runs/tiny/trial0
  grpo suspend gsm8k --on kubernetes"""

COMPLETION = """\
Print a script that completes commands, options and files.

  source <(grpo completion bash)                                # in ~/.bashrc
  source <(grpo completion zsh)                                 # in ~/.zshrc, after compinit
  grpo completion fish > ~/.config/fish/completions/grpo.fish"""

TRACE = """\
Write the spans of a run (tracing.file: true) as a trace that https://ui.perfetto.dev shows: the stages of training,
episodes with their requests and rewards, and weight updates.

  grpo trace runs/tiny/trial0"""
