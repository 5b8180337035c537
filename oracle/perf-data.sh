#!/usr/bin/env bash
# Makes the perf.data files of tests/data/perf on this machine, and what perf kmem and perf script say about them. Needs perf, root, and a kernel with the
# kmem tracepoints. Their figures are this machine's: the tests compare both programs on the same file, so only files made together belong together.
#   perf-data.sh PYTHON OUT_DIR
set -euo pipefail
python=${1:?usage: perf-data.sh PYTHON OUT_DIR} out=${2:?usage: perf-data.sh PYTHON OUT_DIR}
export LC_ALL=C
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$out"
all=(-e kmem:kmalloc -e kmem:kfree -e kmem:kmem_cache_alloc -e kmem:kmem_cache_free -e kmem:mm_page_alloc -e kmem:mm_page_free)
some=(-e kmem:kmalloc -e kmem:kfree -e kmem:mm_page_alloc -e kmem:mm_page_free)
cd "$scratch"
perf record -q -m 2M -g --kernel-callchains "${some[@]}" -o chains.data -- ls / > /dev/null
perf record -q -m 2M "${all[@]}" -o task.data -- sh -c 'ls / >/dev/null; cat /etc/passwd | sort >/dev/null'
perf record -q -a --synth=no -m 4M "${all[@]}" -o machine.data -- ls / > /dev/null
perf record -q -z -m 2M "${some[@]}" -o zstd.data -- true
perf record -q -m 2M "${some[@]}" -o - -- true > pipe.data
for name in chains task machine zstd pipe; do gzip -9nc $name.data > "$out/$name.data.gz"; done
for name in chains task machine; do # the options stand before stat: perf ignores them behind it
  { perf kmem -f -i $name.data --slab --caller --raw-ip stat; perf kmem -f -i $name.data --page --caller --raw-ip stat; } > "$out/$name.perf-kmem.txt" 2>&1
done
for name in chains task; do perf script -f -i $name.data --ns 2> /dev/null | gzip -9n > "$out/$name.script.txt.gz"; done
# Of /proc/kallsyms only what these files name, and the symbols behind, which end them.
"$python" - "$out" "$scratch" << 'PYTHON'
import gzip, re, sys
from pathlib import Path
import numpy as np
from mmtwin.recording.readers import read
from mmtwin.recording.symbols import read_symbols
out, scratch = map(Path, sys.argv[1:])
symbols = read_symbols("/proc/kallsyms")
addresses = {int(x, 16) for x in re.findall(r"^\s+(ffff[0-9a-f]{12}) ", gzip.open(out / "chains.script.txt.gz", "rt").read(), re.M)}
for path in scratch.glob("*.data"):
    addresses |= {site & (1 << 64) - 1 for site in read(path).events["call_site"].unique() if site}
at = {int(np.searchsorted(symbols.address, np.uint64(a), side="right")) - 1 for a in addresses}
lines = (f"{int(symbols.address[i]):016x} t {symbols.name[i].split()[0]}\n" for i in sorted(at | {i + 1 for i in at}) if i < len(symbols.name))
(out / "kallsyms.txt").write_text("".join(lines))
PYTHON
