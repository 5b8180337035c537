/* Does what a script on stdin says to the C library's heap, without using the heap itself; the library's words go to stderr, an exit status tells how it ended.
 *
 *     m N SIZE        block N = malloc(SIZE)          f N OFFSET       free(block N + OFFSET)
 *     c N SIZE        block N = calloc(1, SIZE)       r N M SIZE       block N = realloc(block M, SIZE)
 *     a N ALIGN SIZE  block N = memalign(...)         t PAD            malloc_trim(PAD)
 *     w N OFFSET X    the word at block N + OFFSET = X
 *     x N OFFSET X    ... is xored with X
 *     p N OFFSET M O  ... = block M + O
 *     s N OFFSET M O  ... = block M + O, as safe-linking protects it
 *     o P V           mallopt(P, V)
 *     i               malloc_info, mallinfo2 and malloc_stats to stdout
 *
 * This file is part of mmtwin. Licence: GPL-2.0-or-later.
 */
#define _GNU_SOURCE
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char text[1 << 16], buffer[1 << 16];
static char *block[256];

static long number(char **at)
{
	return strtol(*at, at, 0);
}

int main(void)
{
	long size = read(0, text, sizeof text - 1);
	setvbuf(stdout, buffer, _IOFBF, sizeof buffer);
	for (char *line = text; line < text + size; line = strchr(line, '\n') + 1) {
		char *at = line + 1;
		long n[4] = { 0 };
		for (int i = 0; i < 4 && *at != '\n'; i++)
			n[i] = number(&at);
		uint64_t *word = (uint64_t *)(block[n[0] & 255] + n[1]);
		switch (*line) {
		case 'm': block[n[0]] = malloc(n[1]); break;
		case 'c': block[n[0]] = calloc(1, n[1]); break;
		case 'a': block[n[0]] = memalign(n[1], n[2]); break;
		case 'r': block[n[0]] = realloc(block[n[1]], n[2]); break;
		case 'f': free(block[n[0]] + n[1]); break;
		case 't': malloc_trim(n[0]); break;
		case 'w': *word = n[2]; break;
		case 'x': *word ^= n[2]; break;
		case 'p': *word = (uint64_t)(block[n[2]] + n[3]); break;
		case 's': *word = (uint64_t)(block[n[2]] + n[3]) ^ (uint64_t)word >> 12; break;
		case 'o': mallopt(n[0], n[1]); break;
		case 'i': {
			struct mallinfo2 m = mallinfo2();
			printf("%zu %zu %zu %zu %zu %zu %zu %zu %zu %zu\n", m.arena, m.ordblks, m.smblks, m.hblks, m.hblkhd, m.usmblks, m.fsmblks, m.uordblks,
			       m.fordblks, m.keepcost);
			malloc_info(0, stdout);
			fflush(stdout);
			malloc_stats();
		}
		}
	}
	return 0;
}
