#!/usr/bin/env sh
# Records a workload under the settings that docs/whatif.md compares with predictions; whatif about 15 minutes, the others less.
#   whatif.sh MMTWIN KERNEL_DIR OUT_DIR [WORKLOAD [NAME ...]]       then: python oracle/whatif.py OUT_DIR --json > docs/whatif-truth.json && python docs/whatif_table.py
# WORKLOAD: whatif, or slabs or squeeze, whose recordings but base-a and base-b were predicted before they were made (docs/whatif-unseen.json, docs/whatif-squeeze.json).
# WORKLOAD allocators is for the two kernels of oracle/slab-kernel.sh: base-a and base-b on the one with SLUB, slab and slab-b on the one with SLAB; then oracle/allocators.py.
# NAMEs restrict which recordings are made.
set -eu
mmtwin=$1 kernel=$2 out=$3 workload=${4:-whatif}
[ $# -lt 4 ] && shift 3 || shift 4
here=$(cd "$(dirname "$0")" && pwd)
release=$(cat "$kernel/release")
module=
if [ "$workload" != slabs ] && [ "$workload" != allocators ]; then
  bash "$here/module/build.sh" "$here/module-build" "$release" pages_probe < /dev/null
  module="--module $here/module-build/$release/pages_probe.ko"
fi
mkdir -p "$out"
# workload | name | RAM | CPUs | kernel command line
recordings='
whatif  | base-a    | 256M | 1 |
whatif  | base-b    | 256M | 1 |
whatif  | order0    | 256M | 1 | slub_max_order=0
whatif  | minorder1 | 256M | 1 | slub_min_order=1
whatif  | partial0  | 256M | 1 | whatif.cpu_partial=0
whatif  | nomerge   | 256M | 1 | slab_nomerge
whatif  | min16m    | 256M | 1 | sysctl.vm.min_free_kbytes=16384
whatif  | wsf200    | 256M | 1 | sysctl.vm.watermark_scale_factor=200
whatif  | smp2      | 256M | 2 |
whatif  | smp4      | 256M | 4 |
whatif  | smp4-b    | 256M | 4 |
whatif  | mem128    | 128M | 1 |
whatif  | mem512    | 512M | 1 |
slabs   | base-a    | 256M | 1 |
slabs   | base-b    | 256M | 1 |
slabs   | order0    | 256M | 1 | slub_max_order=0
slabs   | min16m    | 256M | 1 | sysctl.vm.min_free_kbytes=16384
squeeze | base-a    | 192M | 1 |
squeeze | base-b    | 192M | 1 |
squeeze | order0    | 192M | 1 | slub_max_order=0
squeeze | order0-b  | 192M | 1 | slub_max_order=0
squeeze | min8m     | 192M | 1 | sysctl.vm.min_free_kbytes=8192
squeeze | min8m-b   | 192M | 1 | sysctl.vm.min_free_kbytes=8192
squeeze | wsf200    | 192M | 1 | sysctl.vm.watermark_scale_factor=200
squeeze | wsf200-b  | 192M | 1 | sysctl.vm.watermark_scale_factor=200
squeeze | smp2      | 192M | 2 |
squeeze | smp2-b    | 192M | 2 |
squeeze | mem224    | 224M | 1 |
squeeze | mem224-b  | 224M | 1 |
squeeze | mem256    | 256M | 1 |
allocators | base-a | 256M | 1 |
allocators | base-b | 256M | 1 |
allocators | slab   | 256M | 1 |
allocators | slab-b | 256M | 1 |
'
echo "$recordings" | while IFS='|' read -r of name memory cpus words; do
  name=$(echo $name)
  [ "$(echo $of)" = "$workload" ] || continue
  if [ $# -gt 0 ]; then
    case " $* " in *" $name "*) ;; *) continue ;; esac
  fi
  "$mmtwin" record --vm "$kernel" --workload "$here/workloads/$workload.sh" --slab $module --mem $memory --smp $cpus \
    --cmdline "$(echo $words)" --force -o "$out/$name.mmrec" < /dev/null
done
