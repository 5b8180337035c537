#!/usr/bin/env bash
# Copies modules of a kernel, unpacked, into the root of a guest's initial RAM disk.
#   copy-modules.sh KERNEL_DIR ROOT MODULE ...      those that the kernel has built in are passed over
set -euo pipefail
kernel=${1:?usage: copy-modules.sh KERNEL_DIR ROOT MODULE ...} root=${2:?}
shift 2
for module in "$@"; do
  file=$(find "$kernel/modules" -name "$module.ko*" | head -n 1)
  case $file in
    *.xz) xz -dc "$file" > "$root/$module.ko" ;;
    ?*) cp "$file" "$root/$module.ko" ;;
  esac
done
