"""Cross-field rules for the API server, in CEL. The models have the same rules; one table of cases tests both."""

from __future__ import annotations

from areal_api.actor import MAX_BFLOAT16_BETA
from areal_api.agents import MAX_NAMES_LENGTH
from areal_api.experiment import MAX_NAME_LENGTH
from areal_api.generate.pool_rules import POOL_GPUS, POOL_PODS, pool_rules
from areal_api.generate.rule import Rule, is_set
from areal_api.generation import WHOLE_VOCABULARY
from areal_api.pod_containers import OWN_CONTAINERS
from areal_api.pods import MAX_PODS

_CODE_SOURCES = ", ".join(is_set(f"self.code.{source}") for source in ("directory", "git", "archive"))
_HAS_SOURCE = f"(has(self.code) && [{_CODE_SOURCES}].exists(one, one))"
_HAS_PACKAGES = (
    "(has(self.code) && ((has(self.code.requirements) && size(self.code.requirements) > 0) || "
    f"({is_set('self.code.requirementsFile')})))"
)
_IN_BUCKET = f"{is_set('self.code.archive')} && !({is_set('self.code.archive.configMap')})"
_CODE_NEEDS_NETWORK = f"(has(self.code) && (({is_set('self.code.git')}) || ({_IN_BUCKET}))) || {_HAS_PACKAGES}"
_CLUSTER = "self.config.cluster"
_SERVER_GPUS = (
    f"((self.servers.device == 'cuda' ? self.servers.replicas * self.servers.tensorParallel : 0) + {POOL_GPUS})"
)
_TRAINER_GPUS = "(self.trainer.device == 'cuda' ? self.trainer.nodes * self.trainer.processesPerNode : 0)"
_AUTOSCALE = is_set("self.servers.autoscale")
_HAD_AUTOSCALE = is_set("oldSelf.spec.servers.autoscale")
_HAS_AUTOSCALE = is_set("self.spec.servers.autoscale")
_RANKS = "(self.trainer.nodes * self.trainer.processesPerNode)"
_PARALLEL = "self.config.actor.parallel"
_PER_NODE = is_set(f"{_CLUSTER}.n_gpus_per_node")


def _container_rules(section: str) -> list[Rule]:
    containers, claims = f"self.{section}.initContainers", f"self.{section}.resourceClaims"
    probes = " || ".join(is_set(f"one.{key}Probe") for key in ("startup", "readiness", "liveness"))
    sources = [is_set(f"one.{key}") for key in ("resourceClaimName", "resourceClaimTemplateName")]
    known = f"has({claims}) && {claims}.exists(known, known.name == claim.name)"

    def claimed(resources: str) -> str:
        return f"(!({is_set(f'{resources}.claims')}) || {resources}.claims.all(claim, {known}))"

    return [
        Rule(
            "spec",
            f"!has({containers}) || {containers}.all(one, {containers}.exists_one(other, other.name == one.name) && "
            f"!(one.name in {list(OWN_CONTAINERS)}))",
            f"{section}.initContainers has a name twice, or one of {', '.join(OWN_CONTAINERS)}; give each its own",
        ),
        Rule(
            "spec",
            f"!has({containers}) || {containers}.all(one, ({is_set('one.restartPolicy')}) || !({probes}))",
            f"a probe in {section}.initContainers needs restartPolicy Always; set it, or remove the probe",
        ),
        Rule(
            "spec",
            f"!has({claims}) || {claims}.all(one, ({sources[0]}) != ({sources[1]}))",
            f"an entry of {section}.resourceClaims needs exactly one of resourceClaimName and "
            "resourceClaimTemplateName",
        ),
        Rule(
            "spec",
            f"{claimed(f'self.{section}.resources')} && (!has({containers}) || {containers}.all(one, "
            f"!({is_set('one.resources')}) || {claimed('one.resources')}))",
            f"resources.claims of {section} names a claim that {section}.resourceClaims lacks; add it there",
        ),
    ]


