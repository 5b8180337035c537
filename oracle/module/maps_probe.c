// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Maps, unmaps, protects, moves, grows and touches memory in random order and prints /proc/self/maps after each step: what an address space looks like that a
 * real kernel has placed. Built with -static (run-maps.sh); no address is random (personality ADDR_NO_RANDOMIZE).
 *
 * With a third argument it also reads and writes ranges, gives more sorts of advice, and forks children that write some pages and live on; every so many steps (the argument) it prints
 * /proc/self/smaps between "smaps" and "end of smaps".
 *
 * Output: "seed N", the maps at the start, the lines of /proc/self/status about memory, then for each step "step I: CALL(arguments) = result", and the maps if they changed.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static char text[1 << 16], before[1 << 16], line[1 << 17];
static char long_text[1 << 20];
static unsigned long state;
static int children[4];

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

static void show(const char *path, int always)
{
	int fd = open(path, O_RDONLY), n = 0, got;

	while ((got = read(fd, text + n, sizeof(text) - 1 - n)) > 0)
		n += got;
	close(fd);
	text[n] = 0;
	if (always || strcmp(text, before))
		put(text, n);
	strcpy(before, text);
}

static void status(void)
{
	int fd = open("/proc/self/status", O_RDONLY), n = read(fd, text, sizeof(text) - 1);
	char *at;

	close(fd);
	text[n > 0 ? n : 0] = 0;
	for (at = strtok(text, "\n"); at; at = strtok(NULL, "\n"))
		if (!strncmp(at, "Vm", 2) || !strncmp(at, "Rss", 3))
			put(line, snprintf(line, sizeof(line), "%s\n", at));
	/* the counters above lag behind by up to 64 pages (SPLIT_RSS_COUNTING), these do not */
	fd = open("/proc/self/smaps_rollup", O_RDONLY);
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	text[n > 0 ? n : 0] = 0;
	for (at = strtok(text, "\n"); at; at = strtok(NULL, "\n"))
		if (!strstr(at, "[rollup]"))
			put(line, snprintf(line, sizeof(line), "%s\n", at));
	before[0] = 0;
}

static void smaps(void)
{
	int fd = open("/proc/self/smaps", O_RDONLY), n = 0, got;

	while ((got = read(fd, long_text + n, sizeof(long_text) - n)) > 0)
		n += got;
	close(fd);
	put("smaps\n", 6);
	put(long_text, n);
	put("end of smaps\n", 13);
}

/* What a program does to a range, through the kernel: writes, or reads; how many pages it could. */
static long access_range(unsigned long a, unsigned long pages, int writes)
{
	int zero = open("/dev/zero", O_RDONLY), fds[2];
	unsigned long i;
	char byte;

	if (pipe(fds))
		_exit(1);
	for (i = 0; i < pages; i++, a += 4096)
		if (writes) {
			if (read(zero, (void *)a, 1) != 1)
				break;
		} else {
			if (write(fds[1], (void *)a, 1) != 1)
				break;
			if (read(fds[0], &byte, 1) != 1)
				_exit(1);
		}
	close(zero);
	close(fds[0]);
	close(fds[1]);
	return i;
}

static void wild_step(unsigned long i, unsigned long a, unsigned long n)
{
	static const int advice[] = {MADV_DONTNEED, MADV_FREE, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_DONTFORK, MADV_DOFORK, MADV_RANDOM, MADV_NORMAL, MADV_DONTDUMP, MADV_WIPEONFORK};
	unsigned long first = draw(n / 4096), some = 1 + draw(n / 4096 - first), k;
	long got;
	int fds[2];

	switch (draw(10)) {
	case 0: case 1: case 2: case 3:
		got = access_range(a + first * 4096, some, 1);
		put(line, snprintf(line, sizeof(line), "step %lu: write(%lx, %lx) = %ld\n", i, a + first * 4096, some, got));
		return;
	case 4: case 5:
		got = access_range(a + first * 4096, some, 0);
		put(line, snprintf(line, sizeof(line), "step %lu: read(%lx, %lx) = %ld\n", i, a + first * 4096, some, got));
		return;
	case 6: case 7: case 8:
		k = advice[draw(10)];
		if (draw(2)) {
			first = 0;
			some = n / 4096;
		}
		got = syscall(SYS_madvise, a + first * 4096, some * 4096, k);
		put(line, snprintf(line, sizeof(line), "step %lu: madvise(%lx, %lx, %lu) = %ld\n", i, a + first * 4096, some * 4096, k, got < 0 ? -errno : got));
		return;
	}
	k = draw(4);
	if (children[k]) {
		kill(children[k], SIGKILL);
		waitpid(children[k], 0, 0);
		children[k] = 0;
		put(line, snprintf(line, sizeof(line), "step %lu: kill(%lx, 0) = 0\n", i, k));
		return;
	}
	if (pipe(fds))
		_exit(1);
	children[k] = fork();
	if (!children[k]) {
		got = access_range(a + first * 4096, some, 1);
		write(fds[1], &got, sizeof(got));
		for (;;)
			pause();
	}
	if (read(fds[0], &got, sizeof(got)) != sizeof(got))
		_exit(1);
	close(fds[0]);
	close(fds[1]);
	put(line, snprintf(line, sizeof(line), "step %lu: fork(%lx, %lx, %lx) = %ld\n", i, k, a + first * 4096, some, got));
}

