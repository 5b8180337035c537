#!/usr/bin/env sh
# Makes every bundled recording anew: a kernel from Debian's packages, QEMU, the workloads beside this file. About 10 minutes, and half an hour more
# where the kernel with the classic SLAB has to be built ($MMTWIN_SLAB_KERNEL names a built one), and 10 minutes for the slab answers of a real kernel.
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

kernel686=${MMTWIN_KERNEL_686:-$here/kernel-6.1-686}

# name | workload | RAM | CPUs | further options; names that end with 686 are recorded on Debian's 32-bit kernel
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
slabs-256m-1cpu-slab         | slabs     | 256M  | 1 | --slab
modules-512m-1cpu-slab       | modules   | 512M  | 1 | --slab
files-256m-1cpu-slab         | files     | 256M  | 1 | --slab
pressure-128m-2cpu-slab      | pressure  | 128M  | 2 | --slab
slabs-512m-4cpu-slab         | slabs     | 512M  | 4 | --slab
files-2g-1cpu-686            | files     | 2G    | 1 |
'
echo "$recordings" | while IFS='|' read -r name workload memory cpus options; do
  name=$(echo $name)
  [ -n "$name" ] || continue
  if [ $# -gt 0 ]; then
    case " $* " in *" $name "*) ;; *) continue ;; esac
  fi
  case $name in
    *-686) [ -f "$kernel686/vmlinux" ] || "$here/get-kernel.sh" "$kernel686" 6.1-686; vm=$kernel686 ;;
    *) vm=$kernel ;;
  esac
  # shellcheck disable=SC2086
  "$mmtwin" record --vm "$vm" --workload "$here/workloads/$(echo $workload).sh" --mem $memory --smp $cpus $options --force -o "$root/tests/recordings/$name.mmrec" < /dev/null
done
# Who asks for pages: a recording whose mm_page_alloc rows have call sites.
if wanted sites-128m-2cpu "$@"; then
  "$mmtwin" record --vm "$kernel" --workload "$here/workloads/sites.sh" --mem 128M --smp 2 --sites --force -o "$root/tests/data/sites-128m-2cpu.mmrec" < /dev/null
fi
# Virtual areas: name | workload | kernel | RAM | CPUs | further options. Those of 6.12 hold nothing else and are in a directory of their own.
areas='
areas-256m-1cpu              | areas     | 6.1  | 256M  | 1 |
areas-256m-4cpu              | areas-smp | 6.1  | 256M  | 4 |
areas-256m-2cpu-slab         | areas-smp | 6.1  | 256M  | 2 | --slab
one-page-256m-1cpu           | areas-one-page | 6.1 | 256M | 1 |
areas-2g-1cpu-slab-686       | areas     | 6.1-686 | 2G | 1 | --slab
areas-2g-4cpu-686            | areas-smp | 6.1-686 | 2G | 4 |
virtual/areas-6.12-1cpu      | areas     | 6.12 | 256M  | 1 |
virtual/areas-6.12-4cpu      | areas-smp | 6.12 | 256M  | 4 |
'
areas_kernel() { case $1 in 6.12) echo "${MMTWIN_KERNEL_612:-$here/kernel-6.12}" ;; *-686) echo "$kernel686" ;; *) echo "$kernel" ;; esac; }
echo "$areas" | while IFS='|' read -r name workload series memory cpus options; do
  name=$(echo $name) series=$(echo $series)
  [ -n "$name" ] || continue
  if [ $# -gt 0 ]; then
    case " $* " in *" $name "*) ;; *) continue ;; esac
  fi
  of=$(areas_kernel "$series")
  [ -f "$of/vmlinux" ] || "$here/get-kernel.sh" "$of" "$series" < /dev/null
  "$here/module/build.sh" "$here/module-build" "$(cat "$of/release")" vmalloc_probe < /dev/null
  mkdir -p "$(dirname "$root/tests/recordings/$name")"
  # shellcheck disable=SC2086
  "$mmtwin" record --vm "$of" --workload "$here/workloads/$(echo $workload).sh" --mem $memory --smp $cpus --vmap --module "$here/module-build/$(cat "$of/release")/vmalloc_probe.ko" \
    $options --force -o "$root/tests/recordings/$name.mmrec" < /dev/null
