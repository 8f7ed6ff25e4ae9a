# Template of the alerts. They aggregate `by (namespace, name)` because every replica reports the same metrics.
- alert: ArealNobodyOperates
  expr: absent(areal_operator_leader) or sum(areal_operator_leader) == 0
  for: 5m
  labels: {severity: critical}
  annotations:
    summary: "No operator holds the Lease. Runs continue, but none is started, restarted or ended."
- alert: ArealOperatorBlind
  expr: max(areal_operator_last_watch_event_age_seconds) > 600 and on () count(areal_experiment_phase{phase="Running"}) > 0
  for: 5m
  labels: {severity: critical}
  annotations:
    summary: "The operator has received no watch event for {{ "{{ $value | humanizeDuration }}" }} although experiments are running."
- alert: ArealReconcilesFail
  expr: sum(increase(areal_operator_reconciles_total{outcome="error"}[15m])) > 10
  for: 5m
  labels: {severity: warning}
  annotations:
    summary: "Reconciles fail repeatedly; see the operator's log for the reason."
# A short window with a long `for`, so that a run that has just started or resumed gets the full time.
- alert: ArealRunStalled
  expr: |-
    max by (namespace, name) (areal_experiment_phase{phase="Running"}) == 1
      unless on (namespace, name) max by (namespace, name) (changes(areal_experiment_step[5m])) > 0
  for: {{ .Values.prometheusRule.stalledAfter }}
  labels: {severity: warning}
  annotations:
    summary: "{{ "{{ $labels.namespace }}/{{ $labels.name }}" }} is running but has made no step for {{ .Values.prometheusRule.stalledAfter }}."
# The trainer's report about its servers decides; without one (before the first step, custom scripts) their readiness does.
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
    summary: "{{ "{{ $labels.namespace }}/{{ $labels.name }}" }} trains with {{ "{{ $value }}" }} servers, fewer than desired: the others are missing or hold outdated weights."
- alert: ArealRunFailed
  expr: max by (namespace, name) (areal_experiment_phase{phase="Failed"}) == 1
  labels: {severity: warning}
  annotations:
    summary: "{{ "{{ $labels.namespace }}/{{ $labels.name }}" }} has failed; see its status for the reason."
- alert: ArealPolicyWarnings
  expr: |-
    max by (namespace, name) (areal_experiment_health_warnings) > 0
      and on (namespace, name) max by (namespace, name) (areal_experiment_phase{phase="Running"}) == 1
  for: 10m
  labels: {severity: warning}
  annotations:
    summary: "{{ "{{ $labels.namespace }}/{{ $labels.name }}" }} learns with warnings, which often come before a collapse; see its condition PolicyHealthy."
- alert: ArealPolicyCollapsed
  expr: |-
    max by (namespace, name) (areal_experiment_collapsed) == 1
      and on (namespace, name) max by (namespace, name) (areal_experiment_phase{phase="Running"}) == 1
  labels: {severity: critical}
  annotations:
    summary: "The policy of {{ "{{ $labels.namespace }}/{{ $labels.name }}" }} has collapsed, and the run continues without learning."
