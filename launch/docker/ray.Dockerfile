# The image of launch/docker/Dockerfile with Ray, for launch/kuberay.yaml:
#   docker build --file=launch/docker/ray.Dockerfile --build-arg=IMAGE=aigc:tpu --tag=aigc-ray:tpu launch
ARG IMAGE=aigc:tpu
FROM ${IMAGE}
USER root
RUN uv pip install --python /app/.venv "ray[default]==2.60.0" && \
    ln --symbolic /app/.venv/bin/ray /usr/local/bin/ray
COPY command.py ray_hosts.py /app/launch/
USER aigc
