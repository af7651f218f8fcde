{{- /* Names and labels that several templates share. */ -}}

{{- define "ringforge.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "ringforge.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (include "ringforge.fullname" .) -}}
{{- end -}}

{{- define "ringforge.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "ringforge.labels" -}}
{{ include "ringforge.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- /* How clients speak to a node. */ -}}
{{- define "ringforge.scheme" -}}
{{- if .Values.config.tls.certificate }}grpcs{{ else }}grpc{{ end -}}
{{- end -}}

{{- /* How the kubelet looks at a node: its own gRPC probes know no TLS. */ -}}
{{- define "ringforge.probe" -}}
{{- if .Values.config.tls.certificate -}}
tcpSocket:
{{- else -}}
grpc:
{{- end }}
  port: {{ .Values.port }}
{{- end -}}

{{- /* What the container may do; values.yaml explains the three words. */ -}}
{{- define "ringforge.securityContext" -}}
runAsUser: 0
runAsGroup: 0
{{- if eq .Values.access "privileged" }}
privileged: true
{{- else }}
privileged: false
seccompProfile:
  type: Unconfined
capabilities:
  drop: [ALL]
  {{- if eq .Values.access "capabilities" }}
  # SYS_ADMIN: namespaces, mounts, pivot_root. SETUID, SETGID: become the action's user. CHOWN,
  # FOWNER, DAC_OVERRIDE: take over what an action wrote. KILL: end it. SYS_RESOURCE: its limits.
  # IPC_LOCK: memory of io_uring beyond the memlock limit.
  add: [SYS_ADMIN, SETUID, SETGID, CHOWN, FOWNER, DAC_OVERRIDE, KILL, SYS_RESOURCE, IPC_LOCK]
  {{- else }}
  # IPC_LOCK: memory of io_uring beyond the memlock limit.
  add: [IPC_LOCK]
  {{- end }}
{{- end }}
{{- end -}}
