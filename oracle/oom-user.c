// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Processes for the OOM killer, run as root in a guest of a real kernel (oom.sh).
 *   oom-user SCENARIO TASK ...     SCENARIO is name[,key=value]...: strikes=N (how many to wait for), sysrq=1 (echo f > /proc/sysrq-trigger instead of a
 *                                  real shortage), and settings of /proc/sys/vm (oom_kill_allocating_task=1, oom_dump_tasks=0)
 *                                  TASK is comm,oom_score_adj[,what:MiB]...: anon, shm (shared anonymous), file (a mapping of /dev/vdb), tables (page tables
 *                                  of pages that are only read), kids (children that each touch as much, two of them), vfork (MiB without meaning), grow (without end)
 * Tasks start in this order, each when the one before has what it wants. Before the last one starts, what /proc says of all of them is printed:
 *   oom: score SCENARIO comm pid oom_score_adj oom_score VmRSS VmSwap VmPTE   (kB)
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define MIB (1UL << 20)

static void put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		fprintf(stderr, "oom-user: %s: %s\n", path, strerror(errno));
	close(fd);
}

static long count(const char *path, const char *key)
{
	FILE *f = fopen(path, "r");
	char name[64];
	long value, found = -1;
	char line[256];

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "%63[^: \t]%*[: \t]%ld", name, &value) == 2 && !strcmp(name, key))
			found = value;
	if (f)
		fclose(f);
	return found;
}

static void touch(size_t bytes, int flags, int fd)
{
	volatile char *p = mmap(NULL, bytes, fd < 0 ? PROT_READ | PROT_WRITE : PROT_READ, flags, fd, 0);
	size_t at;

	for (at = 0; p != MAP_FAILED && at < bytes; at += PAGE) {
		if (fd < 0)
			p[at] = 1;
		else
			(void)p[at];
	}
}

