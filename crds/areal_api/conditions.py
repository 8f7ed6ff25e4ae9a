"""Condition types and reasons of an experiment's status, and which reasons are benign.

The operator writes them; the launcher and the operator's events read them. Reasons that come from Kubernetes
(for example a pod's ``Unschedulable``) are passed through and not listed here.
"""

from __future__ import annotations

from typing import Final

# Types.
ACCEPTED: Final = "Accepted"
STORAGE_READY: Final = "StorageReady"
SERVERS_READY: Final = "ServersReady"
TRAINER_RUNNING: Final = "TrainerRunning"
ADMITTED: Final = "Admitted"  # only present with a queue; its reasons and messages are Kueue's, and those below
AGENTS_READY: Final = "AgentsReady"  # only present with spec.agents or spec.tools; it never stops a run
SUSPENDED: Final = "Suspended"
SUCCEEDED: Final = "Succeeded"
WITHIN_QUOTA: Final = "WithinQuota"  # only present with a ResourceQuota that limits the run; before it starts
FITS: Final = "Fits"  # what grpo check finds, as far as the operator can see; it never stops a run
POLICY_HEALTHY: Final = "PolicyHealthy"  # only present once the trainer has reported on it
CONTESTED: Final = "Contested"  # only present once another controller has fought over an object

# In the order in which they depend on each other: all are True while a run is healthy.
HEALTH: Final = (ACCEPTED, STORAGE_READY, SERVERS_READY, TRAINER_RUNNING)

# Reasons of Accepted. "Accepted" is also the reason of the condition of that name.
INVALID: Final = "Invalid"
REFUSED: Final = "Refused"
NAME_TAKEN: Final = "NameTaken"
UNKNOWN_FIELDS: Final = "UnknownFields"  # accepted; fields of a newer version have no effect

# Reasons of Admitted besides Kueue's own.
QUEUED: Final = "Queued"  # of Suspended, too
PENDING: Final = "Pending"  # Kueue's: no quota is free
NOT_QUEUED: Final = "NotQueued"  # the experiment no longer names a queue
KUEUE_DISABLED: Final = "KueueDisabled"
KUEUE_UNREADABLE: Final = "KueueUnreadable"
NO_PRIORITY_CLASS: Final = "NoPriorityClass"
NO_FLAVOR: Final = "NoFlavor"
GANG_CHANGED: Final = "GangChanged"

# Reasons of StorageReady.
BOUND: Final = "Bound"
NOT_OURS: Final = "NotOurs"  # bound; the operator did not create the claim and never changes or deletes it
CREATING: Final = "Creating"
VOLUME_PENDING: Final = "VolumePending"
VOLUME_LOST: Final = "VolumeLost"
PROVISIONING_FAILED: Final = "ProvisioningFailed"

# Reason of AgentsReady: they start once the trainer runs.
WAITING_FOR_TRAINER: Final = "WaitingForTrainer"

# Reasons of ServersReady, TrainerRunning and AgentsReady.
READY: Final = "Ready"
RUNNING: Final = "Running"
STARTING: Final = "Starting"
DRAINING: Final = "Draining"
FINISHED: Final = "Finished"
BEYOND_MAX_REPLICAS: Final = "BeyondMaxReplicas"
BACK_OFF: Final = "BackOff"
WAITING_FOR_PODS: Final = "WaitingForPods"

# Problems of pods.
UNSCHEDULABLE: Final = "Unschedulable"
EVICTED: Final = "Evicted"
IMAGE_PULL: Final = "ImagePull"
CRASH_LOOP: Final = "CrashLoop"
OUT_OF_MEMORY: Final = "OutOfMemory"
VOLUME_FULL: Final = "VolumeFull"
VOLUME_MOUNT: Final = "VolumeMount"
MISSING_SECRET: Final = "MissingSecret"
MISSING_CONFIG_MAP: Final = "MissingConfigMap"
CONTAINER_CONFIG: Final = "ContainerConfig"
CONTAINER_START: Final = "ContainerStart"
CONTAINER_FAILED: Final = "ContainerFailed"
QUOTA_EXCEEDED: Final = "QuotaExceeded"
POD_SECURITY: Final = "PodSecurity"

# Reasons of Suspended.
SUSPENDING: Final = "Suspending"
NOT_SUSPENDED: Final = "NotSuspended"

# Reasons of Succeeded.
INVALID_CONFIGURATION: Final = "InvalidConfiguration"
TRAINER_FAILED: Final = "TrainerFailed"
DISRUPTED: Final = "Disrupted"
POD_DELETED: Final = "PodDeleted"
JOB_DELETED: Final = "JobDeleted"
OUTCOME_UNKNOWN: Final = "OutcomeUnknown"
DEADLINE_EXCEEDED: Final = "DeadlineExceeded"
PRE_RUNNING_DEADLINE_EXCEEDED: Final = "PreRunningDeadlineExceeded"
POLICY_COLLAPSED: Final = "PolicyCollapsed"  # of PolicyHealthy, too

# Reasons of Fits. "Fits" is also the reason of the condition of that name.
DOES_NOT_FIT: Final = "DoesNotFit"
NOT_CHECKED: Final = "NotChecked"

# Reason of WithinQuota, besides the one of that name: the run can never start.
QUOTA_TOO_SMALL: Final = "QuotaTooSmall"

# Reasons of PolicyHealthy.
HEALTHY: Final = "Healthy"
POLICY_WARNINGS: Final = "PolicyWarnings"

# Reasons of Contested.
CHANGED_BY_OTHERS: Final = "ChangedByOthers"
SETTLED: Final = "Settled"

# Something is pending and these do not say why; a warning event may.
UNEXPLAINED: Final = frozenset({STARTING, CREATING, VOLUME_PENDING})
# Part of a normal life: no warning event, and no reason to hide what else is pending.
BENIGN: Final = UNEXPLAINED | {DRAINING, FINISHED, SUSPENDED, WAITING_FOR_TRAINER, QUEUED, PENDING}
