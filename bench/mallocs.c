/* Has the C library answer a stream of malloc and free calls: ./mallocs FILE ROUNDS prints the seconds of each round.
 *
 * The file holds pairs of 64-bit numbers: a size and -1 for malloc, or anything and the number of the call whose block is to be freed.
 *
 * This file is part of mmtwin. Licence: GPL-2.0-or-later.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

int main(int argc, char **argv)
{
	struct stat info;
	int fd = open(argv[1], O_RDONLY);
	if (argc < 3 || fd < 0 || fstat(fd, &info))
		return 1;
	const int64_t (*call)[2] = mmap(0, info.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
	long calls = info.st_size / 16;
	void **answer = mmap(0, calls * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	for (int round = atoi(argv[2]); round; round--) {
		struct timespec before, after;
		clock_gettime(CLOCK_MONOTONIC, &before);
		for (long i = 0; i < calls; i++)
			if (call[i][1] < 0)
				answer[i] = malloc(call[i][0]);
			else
				free(answer[call[i][1]]);
		clock_gettime(CLOCK_MONOTONIC, &after);
		printf("%.9f\n", after.tv_sec - before.tv_sec + (after.tv_nsec - before.tv_nsec) * 1e-9);
	}
	return 0;
}