done
# Memory pressure: name | workload | RAM | CPUs | further options
pressure='
tmpfs-128m-2cpu              | pressure-tmpfs | 128M | 2 |
swap-128m-1cpu               | pressure-swap  | 128M | 1 | --swap 256M
swap-128m-2cpu               | pressure-swap  | 128M | 2 | --swap 256M
fails-128m-1cpu              | pressure-fails | 128M | 1 | @PAGES_PROBE@
fails-128m-2cpu              | pressure-fails | 128M | 2 | @PAGES_PROBE@
'
echo "$pressure" | while IFS='|' read -r name workload memory cpus options; do
  name=$(echo $name)
  [ -n "$name" ] || continue
  if [ $# -gt 0 ]; then
    case " $* " in *" pressure/$name "*) ;; *) continue ;; esac
  fi
  case $options in
    *@PAGES_PROBE@*)
      "$here/module/build.sh" "$here/module-build" "$(cat "$kernel/release")" pages_probe < /dev/null
      options="--module $here/module-build/$(cat "$kernel/release")/pages_probe.ko"
      ;;
  esac
  mkdir -p "$root/tests/recordings/pressure"
  # shellcheck disable=SC2086
  "$mmtwin" record --vm "$kernel" --workload "$here/workloads/$(echo $workload).sh" --mem $memory --smp $cpus $options --force -o "$root/tests/recordings/pressure/$name.mmrec" < /dev/null
