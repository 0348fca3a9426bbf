#!/bin/bash
# Makes the environment on one worker of a Cloud TPU and mounts the bucket; safe to repeat.
# Usage, by launch/tpu.py and launch/compute_engine.md: bash launch/tpu_setup.sh BUCKET MOUNT
set -euo pipefail
bucket=$1 mount=$2
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The images' Python is 3.10: uv brings a newer one, and the lock file decides every version.
export PATH="$HOME/.local/bin:$PATH"
if ! uv --version 2>/dev/null | grep --quiet '^uv 0.13.9'; then
    # Compute Engine's images have no pip, or one that refuses to install.
    python3 -m pip install --quiet --user uv==0.13.9 2>/dev/null ||
        curl --silent --show-error --fail --location https://astral.sh/uv/0.13.9/install.sh |
            env UV_UNMANAGED_INSTALL="$HOME/.local/bin" sh
fi
uv sync --quiet --frozen --python 3.12 --extra tpu

if ! command -v gcsfuse >/dev/null; then
    keyring=/usr/share/keyrings/cloud.google.asc
    curl --silent --show-error --fail https://packages.cloud.google.com/apt/doc/apt-key.gpg |
        sudo tee "$keyring" >/dev/null
    echo "deb [signed-by=$keyring] https://packages.cloud.google.com/apt" \
        "gcsfuse-$(lsb_release --codename --short) main" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    # A machine that has just booted may hold the lock for its own updates.
    sudo apt-get -o DPkg::Lock::Timeout=600 --quiet update
    sudo apt-get -o DPkg::Lock::Timeout=600 --quiet --yes install gcsfuse
fi

# Root owns the mount point: a run on a machine without the mount is refused, and does not begin
# anew on the machine's own disk. No metadata is cached: a worker must see at once what another one
# wrote.
if ! mountpoint --quiet "$mount"; then
    sudo mkdir --parents "$mount"
    sudo gcsfuse -o allow_other --uid="$(id --user)" --gid="$(id --group)" --implicit-dirs \
        --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "$bucket" "$mount"
fi
echo "$(hostname): ready, $(git rev-parse --short HEAD)"
