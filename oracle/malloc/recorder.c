/* Records every call of malloc and its family, in their true order, without touching the heap:
 *
 *     gcc -O2 -shared -fPIC -ftls-model=initial-exec -o recorder.so recorder.c
 *     MMTWIN_MALLOC_TRACE=/tmp/trace LD_PRELOAD=./recorder.so program        writes /tmp/trace.PID for each process
 *
 * The records are written through a shared mapping of the file at a fixed address far from where the kernel places mappings, so that neither
 * the heap nor the mapping area notices. One lock is held around each call; what a thread's end does to the heap (its tcache is freed in
 * the C library, which calls nobody) is put where it happened by keeping the lock until the thread is gone.
 *
 * Where a call may make the kernel place a mapping, the process's mappings are looked at before and after it, and told when somebody
 * else changed them in between. A forked child's file begins with its parent's records.
 *
 * This file is part of mmtwin. Licence: GPL-2.0-or-later.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <dlfcn.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <unistd.h>

#define WINDOW ((char *)0x100000000000)
#define FILE_SIZE (1UL << 32)
#define LARGE 60000 /* below this a request of the first thread needs no mapping, whatever the thresholds that free() sets */
#define MAX_RANGES 8192
/* main_arena is no symbol; where it is, seen from stdin's FILE, is the same in every copy of one build. */
#ifndef MAIN_ARENA_FROM_STDIN
#define MAIN_ARENA_FROM_STDIN 480
#endif

enum { MALLOC = 1, FREE, CALLOC, REALLOC, MEMALIGN, POSIX_MEMALIGN, VALLOC, PVALLOC, MALLOPT, TRIM, THREAD_EXIT, MAPS, BRK, THREAD_CREATE };

struct header {
	char magic[8]; /* "MMTWMALC" */
	uint32_t version, record_size;
	uint64_t records;
	uint64_t mmap_base, brk, main_arena;
	uint64_t ram_pages; /* RAM and swap: what one request may be at most */
	uint32_t cpus, overcommit;
	char release[64], comm[16], libc[40];
};
struct record {
	uint8_t kind, first;
	uint16_t thread;
	uint32_t count;
	int64_t a, b, result;
};
struct range { uint64_t start, end; };

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t), *__libc_memalign(size_t, size_t);
extern void *__libc_valloc(size_t), *__libc_pvalloc(size_t);
extern void __libc_free(void *);
extern int __libc_mallopt(int, int);
extern const char *gnu_get_libc_version(void);

static struct header *head;
static struct record *records;
static uint64_t used;
static int process, threads, owner, dying, broken, sensitive;
static unsigned dying_thread;
static char own_path[4096], text[1 << 20];
static struct range known[MAX_RANGES], seen[MAX_RANGES];
static int n_known;
static void *last_break;
static pthread_key_t exit_key;
static __thread int tid, depth;
static __thread unsigned thread_number; /* 1 is the first */

static int read_maps(struct range *out)
{
	int fd = syscall(SYS_openat, AT_FDCWD, "/proc/self/maps", O_RDONLY | O_CLOEXEC, 0);
	size_t size = 0;
	long got;
	int n = 0;
	if (fd < 0)
		return 0;
	while (size < sizeof text - 1 && (got = syscall(SYS_read, fd, text + size, sizeof text - 1 - size)) > 0)
		size += got;
	syscall(SYS_close, fd);
	text[size] = 0;
	for (char *line = text; *line;) {
		char *end = strchr(line, '\n'), *at = line;
		uint64_t numbers[2] = { 0, 0 };
		if (!end)
			break;
		for (int i = 0; i < 2; i++, at++)
			for (; *at != '-' && *at != ' '; at++)
				numbers[i] = numbers[i] * 16 + (*at <= '9' ? *at - '0' : *at - 'a' + 10);
		if (end - line < 6 || memcmp(end - 6, "[heap]", 6)) {
			if (n && out[n - 1].end == numbers[0])
				out[n - 1].end = numbers[1];
			else if (n < MAX_RANGES)
				out[n++] = (struct range){ numbers[0], numbers[1] };
		}
		line = end + 1;
	}
	return n;
}

static struct record *new_record(int kind, int64_t a, int64_t b)
{
	if (broken || (used + 2) * sizeof *records > FILE_SIZE - 4096)
		return 0;
	struct record *r = &records[used++];
	*r = (struct record){ .kind = kind, .thread = thread_number, .a = a, .b = b };
	return r;
}

static void publish(void)
{
	__atomic_store_n(&head->records, used, __ATOMIC_RELEASE);
}

static void tell_maps(struct range *ranges, int n)
{
	for (int i = 0; i < n; i++) {
		struct record *r = new_record(MAPS, ranges[i].start, ranges[i].end);
		if (r)
			r->first = i == 0, r->count = n;
	}
	memcpy(known, ranges, n * sizeof *ranges);
	n_known = n;
}