int main(int argc, char **argv)
{
	const ElfW(Phdr) *ph = (void *)getauxval(AT_PHDR);
	unsigned long i, steps = argc > 2 ? strtoul(argv[2], 0, 10) : 300, seed = argc > 1 ? strtoul(argv[1], 0, 10) : 1;
	unsigned long every = argc > 3 ? strtoul(argv[3], 0, 10) : 0;
	static unsigned long start[64], size[64];
	unsigned long heap;

	if (!(personality(0xffffffff) & ADDR_NO_RANDOMIZE)) {
		personality(ADDR_NO_RANDOMIZE);
		execv("/proc/self/exe", argv);
		return 1;
	}
	state = seed;
	heap = syscall(SYS_brk, 0);
	put(line, snprintf(line, sizeof(line), "seed %lu\n", seed));
	for (i = 0; i < getauxval(AT_PHNUM); i++)
		if (ph[i].p_type == PT_LOAD)
			put(line, snprintf(line, sizeof(line), "load %lx %lx %lx %lx %x\n", (long)ph[i].p_offset, (long)ph[i].p_vaddr, (long)ph[i].p_filesz, (long)ph[i].p_memsz, ph[i].p_flags));
	put(line, snprintf(line, sizeof(line), "execfn %lx brk %lx\n", getauxval(AT_EXECFN), heap));
	memset(text, 1, sizeof(text));
	memset(long_text, 1, sizeof(long_text));
	memset(before, 1, sizeof(before));
	memset(line, 1, sizeof(line));
	status();
	show("/proc/self/maps", 1);
	for (i = 0; i < steps; i++) {
		unsigned long k = draw(64), op = draw(100), a = start[k], n = size[k], b, c, d;
		long got;

		if (every && i % every == every - 1)
			smaps();
		if (every && n && op < 50) {
			wild_step(i, a, n);
		} else if (op < 38 || !n) {
			b = (1 + draw(draw(4) ? 8 : every && draw(3) == 0 ? 2500 : 700)) * 4096;
			c = draw(8);
			d = draw(10) ? 0 : 0x10000000 + draw(64) * 4096;
			op = draw(12) ? MAP_PRIVATE : MAP_SHARED;
			got = syscall(SYS_mmap, d, b, c, op | MAP_ANONYMOUS, -1, 0);
			put(line, snprintf(line, sizeof(line), "step %lu: mmap(%lx, %lx, %lu, %lx) = %lx\n", i, d, b, c, op | MAP_ANONYMOUS, got));
			if (got > 0) {
				start[k] = got;
				size[k] = b;
			}
		} else if (op < 52) {
			b = draw(n / 4096) * 4096;
			c = (1 + draw((n - b) / 4096)) * 4096;
			got = syscall(SYS_munmap, a + b, c);
			put(line, snprintf(line, sizeof(line), "step %lu: munmap(%lx, %lx) = %ld\n", i, a + b, c, got < 0 ? -errno : got));
			if (b == 0 && c == n)
				size[k] = 0;
		} else if (op < 66) {
			b = draw(n / 4096) * 4096;
			c = (1 + draw((n - b) / 4096)) * 4096;
			d = draw(8);
			got = syscall(SYS_mprotect, a + b, c, d);
			put(line, snprintf(line, sizeof(line), "step %lu: mprotect(%lx, %lx, %lu) = %ld\n", i, a + b, c, d, got < 0 ? -errno : got));
		} else if (op < 78) {
			b = (1 + draw(n / 4096 + 16)) * 4096;
			got = syscall(SYS_mremap, a, n, b, MREMAP_MAYMOVE, 0);
			put(line, snprintf(line, sizeof(line), "step %lu: mremap(%lx, %lx, %lx, 1) = %lx\n", i, a, n, b, got < 0 ? -(unsigned long)errno : got));
			if (got > 0) {
				start[k] = got;
				size[k] = b;
			}
		} else if (op < 86) {
			b = heap + draw(400) * 1024;
			got = syscall(SYS_brk, b);
			put(line, snprintf(line, sizeof(line), "step %lu: brk(%lx) = %lx\n", i, b, got));
		} else if (op < 90) {
			d = draw(4);
			b = d == 0 ? MADV_DONTNEED : d == 1 ? MADV_DONTFORK : d == 2 ? MADV_DOFORK : MADV_SEQUENTIAL;
			got = syscall(SYS_madvise, a, n, b);
			put(line, snprintf(line, sizeof(line), "step %lu: madvise(%lx, %lx, %lu) = %ld\n", i, a, n, b, got < 0 ? -errno : got));
		} else {
			/* a page is touched through the kernel, which says EFAULT where a program would be killed */
			int zero = open("/dev/zero", O_RDONLY);

			b = a + draw(n / 4096) * 4096;
			got = read(zero, (void *)b, 1);
			put(line, snprintf(line, sizeof(line), "step %lu: touch(%lx) = %ld\n", i, b, got < 0 ? -errno : got));
			close(zero);
		}
		show("/proc/self/maps", 0);
	}
	status();
	for (i = 0; i < 4; i++)
		if (children[i])
			kill(children[i], SIGKILL);
	put("end\n", 4);
	return 0;
}