static void tables(size_t bytes)
{
	size_t span = bytes / PAGE * 2 * MIB, at;
	volatile char *p = mmap(NULL, span, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	for (at = 0; p != MAP_FAILED && at < span; at += 2 * MIB)
		(void)p[at];
}

static void task(char *spec, int ready)
{
	char *rest = spec, *word = strsep(&rest, ",");
	int forever = 0;

	prctl(PR_SET_NAME, word, 0, 0, 0);
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	word = strsep(&rest, ",");
	put("/proc/self/oom_score_adj", word);
	while ((word = strsep(&rest, ","))) {
		char *what = strsep(&word, ":");
		size_t bytes = (word ? strtoul(word, NULL, 10) : 0) * MIB;

		if (!strcmp(what, "anon"))
			touch(bytes, MAP_PRIVATE | MAP_ANONYMOUS, -1);
		else if (!strcmp(what, "shm"))
			touch(bytes, MAP_SHARED | MAP_ANONYMOUS, -1);
		else if (!strcmp(what, "file"))
			touch(bytes, MAP_SHARED, open("/dev/vdb", O_RDONLY));
		else if (!strcmp(what, "tables"))
			tables(bytes);
		else if (!strcmp(what, "kids")) {
			for (int i = 0; i < 2; i++) {
				int done[2];
				char byte;

				if (pipe(done))
					_exit(1);
				if (!fork()) {
					touch(bytes, MAP_PRIVATE | MAP_ANONYMOUS, -1);
					write(done[1], "x", 1);
					for (;;)
						pause();
				}
				close(done[1]);
				read(done[0], &byte, 1);
			}
		} else if (!strcmp(what, "vfork")) {
			write(ready, "x", 1);
			if (!vfork()) {
				prctl(PR_SET_NAME, "in-vfork", 0, 0, 0);
				for (;;)
					pause();
			}
		} else if (!strcmp(what, "grow"))
			forever = 1;
	}
	write(ready, "x", 1);
	close(ready);
	for (;;) {
		if (forever)
			touch(MIB, MAP_PRIVATE | MAP_ANONYMOUS, -1);
		else
			pause();
	}
}

static void scores(const char *scenario)
{
	FILE *list = popen("/bin/busybox ls /proc", "r");
	char line[64];

	while (list && fgets(line, sizeof(line), list)) {
		int pid = atoi(line);
		char path[64], comm[32] = "", number[2][16] = { "", "" };
		const char *files[] = { "comm", "oom_score_adj", "oom_score" };
		long rss;

		if (pid <= 0)
			continue;
		for (int i = 0; i < 3; i++) {
			FILE *f;

			snprintf(path, sizeof(path), "/proc/%d/%s", pid, files[i]);
			f = fopen(path, "r");
			if (f) {
				fscanf(f, "%15s", i ? number[i - 1] : comm);
				fclose(f);
			}
		}
		snprintf(path, sizeof(path), "/proc/%d/status", pid);
		rss = count(path, "VmRSS");
		if (rss >= 0)
			printf("oom: score %s %s %d %s %s %ld %ld %ld\n", scenario, comm, pid, number[0], number[1], rss, count(path, "VmSwap"), count(path, "VmPTE"));
	}
	if (list)
		pclose(list);
	printf("oom: memory %s MemTotal %ld SwapTotal %ld\n", scenario, count("/proc/meminfo", "MemTotal"), count("/proc/meminfo", "SwapTotal"));
}

int main(int argc, char **argv)
{
	char *rest = argv[1], *name = strsep(&rest, ","), *word;
	long strikes = 1, before = count("/proc/vmstat", "oom_kill"), wait = 0;
	int sysrq = 0;
	FILE *log = fopen("/dev/kmsg", "w");

	setvbuf(stdout, NULL, _IONBF, 0);
	put("/proc/self/oom_score_adj", "-1000");
	fprintf(log, "oom-user: scenario %s\n", name);
	fclose(log);
	while ((word = strsep(&rest, ","))) {
		char *key = strsep(&word, "="), path[64];

		if (!strcmp(key, "strikes"))
			strikes = atol(word);
		else if (!strcmp(key, "sysrq"))
			sysrq = 1;
		else {
			snprintf(path, sizeof(path), "/proc/sys/vm/%s", key);
			put(path, word);
		}
	}
	for (int i = 2; i < argc; i++) {
		int done[2];
		char byte;

		if (i == argc - 1)
			scores(name);
		if (pipe(done))
			return 1;
		if (!fork()) {
			setpgid(0, 0);
			close(done[0]);
			task(argv[i], done[1]);
		}
		close(done[1]);
		read(done[0], &byte, 1);
		close(done[0]);
	}
	if (sysrq)
		for (long n = 0; n < strikes; n++) {
			put("/proc/sysrq-trigger", "f");
			usleep(400000);
		}
	while (count("/proc/vmstat", "oom_kill") < before + strikes && wait++ < 600)
		usleep(50000);
	usleep(200000);
	printf("oom: strikes %s %ld\n", name, count("/proc/vmstat", "oom_kill") - before);
	{
		FILE *list = popen("/bin/busybox ls /proc", "r");
		char line[64], path[64];

		/* all that came from this program: whatever has its executable */
		while (list && fgets(line, sizeof(line), list)) {
			char exe[64] = "";
			int pid = atoi(line);

			snprintf(path, sizeof(path), "/proc/%d/exe", pid);
			if (pid > 1 && pid != getpid() && readlink(path, exe, sizeof(exe) - 1) > 0 && !strcmp(exe, "/oom-user"))
				kill(pid, SIGKILL);
		}
		if (list)
			pclose(list);
	}
	while (waitpid(-1, NULL, 0) > 0)
		;
	put("/proc/sys/vm/oom_kill_allocating_task", "0");
	put("/proc/sys/vm/oom_dump_tasks", "1");
	return 0;
}