static void name_file(char *out, int pid)
{
	char digits[12];
	int n = 0;
	const char *base = getenv("MMTWIN_MALLOC_TRACE");
	size_t length = base ? strlen(base) : 0;
	if (!length || length > 4000) {
		*out = 0;
		return;
	}
	memcpy(out, base, length);
	out[length++] = '.';
	do
		digits[n++] = '0' + pid % 10;
	while (pid /= 10);
	while (n)
		out[length++] = digits[--n];
	out[length] = 0;
}

static int map_file(const char *path)
{
	int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd < 0 || syscall(SYS_ftruncate, fd, FILE_SIZE) < 0)
		return -1;
	char *window = (char *)syscall(SYS_mmap, WINDOW, FILE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	syscall(SYS_close, fd);
	if (window != WINDOW)
		return -1;
	head = (struct header *)window;
	records = (struct record *)(window + sizeof *head);
	return 0;
}

static void thread_ends(void *unused);

static void start(void)
{
	struct utsname names;
	struct sysinfo info;
	process = syscall(SYS_getpid);
	name_file(own_path, process);
	if (!*own_path || map_file(own_path)) {
		broken = 1;
		return;
	}
	memcpy(head->magic, "MMTWMALC", 8);
	head->version = 1;
	head->record_size = sizeof *records;
	uname(&names);
	memcpy(head->release, names.release, 64);
	syscall(SYS_sysinfo, &info);
	head->ram_pages = (info.totalram + info.totalswap) / 4096 * info.mem_unit;
	head->cpus = get_nprocs();
	int fd = syscall(SYS_openat, AT_FDCWD, "/proc/sys/vm/overcommit_memory", O_RDONLY | O_CLOEXEC, 0);
	char mode = '0';
	if (fd >= 0) {
		syscall(SYS_read, fd, &mode, 1);
		syscall(SYS_close, fd);
	}
	head->overcommit = mode - '0';
	fd = syscall(SYS_openat, AT_FDCWD, "/proc/self/comm", O_RDONLY | O_CLOEXEC, 0);
	if (fd >= 0) {
		syscall(SYS_read, fd, head->comm, 15);
		syscall(SYS_close, fd);
	}
	strncpy(head->libc, gnu_get_libc_version(), 39);
	head->main_arena = (uint64_t)stdin + MAIN_ARENA_FROM_STDIN;
	last_break = sbrk(0);
	head->brk = (uint64_t)last_break;
	/* The highest place for one page tells where the area ends: there, or at the end of what lies behind it. */
	int n = read_maps(seen);
	uint64_t probe = syscall(SYS_mmap, 0, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), end = probe + 4096;
	syscall(SYS_munmap, probe, 4096);
	for (int i = 0; i < n; i++)
		if (seen[i].start >= end && seen[i].start < probe + (64UL << 20) && seen[i].end - seen[i].start < (64UL << 20))
			end = seen[i].end;
	head->mmap_base = end;
	pthread_key_create(&exit_key, thread_ends);
	tell_maps(seen, n);
	publish();
}

static void after_fork(void)
{
	char parent[4096];
	struct header copy = *head;
	uint64_t left = sizeof *head + used * sizeof *records, at = 0;
	memcpy(parent, own_path, sizeof parent);
	process = syscall(SYS_getpid);
	tid = syscall(SYS_gettid);
	name_file(own_path, process);
	int fd = syscall(SYS_openat, AT_FDCWD, parent, O_RDONLY | O_CLOEXEC, 0);
	if (fd < 0 || map_file(own_path)) {
		broken = 1;
		return;
	}
	while (left) {
		long got = syscall(SYS_pread64, fd, WINDOW + at, left, at);
		if (got <= 0) {
			broken = 1;
			break;
		}
		left -= got;
		at += got;
	}
	syscall(SYS_close, fd);
	*head = copy;
	publish();
	owner = dying = 0;
}

