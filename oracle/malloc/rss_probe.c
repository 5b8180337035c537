// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Calls malloc and its family in random order and says after each call which pages of the heap and of the mappings have memory: what the C library touches, and what the kernel gives
 * for it. Linked with the C library as a program usually is; no address is random (personality ADDR_NO_RANDOMIZE). Nothing else in here uses the heap.
 *
 *     rss_probe SEED STEPS [THREADS [LIMIT]]
 *
 * With LIMIT the process may have so many MiB of addresses (RLIMIT_AS), and 256 KiB above the heap there is a page that brk cannot pass.
 *
 * Output: "seed N", the program's segments, "brk" (the end of the heap), "threads N", "limit N", /proc/self/maps before the first call, then for each step
 *     step I: CALL(arguments) = result; brk END
 * and, each if it changed, the lines of /proc/self/maps of anonymous memory ("=" in front) and the pages of those that have memory: "+" START-END of those that are the process's own, "~" of
 * others (the page of zeros; shared with a child). A line "child" begins what a forked child does and ends with "parent".
 */
#define _GNU_SOURCE
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <sched.h>
#include <unistd.h>

#define SLOTS 96
static char text[1 << 16], line[1 << 12], areas[1 << 16], areas_before[1 << 16], pages[1 << 18], pages_before[1 << 18];
static unsigned long state, entries[1 << 16];
static void *block[SLOTS];
static unsigned long size[SLOTS];
static volatile int turn; /* whose: 0 the main thread's */
static volatile unsigned long op, arg1, arg2, result;
static unsigned long stack_top;

static unsigned long draw(unsigned long below)
{
	state = state * 6364136223846793005UL + 1442695040888963407UL;
	return (state >> 33) % below;
}

static void put(const char *s, size_t n)
{
	while (n) {
		ssize_t done = write(1, s, n);

		if (done <= 0)
			_exit(1);
		s += done;
		n -= done;
	}
}

static int slurp(const char *path)
{
	int fd = open(path, O_RDONLY), n = 0, got;

	while ((got = read(fd, text + n, sizeof(text) - 1 - n)) > 0)
		n += got;
	close(fd);
	text[n] = 0;
	return n;
}

static void show(void)
{
	int fd = open("/proc/self/pagemap", O_RDONLY);
	char *at, *next, *out = pages, *kept = areas;

	slurp("/proc/self/maps");
	for (at = text; *at; at = next) {
		unsigned long start = strtoul(at, &next, 16), end = strtoul(next + 1, &next, 16), n = (end - start) / 4096, i, from;
		int writable = next[2] == 'w', anonymous = 0, special = 0;
		char *found;

		found = strstr(at, " 00:00 0 ");
		next = strchr(at, '\n') + 1;
		anonymous = found && found < next;
		found = strstr(at, "[v");
		special = found && found < next;
		if (!anonymous || special || end > stack_top)
			continue;
		memcpy(kept++, "=", 1);
		memcpy(kept, at, next - at);
		kept += next - at;
		if (!writable)
			continue;
		for (from = 0; from < n; from += 1 << 16) {
			unsigned long some = n - from < 1 << 16 ? n - from : 1 << 16;

			pread(fd, entries, some * 8, (start / 4096 + from) * 8);
			for (i = 0; i < some;) {
				unsigned long kind = entries[i] >> 63 ? 1 + (entries[i] >> 56 & 1) : 0, first = i;

				while (i < some && (entries[i] >> 63 ? 1 + (entries[i] >> 56 & 1) : 0) == kind)
					i++;
				if (kind)
					out += sprintf(out, "%c%lx-%lx\n", kind == 2 ? '+' : '~', start / 4096 + from + first, start / 4096 + from + i);
			}
		}
	}
	close(fd);
	*kept = *out = 0;
	if (strcmp(areas, areas_before)) {
		put(areas, kept - areas);
		strcpy(areas_before, areas);
	}
	if (strcmp(pages, pages_before)) {
		put(pages, out - pages);
		strcpy(pages_before, pages);
	}
}

static void perform(void)
{
	unsigned long r = 0;

	switch (op) {
	case 0: r = (unsigned long)malloc(arg1); break;
	case 1: r = (unsigned long)calloc(arg1, arg2); break;
	case 2: r = (unsigned long)realloc((void *)arg1, arg2); break;
	case 3: free((void *)arg1); break;
	case 4: r = (unsigned long)memalign(arg1, arg2); break;
	case 5: r = malloc_trim(arg1); break;
	}
	result = r;
}

static void *work(void *number)
{
	for (;;) {
		while (turn != (int)(long)number)
			sched_yield();
		perform();
		turn = 0;
	}
	return 0;
}