def _autoscale_rules() -> list[Rule]:
    scale, started = "self.servers.autoscale", "has(oldSelf.status) && has(oldSelf.status.startTime)"
    return [
        Rule(
            "spec",
            f"!({_AUTOSCALE}) || {scale}.min <= {scale}.max",
            "servers.autoscale.min is above servers.autoscale.max; lower min",
        ),
        Rule(
            "spec",
            f"!({_AUTOSCALE}) || {scale}.min > {scale}.max || (self.servers.replicas >= {scale}.min && "
            f"self.servers.replicas <= {scale}.max)",
            "servers.replicas is not within servers.autoscale; set it to the number to start with",
        ),
        Rule(
            "spec",
            f"!({_AUTOSCALE}) || !(({is_set('self.servers.maxReplicas')}) || ({is_set('self.servers.minReplicas')}))",
            "servers.maxReplicas or minReplicas is set, and servers.autoscale; remove it: autoscale has min and max",
        ),
        Rule(
            "",
            f"!({started}) || ({_HAS_AUTOSCALE}) == ({_HAD_AUTOSCALE})",
            "servers.autoscale is neither added to a run that has started nor removed; create a new experiment",
        ),
        Rule(
            "",
            f"!({started}) || !({_HAS_AUTOSCALE}) || !({_HAD_AUTOSCALE}) || "
            "self.spec.servers.autoscale.min == oldSelf.spec.servers.autoscale.min",
            "servers.autoscale.min of a run that has started does not change; create a new experiment",
        ),
        Rule(
            "",
            f"!({started}) || !({_HAS_AUTOSCALE}) || self.spec.servers.replicas == oldSelf.spec.servers.replicas",
            "servers.replicas does not change: with servers.autoscale the operator chooses the number of servers; "
            "change servers.autoscale.max",
        ),
    ]


def _code_rules(key: str) -> list[Rule]:
    has = f"({_HAS_SOURCE} || {_HAS_PACKAGES})"
    external = " || one.externalNetwork" if key == "agents" else ""
    fix = "set externalNetwork: true, or use" if key == "agents" else "use"

    def rule(needed: str, message: str) -> Rule:
        return Rule("spec", f"!has(self.{key}) || self.{key}.all(one, !one.code || {needed})", message)

    return [
        rule(has, f"code is true in {key}, but spec.code is empty; set code.directory or code.git, or code: false"),
        rule("has(one.command) && size(one.command) > 0", f"code is true in {key} without a command; set command"),
        rule(
            f"!({is_set('one.image')}) || !{_HAS_PACKAGES}",
            f"code is true in {key} with an image, and code.requirements are installed for the trainer's Python; leave "
            "image out, or install them in the image",
        ),
        rule(
            f"!({_CODE_NEEDS_NETWORK}){external}",
            f"code is true in {key} without the network that code.git, code.requirements and the bucket of a large "
            f"directory need; {fix} a directory of at most 700 KiB compressed without requirements",
        ),
    ]


