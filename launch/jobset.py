"""The JobSet of launch/gke.py: one job for each slice, a pod for each of its machines."""

from __future__ import annotations

import json

from command import MOUNT

MANIFEST = """\
# kubectl create --filename=-
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: {name}
{metadata}spec:
  failurePolicy:
    maxRestarts: {restarts}
    # never two of the run at once on one work directory
    restartStrategy: BlockingRecreate
    rules:
      # exit code 2: a person has to mend it, restarting would only cost
      - name: badInput
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: {slices}
      template:
        spec:
          completionMode: Indexed
          parallelism: {hosts}
          completions: {hosts}
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  containerName: aigc
                  operator: In
                  values: [2]
          template:
{fuse}            spec:
              restartPolicy: Never
              serviceAccountName: {service_account}
              # SIGTERM, then so long for a last checkpoint
              terminationGracePeriodSeconds: 300
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: {accelerator}
                cloud.google.com/gke-tpu-topology: {topology}
{selectors}              containers:
                - name: aigc
                  image: {image}
                  # Kubernetes takes $(NAME) for a variable, so every dollar sign stands doubled.
                  command:
                    - /bin/sh
                    - -c
                    - export JAX_PROCESS_ID=$$((SLICE * {hosts} + JOB_COMPLETION_INDEX)); exec "$$@"
                    - aigc
{command}
                  env:
                    - name: JAX_COORDINATOR_ADDRESS
                      value: {name}-slice-0-0.{name}:{port}
                    - name: JAX_NUM_PROCESSES
                      value: "{processes}"
                    - name: SLICE
                      valueFrom:
                        fieldRef:
                          fieldPath: metadata.labels['jobset.sigs.k8s.io/job-index']
{variables}                  ports:
                    - containerPort: {port}
                  resources:
                    limits:
                      google.com/tpu: {host}
                  # the TPU's devices are root's, and libtpu locks memory
                  securityContext:
                    privileged: true
                    runAsUser: 0
                  volumeMounts:
                    - name: runs
                      mountPath: {mount}
                    - name: memory
                      mountPath: /dev/shm
              volumes:
                - name: runs
{volume}                - name: memory
                  emptyDir:
                    medium: Memory
"""

EXCLUSIVE = """\
  annotations:
    # one job to a node pool, which is one slice
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
"""

FUSE = """\
            metadata:
              annotations:
                gke-gcsfuse/volumes: "true"
"""

BUCKET = """\
                  csi:
                    driver: gcsfuse.csi.storage.gke.io
                    volumeAttributes:
                      bucketName: {bucket}
                      # nothing cached: a host must see at once what another one wrote
                      mountOptions: implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0
"""  # noqa: E501

CLAIM = """\
                  persistentVolumeClaim:
                    claimName: {pvc}
"""


def manifest(args) -> str:
    """The JobSet as YAML; what came from a person is quoted as JSON, which is YAML."""
    wanted = args.topology
    queue = f"  labels:\n    kueue.x-k8s.io/queue-name: {args.queue}\n" if args.queue else ""
    several = args.slices > 1 or wanted.hosts > 1
    return MANIFEST.format(
        name=args.name,
        metadata=queue + (EXCLUSIVE if several else ""),
        restarts=args.restarts,
        slices=args.slices,
        hosts=wanted.hosts,
        processes=args.slices * wanted.hosts,
        service_account=args.service_account,
        accelerator=wanted.generation.accelerator,
        topology=wanted.topology,
        selectors="".join(f"{' ' * 16}{key}: {_quote(value)}\n" for key, value in _nodes(args)),
        image=_quote(args.image),
        command="\n".join(f"{' ' * 20}- {_word(word)}" for word in args.command),
        port=args.port,
        variables="".join(
            f"{' ' * 20}- name: {key}\n{' ' * 22}value: {_word(value)}\n"
            for key, value in (entry.split("=", 1) for entry in args.env)
        ),
        host=wanted.host,
        mount=MOUNT,
        fuse=FUSE if args.bucket else "",
        volume=BUCKET.format(bucket=args.bucket) if args.bucket else CLAIM.format(pvc=args.pvc),
    )


def _nodes(args) -> list[tuple[str, str]]:
    """Which nodes, besides those of the slice; GKE makes such ones where it makes nodes itself."""
    chosen = [tuple(label.split("=", 1)) for label in args.node_selector]
    if args.spot:
        chosen.append(("cloud.google.com/gke-spot", "true"))
    if args.flex_start:
        chosen.append(("cloud.google.com/gke-flex-start", "true"))
    return chosen


def _word(text: str) -> str:
    """A word that Kubernetes must not read for a variable: it takes $(NAME) for one."""
    return _quote(text.replace("$", "$$"))


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
