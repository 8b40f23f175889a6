{{/* Labels of everything. */}}
{{- define "impound.labels" -}}
app.kubernetes.io/name: impound
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: impound
{{- end }}

{{/* Labels that select the pods of one component; call with (dict "root" $ "component" "agent"). */}}
{{- define "impound.selector" -}}
app.kubernetes.io/name: impound
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* An image, by digest where one is given. */}}
{{- define "impound.image" -}}
{{ .repository }}:{{ .tag }}{{ with .digest }}@{{ . }}{{ end }}
{{- end }}

{{/* What every container of ours is denied. */}}
{{- define "impound.confined" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
seccompProfile: { type: RuntimeDefault }
{{- end }}
