// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The part of `mmtwin claims` that a process measures, run as root in a guest of a real kernel: what malloc gives, and what becomes of it under pressure.
 *   claims-user malloc          who owns malloc's memory, what is behind it before and after it is touched
 *   claims-user pressure MiB    touches that much, and says how much of it is swapped out and whether it comes back as it was
 * Prints lines "claims: NAME key=value ...".
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#define PAGE 4096UL
#define PRESENT (1ULL << 63)
#define SWAPPED (1ULL << 62)

static int pagemap;

static uint64_t entry(const char *p)
{
	uint64_t value = 0;

	return pread(pagemap, &value, 8, (uintptr_t)p / PAGE * 8) == 8 ? value : 0;
}

static const char *region(const void *p)
{
	static char name[64];
	FILE *maps = fopen("/proc/self/maps", "r");
	unsigned long start, end;
	char line[512];

	strcpy(name, "none");
	while (maps && fgets(line, sizeof(line), maps)) {
		char found[256] = "anonymous";

		if (sscanf(line, "%lx-%lx %*s %*s %*s %*s %255s", &start, &end, found) >= 2 && start <= (uintptr_t)p && (uintptr_t)p < end)
			snprintf(name, sizeof(name), "%.60s", found);
	}
	if (maps)
		fclose(maps);
	return name;
}

static void malloc_part(void)
{
	size_t bytes = 64 << 20, pages = bytes / PAGE, present = 0, touched = 0, runs = 0, i;
	char *small = malloc(100), *large, *first;
	uint64_t last = 0;

	small[0] = 1;
	printf("claims: malloc region=%s kernel_half=%d\n", region(small), (int)((uintptr_t)small >> 63));
	large = malloc(bytes);
	first = (char *)(((uintptr_t)large + PAGE - 1) / PAGE * PAGE) + PAGE;
	printf("claims: malloc-large bytes=%zu region=%s\n", bytes, region(large));
	for (i = 0; i < pages - 2; i++)
		present += !!(entry(first + i * PAGE) & PRESENT);
	for (i = 0; i < 256; i++)
		first[(i * 97 % 256) * PAGE] = 1; /* in no order, as programs do */
	for (i = 0; i < 256; i++) {
		uint64_t now = entry(first + i * PAGE);

		touched += !!(now & PRESENT);
		runs += i == 0 || (now & ((1ULL << 55) - 1)) != last + 1;
		last = now & ((1ULL << 55) - 1);
	}
	printf("claims: malloc-lazy pages=%zu before=%zu touched=256 after=%zu\n", pages, present, touched);
	printf("claims: malloc-runs pages=256 runs=%zu\n", runs);
	free(large);
	free(small);
}

static void pressure(size_t bytes)
{
	size_t pages = bytes / PAGE, i, out = 0, wrong = 0;
	char *p = malloc(bytes + PAGE);
	char *first = (char *)(((uintptr_t)p + PAGE - 1) / PAGE * PAGE);

	for (i = 0; i < pages; i++)
		*(size_t *)(first + i * PAGE) = i * 2654435761UL;
	for (i = 0; i < pages; i++)
		out += !!(entry(first + i * PAGE) & SWAPPED);
	for (i = 0; i < pages; i++)
		wrong += *(size_t *)(first + i * PAGE) != i * 2654435761UL;
	printf("claims: pressure pages=%zu swapped=%zu wrong=%zu\n", pages, out, wrong);
}

int main(int argc, char **argv)
{
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	pagemap = open("/proc/self/pagemap", O_RDONLY);
	setvbuf(stdout, NULL, _IONBF, 0);
	if (argc == 3 && !strcmp(argv[1], "pressure"))
		pressure(strtoul(argv[2], NULL, 10) << 20);
	else
		malloc_part();
	return 0;
}
