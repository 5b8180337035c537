#!/usr/bin/env sh
# Records oracle/workloads/whatif.sh under the settings that docs/whatif.md compares with predictions; about 15 minutes.
#   whatif.sh MMTWIN KERNEL_DIR OUT_DIR       then: python oracle/whatif.py OUT_DIR --json > docs/whatif-truth.json && python docs/whatif_table.py
# With a fourth word, the name of another workload (slabs), only base-a, base-b, order0 and min16m.
set -eu
mmtwin=$1 kernel=$2 out=$3 workload=${4:-whatif}
here=$(cd "$(dirname "$0")" && pwd)
release=$(cat "$kernel/release")
module=
if [ "$workload" = whatif ]; then
  bash "$here/module/build.sh" "$here/module-build" "$release" pages_probe < /dev/null
  module="--module $here/module-build/$release/pages_probe.ko"
fi
mkdir -p "$out"
# name | RAM | CPUs | kernel command line
recordings='
base-a    | 256M | 1 |
base-b    | 256M | 1 |
order0    | 256M | 1 | slub_max_order=0
minorder1 | 256M | 1 | slub_min_order=1
partial0  | 256M | 1 | whatif.cpu_partial=0
nomerge   | 256M | 1 | slab_nomerge
min16m    | 256M | 1 | sysctl.vm.min_free_kbytes=16384
wsf200    | 256M | 1 | sysctl.vm.watermark_scale_factor=200
smp2      | 256M | 2 |
smp4      | 256M | 4 |
smp4-b    | 256M | 4 |
mem128    | 128M | 1 |
mem512    | 512M | 1 |
'
echo "$recordings" | while IFS='|' read -r name memory cpus words; do
  name=$(echo $name)
  [ -n "$name" ] || continue
  case "$workload-$name" in whatif-* | *-base-[ab] | *-order0 | *-min16m) ;; *) continue ;; esac
  "$mmtwin" record --vm "$kernel" --workload "$here/workloads/$workload.sh" --slab $module --mem $memory --smp $cpus \
    --cmdline "$(echo $words)" --force -o "$out/$name.mmrec" < /dev/null
done
