{{/* The run's name: of its folder, and of what replay keeps. */}}
{{- define "redraft.run" -}}
{{- default .Release.Name .Values.run -}}
{{- end -}}

{{/* The name of the job: another run of the same release is another job. KubeRay adds to it, up to 63 letters. */}}
{{- define "redraft.job" -}}
{{- $job := ternary .Release.Name (printf "%s-%s" .Release.Name (include "redraft.run" .)) (eq .Release.Name (include "redraft.run" .)) -}}
{{- if gt (len $job) 40 -}}
{{- fail (printf "%s: the names of the release and of the run have %d letters together; KubeRay leaves room for 40" $job (len $job)) -}}
{{- end -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" .Release.Name) -}}
{{- fail (printf "%s: KubeRay takes only names of lower-case letters, digits and dashes that begin with a letter" .Release.Name) -}}
{{- end -}}
{{- $job -}}
{{- end -}}

{{- define "redraft.labels" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: redraft
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{/* Selects pods of this release: (list . "head"). */}}
{{- define "redraft.pods" -}}
matchLabels: {app.kubernetes.io/instance: {{ (index . 0).Release.Name }}, app.kubernetes.io/component: {{ index . 1 }}}
{{- end -}}

{{- define "redraft.cluster" -}}
matchLabels: {app.kubernetes.io/instance: {{ .Release.Name }}}
matchExpressions: [{key: app.kubernetes.io/component, operator: In, values: [head, learner, actors]}]
{{- end -}}

{{- define "redraft.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag }}
{{- end -}}

{{- define "redraft.claim" -}}
{{- default (printf "%s-work" .Release.Name) .Values.storage.claim -}}
{{- end -}}

{{- define "redraft.keysSecret" -}}
{{- default (printf "%s-replay-keys" .Release.Name) .Values.replay.keysSecret -}}
{{- end -}}

{{- define "redraft.peerSecret" -}}
{{- default (printf "%s-peer-keys" .Release.Name) .Values.replay.peerSecret -}}
{{- end -}}

{{/* Seconds that a pod has for the step, its checkpoint, and the last copy where the run is copied; a minute more for the rest. */}}
{{- define "redraft.stop" -}}
{{- $copy := ternary (dig "deadline_s" 1800 (default dict .Values.recipe.storage)) 0 (not (not .Values.recipe.storage)) -}}
{{- addf (default 600 .Values.recipe.stop_s) $copy | int -}}
{{- end -}}

{{/* The recipe with what the chart knows. */}}
{{- define "redraft.recipe" -}}
{{- $recipe := deepCopy .Values.recipe -}}
{{- range $key := list "name" "metrics" -}}
{{- if hasKey $recipe $key }}{{ fail (printf "recipe.%s: the chart writes it; see `run`" $key) }}{{ end -}}
{{- end -}}
{{- with $recipe.evaluation -}}
{{- if hasKey . "false" }}{{ $_ := set . "n" (get . "false") }}{{ $_ := unset . "false" }}{{ end -}}{{/* Helm's YAML takes n for false */}}
{{- end -}}
{{- $services := list -}}
{{- range $shard := until (int .Values.replay.shards) -}}
{{- $host := printf "%s-replay-%d.%s-replay" $.Release.Name $shard $.Release.Name -}}
{{- $services = append $services (dict "ingest" (printf "tcp://%s:5555" $host) "serve" (printf "tcp://%s:5556" $host)) -}}
{{- end -}}
{{- $_ := set $recipe "name" (include "redraft.run" .) -}}
{{- $_ := set $recipe "metrics" (dict "port" 9464 "token" "/keys/metrics.token") -}}
{{- $_ := set $recipe "replay" (merge (dict "services" $services "keys" "/keys") (default dict $recipe.replay)) -}}
{{- range $part, $resource := dict "actors" "redraft_actor" "learner" "redraft_learner" -}}
{{- if hasKey (index $recipe $part) "resources" }}{{ fail (printf "recipe.%s.resources: the chart writes it" $part) }}{{ end -}}
{{- if not $.Values.oneNode }}{{ $_ := set (index $recipe $part) "resources" (dict $resource 1) }}{{ end -}}
{{- end -}}
{{- toPrettyJson $recipe -}}
{{- end -}}

{{- define "redraft.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
fsGroup: 1000
fsGroupChangePolicy: OnRootMismatch # a volume of many checkpoints is not walked at every start
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "redraft.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Of a pod that must not be moved while it works. */}}
{{- define "redraft.stays" -}}
cluster-autoscaler.kubernetes.io/safe-to-evict: "false"
karpenter.sh/do-not-disrupt: "true"
{{- end -}}

{{/* What a container of the run is given beside its image. */}}
{{- define "redraft.environment" -}}
env:
  - {name: HF_HOME, value: /cache/huggingface}
  - {name: REDRAFT_CACHE, value: /cache}
  - {name: VLLM_CACHE_ROOT, value: /cache/vllm}
  - {name: TRITON_CACHE_DIR, value: /cache/triton}
  - {name: TORCHINDUCTOR_CACHE_DIR, value: /cache/inductor}
  - {name: RAY_JOB_STOP_WAIT_TIME_S, value: {{ include "redraft.stop" . | quote }}} # where the job is deleted; else 3 s
  {{- range $name, $value := .Values.env }}
  - {name: {{ $name }}, value: {{ $value | toString | quote }}}
  {{- end }}
{{- with .Values.envFrom }}
envFrom: {{ toJson . }}
{{- end }}
{{- end -}}

{{/* The pod of one part of the Ray cluster: (dict "root" $ "part" "learner" "size" .Values.learner "gpus" 1 "stays" true). */}}
{{- define "redraft.pod" -}}
{{- $root := .root -}}
metadata:
  labels:
    {{- include "redraft.labels" $root | nindent 4 }}
    app.kubernetes.io/component: {{ .part }}
    redraft/run: {{ include "redraft.run" $root | quote }}
  {{- if and .stays $root.Values.doNotEvict }}
  annotations:
    {{- include "redraft.stays" . | nindent 4 }}
  {{- end }}
spec:
  {{- with .size.placement }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- with $root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- if and .gpus $root.Values.gpu.runtimeClassName }}
  runtimeClassName: {{ $root.Values.gpu.runtimeClassName }}
  {{- end }}
  {{- if ne .part "head" }}
  automountServiceAccountToken: false # the head's is for Ray's autoscaler
  {{- end }}
  {{- if .stays }}
  terminationGracePeriodSeconds: {{ add 60 (include "redraft.stop" $root | int) }}
  {{- with $root.Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- else }}
  terminationGracePeriodSeconds: {{ .size.terminationGracePeriodSeconds }}
  {{- end }}
  securityContext:
    {{- include "redraft.podSecurity" $root | nindent 4 }}
  {{- if eq .part "head" }}
  initContainers:
    # The owner of a mounted Secret is root, and Redraft refuses keys that others than their owner may read.
    - name: keys
      image: {{ include "redraft.image" $root }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      command: [install, --mode=0400, --target-directory=/keys, /secret/server.key, /secret/client.key_secret, /secret/metrics.token]
      securityContext:
        {{- include "redraft.containerSecurity" $root | nindent 8 }}
      resources:
        requests: {cpu: 10m, memory: 32Mi}
        limits: {memory: 64Mi}
      volumeMounts:
        - {name: secret, mountPath: /secret, readOnly: true}
        - {name: keys, mountPath: /keys}
  {{- end }}
  containers:
    - name: {{ eq .part "head" | ternary "ray-head" "ray-worker" }}
      image: {{ include "redraft.image" $root }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      workingDir: /srv/redraft # of Ray, and so of the jobs that it runs: runs/ and .cache/ are there
      {{- include "redraft.environment" $root | nindent 6 }}
      securityContext:
        {{- include "redraft.containerSecurity" $root | nindent 8 }}
      {{- if .stays }}
      lifecycle:
        preStop: # a step and its checkpoint, before the pod goes; the command then exits with 75 and is started again
          exec:
            command:
              - redraft
              - stop
              - {{ include "redraft.run" $root | quote }}
              - --evict
              - --wait={{ include "redraft.stop" $root }}
      {{- end }}
      {{- if eq .part "head" }}
      ports:
        - {name: gcs-server, containerPort: 6379}
        - {name: dashboard, containerPort: 8265}
        - {name: redraft, containerPort: 9464}
      {{- end }}
      resources:
        requests: {cpu: {{ .size.cpu }}, memory: {{ .size.memory }}{{ if .gpus }}, {{ $root.Values.gpu.resource }}: {{ .gpus }}{{ end }}}
        limits: {memory: {{ .size.memory }}{{ if .gpus }}, {{ $root.Values.gpu.resource }}: {{ .gpus }}{{ end }}}
      volumeMounts:
        - {name: work, mountPath: /srv/redraft}
        - {name: cache, mountPath: /cache}
        - {name: shm, mountPath: /dev/shm}
        {{- if eq .part "head" }}
        - {name: recipe, mountPath: /etc/redraft}
        - {name: keys, mountPath: /keys}
        {{- end }}
  volumes:
    - name: work
      persistentVolumeClaim: {claimName: {{ include "redraft.claim" $root }}}
    - {{ merge (dict "name" "cache") (default (dict "emptyDir" dict) $root.Values.cache.volume) | toJson }}
    - name: shm
      emptyDir: {medium: Memory, sizeLimit: {{ .size.shm }}}
    {{- if eq .part "head" }}
    - name: recipe
      configMap: {name: {{ include "redraft.job" $root }}-recipe}
    - name: secret
      secret: {secretName: {{ include "redraft.peerSecret" $root }}, defaultMode: 0400}
    - name: keys
      emptyDir: {medium: Memory, sizeLimit: 1Mi}
    {{- end }}
{{- end -}}
