#!/usr/bin/env sh
# Makes every bundled recording anew: a kernel from Debian's packages, QEMU, the workloads beside this file. About 5 minutes.
#   make.sh MMTWIN [NAME ...]      MMTWIN is the mmtwin program; NAMEs restrict which recordings are made
set -eu
mmtwin=$1
shift
here=$(dirname "$0")
root=$here/..
kernel=${MMTWIN_KERNEL:-$here/kernel-6.1}
command -v qemu-system-x86_64 > /dev/null && command -v busybox > /dev/null && command -v cpio > /dev/null ||
  apt-get install -y -q qemu-system-x86 busybox-static cpio xz-utils
[ -f "$kernel/vmlinux" ] || "$here/get-kernel.sh" "$kernel" 6.1

# name | workload | RAM | CPUs | further options
recordings='
files-256m-1cpu-preempt-none | files     | 256M  | 1 | --cmdline preempt=none
files-256m-1cpu              | files     | 256M  | 1 |
processes-128m-1cpu-slab     | processes | 128M  | 1 | --slab
pipes-512m-1cpu-slab         | pipes     | 512M  | 1 | --slab --cmdline preempt=none
mmap-1g-1cpu                 | mmap      | 1G    | 1 |
tmpfs-4g-1cpu-preempt-none   | tmpfs     | 4G    | 1 | --cmdline preempt=none
modules-512m-1cpu            | modules   | 512M  | 1 |
files-256m-2cpu              | files     | 256M  | 2 |
processes-512m-4cpu          | processes | 512M  | 4 |
mmap-4g-4cpu                 | mmap      | 4G    | 4 |
pressure-128m-1cpu           | pressure  | 128M  | 1 |
pressure-128m-4cpu           | pressure  | 128M  | 4 |
settings-256m-2cpu           | settings  | 256M  | 2 |
'
echo "$recordings" | while IFS='|' read -r name workload memory cpus options; do
  name=$(echo $name)
  [ -n "$name" ] || continue
  if [ $# -gt 0 ]; then
    case " $* " in *" $name "*) ;; *) continue ;; esac
  fi
  # shellcheck disable=SC2086
  "$mmtwin" record --vm "$kernel" --workload "$here/workloads/$(echo $workload).sh" --mem $memory --smp $cpus $options --force -o "$root/tests/recordings/$name.mmrec" < /dev/null
done
cp "$root/tests/recordings/files-256m-2cpu.mmrec" "$root/src/mmtwin/data/demo.mmrec"
