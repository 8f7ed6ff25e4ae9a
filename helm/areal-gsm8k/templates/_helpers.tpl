{{- /* All names begin with the release name, except the operator's Lease and root key, whose names are fixed in code. */ -}}
{{- define "areal.operator" -}}
{{- printf "%s-operator" .Release.Name -}}
{{- end -}}

{{- /* Name of cluster-scoped objects. */ -}}
{{- define "areal.clusterwide" -}}
{{- printf "%s:%s" .Release.Namespace (include "areal.operator" .) -}}
{{- end -}}

{{- define "areal.selector" -}}
app.kubernetes.io/name: areal-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "areal.labels" -}}
{{ include "areal.selector" . }}
app.kubernetes.io/part-of: {{ .Chart.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- /* The page of the experiments, whose pods the operator's selector must not match. */ -}}
{{- define "areal.page" -}}
{{- printf "%s-page" .Release.Name -}}
{{- end -}}

{{- define "areal.pageSelector" -}}
app.kubernetes.io/name: areal-page
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "areal.pageLabels" -}}
{{- mergeOverwrite (include "areal.labels" . | fromYaml) (include "areal.pageSelector" . | fromYaml) | toYaml -}}
{{- end -}}

{{- /* An image reference. Arguments: root, reference (overrides the rest unless ""), name, suffix of the tag. */ -}}
{{- define "areal.image" -}}
{{- $image := .root.Values.image -}}
{{- if .reference -}}
{{- .reference -}}
{{- else -}}
{{- $registry := $image.registry | trimSuffix "/" -}}
{{- printf "%s%s:%s%s" (empty $registry | ternary "" (printf "%s/" $registry)) .name ($image.tag | default .root.Chart.AppVersion) .suffix -}}
{{- end -}}
{{- end -}}

{{- define "areal.operatorImage" -}}
{{- include "areal.image" (dict "root" . "reference" .Values.images.operator "name" "areal-operator" "suffix" "") -}}
{{- end -}}

{{- define "areal.url" -}}
{{- printf "http://%s.%s.svc:8080" (include "areal.operator" .) .Release.Namespace -}}
{{- end -}}

{{- /* Watched namespaces, separated by commas; "" is all. The operator's own namespace is only included if listed. */ -}}
{{- define "areal.watched" -}}
{{- .Values.operator.watchNamespaces | default list | uniq | sortAlpha | join "," -}}
{{- end -}}

{{- define "areal.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "areal.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- /* The experiment's spec: the example, overridden by experiment.spec, with the chart's pull settings as defaults. */ -}}
{{- define "areal.experimentSpec" -}}
{{- $spec := dict -}}
{{- with .Values.experiment.example -}}
{{- $spec = (printf "files/%s.yaml" . | $.Files.Get | fromYaml).spec -}}
{{- end -}}
{{- $spec = mustMergeOverwrite $spec (deepCopy .Values.experiment.spec) -}}
{{- range $part := list "servers" "trainer" -}}
{{- $pods := get $spec $part | default dict -}}
{{- if and $.Values.image.pullSecrets (not (hasKey $pods "imagePullSecrets")) -}}
{{- $_ := set $pods "imagePullSecrets" $.Values.image.pullSecrets -}}
{{- end -}}
{{- if and $.Values.image.pullPolicy (not (hasKey $pods "imagePullPolicy")) -}}
{{- $_ := set $pods "imagePullPolicy" $.Values.image.pullPolicy -}}
{{- end -}}
{{- $_ := set $spec $part $pods -}}
{{- end -}}
{{- if not $spec.config -}}
{{- fail "experiment.spec has no config; set it, or experiment.example to gsm8k or tiny" -}}
{{- end -}}
{{- toYaml $spec -}}
{{- end -}}

