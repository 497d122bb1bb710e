{{- define "pyflannel.labels" -}}
app.kubernetes.io/name: pyflannel
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}
{{- /* What annotations' names begin with, as the daemon makes it of --kube-annotation-prefix. */ -}}
{{- define "pyflannel.prefix" -}}
{{- $prefix := .Values.annotationPrefix -}}
{{- $prefix -}}
{{- if not (contains "/" $prefix) -}}/{{- else if not (or (hasSuffix "/" $prefix) (hasSuffix "-" $prefix)) -}}-{{- end -}}
{{- end }}
{{- define "pyflannel.document" -}}
{{- $document := dict "EnableNFTables" .Values.enableNFTables "Backend" .Values.backend -}}
{{- if .Values.podCIDR -}}
{{- $_ := set $document "Network" .Values.podCIDR -}}
{{- else -}}
{{- $_ := set $document "EnableIPv4" false -}}
{{- end -}}
{{- if .Values.podCIDRv6 -}}
{{- $_ := set $document "EnableIPv6" true -}}
{{- $_ := set $document "IPv6Network" .Values.podCIDRv6 -}}
{{- end -}}
{{- toPrettyJson $document -}}
{{- end }}