static void take_lock(void)
{
	int error = errno;
	if (!tid)
		tid = syscall(SYS_gettid);
	if (owner == tid) {
		depth++;
		return;
	}
	if (process && process != syscall(SYS_getpid) && !broken)
		after_fork();
	for (;;) {
		int expected = 0;
		if (__atomic_compare_exchange_n(&owner, &expected, tid, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
			break;
		if (dying == expected && syscall(SYS_tgkill, process, expected, 0) < 0 &&
		    __atomic_compare_exchange_n(&owner, &expected, tid, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) {
			unsigned self = thread_number;
			thread_number = dying_thread;
			new_record(THREAD_EXIT, 0, 0);
			thread_number = self;
			dying = 0;
			tell_maps(seen, read_maps(seen)); /* its stack may be gone, too */
			break;
		}
		sched_yield();
	}
	if (!process)
		start();
	if (!thread_number) {
		thread_number = ++threads;
		if (thread_number > 1 && !broken)
			pthread_setspecific(exit_key, (void *)1);
	}
	errno = error;
}

static void give_lock(void)
{
	if (depth) {
		depth--;
		return;
	}
	if (!broken)
		publish();
	if (dying != tid)
		__atomic_store_n(&owner, 0, __ATOMIC_RELEASE);
}

/* The last of a thread's own code: from here on nobody else calls until the thread is gone. */
static void thread_ends(void *unused)
{
	take_lock();
	dying_thread = thread_number;
	dying = tid;
	if (depth)
		depth--;
}

static int watch(size_t size)
{
	return size >= LARGE || sensitive || thread_number > 1;
}

static int is_mapped(void *p)
{
	return p && (((size_t *)p)[-1] & 6); /* its own mapping, or in an arena that is one */
}

static int before(int watched)
{
	int error = errno;
	void *now = sbrk(0);
	if (now != last_break)
		new_record(BRK, (int64_t)now, 0);
	if (watched) {
		int n = read_maps(seen);
		if (n != n_known || memcmp(seen, known, n * sizeof *seen))
			tell_maps(seen, n);
	}
	errno = error;
	return watched;
}

static void after(int watched)
{
	int error = errno;
	last_break = sbrk(0);
	if (watched)
		n_known = read_maps(known);
	errno = error;
}

#define RECORDED(kind, x, y, watched, expression)                      \
	take_lock();                                                   \
	int looks = !broken && before(watched);                        \
	struct record *r = new_record(kind, (int64_t)(x), (int64_t)(y)); \
	void *result = (expression);                                   \
	if (r)                                                         \
		r->result = (int64_t)result;                           \
	if (!broken)                                                   \
		after(looks);                                          \
	give_lock();                                                   \
	return result

void *malloc(size_t size)
{
	RECORDED(MALLOC, size, 0, watch(size), __libc_malloc(size));
}

void *calloc(size_t n, size_t size)
{
	RECORDED(CALLOC, n, size, watch(n > 0x100000 || size > 0x100000 ? LARGE : n * size), __libc_calloc(n, size));
}

void *realloc(void *p, size_t size)
{
	RECORDED(REALLOC, p, size, watch(size) || is_mapped(p), __libc_realloc(p, size));
}

void *memalign(size_t alignment, size_t size)
{
	RECORDED(MEMALIGN, alignment, size, watch(size) || watch(alignment), __libc_memalign(alignment, size));
}

void *aligned_alloc(size_t alignment, size_t size)
{
	RECORDED(MEMALIGN, alignment, size, watch(size) || watch(alignment), __libc_memalign(alignment, size));
}

void *valloc(size_t size)
{
	RECORDED(VALLOC, size, 0, watch(size), __libc_valloc(size));
}

void *pvalloc(size_t size)
{
	RECORDED(PVALLOC, size, 0, watch(size), __libc_pvalloc(size));
}

static void *posix_memalign_result(size_t alignment, size_t size)
{
	RECORDED(POSIX_MEMALIGN, alignment, size, watch(size) || watch(alignment), __libc_memalign(alignment, size));
}

int posix_memalign(void **out, size_t alignment, size_t size)
{
	if (alignment % sizeof(void *) || alignment & (alignment - 1) || !alignment)
		return EINVAL;
	int error = errno;
	void *p = posix_memalign_result(alignment, size);
	errno = error;
	if (!p)
		return ENOMEM;
	*out = p;
	return 0;
}

void free(void *p)
{
	if (!p)
		return;
	take_lock();
	int looks = !broken && before(watch(0) || is_mapped(p));
	new_record(FREE, (int64_t)p, 0);
	__libc_free(p);
	if (!broken)
		after(looks);
	give_lock();
}

int mallopt(int parameter, int value)
{
	take_lock();
	struct record *r = broken ? 0 : new_record(MALLOPT, parameter, value);
	int result = __libc_mallopt(parameter, value);
	if (r)
		r->result = result;
	sensitive = 1;
	give_lock();
	return result;
}

int malloc_trim(size_t pad)
{
	static int (*real)(size_t);
	if (!real)
		real = dlsym(RTLD_NEXT, "malloc_trim");
	take_lock();
	int looks = !broken && before(1);
	struct record *r = broken ? 0 : new_record(TRIM, pad, 0);
	int result = real(pad);
	if (r)
		r->result = result;
	if (!broken)
		after(looks);
	give_lock();
	return result;
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*routine)(void *), void *argument)
{
	static int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
	if (!real)
		real = dlsym(RTLD_NEXT, "pthread_create");
	take_lock();
	if (!broken)
		new_record(THREAD_CREATE, 0, 0);
	give_lock();
	return real(thread, attributes, routine, argument);
}