static const char *names[] = {"malloc", "calloc", "realloc", "free", "memalign", "malloc_trim", "fill"};

static void step(const char *what, unsigned long i, int thread, unsigned long o, unsigned long a, unsigned long b)
{
	op = o;
	arg1 = a;
	arg2 = b;
	result = 0;
	if (o == 6)
		memset((void *)a, 0x5a, b);
	else if (thread == 0)
		perform();
	else {
		turn = thread;
		while (turn)
			sched_yield();
	}
	put(line, sprintf(line, "%s %lu: %s(%lx, %lx) thread %d = %lx; brk %lx\n", what, i, names[o], a, b, thread, result, (unsigned long)sbrk(0)));
	show();
}

static unsigned long some_size(void)
{
	switch (draw(12)) {
	case 0: return draw(40);
	case 1: case 2: case 3: return draw(1100);
	case 4: case 5: case 6: return draw(9000);
	case 7: case 8: return draw(70000);
	case 9: case 10: return draw(400000);
	default: return draw(draw(4) ? 2000000 : 9000000);
	}
}

static void steps(const char *what, unsigned long n, int threads)
{
	unsigned long i;

	for (i = 0; i < n; i++) {
		unsigned long k = draw(SLOTS), kind = draw(100), bytes = some_size(), a;
		int thread = threads ? draw(2) * (1 + draw(threads)) : 0;

		if (kind < 2) {
			step(what, i, thread, 5, draw(3) * 5000, 0);
			continue;
		}
		if (!block[k]) {
			if (kind < 70)
				step(what, i, thread, 0, bytes, 0);
			else if (kind < 90)
				step(what, i, thread, 1, 1 + draw(3), bytes);
			else
				step(what, i, thread, 4, 32UL << draw(10), bytes);
			block[k] = (void *)result;
			size[k] = bytes;
		} else if (kind < 30) {
			step(what, i, thread, 2, (unsigned long)block[k], bytes + 1);
			if (result) {
				block[k] = (void *)result;
				size[k] = bytes + 1;
			}
		} else if (kind < 55 && size[k]) {
			a = draw(size[k]);
			step(what, i, 0, 6, (unsigned long)block[k] + a, 1 + draw(size[k] - a));
		} else {
			step(what, i, thread, 3, (unsigned long)block[k], 0);
			block[k] = 0;
		}
	}
}

int main(int argc, char **argv)
{
	const ElfW(Phdr) *ph = (void *)getauxval(AT_PHDR);
	unsigned long i, seed = argc > 1 ? strtoul(argv[1], 0, 10) : 1, n = argc > 2 ? strtoul(argv[2], 0, 10) : 100;
	int threads = argc > 3 ? atoi(argv[3]) : 0;
	unsigned long limit = argc > 4 ? strtoul(argv[4], 0, 10) : 0;
	struct rlimit rlimit = {limit << 20, limit << 20};
	pthread_t thread;

	if (!(personality(0xffffffff) & ADDR_NO_RANDOMIZE)) {
		personality(ADDR_NO_RANDOMIZE);
		execv("/proc/self/exe", argv);
		return 1;
	}
	state = seed;
	stack_top = (unsigned long)&seed;
	memset(pages, 1, sizeof(pages));
	memset(pages_before, 0, sizeof(pages_before));
	memset(areas, 1, sizeof(areas));
	memset(areas_before, 0, sizeof(areas_before));
	memset(text, 1, sizeof(text));
	memset(entries, 1, sizeof(entries));
	put(line, sprintf(line, "seed %lu\n", seed));
	for (i = 0; i < getauxval(AT_PHNUM); i++)
		if (ph[i].p_type == PT_LOAD)
			put(line, sprintf(line, "load %lx %lx %lx %lx %x\n", (long)ph[i].p_offset, (long)ph[i].p_vaddr, (long)ph[i].p_filesz, (long)ph[i].p_memsz, ph[i].p_flags));
	put(line, sprintf(line, "brk %lx\nthreads %d\nlimit %lu\n", (unsigned long)sbrk(0), threads, limit));
	if (limit)
		mmap(sbrk(0) + 0x40000, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	for (i = 1; i <= (unsigned long)threads; i++)
		pthread_create(&thread, 0, work, (void *)i);
	i = slurp("/proc/self/maps");
	put(text, i);
	if (limit)
		setrlimit(RLIMIT_AS, &rlimit);
	show();
	steps("step", n, threads);
	if (!threads) {
		put("child\n", 6);
		if (fork() == 0) {
			steps("step", n / 4, 0);
			_exit(0);
		}
		wait(0);
		put("parent\n", 7);
		show();
		steps("step", n / 2, 0);
	}
	put("end\n", 4);
	_exit(0);
}
