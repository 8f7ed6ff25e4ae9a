"""Experiments that are accepted or refused, and why: one table for the models and for the API server."""

from __future__ import annotations

from areal_api.bounds import MAX_ENTRIES, MAX_FREE_FORM_DEPTH, MAX_ITEMS, MAX_TEXT
from hack.testbed.experiment_case import Case, nested
from support.agent_cases import AGENT_CASES
from support.layout_cases import LAYOUT_CASES
from support.pod_cases import POD_CASES
from support.pool_cases import POOL_CASES
from support.server_cases import SERVER_CASES

_CONFIG, _ACTOR, _CLUSTER = "spec.config", "spec.config.actor", "spec.config.cluster"

CASES = [
    Case("the smallest experiment"),
    Case("a name of 40 letters", {"metadata.name": "a" * 40}),
    Case("a name of 41 letters", {"metadata.name": "a" * 41}, "longer than 40", "metadata.name"),
    *SERVER_CASES,
    *POD_CASES,
    *POOL_CASES,
    Case(
        "one volume for one node", {"spec.storage.accessModes": ["ReadWriteOnce"], "spec.trainer.processesPerNode": 8}
    ),
    Case(
        "a volume of one node for two",
        {"spec.storage.accessModes": ["ReadWriteOnce"], "spec.trainer.nodes": 2},
        "storage.accessModes is [ReadWriteOnce], trainer.nodes 2",
        "ReadWriteMany",
    ),
    Case("several nodes on a shared volume", {"spec.trainer.nodes": 2}),
    Case("a size that is no quantity", {"spec.storage.size": "big"}, "'big' does not match"),
    *LAYOUT_CASES,
    Case(
        "a broadcast between devices",
        {f"{_ACTOR}.weight_update_mode": "distributed", "spec.servers.device": "cpu"},
        "actor.weight_update_mode is distributed, servers.device cpu, trainer.device cuda",
        "weight_update_mode",
    ),
    Case(
        "deltas of weights that are broadcast",
        {f"{_ACTOR}.weight_deltas": True, f"{_ACTOR}.weight_update_mode": "distributed", "spec.storage.shared": False},
        "actor.weight_deltas is true, actor.weight_update_mode distributed, storage.shared false",
        "weight_deltas",
    ),
    Case(
        "deltas for servers that read the volume",
        {f"{_ACTOR}.weight_deltas": True},
        "actor.weight_deltas is true, actor.weight_update_mode disk, storage.shared true",
        "weight_deltas",
    ),
    Case(
        "deltas for servers that download",
        {f"{_ACTOR}.weight_deltas": True, "spec.storage.shared": False},
    ),
    Case("weights by disk between devices", {"spec.servers.device": "cpu"}),
    Case(
        "all GPUs of the cluster",
        {
            _CLUSTER: {"n_nodes": 1, "n_gpus_per_node": 8},
            "spec.servers.replicas": 4,
            "spec.trainer.processesPerNode": 4,
        },
    ),
    Case(
        "more GPUs than the cluster has",
        {
            _CLUSTER: {"n_nodes": 1, "n_gpus_per_node": 8},
            "spec.servers.replicas": 5,
            "spec.trainer.processesPerNode": 4,
        },
        "9 GPUs are needed (5 by servers, 4 by the trainer), cluster.n_nodes × cluster.n_gpus_per_node is 8",
        "more GPUs",
    ),
    Case(
        "no GPU for the CPU",
        {_CLUSTER: {"n_nodes": 1, "n_gpus_per_node": 0}, "spec.servers.device": "cpu", "spec.trainer.device": "cpu"},
    ),
    Case(
        "more ranks on a node than GPUs",
        {f"{_CLUSTER}.n_gpus_per_node": 4, "spec.trainer.processesPerNode": 8},
        "trainer.processesPerNode is 8, above cluster.n_gpus_per_node 4",
        "processesPerNode",
    ),
    Case(
        "a server larger than a node",
        {f"{_CLUSTER}.n_gpus_per_node": 4, "spec.servers.tensorParallel": 8},
        "servers.tensorParallel is 8, above cluster.n_gpus_per_node 4",
        "tensorParallel",
    ),
    Case("no model", {f"{_ACTOR}.path": ""}, "actor.path is empty", "actor.path"),
    Case("no data", {f"{_CONFIG}.train_dataset.path": ""}, "train_dataset.path is empty", "train_dataset.path"),
    Case("a reference without a model", {f"{_CONFIG}.ref": {"dtype": "float32"}}, "ref.path is empty", "ref.path"),
    Case("no reference", {f"{_CONFIG}.ref": None}),
    Case(
        "a shortest evaluated completion above the longest",
        {f"{_CONFIG}.eval_gconfig": {"min_new_tokens": 9, "max_new_tokens": 8}},
        "min_new_tokens is 9, above max_new_tokens 8",
        "eval_gconfig.min_new_tokens",
    ),
    Case("separate sampling in evaluation", {f"{_CONFIG}.eval_gconfig": {"greedy": True}}),
    Case(
        "an agent in another Python environment",
        {f"{_CONFIG}.rollout.agent": {"mode": "subproc", "python": "bin/python", "subproc_max_workers": 2}},
    ),
    Case(
        "another Python environment in the trainer's process",
        {f"{_CONFIG}.rollout.agent.python": "bin/python"},
        "rollout.agent.python is 'bin/python'",
        "rollout.agent.python",
    ),
    Case("an environment by URL", {f"{_CONFIG}.workflow.path": "openenv:https://host:8000/base"}),
    Case("an environment of verifiers", {f"{_CONFIG}.workflow.path": "verifiers:owner/word-sums@1.0"}),
    Case("an environment of verifiers without its name", {f"{_CONFIG}.workflow.path": "verifiers:"}, "workflow.path"),
    Case("an environment without its URL", {f"{_CONFIG}.workflow.path": "openenv:host:80"}, "workflow.path"),
    Case("a batch named twice alike", {f"{_CONFIG}.rollout.consumer_batch_size": 8}),
    Case(
        "a batch named twice",
        {f"{_CONFIG}.rollout.consumer_batch_size": 4},
        "rollout.consumer_batch_size is 4, train_dataset.batch_size 8",
        "consumer_batch_size",
    ),
    Case(
        "another temperature in the trainer",
        {f"{_CONFIG}.gconfig.temperature": 0.5},
        "actor.temperature is 1.0, gconfig.temperature 0.5",
        "temperature",
    ),
    Case("one temperature", {f"{_CONFIG}.gconfig.temperature": 0.5, f"{_ACTOR}.temperature": 0.5}),
    *(
        Case(
            f"training on samples with another {name}",
            {f"{_CONFIG}.gconfig.{name}": value},
            f"gconfig.{name} is {str(value).lower()}, which samples from another distribution",
            f"gconfig.{name} samples from another distribution",
        )
        for name, value in (
            ("min_new_tokens", 4),
            ("greedy", True),
            ("top_p", 0.9),
            ("top_k", 50),
            ("frequency_penalty", 0.5),
        )
    ),
    Case(
        "evaluation with another distribution",
        {f"{_CONFIG}.eval_gconfig": {"min_new_tokens": 4, "top_p": 0.9, "top_k": 50, "frequency_penalty": 0.5}},
    ),
    Case("samples that end in other ways", {f"{_CONFIG}.gconfig": {"ignore_eos": True, "stop": ["."]}}),
    Case(
        "the whole overlong penalty",
        {
            f"{_ACTOR}.overlong_reward_penalty": True,
            f"{_ACTOR}.overlong_tokens": 4,
            f"{_ACTOR}.overlong_penalty_factor": 1.0,
        },
    ),
    Case(
        "half an overlong penalty",
        {f"{_ACTOR}.overlong_reward_penalty": True},
        "overlong_reward_penalty needs overlong_tokens and overlong_penalty_factor",
        "overlong_reward_penalty",
    ),
    Case(
        "a penalised tail longer than the completion",
        {
            f"{_ACTOR}.overlong_reward_penalty": True,
            f"{_ACTOR}.overlong_tokens": 40,
            f"{_ACTOR}.overlong_penalty_factor": 1.0,
            f"{_CONFIG}.gconfig.max_new_tokens": 32,
        },
        "actor.overlong_tokens is 40, above gconfig.max_new_tokens 32",
        "overlong_tokens",
    ),
    Case(
        "stop texts without a tokenizer",
        {f"{_CONFIG}.sglang.skip_tokenizer_init": True, f"{_CONFIG}.gconfig.stop": ["."]},
        "gconfig.stop needs the server's tokenizer",
        "gconfig.stop",
    ),
    Case("no tokenizer and no stop texts", {f"{_CONFIG}.sglang.skip_tokenizer_init": True}),
    Case(
        "more minibatches than prompts",
        {f"{_ACTOR}.ppo_n_minibatches": 9},
        "actor.ppo_n_minibatches is 9, above train_dataset.batch_size 8",
        "ppo_n_minibatches",
    ),
    Case(
        "a shortest completion above the longest",
        {f"{_CONFIG}.gconfig": {"min_new_tokens": 9, "max_new_tokens": 8}},
        "min_new_tokens is 9, above max_new_tokens 8",
        "min_new_tokens",
    ),
    Case(
        "checkpointing of some layers, offloaded",
        {f"{_ACTOR}.checkpoint_every": 2, f"{_ACTOR}.offload_activations": True},
    ),
    Case(
        "checkpointing of some layers without checkpointing",
        {f"{_ACTOR}.checkpoint_every": 2, f"{_ACTOR}.gradient_checkpointing": False},
        "checkpoint_every is 2, which needs gradient_checkpointing, but that is false",
        "checkpoint_every",
    ),
    Case(
        "offloaded activations without checkpointing",
        {f"{_ACTOR}.offload_activations": True, f"{_ACTOR}.gradient_checkpointing": False},
        "offload_activations is true, which needs gradient_checkpointing, but that is false",
        "offload_activations",
    ),
    Case(
        "moments in bfloat16",
        {f"{_ACTOR}.optimizer": {"state_dtype": "bfloat16", "beta2": 0.95, "offload": True}},
    ),
    Case(
        "moments in bfloat16 that never change",
        {f"{_ACTOR}.optimizer": {"state_dtype": "bfloat16"}},
        "state_dtype is bfloat16, which rounds away the changes of a moment with beta2 0.999",
        "state_dtype bfloat16 needs",
    ),
    Case(
        "state of an optimizer without one",
        {f"{_ACTOR}.optimizer": {"type": "sgd", "offload": True}},
        "offload is true, but type sgd keeps no state",
        "actor.optimizer.offload",
    ),
    Case(
        "an optimizer that is offloaded twice",
        {f"{_ACTOR}.optimizer": {"offload": True}, f"{_ACTOR}.fsdp": {"offload_params": True}},
        "fsdp.offload_params already keeps the optimizer in host memory",
        "actor.optimizer.offload",
    ),
    Case(
        "SAPO with the decoupled loss",
        {f"{_ACTOR}.use_sapo_loss": True, f"{_ACTOR}.use_decoupled_loss": True},
        "use_sapo_loss and use_decoupled_loss exclude each other",
        "use_sapo_loss",
    ),
    Case(
        "SAPO with a dual clip",
        {f"{_ACTOR}.use_sapo_loss": True, f"{_ACTOR}.c_clip": 3.0},
        "use_sapo_loss clips nothing",
        "use_sapo_loss",
    ),
    Case("SAPO", {f"{_ACTOR}.use_sapo_loss": True}),
    Case("CISPO", {f"{_ACTOR}.use_cispo_loss": True, f"{_ACTOR}.eps_clip": 1.0, f"{_ACTOR}.eps_clip_higher": 4.0}),
    Case(
        "CISPO without an upper clip",
        {f"{_ACTOR}.use_cispo_loss": True},
        "use_cispo_loss needs eps_clip_higher above 0",
        "use_cispo_loss",
    ),
    Case(
        "CISPO with SAPO",
        {f"{_ACTOR}.use_cispo_loss": True, f"{_ACTOR}.eps_clip_higher": 4.0, f"{_ACTOR}.use_sapo_loss": True},
        "use_cispo_loss and use_sapo_loss exclude each other",
        "use_cispo_loss",
    ),
    Case(
        "CISPO with a dual clip",
        {f"{_ACTOR}.use_cispo_loss": True, f"{_ACTOR}.eps_clip_higher": 4.0, f"{_ACTOR}.c_clip": 3.0},
        "use_cispo_loss has no dual clip",
        "use_cispo_loss",
    ),
    Case(
        "CISPO by sequences",
        {
            f"{_ACTOR}.use_cispo_loss": True,
            f"{_ACTOR}.eps_clip_higher": 4.0,
            f"{_ACTOR}.importance_sampling_level": "sequence",
        },
        "use_cispo_loss is defined by tokens",
        "use_cispo_loss",
    ),
    Case(
        "a mask of stale tokens without the decoupled loss",
        {f"{_ACTOR}.correction": {"min_weight": 0.5}},
        "correction.min_weight is 0.5, which needs the proximal policy",
        "use_decoupled_loss",
    ),
    Case(
        "truncation without a cap",
        {
            f"{_ACTOR}.correction": {"truncate": True},
            f"{_ACTOR}.use_decoupled_loss": True,
            f"{_ACTOR}.behav_imp_weight_cap": None,
        },
        "behav_imp_weight_cap is null",
        "behav_imp_weight_cap",
    ),
    Case(
        "updates skipped below the budget",
        {f"{_ACTOR}.correction": {"kl_budget": 0.1, "kl_skip": 0.1}},
        "kl_skip is 0.1, not above kl_budget 0.1",
        "kl_skip",
    ),
    Case(
        "two bounds of a sequence's weight",
        {
            f"{_ACTOR}.correction": {"weight_level": "sequence", "max_sequence_weight": 2.0},
            f"{_ACTOR}.use_decoupled_loss": True,
        },
        "max_sequence_weight is 2.0, but weight_level sequence already bounds",
        "leave max_sequence_weight out",
    ),
    Case(
        "weights of sequences without the decoupled loss",
        {f"{_ACTOR}.correction": {"weight_level": "sequence"}},
        "correction.weight_level is sequence, which needs the proximal policy",
        "use_decoupled_loss",
    ),
    Case(
        "a queue below the batch",
        {f"{_CONFIG}.rollout": {"queue_size": 7}},
        "rollout.queue_size is 7, below a batch of 8 episodes",
        "queue_size",
    ),
    Case("a queue of one batch", {f"{_CONFIG}.rollout": {"queue_size": 8, "max_head_offpolicyness": 1}}),
    Case("a queue that the bound just fits", {f"{_CONFIG}.rollout": {"queue_size": 17, "max_head_offpolicyness": 3}}),
    Case(
        "a bound of staleness that the queue makes unreachable",
        {f"{_CONFIG}.rollout": {"queue_size": 16, "max_head_offpolicyness": 3}},
        "no sample lags more than 2 versions; raise rollout.queue_size to at least 17",
        "rollout.max_head_offpolicyness cannot be reached",
    ),
    Case(
        "a bound that does not apply, with a queue",
        {f"{_CONFIG}.rollout": {"queue_size": 8, "max_head_offpolicyness": 3}, f"{_CONFIG}.async_training": False},
    ),
    Case("a budget alone", {f"{_ACTOR}.correction": {"kl_budget": 0.1}}),
    Case("a rollback", {f"{_ACTOR}.on_collapse": "rollback"}),
    Case(
        "a rollback without recovery",
        {f"{_ACTOR}.on_collapse": "rollback", f"{_CONFIG}.recover": {"mode": "disabled"}},
        "recover.mode is disabled",
        "on_collapse",
    ),
    Case(
        "a rollback without recovery checkpoints",
        {f"{_ACTOR}.on_collapse": "rollback", f"{_CONFIG}.recover": {"freq_epochs": None, "freq_secs": None}},
        "freq_secs are all null",
        "on_collapse",
    ),
    Case(
        "M2PO without the trainer's log-probs",
        {f"{_ACTOR}.m2_threshold": 0.04, f"{_ACTOR}.use_decoupled_loss": False},
        "m2_threshold needs the trainer's own log-probs",
        "m2_threshold",
    ),
    Case("no cap", {f"{_ACTOR}.behav_imp_weight_cap": None}),
    Case("a cap of 1", {f"{_ACTOR}.behav_imp_weight_cap": 1.0}, "1.0 is not above 1"),
    Case(
        "free-form parts", {"spec.servers.args": {"a": {"b": [1]}}, "spec.servers.resources": {"limits": {"cpu": "2"}}}
    ),
    Case("free-form parts at the deepest level", {"spec.servers.args": nested(MAX_FREE_FORM_DEPTH + 1)}),
    Case("free-form parts below the deepest level", {"spec.servers.args": nested(MAX_FREE_FORM_DEPTH + 2)}, "nested"),
    Case("deeply nested free-form parts", {"spec.servers.args": nested(25)}, "nested"),
    Case("too many arguments", {"spec.servers.args": {f"a{n}": 1 for n in range(MAX_ENTRIES + 1)}}, "has 129 keys"),
    Case("a long text", {f"{_CONFIG}.tokenizer_path": "x" * (MAX_TEXT + 1)}, "characters"),
    Case("many stop texts", {f"{_CONFIG}.gconfig.stop": ["x"] * (MAX_ITEMS + 1)}, "has 257 items"),
    Case("numbers as quantities", {"spec.servers.resources": {"limits": {"cpu": 0.5, "nvidia.com/gpu": 1}}}),
    Case("an endless quantity", {"spec.servers.resources": {"limits": {"cpu": "1e400"}}}, "match"),
    Case("8 million servers", {"spec.servers.maxReplicas": 8_000_000}, "8000000 is above 1024"),
    Case("a million nodes", {"spec.trainer.nodes": 1_000_000}, "1000000 is above 1024"),
    *AGENT_CASES,
    Case("a list as a key of a toleration", {"spec.trainer.tolerations": [{"key": ["a"]}]}, "['a'] is not text"),
    Case(
        "tolerations, affinity, volumes and variables",
        {
            "spec.trainer.tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "spec.trainer.affinity": {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [
                            {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]}
                        ]
                    }
                },
                "podAntiAffinity": {
                    "preferredDuringSchedulingIgnoredDuringExecution": [
                        {
                            "weight": 1,
                            "podAffinityTerm": {
                                "topologyKey": "kubernetes.io/hostname",
                                "labelSelector": {"matchLabels": {"app": "x"}},
                            },
                        }
                    ]
                },
            },
            "spec.servers.volumes": [
                {"name": "data", "persistentVolumeClaim": {"claimName": "data", "readOnly": True}},
                {"name": "cache", "emptyDir": {"sizeLimit": "1Gi"}},
                {"name": "info", "downwardAPI": {"items": [{"path": "x", "fieldRef": {"fieldPath": "metadata.name"}}]}},
            ],
            "spec.servers.volumeMounts": [{"name": "data", "mountPath": "/data", "readOnly": True}],
            "spec.servers.env": [
                {"name": "A", "value": "1"},
                {"name": "T", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": True}}},
            ],
            "spec.servers.topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
            ],
        },
    ),
    Case("code of a commit", {"spec.code": {"git": {"url": "https://a/b", "commit": "a" * 40, "path": "src/x"}}}),
    Case("packages alone", {"spec.code.requirements": ["a>=1"]}),
    Case(
        "code of a branch",
        {"spec.code.git": {"url": "https://a/b", "commit": "main"}},
        "'main' is no full SHA-1; give the 40 lower-case hexadecimal digits",
    ),
    Case(
        "code over ssh",
        {"spec.code.git": {"url": "ssh://a/b", "commit": "a" * 40}},
        "code.git.url",
    ),
    Case(
        "code with credentials in its URL",
        {"spec.code.git": {"url": "https://me:secret@a/b", "commit": "a" * 40}},
        "code.git.url",
    ),
    Case(
        "code of a folder above the repository",
        {"spec.code.git": {"url": "https://a/b", "commit": "a" * 40, "path": "src/../../x"}},
        "code.git.path",
    ),
    Case("an option of pip as a requirement", {"spec.code.requirements": ["--index-url=http://a"]}, "requirements"),
    Case(
        "two sources of code",
        {"spec.code": {"directory": "x", "git": {"url": "https://a/b", "commit": "a" * 40}}},
        "code.directory and code.git are both set",
        "keep one of them",
    ),
    Case(
        "a requirements file without code",
        {"spec.code.requirementsFile": "requirements.txt"},
        "there is no code that contains it",
        "code.requirementsFile needs the code",
    ),
    Case("a bucket", {"spec.storage.bucket": {"url": "s3://team.a/runs/x", "endpointUrl": "http://minio:9000"}}),
    Case("a bucket without a scheme", {"spec.storage.bucket.url": "team/runs"}, "storage.bucket.url"),
    Case("a bucket with a path out of it", {"spec.storage.bucket.url": "s3://team/../x y"}, "storage.bucket.url"),
    Case("a volume of the trainer alone", {"spec.storage": {"shared": False, "accessModes": ["ReadWriteOnce"]}}),
    Case(
        "servers on several nodes without the volume",
        {"spec.storage.shared": False, "spec.servers": {"nodesPerServer": 2, "tensorParallel": 2}},
        "storage.shared is false, servers.nodesPerServer 2",
        "needs storage.shared true",
    ),
]
