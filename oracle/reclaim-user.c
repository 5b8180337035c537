// SPDX-License-Identifier: GPL-2.0-or-later
/* Touches more memory than there is, in a known order, and prints what the kernel counts of it.
 *   reclaim-user EXTRA ORDER ROUNDS     EXTRA MiB more than MemFree; ORDER: up, random (a fixed sequence); ROUNDS over all pages after the first touch
 * Lines: "reclaim: step name=value ...", the differences of /proc/vmstat since the step before, and the free pages that the run began with.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#define PAGE 4096UL
static const char *names[] = { "nr_free_pages", "nr_inactive_anon", "nr_active_anon", "nr_inactive_file", "nr_active_file", "pswpin", "pswpout", "pgscan_kswapd", "pgscan_direct",
	"pgsteal_kswapd", "pgsteal_direct", "pgrotated", "pgactivate", "pgdeactivate", "pgrefill", "pgmajfault", "swap_ra", "swap_ra_hit", "workingset_refault_anon",
	"workingset_activate_anon", "pgscan_anon", "pgscan_file", "oom_kill" };
#define NAMES (sizeof(names) / sizeof(*names))
static long before[NAMES];
static char text[1 << 16];

static void step(const char *what)
{
	FILE *f = fopen("/proc/vmstat", "r");
	size_t n = fread(text, 1, sizeof(text) - 1, f), i;

	fclose(f);
	text[n] = 0;
	printf("reclaim: %s", what);
	for (i = 0; i < NAMES; i++) {
		char key[64], *at;
		long value;

		snprintf(key, sizeof(key), "\n%s ", names[i]);
		at = strstr(text, key);
		if (!at && !strncmp(text, key + 1, strlen(key) - 1))
			at = text - 1;
		value = at ? atol(at + strlen(key)) : 0;
		printf(" %s=%ld", names[i], i < 5 ? value : value - before[i]);
		before[i] = value;
	}
	printf("\n");
	fflush(stdout);
}

static unsigned long long state = 1;
static size_t next(size_t pages, size_t i, int random)
{
	if (!random)
		return i;
	state = state * 6364136223846793005ULL + 1442695040888963407ULL;
	return (state >> 33) % pages;
}

int main(int argc, char **argv)
{
	size_t pages, i, r, sum = 0;
	int random = !strcmp(argv[2], "random");
	char *p;

	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	step("begin");
	pages = before[0] + ((strtoul(argv[1], NULL, 10) << 20) / PAGE);
	p = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (i = 0; i < pages; i++)
		*(size_t *)(p + i * PAGE) = i;
	printf("reclaim: pages=%zu\n", pages);
	step("touched");
	for (r = 0; r < strtoul(argv[3], NULL, 10); r++) {
		for (i = 0; i < pages; i++) {
			size_t at = next(pages, i, random);

			sum += *(size_t *)(p + at * PAGE) != at;
		}
		step("round");
	}
	printf("reclaim: wrong=%zu\n", sum);
	return 0;
}
