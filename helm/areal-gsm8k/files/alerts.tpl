# Alerts, as a template. `by (namespace, name)` because every replica of the operator tells the same of each experiment.
- alert: ArealNobodyOperates
  expr: absent(areal_operator_leader) or sum(areal_operator_leader) == 0
  for: 5m
  labels: {severity: critical}
  annotations:
    summary: "No operator holds the Lease; runs go on, but nobody starts, restarts or ends them."
- alert: ArealOperatorBlind
  expr: max(areal_operator_last_watch_event_age_seconds) > 600 and on () count(areal_experiment_phase{phase="Running"}) > 0
  for: 5m
  labels: {severity: critical}
  annotations:
    summary: "The operator has heard nothing of the cluster for {{ "{{ $value | humanizeDuration }}" }} although experiments run."
- alert: ArealReconcilesFail
  expr: sum(increase(areal_operator_reconciles_total{outcome="error"}[15m])) > 10
  for: 5m
  labels: {severity: warning}
  annotations:
    summary: "Reconciles fail again and again; the operator's log says why."
# A short window and a long wait: a run that has just begun, or goes on after a suspension, has as long as any other.
- alert: ArealRunStalled
  expr: |-
    max by (namespace, name) (areal_experiment_phase{phase="Running"}) == 1
      unless on (namespace, name) max by (namespace, name) (changes(areal_experiment_step[5m])) > 0
  for: {{ .Values.prometheusRule.stalledAfter }}
  labels: {severity: warning}
  annotations:
    summary: "{{ "{{ $labels.namespace }}/{{ $labels.name }}" }} runs, but has made no step for {{ .Values.prometheusRule.stalledAfter }}."
# What the trainer says of its servers counts; before its first report, and of scripts that say nothing, their readiness.
- alert: ArealServersBehind
  expr: |-
    (
      max by (namespace, name) (areal_experiment_servers_current)
        or max by (namespace, name) (areal_experiment_servers_ready)
    )
      < max by (namespace, name) (areal_experiment_servers_desired)
      and on (namespace, name) max by (namespace, name) (areal_experiment_phase{phase="Running"}) == 1
  for: {{ .Values.prometheusRule.serversBehindAfter }}
  labels: {severity: warning}
  annotations:
    summary: "{{ "{{ $labels.namespace }}/{{ $labels.name }}" }} trains with {{ "{{ $value }}" }} servers, fewer than it wants: the others are missing, or hold other weights."
- alert: ArealRunFailed
  expr: max by (namespace, name) (areal_experiment_phase{phase="Failed"}) == 1
  labels: {severity: warning}
  annotations:
    summary: "{{ "{{ $labels.namespace }}/{{ $labels.name }}" }} has failed; its status says why."