RULES = (
    Rule(
        "",
        f"size(self.metadata.name) <= {MAX_NAME_LENGTH}",
        f"metadata.name has more than {MAX_NAME_LENGTH} characters",
    ),
    Rule(
        "",
        "!has(oldSelf.status) || !has(oldSelf.status.startTime) || self.spec.config == oldSelf.spec.config",
        "spec.config of a run that has started does not change; create a new experiment",
    ),
    Rule(
        "spec",
        f"!({is_set('self.servers.maxReplicas')}) || self.servers.replicas <= self.servers.maxReplicas",
        "servers.replicas is above servers.maxReplicas; raise maxReplicas",
    ),
    Rule(
        "spec",
        f"!({is_set('self.servers.minReplicas')}) || self.servers.minReplicas <= self.servers.replicas",
        "servers.minReplicas is above servers.replicas; lower minReplicas",
    ),
    *_autoscale_rules(),
    *pool_rules(),
    Rule(
        "spec",
        "self.trainer.nodes == 1 || 'ReadWriteMany' in self.storage.accessModes",
        "several trainer.nodes need ReadWriteMany in storage.accessModes",
    ),
    Rule(
        "spec",
        "self.storage.shared || self.servers.nodesPerServer == 1",
        "servers.nodesPerServer above 1 needs storage.shared true",
    ),
    Rule(
        "spec",
        f"!has(self.code) || [{_CODE_SOURCES}].filter(one, one).size() <= 1",
        "several of code.directory, code.git and code.archive are set; keep one of them",
    ),
    Rule(
        "spec",
        f"!has(self.code) || !({is_set('self.code.requirementsFile')}) || [{_CODE_SOURCES}].exists(one, one)",
        "code.requirementsFile needs the code that contains it, code.directory or code.git",
    ),
    Rule(
        "spec",
        f"{_RANKS} % ({_PARALLEL}.tensor * {_PARALLEL}.context) == 0",
        "actor.parallel.tensor × context does not divide the ranks, trainer.nodes × trainer.processesPerNode",
    ),
    Rule(
        "spec",
        f"self.config.train_dataset.batch_size * {_PARALLEL}.tensor * {_PARALLEL}.context % {_RANKS} == 0",
        "train_dataset.batch_size is not a multiple of the ranks, trainer.nodes × trainer.processesPerNode, ÷ "
        "actor.parallel.tensor ÷ context",
    ),
    Rule(
        "spec",
        f"!({is_set('self.config.actor.fsdp.replicas')}) || "
        f"{_RANKS} % (self.config.actor.fsdp.replicas * {_PARALLEL}.tensor) == 0",
        "actor.fsdp.replicas does not divide the ranks, trainer.nodes × trainer.processesPerNode, ÷ "
        "actor.parallel.tensor",
    ),
    Rule(
        "spec",
        f"{_RANKS} % ({_PARALLEL}.expert * "
        f"(({is_set('self.config.actor.fsdp.replicas')}) ? self.config.actor.fsdp.replicas : 1)) == 0",
        "actor.parallel.expert does not divide the ranks, trainer.nodes × trainer.processesPerNode, ÷ "
        "actor.fsdp.replicas",
    ),
    Rule(
        "spec",
        "self.config.actor.weight_update_mode != 'distributed' || self.servers.device == self.trainer.device",
        "actor.weight_update_mode distributed needs one device for servers and trainer; set it to disk",
    ),
    Rule(
        "spec",
        "!self.config.actor.weight_deltas || (self.config.actor.weight_update_mode == 'disk' && !self.storage.shared)",
        "actor.weight_deltas needs actor.weight_update_mode disk and storage.shared false; set it to false",
    ),
    Rule(
        "spec",
        f"!({is_set(f'{_CLUSTER}.n_nodes')} && {_PER_NODE}) || "
        f"{_SERVER_GPUS} + {_TRAINER_GPUS} <= {_CLUSTER}.n_nodes * {_CLUSTER}.n_gpus_per_node",
        "servers and trainer need more GPUs than cluster.n_nodes × cluster.n_gpus_per_node",
    ),
    Rule(
        "spec",
        f"!({_PER_NODE}) || self.trainer.device != 'cuda' || "
        f"self.trainer.processesPerNode <= {_CLUSTER}.n_gpus_per_node",
        "trainer.processesPerNode is above cluster.n_gpus_per_node; use more trainer.nodes",
    ),
    Rule(
        "spec",
        f"!({_PER_NODE}) || self.servers.device != 'cuda' || "
        f"self.servers.tensorParallel <= {_CLUSTER}.n_gpus_per_node * self.servers.nodesPerServer",
        "servers.tensorParallel is above cluster.n_gpus_per_node × servers.nodesPerServer; raise nodesPerServer",
    ),
    Rule(
        "spec",
        "self.servers.tensorParallel % self.servers.nodesPerServer == 0",
        "servers.tensorParallel is not a multiple of servers.nodesPerServer; make it one",
    ),
    Rule(
        "spec",
        f"(({_AUTOSCALE}) ? self.servers.autoscale.max : ({is_set('self.servers.maxReplicas')}) ? "
        f"self.servers.maxReplicas : self.servers.replicas) * self.servers.nodesPerServer + {POOL_PODS} <= {MAX_PODS}",
        f"the servers have more than {MAX_PODS} pods, servers × servers.nodesPerServer; lower one",
    ),
    Rule(
        "spec",
        "self.servers.nodesPerServer == 1 || (self.storage.shared && 'ReadWriteMany' in self.storage.accessModes)",
        "servers.nodesPerServer above 1 needs ReadWriteMany in storage.accessModes, and storage.shared true",
    ),
    Rule(
        "",
        "!has(oldSelf.status) || !has(oldSelf.status.startTime) || "
        "self.spec.servers.nodesPerServer == oldSelf.spec.servers.nodesPerServer",
        "servers.nodesPerServer of a run that has started does not change; create a new experiment",
    ),
    *(rule for section in ("servers", "trainer") for rule in _container_rules(section)),
    Rule(
        "spec",
        f"!({is_set('self.packing')}) || (!({is_set('self.servers.affinity.podAffinity')}) && "
        f"!({is_set('self.trainer.affinity.podAffinity')}))",
        "packing and affinity.podAffinity of servers or trainer exclude each other; remove one",
    ),
    *(
        rule
        for key in ("agents", "tools")
        for rule in (
            Rule(
                "",
                f"!has(self.spec.{key}) || self.spec.{key}.all(one, size(one.name) + size(self.metadata.name) <= "
                f"{MAX_NAMES_LENGTH})",
                f"a name in {key} and metadata.name have together more than {MAX_NAMES_LENGTH} characters; shorten one",
            ),
            Rule(
                "spec",
                f"!has(self.{key}) || self.{key}.all(one, self.{key}.exists_one(other, other.name == one.name))",
                f"{key} has several entries with one name; give each its own",
            ),
            *_code_rules(key),
        )
    ),
    Rule(
        "spec",
        "self.config.rollout.agent.mode == 'online' || "
        "((!has(self.agents) || size(self.agents) == 0) && (!has(self.gateway.allowFrom) || "
        "size(self.gateway.allowFrom) == 0))",
        "agents and gateway.allowFrom need rollout.agent.mode online; set it, or leave them empty",
    ),
    Rule("spec.config", "size(self.actor.path) > 0", "actor.path is empty; set it to a Hugging Face model"),
    Rule(
        "spec.config",
        f"!({is_set('self.ref')}) || size(self.ref.path) > 0",
        "ref.path is empty; set it, or leave ref out for the model of actor.path",
    ),
    Rule("spec.config", "size(self.train_dataset.path) > 0", "train_dataset.path is empty; set it to a dataset"),
    Rule(
        "spec.config",
        f"!({is_set('self.rollout.consumer_batch_size')}) || "
        "self.rollout.consumer_batch_size == self.train_dataset.batch_size",
        "rollout.consumer_batch_size and train_dataset.batch_size differ; make them equal",
    ),
    Rule(
        "spec.config",
        f"!({is_set('self.rollout.queue_size')}) || self.rollout.queue_size >= self.train_dataset.batch_size",
        "rollout.queue_size is below train_dataset.batch_size, so no batch could ever complete; raise it",
    ),
    Rule(
        "spec.config",
        f"!({is_set('self.rollout.queue_size')}) || !self.async_training || "
        "self.rollout.max_head_offpolicyness <= 1 + (self.rollout.queue_size - 1) / self.train_dataset.batch_size",
        "rollout.max_head_offpolicyness cannot be reached with rollout.queue_size and train_dataset.batch_size; raise "
        "queue_size or lower max_head_offpolicyness",
    ),
    *(
        Rule(
            "spec.config",
            f"self.gconfig.{name} {condition}",
            f"gconfig.{name} samples from another distribution than the trainer's log-probs; leave it out",
        )
        for name, condition in (
            ("min_new_tokens", "== 0"),
            ("greedy", "== false"),
            ("top_p", "== 1.0"),
            ("top_k", f">= {WHOLE_VOCABULARY}"),
            ("frequency_penalty", "== 0.0"),
        )
    ),
    Rule(
        "spec.config",
        "self.actor.temperature == self.gconfig.temperature",
        "actor.temperature and gconfig.temperature differ; make them equal",
    ),
    Rule(
        "spec.config",
        f"!self.actor.overlong_reward_penalty || !({is_set('self.actor.overlong_tokens')}) || "
        "self.actor.overlong_tokens <= self.gconfig.max_new_tokens",
        "actor.overlong_tokens is above gconfig.max_new_tokens; lower it",
    ),
    Rule(
        "spec.config",
        f"!self.sglang.skip_tokenizer_init || !({is_set('self.gconfig.stop')}) || size(self.gconfig.stop) == 0",
        "gconfig.stop needs the server's tokenizer; set sglang.skip_tokenizer_init to false",
    ),
    Rule(
        "spec.config",
        f"!({is_set('self.rollout.agent.python')}) || self.rollout.agent.mode == 'subproc'",
        "rollout.agent.python is for agents in worker processes; set rollout.agent.mode to subproc",
    ),
    Rule(
        "spec.config",
        "self.actor.ppo_n_minibatches <= self.train_dataset.batch_size",
        "actor.ppo_n_minibatches is above train_dataset.batch_size; lower it",
    ),
    Rule(
        "spec.config",
        "self.gconfig.min_new_tokens <= self.gconfig.max_new_tokens",
        "gconfig.min_new_tokens is above gconfig.max_new_tokens; lower it",
    ),
    Rule(
        "spec.config",
        f"!({is_set('self.eval_gconfig')}) || self.eval_gconfig.min_new_tokens <= self.eval_gconfig.max_new_tokens",
        "eval_gconfig.min_new_tokens is above eval_gconfig.max_new_tokens; lower it",
    ),
    Rule(
        "spec.config",
        "!self.actor.overlong_reward_penalty || "
        f"({is_set('self.actor.overlong_tokens')} && {is_set('self.actor.overlong_penalty_factor')})",
        "actor.overlong_reward_penalty needs overlong_tokens and overlong_penalty_factor; set both",
    ),
    Rule(
        "spec.config",
        "self.actor.optimizer.type == 'adam' || (!self.actor.optimizer.offload && "
        "self.actor.optimizer.state_dtype == 'float32')",
        "actor.optimizer.type sgd keeps no state; leave actor.optimizer.offload and state_dtype out",
    ),
    Rule(
        "spec.config",
        "self.actor.optimizer.state_dtype == 'float32' || (self.actor.optimizer.beta1 <= "
        f"{MAX_BFLOAT16_BETA} && self.actor.optimizer.beta2 <= {MAX_BFLOAT16_BETA})",
        f"actor.optimizer.state_dtype bfloat16 needs beta1 and beta2 of at most {MAX_BFLOAT16_BETA}",
    ),
    Rule(
        "spec.config",
        f"(self.actor.checkpoint_every == 1 && !self.actor.offload_activations) || "
        f"!({is_set('self.actor.gradient_checkpointing')}) || self.actor.gradient_checkpointing",
        "actor.checkpoint_every and offload_activations need gradient_checkpointing; set it to true",
    ),
    Rule(
        "spec.config",
        "!(self.actor.optimizer.offload && self.actor.fsdp.offload_params)",
        "actor.fsdp.offload_params already keeps the optimizer in host memory; set actor.optimizer.offload to false",
    ),
    Rule(
        "spec.config",
        "!self.actor.use_sapo_loss || !self.actor.use_decoupled_loss",
        "actor.use_sapo_loss and actor.use_decoupled_loss exclude each other; set one of them to false",
    ),
    Rule(
        "spec.config",
        f"!self.actor.use_sapo_loss || !({is_set('self.actor.c_clip')})",
        "actor.use_sapo_loss clips nothing; leave actor.c_clip out",
    ),
    Rule(
        "spec.config",
        f"!self.actor.use_cispo_loss || ({is_set('self.actor.eps_clip_higher')} && self.actor.eps_clip_higher > 0)",
        "actor.use_cispo_loss needs actor.eps_clip_higher above 0; set it, for example to 4.0 with eps_clip 1.0",
    ),
    Rule(
        "spec.config",
        "!self.actor.use_cispo_loss || !self.actor.use_sapo_loss",
        "actor.use_cispo_loss and actor.use_sapo_loss exclude each other; set one of them to false",
    ),
    Rule(
        "spec.config",
        f"!self.actor.use_cispo_loss || !({is_set('self.actor.c_clip')})",
        "actor.use_cispo_loss has no dual clip; leave actor.c_clip out",
    ),
    Rule(
        "spec.config",
        "!self.actor.use_cispo_loss || self.actor.importance_sampling_level == 'token'",
        "actor.use_cispo_loss is defined by tokens; leave actor.importance_sampling_level out",
    ),
    Rule(
        "spec.config",
        f"self.actor.parallel.expert == 1 || (self.actor.parallel.tensor == 1 && !({is_set('self.actor.lora')}))",
        "actor.parallel.expert does not combine with actor.parallel.tensor and actor.lora; set it to 1",
    ),
    Rule(
        "spec.config",
        f"!({is_set('self.actor.m2_threshold')}) || self.actor.use_decoupled_loss || self.actor.recompute_logprob",
        "actor.m2_threshold needs the trainer's own log-probs; set actor.use_decoupled_loss or actor.recompute_logprob",
    ),
    Rule(
        "spec.config",
        "self.actor.use_decoupled_loss || !("
        + " || ".join(
            ["self.actor.correction.truncate", "self.actor.correction.weight_level != 'token'"]
            + [
                is_set(f"self.actor.correction.{key}")
                for key in ("min_weight", "max_binary_kl", "max_prob_diff", "max_sequence_weight", "eps_clip")
            ]
        )
        + ")",
        "actor.correction masks and truncation need the proximal policy; set actor.use_decoupled_loss",
    ),
    Rule(
        "spec.config",
        f"!self.actor.correction.truncate || ({is_set('self.actor.behav_imp_weight_cap')})",
        "actor.correction.truncate needs a number as actor.behav_imp_weight_cap",
    ),
    Rule(
        "spec.config",
        f"!({is_set('self.actor.correction.kl_skip')} && {is_set('self.actor.correction.kl_budget')}) || "
        "self.actor.correction.kl_skip > self.actor.correction.kl_budget",
        "actor.correction.kl_skip is not above kl_budget; raise it",
    ),
    Rule(
        "spec.config",
        "self.actor.on_collapse != 'rollback' || (self.recover.mode == 'auto' && ("
        + " || ".join(is_set(f"self.recover.{key}") for key in ("freq_epochs", "freq_steps", "freq_secs"))
        + "))",
        "actor.on_collapse rollback needs recovery checkpoints; set recover.mode to auto and recover.freq_steps",
    ),
    Rule(
        "spec.config",
        f"self.actor.correction.weight_level == 'token' || !({is_set('self.actor.correction.max_sequence_weight')})",
        "actor.correction.weight_level sequence bounds the sequence's weight; leave max_sequence_weight out",
    ),
)