done
wanted() { [ $# -gt 1 ] || return 0; name=$1; shift; case " $* " in *" $name "*) return 0 ;; esac; return 1; }
if wanted slab-classic-1cpu "$@"; then
  slab=${MMTWIN_SLAB_KERNEL:-$here/kernel-slab}
  [ -f "$slab/vmlinux" ] || "$here/slab-kernel.sh" "$slab"
  "$mmtwin" record --vm "$slab" --workload "$here/slab-kernel-workload.sh" --mem 128M --smp 1 --slab --force -o "$root/tests/data/slab-classic-1cpu.mmrec" < /dev/null
fi
if wanted sys-slab-686 "$@"; then "$here/sys-slab.sh" "$kernel686" "$root/tests/data/sys-kernel-slab-686.json.gz"; fi
if wanted zoneinfo-i386 "$@"; then
  pae=${MMTWIN_KERNEL_686_PAE:-$here/kernel-6.1-686-pae}
  [ -f "$pae/vmlinux" ] || "$here/get-kernel.sh" "$pae" 6.1-686-pae
  "$here/zoneinfo-i386.sh" "$root/tests/data/zoneinfo-i386.json.gz" "$kernel686" "$pae"
fi
if wanted exhaust28 "$@"; then
  "$here/module/build.sh" "$here/module-build" "$(cat "$kernel686/release")" exhaust28
  "$(dirname "$mmtwin")/python" "$here/module/exhaust28.py" "$kernel686" "$here/module-build/$(cat "$kernel686/release")/exhaust28.ko" \
    "$root/tests/data/exhaust28-686.mmrec" "$root/tests/data/exhaust28-686.json"
fi
if wanted sys-slab "$@"; then "$here/sys-slab.sh" "$kernel" "$root/tests/data/sys-kernel-slab.json.gz"; fi
if wanted kmalloc-probe "$@"; then
  "$here/module/build.sh" "$here/module-build" "$(cat "$kernel/release")"
  "$here/module/run.sh" "$kernel" "$here/module-build/$(cat "$kernel/release")/kmalloc_probe.ko" "$root/tests/data/kmalloc-probe-6.1.txt.gz"
fi
if wanted layouts "$@" || wanted alloc-cost "$@" || wanted faults "$@"; then
  for flavour in 6.1-686 6.1-686-pae 6.12; do [ -f "$here/kernel-$flavour/vmlinuz" ] || "$here/get-kernel.sh" "$here/kernel-$flavour" $flavour; done
fi
if wanted layouts "$@"; then
  "$here/layout.sh" "$here/module-build" "$root/tests/data/layouts.json.gz" "$here/kernel-6.1-686" "$here/kernel-6.1-686-pae" "$kernel" "$here/kernel-6.12"
fi
if wanted advise "$@"; then
  "$here/advise.sh" "$here/module-build" "$root/tests/data" "$kernel"
  "$mmtwin" record --vm "$kernel" --workload "$here/workloads/advise.sh" --mem 256M --slab --module "$here/module-build/$(cat "$kernel/release")/advise_probe.ko" \
    -o "$root/tests/data/advise-640-256m-1cpu-slab.mmrec" --force
fi

if wanted alloc-cost "$@"; then "$here/alloc-cost.sh" "$here/module-build" "$root/tests/data/alloc-cost-6.1.json" "$kernel" "$here/kernel-6.1-686"; fi
if wanted vmalloc-events "$@"; then
  scratch=$(mktemp -d)
  "$here/module/build.sh" "$here/module-build" "$(cat "$kernel/release")" vmalloc_probe
  "$mmtwin" record --vm "$kernel" --workload "$here/workloads/vmalloc-sizes.sh" --mem 512M --slab --vmap --module "$here/module-build/$(cat "$kernel/release")/vmalloc_probe.ko" \
    -o "$scratch/sizes.mmrec" < /dev/null
  "$(dirname "$mmtwin")/python" "$here/vmalloc-events.py" "$scratch/sizes.mmrec" "$root/tests/data/vmalloc-events-6.1.json"
  rm -r "$scratch"
fi
if wanted faults "$@"; then
  for flavour in 4level 5level nosmap 686 686pae; do
    words=no5lvl cpu=max guest=$kernel
    case $flavour in
      5level) words= ;;
      nosmap) cpu=max,-smap,-smep ;;
      686) guest=$here/kernel-6.1-686 ;;
      686pae) guest=$here/kernel-6.1-686-pae ;;
    esac
    "$here/module/build.sh" "$here/module-build" "$(cat "$guest/release")" faults
    # shellcheck disable=SC2086
    MMTWIN_CPU=$cpu "$here/module/run-faults.sh" "$guest" "$here/module-build/$(cat "$guest/release")/faults.ko" "$root/tests/data/faults-6.1-$flavour.txt" $words
  done
fi
if wanted oom "$@"; then "$here/oom.sh" "$(dirname "$mmtwin")/python" "$kernel" "$root/tests/data/oom-6.1.json.gz" < /dev/null; fi
if wanted reclaim "$@"; then "$here/reclaim.sh" "$kernel" "$root/tests/data/reclaim-6.1.txt"; fi
if wanted trace-dat "$@"; then "$here/trace-dat.sh" "$(dirname "$mmtwin")/python" "$kernel" "$root/tests/data/trace-cmd" < /dev/null; fi
if wanted malloc "$@"; then "$here/malloc/make.sh" "$mmtwin"; fi
if wanted claims "$@"; then # last, as it reads what the others have made
  kernel612=${MMTWIN_KERNEL_612:-$here/kernel-6.12}
  [ -f "$kernel686/vmlinux" ] || "$here/get-kernel.sh" "$kernel686" 6.1-686
  [ -f "$kernel612/vmlinux" ] || "$here/get-kernel.sh" "$kernel612" 6.12
  "$here/claims.sh" "$(dirname "$mmtwin")/python" "$here/module-build" "$root/src/mmtwin/data/claims-kernel.json" "$kernel" "$kernel686" "$kernel612" < /dev/null
fi
cp "$root/tests/recordings/slabs-512m-4cpu-slab.mmrec" "$root/src/mmtwin/data/demo.mmrec"
