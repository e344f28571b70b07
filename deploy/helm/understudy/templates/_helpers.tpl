{{- define "understudy.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "understudy.subjects" -}}
subjects:
  - kind: ServiceAccount
    name: understudy
    namespace: {{ .Values.namespace }}
{{- end -}}

{{/* The pods that the admission policies are about, when they are made. A static pod's mirror must stay as it is. */}}
{{- define "understudy.pods" -}}
failurePolicy: Fail
reinvocationPolicy: IfNeeded
matchConstraints:
  matchPolicy: Equivalent
  objectSelector:
    matchExpressions:
      - key: understudy.dev/session
        operator: Exists
  resourceRules:
    - apiGroups: [""]
      apiVersions: [v1]
      operations: [CREATE]
      resources: [pods]
{{- end -}}

{{- define "understudy.not-a-mirror" -}}
- name: not-a-mirror
  expression: |-
    !has(object.metadata.annotations) || !('kubernetes.io/config.mirror' in object.metadata.annotations)
{{- end -}}
