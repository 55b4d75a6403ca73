{{/* Names, labels, and what all pods have in common. */}}
{{- define "sllm.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 48 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 48 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* Of a part: (list $ "control"). */}}
{{- define "sllm.selector" -}}
app.kubernetes.io/name: sllm
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "sllm.labels" -}}
{{ include "sllm.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version }}
{{- end }}

{{- define "sllm.image" -}}
image: {{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{/* Of a pod that needs nothing of Kubernetes: no token, no root, no privilege. */}}
{{- define "sllm.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "sllm.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* Where a part of this release runs: its rules of placement. */}}
{{- define "sllm.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "sllm.secured" -}}
{{- if .Values.tls.enabled }}--tls=/run/tls{{ else }}--insecure{{ end }}
{{- end }}

{{/* Where nodes and gateways call the control plane: each of several, since they know no other. */}}
{{- define "sllm.peers" -}}
{{- $port := ternary 50052 50051 .Values.tls.enabled }}
{{- $name := printf "%s-control" (include "sllm.name" .) }}
{{- if gt (int .Values.control.replicas) 1 }}
{{- range $index := until (int .Values.control.replicas) }}{{ if $index }},{{ end }}{{ $name }}-{{ $index }}.{{ $name }}-each:{{ $port }}{{ end }}
{{- else }}{{ $name }}:{{ $port }}{{ end }}
{{- end }}

{{/* What a caller of the control plane has in its environment. */}}
{{- define "sllm.caller" -}}
- {name: SLLM_CONTROL, value: "{{ include "sllm.name" . }}-control:50051"}
{{- if .Values.tls.enabled }}
- {name: SLLM_TLS_CA, value: /run/tls/ca.crt}
{{- end }}
{{- with .Values.operator.keySecret | default (ternary .Values.control.adminKeySecret "" .Values.tls.enabled) }}
- {name: SLLM_API_KEY, valueFrom: {secretKeyRef: {name: {{ . }}, key: key}}}
{{- end }}
{{- end }}

{{/* Liveness asks for the process, readiness for one of its services: (dict "service" NAME). */}}
{{- define "sllm.probes" -}}
startupProbe:
  grpc: {port: 8086}
  periodSeconds: 5
  failureThreshold: 60
livenessProbe:
  grpc: {port: 8086}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  grpc: {port: 8086, service: {{ .service }}}
  periodSeconds: 5
  timeoutSeconds: 5
{{- end }}