{{- /* Refuses a release that cannot work. `lookup` finds cluster objects on install and upgrade, not in helm template. */ -}}
{{- define "areal.refuse" -}}
{{- if semverCompare "<4.0.0-0" .Capabilities.HelmVersion.Version -}}
{{- printf "Helm is %s; this chart needs Helm 4, which applies objects on the server" .Capabilities.HelmVersion.Version | fail -}}
{{- end -}}
{{- if not (regexMatch "^[a-z][a-z0-9-]*$" .Release.Name) -}}
{{- printf "the release's name %q cannot be part of a Service's; use lower-case letters, digits and hyphens, and begin with a letter" .Release.Name | fail -}}
{{- end -}}
{{- $watched := include "areal.watched" . | splitList "," | compact -}}
{{- if and .Values.experiment.enabled $watched (not (has .Release.Namespace $watched)) -}}
{{- printf "operator.watchNamespaces is [%s] without the release's namespace %s, where the experiment is created; add it, or set experiment.enabled=false" (join ", " $watched) .Release.Namespace | fail -}}
{{- end -}}
{{- range (lookup "rbac.authorization.k8s.io/v1" "ClusterRole" "" "").items -}}
{{- $other := (.metadata.annotations | default dict) -}}
{{- $home := get $other "areal.dev/operator-namespace" -}}
{{- $release := get $other "meta.helm.sh/release-name" -}}
{{- if and $home (not (and (eq $home $.Release.Namespace) (eq $release $.Release.Name))) -}}
{{- if eq $home $.Release.Namespace -}}
{{- printf "release %s already has an operator in namespace %s; only one is possible per namespace: choose another with --namespace" $release $home | fail -}}
{{- end -}}
{{- $theirs := get $other "areal.dev/watch-namespaces" | splitList "," | compact -}}
{{- $other_operator := printf "the operator of release %s in namespace %s manages" $release $home -}}
{{- if and (empty $theirs) (empty $watched) -}}
{{- printf "%s all namespaces, as this one would; use that one or uninstall it first" $other_operator | fail -}}
{{- else if empty $theirs -}}
{{- printf "%s all namespaces; set operator.watchNamespaces there, or use that one" $other_operator | fail -}}
{{- else if empty $watched -}}
{{- printf "%s %s; set operator.watchNamespaces here to other namespaces" $other_operator (join ", " $theirs) | fail -}}
{{- end -}}
{{- range $theirs -}}
{{- if has . $watched -}}
{{- printf "%s %s; remove it from operator.watchNamespaces" $other_operator . | fail -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* A CEL expression: whether a text is in a list of names, of which those that end in * match prefixes. */ -}}
{{- define "areal.matches" -}}
{{- $tests := list -}}
{{- range $entry := .list -}}
{{- if eq $entry "*" -}}
{{- $tests = append $tests "true" -}}
{{- else if hasSuffix "*" $entry -}}
{{- $tests = append $tests (printf "%s.startsWith('%s')" $.value (trimSuffix "*" $entry)) -}}
{{- else -}}
{{- $tests = append $tests (printf "%s == '%s'" $.value $entry) -}}
{{- end -}}
{{- end -}}
({{ join " || " $tests | default "false" }})
{{- end -}}

{{- /* Where experiments refer to Secrets: place, and a CEL expression with %s for the test of a name n. */ -}}
{{- define "areal.secretReferences" -}}
env: "variables.pods.all(p, !has(p.env) || p.env == null || p.env.all(e, !has(e.valueFrom) || e.valueFrom == null || !has(e.valueFrom.secretKeyRef) || [e.valueFrom.secretKeyRef.name].all(n, %s)))"
env of init containers: "variables.pods.all(p, !has(p.initContainers) || p.initContainers.all(c, !has(c.env) || c.env.all(e, !has(e.valueFrom) || e.valueFrom == null || !has(e.valueFrom.secretKeyRef) || [e.valueFrom.secretKeyRef.name].all(n, %s))))"
imagePullSecrets: "variables.pods.all(p, !has(p.imagePullSecrets) || p.imagePullSecrets.all(s, [s.name].all(n, %s)))"
secret volumes: "variables.pods.all(p, !has(p.volumes) || p.volumes.all(v, !has(v.secret) || [v.secret.secretName].all(n, %s)))"
projected volumes: "variables.pods.all(p, !has(p.volumes) || p.volumes.all(v, !has(v.projected) || !has(v.projected.sources) || v.projected.sources.all(s, !has(s.secret) || [s.secret.name].all(n, %s))))"
csi volumes: "variables.pods.all(p, !has(p.volumes) || p.volumes.all(v, !has(v.csi) || !has(v.csi.nodePublishSecretRef) || [v.csi.nodePublishSecretRef.name].all(n, %s)))"
{{- end -}}

{{- /* Schedulers that start groups of pods, as name=API, and those APIs: both separated by commas. */ -}}
{{- define "areal.gangSchedulers" -}}
{{- $pairs := list -}}
{{- range $name, $api := .Values.gang.schedulers }}{{ if $api }}{{ $pairs = append $pairs (printf "%s=%s" $name $api) }}{{ end }}{{ end -}}
{{- $pairs | sortAlpha | join "," -}}
{{- end -}}

{{- define "areal.gangApis" -}}
{{- $apis := list -}}
{{- range $name, $api := .Values.gang.schedulers }}{{ if $api }}{{ $apis = append $apis $api }}{{ end }}{{ end -}}
{{- $apis | uniq | sortAlpha | join "," -}}
{{- end -}}

{{/* Keys of fabric that are allowed, separated by commas. */}}
{{- define "areal.fabric" -}}
{{- $allowed := list -}}
{{- range $key, $value := .Values.fabric }}{{ if $value }}{{ $allowed = append $allowed $key }}{{ end }}{{ end -}}
{{- join "," $allowed -}}
{{- end }}
