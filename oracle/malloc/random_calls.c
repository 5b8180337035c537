/* A random program: ./random_calls SEED CALLS [THREADS [OPTIONS]] calls malloc and its family that often, and keeps no memory of its own in the heap.
 *
 * With more than one thread, any thread may free or resize what another one allocated, and threads end and are replaced by new ones.
 * OPTIONS are letters: "s" no requests above 4 KiB, "l" many large ones, "t" malloc_trim now and then, "m" mallopt now and then, "k" threads that stay.
 *
 * This file is part of mmtwin. Licence: GPL-2.0-or-later.
 */
#define _GNU_SOURCE
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SLOTS 3000
#define LIVE_LIMIT (1L << 31)

static void *volatile slot[SLOTS];
static long bytes[SLOTS];
static long live, calls;
static const char *options = "";
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static uint64_t draw(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state * 0x2545F4914F6CDD1DUL >> 11;
}

static size_t size_of(uint64_t *r)
{
	unsigned what = draw(r) % 1000;
	if (strchr(options, 's'))
		what %= 900;
	if (strchr(options, 'l'))
		what = 700 + what * 3 / 10;
	if (what < 450)
		return draw(r) % 130;
	if (what < 750)
		return draw(r) % 1100;
	if (what < 900)
		return draw(r) % 4096;
	if (what < 960)
		return draw(r) % 70000;
	if (what < 985)
		return draw(r) % 300000;
	if (what < 997)
		return draw(r) % (4 << 20);
	return draw(r) % (64L << 20);
}

static void one_call(uint64_t *r)
{
	unsigned what = draw(r) % 100, i = draw(r) % (draw(r) % 8 ? SLOTS / 10 : SLOTS);
	size_t size = size_of(r);
	void *p = slot[i];
	if (p && (what < 55 || live > LIVE_LIMIT)) {
		slot[i] = 0;
		live -= bytes[i];
		free(p);
		return;
	}
	if (p && what < 75) {
		void *moved = realloc(p, size);
		if (!moved && size)
			return;
		live += (long)size - bytes[i];
		slot[i] = moved;
		bytes[i] = size;
		return;
	}
	if (p)
		return;
	if (strchr(options, 't') && draw(r) % 300 == 0)
		malloc_trim(draw(r) % 3 * 100000);
	if (strchr(options, 'm') && draw(r) % 2000 == 0)
		switch (draw(r) % 5) {
		case 0: mallopt(M_MXFAST, draw(r) % 161); break;
		case 1: mallopt(M_TRIM_THRESHOLD, draw(r) % 1000000); break;
		case 2: mallopt(M_TOP_PAD, draw(r) % 300000); break;
		case 3: mallopt(M_MMAP_THRESHOLD, 20000 + draw(r) % 1000000); break;
		case 4: mallopt(M_MMAP_MAX, draw(r) % 30); break;
		}
	if (what < 70)
		p = malloc(size);
	else if (what < 85)
		p = calloc(1 + draw(r) % 4, size / 4 + 1);
	else if (what < 90)
		p = memalign(draw(r) % 20 ? 1 << draw(r) % 13 : draw(r) % 9000, size);
	else if (what < 94) {
		if (posix_memalign(&p, 8 << draw(r) % 16, size))
			p = 0;
	} else if (what < 97)
		p = aligned_alloc(1UL << draw(r) % 22, size);
	else if (what < 98)
		p = valloc(size);
	else if (what < 99)
		p = realloc(0, size);
	else
		p = malloc(draw(r) % 4 ? size : -draw(r) % 1000000);
	slot[i] = p;
	bytes[i] = size;
	live += p ? size : 0;
}

static long left_of_all;

static void *work(void *argument)
{
	uint64_t r = (uint64_t)argument;
	for (;;) {
		pthread_mutex_lock(&lock);
		long left = left_of_all--;
		if (left > 0)
			one_call(&r);
		pthread_mutex_unlock(&lock);
		if (left <= 0 || (!strchr(options, 'k') && draw(&r) % 20000 == 0))
			return 0;
		if (draw(&r) % 4 == 0)
			sched_yield();
	}
}

int main(int argc, char **argv)
{
	static pthread_t thread[64];
	uint64_t seed = argc > 1 ? strtoul(argv[1], 0, 0) : 1, r = seed * 0x9E3779B97F4A7C15UL + 1;
	int threads = argc > 3 ? atoi(argv[3]) : 1;
	calls = argc > 2 ? atol(argv[2]) : 100000;
	if (argc > 4)
		options = argv[4];
	if (threads <= 1) {
		for (long i = 0; i < calls; i++)
			one_call(&r);
		return 0;
	}
	left_of_all = calls;
	for (int i = 0; i < threads - 1; i++)
		pthread_create(&thread[i], 0, work, (void *)(draw(&r) | 1));
	while (left_of_all > 0) {
		for (int i = 0; i < threads - 1; i++)
			if (!pthread_tryjoin_np(thread[i], 0))
				pthread_create(&thread[i], 0, work, (void *)(draw(&r) | 1));
		for (int i = 0; i < 50; i++) {
			pthread_mutex_lock(&lock);
			if (left_of_all-- > 0)
				one_call(&r);
			pthread_mutex_unlock(&lock);
			sched_yield();
		}
	}
	for (int i = 0; i < threads - 1; i++)
		pthread_join(thread[i], 0);
	return 0;
}
