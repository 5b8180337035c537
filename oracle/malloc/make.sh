#!/bin/sh
# Records calls of malloc in real programs and in random ones, and turns them into the recordings in tests/data. Needs gcc; sqlite3 and python3 if they are to be recorded.
#
#     oracle/malloc/make.sh path/to/mmtwin [DIRECTORY]
#
# The environment is emptied, so that nothing in it (GLIBC_TUNABLES, MALLOC_ARENA_MAX, locales) has a say. Address space randomisation stays as it is: the
# recordings tell where everything was. With DIRECTORY the recordings go there, and random programs are of full length (100,000 calls, several seeds).
set -eu
mmtwin=$1
here=$(cd "$(dirname "$0")" && pwd)
out=${2:-$here/../../tests/data}
calls=3000 seeds=1
if [ $# -gt 1 ]; then calls=100000 seeds="1 2 3 4"; fi
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cc=${CC:-gcc}

# main_arena is no symbol; its distance from stdin's FILE is measured in this C library.
cat > "$tmp/distance.c" <<'END'
#include <stdio.h>
#include <stdlib.h>
int main(void) { void **a = malloc(2000), *b = malloc(10); free(a); printf("%ld\n", (long)((char *)a[0] - 96 - (char *)stdin)); return !b; }
END
$cc -O0 -w -o "$tmp/distance" "$tmp/distance.c"
$cc -O2 -Wall -shared -fPIC -ftls-model=initial-exec -DMAIN_ARENA_FROM_STDIN="$("$tmp/distance")" -o "$tmp/recorder.so" "$here/recorder.c"
$cc -O1 -Wall -o "$tmp/random_calls" "$here/random_calls.c" -lpthread

record() { # NAME COMMAND...: one file for each process, in the order of their numbers
	name=$1
	shift
	(cd "$tmp" && env -i PATH=/usr/bin:/bin MMTWIN_MALLOC_TRACE="$tmp/trace" LD_PRELOAD="$tmp/recorder.so" "$@" > /dev/null)
	n=0
	for file in $(ls "$tmp"/trace.* | sort -t. -k2 -n); do
		suffix=
		[ $n = 0 ] || suffix=-$n
		"$mmtwin" import "$file" -o "$out/malloc-$name$suffix.mmrec" --force
		rm "$file"
		n=$((n + 1))
	done
}

for seed in $seeds; do
	record "random-$seed" ./random_calls "$seed" "$calls"
	record "random-large-$seed" ./random_calls "1$seed" "$calls" 1 lt
	record "random-mallopt-$seed" ./random_calls "2$seed" "$calls" 1 mt
	record "random-threads-$seed" ./random_calls "3$seed" "$calls" 6
	record "random-arenas-$seed" ./random_calls "4$seed" "$calls" 20 sk
done
record shell sh -c 'ls /usr/lib | sort -r | grep -c x'
if command -v sqlite3 > /dev/null; then
	record sqlite3 sqlite3 :memory: 'create table t(a, b); with recursive c(x) as (select 1 union all select x + 1 from c where x < 300)
		insert into t select x, x * x from c; select sum(b) from t group by a % 7; create index i on t(b);'
fi
record python3 /usr/bin/python3 -S -c 'import json; print(json.dumps([1, 2]))'
echo 'int main(void) { return 0; }' > "$tmp/main.c"
record gcc "$cc" -O1 -c main.c -o main.o

# What the C library says to misuse, and about itself.
if [ $# -eq 1 ]; then
	$cc -O1 -w -o "$tmp/script" "$here/script.c"
	python3 "$here/scripts.py" "$tmp/script" < "$here/scripts.txt" > "$out/malloc-scripts-2.36.jsonl"
fi
