/* ctest-labels: tsan */
#include "kvstore/disk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/clock.h"
#include "common/file.h"
#include "common/log.h"

enum { CONTENTS = 5000, FILE_BYTES = CONTENTS + KV_DISK_HEADER, ROOM = 8192 /* that one takes */ };

static char dir[64];

static int setup(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/longspan-disk-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    return file_remove_tree(dir, NULL);
}

static struct digest id_of(uint32_t n)
{
    return digest_of(&n, sizeof n);
}

static struct kv_disk_config config_of(uint64_t blocks)
{
    return (struct kv_disk_config){
        .dir = dir, .bytes_max = blocks * ROOM, .contents_bytes_max = CONTENTS, .fingerprint = digest_of("print", 5)
    };
}

static struct kv_disk *open_of(const struct kv_disk_config *config)
{
    struct kv_disk *d;
    struct error err = { 0 };
    if (kv_disk_open(config, &d, &err))
        fail_msg("%s", err.text);
    return d;
}

static uint8_t *file_of(uint32_t n)
{
    uint8_t *file = malloc(FILE_BYTES);
    for (uint32_t i = 0; i < CONTENTS; i++)
        file[KV_DISK_HEADER + i] = (uint8_t)(n * 31 + i);
    return file;
}

/* The next event, waited for. */
static struct kv_disk_event next(struct kv_disk *d)
{
    struct kv_disk_event e;
    const int64_t until = clock_ms() + 60000;
    while (!kv_disk_next(d, &e)) {
        if (clock_ms() > until)
            fail_msg("no event came");
        usleep(200);
    }
    return e;
}

static void put(struct kv_disk *d, uint32_t n)
{
    const struct digest id = id_of(n);
    assert_int_equal(kv_disk_wants(d, &id, CONTENTS, 60000), ST_OK);
    kv_disk_put(d, &id, n, file_of(n), FILE_BYTES);
}

static void stored(struct kv_disk *d, uint32_t n, enum kv_disk_event_kind kind)
{
    const struct kv_disk_event e = next(d);
    const struct digest id = id_of(n);
    assert_int_equal(e.kind, kind);
    assert_memory_equal(&e.id, &id, sizeof id);
    assert_int_equal(e.position, n);
}

/* Reads it; -> status */
static enum status get(struct kv_disk *d, uint32_t n)
{
    const struct digest id = id_of(n);
    enum status st = kv_disk_get(d, &id, 1000 + n);
    if (st)
        return st;
    struct kv_disk_event e = next(d);
    if (e.kind == KV_DISK_GONE) /* said before the read that found it out */
        e = next(d);
    assert_int_equal(e.kind, KV_DISK_READ);
    assert_int_equal(e.tag, 1000 + n);
    if (!e.status) {
        uint8_t *want = file_of(n);
        assert_int_equal(e.bytes, FILE_BYTES);
        assert_int_equal(e.position, n);
        assert_memory_equal(e.file + KV_DISK_HEADER, want + KV_DISK_HEADER, CONTENTS);
        free(want);
    }
    free(e.file);
    return e.status;
}

static struct kv_disk_stats stats_of(struct kv_disk *d)
{
    struct kv_disk_stats s;
    kv_disk_stats(d, &s);
    return s;
}

static void path_of(uint32_t n, const char *ending, char path[200])
{
    const struct digest id = id_of(n);
    char hex[33];
    digest_text(&id, hex);
    snprintf(path, 200, "%s/0/%s%s", dir, hex, ending);
}

static void test_kept(void **state)
{
    (void)state;
    const struct kv_disk_config config = config_of(100);
    struct kv_disk *d = open_of(&config);
    struct kv_disk_block *blocks;
    const struct digest none = id_of(77);
    struct stat about;
    char path[200];
    uint32_t n;
    for (uint32_t i = 0; i < 10; i++)
        put(d, i);
    for (uint32_t i = 0; i < 10; i++)
        stored(d, i, KV_DISK_STORED);
    const struct digest first = id_of(0);
    assert_int_equal(kv_disk_wants(d, &first, CONTENTS, 0), ST_EXISTS);
    assert_int_equal(kv_disk_wants(d, &none, CONTENTS + 1, 0), ST_TOO_LARGE);
    assert_int_equal(kv_disk_get(d, &none, 1), ST_NOT_FOUND);
    assert_int_equal(get(d, 3), ST_OK);
    assert_int_equal(stats_of(d).read, 1);
    path_of(3, ".kv", path);
    assert_int_equal(stat(path, &about), 0);
    assert_int_equal(about.st_mode & 0777, 0600);
    snprintf(path, sizeof path, "%s/0", dir);
    assert_int_equal(stat(path, &about), 0);
    assert_int_equal(about.st_mode & 0777, 0700);
    kv_disk_close(d);

    d = open_of(&config); /* as after a restart */
    assert_int_equal(kv_disk_list(d, &blocks, &n), ST_OK);
    assert_int_equal(n, 10);
    free(blocks);
    for (uint32_t i = 0; i < 10; i++)
        assert_int_equal(get(d, i), ST_OK);
    assert_int_equal(stats_of(d).bytes, 10 * ROOM);
    kv_disk_close(d);

    const struct kv_disk_config few = config_of(4); /* less room: the oldest go */
    d = open_of(&few);
    assert_int_equal(stats_of(d).blocks, 4);
    kv_disk_close(d);

    struct kv_disk_config other = config;
    other.fingerprint = digest_of("another", 7);
    d = open_of(&other);
    assert_int_equal(stats_of(d).blocks, 0);
    assert_int_equal(stats_of(d).refused, 4);
    kv_disk_close(d);
    kv_disk_close(NULL);
}

/* What was used last stays. */
static void test_bound(void **state)
{
    (void)state;
    const struct kv_disk_config config = config_of(3);
    struct kv_disk *d = open_of(&config);
    for (uint32_t i = 0; i < 3; i++) {
        put(d, i);
        stored(d, i, KV_DISK_STORED);
    }
    assert_int_equal(get(d, 0), ST_OK);
    put(d, 3);
    stored(d, 1, KV_DISK_GONE);
    stored(d, 3, KV_DISK_STORED);
    const struct digest used = id_of(2);
    assert_int_equal(kv_disk_wants(d, &used, CONTENTS, 0), ST_EXISTS);
    put(d, 4);
    stored(d, 0, KV_DISK_GONE);
    stored(d, 4, KV_DISK_STORED);
    assert_int_equal(get(d, 0), ST_NOT_FOUND);
    assert_int_equal(get(d, 2), ST_OK);
    const struct kv_disk_stats s = stats_of(d);
    assert_int_equal(s.blocks, 3);
    assert_int_equal(s.evicted, 2);
    assert_int_equal(s.written, 5);
    assert_true(s.bytes <= config.bytes_max);
    kv_disk_close(d);
}

static void damage(uint32_t n, int how)
{
    char path[200];
    path_of(n, ".kv", path);
    const int fd = open(path, O_RDWR);
    uint8_t byte;
    assert_true(fd >= 0);
    if (how < 0) {
        assert_int_equal(ftruncate(fd, FILE_BYTES + how), 0);
    } else if (how < FILE_BYTES) {
        assert_int_equal(pread(fd, &byte, 1, how), 1);
        byte ^= 0x10;
        assert_int_equal(pwrite(fd, &byte, 1, how), 1);
    } else {
        assert_int_equal(pwrite(fd, "x", 1, how), 1);
    }
    close(fd);
}

/* Flipped bits in every field and in the contents, files that are too short or too long, or not there: never read, counted, gone. */
static void test_damaged(void **state)
{
    (void)state;
    static const int places[] = { 0,  5,         9,           25,        40, 45, 48, 57, 65, 72, 2000, FILE_BYTES - 1,
                                  -1, -CONTENTS, -FILE_BYTES, FILE_BYTES };
    enum { N = sizeof places / sizeof *places };
    const struct kv_disk_config config = config_of(100);
    struct kv_disk *d = open_of(&config);
    for (uint32_t i = 0; i < N; i++) {
        put(d, i);
        stored(d, i, KV_DISK_STORED);
        damage(i, places[i]);
        assert_int_equal(get(d, i), ST_CORRUPT);
        assert_int_equal(get(d, i), ST_NOT_FOUND);
        assert_int_equal(stats_of(d).refused, i + 1);
        put(d, i); /* it may be written again */
        stored(d, i, KV_DISK_STORED);
        assert_int_equal(get(d, i), ST_OK);
    }
    char path[200], link[200];
    path_of(0, ".kv", path);
    unlink(path);
    assert_int_equal(get(d, 0), ST_NOT_FOUND);
    assert_int_equal(stats_of(d).failed, 1);
    path_of(1, ".kv", path);
    unlink(path);
    path_of(2, ".kv", link);
    assert_int_equal(symlink(link, path), 0); /* links are not followed */
    assert_int_equal(get(d, 1), ST_IO);
    const struct digest third = id_of(2);
    kv_disk_refuse(d, &third);
    stored(d, 2, KV_DISK_GONE);
    assert_int_equal(get(d, 2), ST_NOT_FOUND);
    kv_disk_close(d);
}

/* The same, found when a folder is opened; and what is not ours there stays. */
static void test_scanned(void **state)
{
    (void)state;
    const struct kv_disk_config config = config_of(100);
    struct kv_disk *d = open_of(&config);
    char path[200], to[200];
    for (uint32_t i = 0; i < 8; i++)
        put(d, i);
    kv_disk_close(d); /* what waits is written */
    damage(0, 0);
    damage(1, -1);
    damage(2, -FILE_BYTES);
    damage(3, 50);
    path_of(4, ".kv", path);
    path_of(9, ".kv", to);
    assert_int_equal(rename(path, to), 0); /* under another's name */
    damage(5, 3000);                       /* found when it is read */
    path_of(6, ".kv", path);
    path_of(6, ".tmp", to);
    assert_int_equal(rename(path, to), 0);
    snprintf(path, sizeof path, "%s/0/notes.kv", dir);
    assert_int_equal(file_write_atomic(path, "mine", 4, NULL), ST_OK);
    d = open_of(&config);
    assert_int_equal(stats_of(d).refused, 5);
    assert_int_equal(stats_of(d).blocks, 2);
    assert_false(file_exists(to));
    assert_true(file_exists(path));
    assert_int_equal(get(d, 5), ST_CORRUPT);
    assert_int_equal(get(d, 7), ST_OK);
    kv_disk_close(d);
}

/* ---- a disk that fails ---- */

static atomic_int write_mode, read_mode;
enum { WORKS, FULL, SHORT, ENDS, FAILS };

static ssize_t bad_write(int fd, const void *data, size_t bytes)
{
    const int mode = atomic_load(&write_mode);
    if (mode == FULL && bytes < CONTENTS) { /* something was written before */
        errno = ENOSPC;
        return -1;
    }
    return write(fd, data, mode == FULL || mode == SHORT ? bytes / 2 + 1 : bytes);
}

static ssize_t bad_read(int fd, void *data, size_t bytes)
{
    const int mode = atomic_load(&read_mode);
    if (mode == FAILS) {
        errno = EIO;
        return -1;
    }
    return mode == ENDS ? 0 : read(fd, data, mode == SHORT ? bytes / 2 + 1 : bytes);
}

static void test_failing(void **state)
{
    (void)state;
    static const struct kv_disk_io io = { bad_write, bad_read };
    struct kv_disk_config config = config_of(100);
    config.io = &io;
    struct kv_disk *d = open_of(&config);
    atomic_store(&write_mode, SHORT); /* in pieces */
    atomic_store(&read_mode, SHORT);
    put(d, 0);
    stored(d, 0, KV_DISK_STORED);
    assert_int_equal(get(d, 0), ST_OK);
    atomic_store(&write_mode, FULL);
    for (uint32_t i = 1; i < 4; i++)
        put(d, i);
    while (stats_of(d).failed < 3)
        usleep(200);
    assert_int_equal(get(d, 1), ST_NOT_FOUND);
    char path[200];
    path_of(1, ".tmp", path);
    assert_false(file_exists(path)); /* nothing is left of it */
    atomic_store(&write_mode, WORKS);
    put(d, 1);
    stored(d, 1, KV_DISK_STORED);
    atomic_store(&read_mode, FAILS);
    assert_int_equal(get(d, 1), ST_IO);
    assert_int_equal(get(d, 1), ST_NOT_FOUND);
    atomic_store(&read_mode, ENDS);
    assert_int_equal(get(d, 0), ST_CORRUPT);
    atomic_store(&read_mode, WORKS);
    assert_int_equal(stats_of(d).failed, 4);
    assert_int_equal(stats_of(d).refused, 1);
    assert_int_equal(stats_of(d).blocks, 0);
    kv_disk_close(d);
}

/* A folder is one's own; the next one takes the next. */
static void test_locked(void **state)
{
    (void)state;
    const struct kv_disk_config config = config_of(100);
    struct kv_disk *d[KV_DISK_FOLDERS], *more;
    struct error err = { 0 };
    for (int i = 0; i < KV_DISK_FOLDERS; i++) {
        d[i] = open_of(&config);
        assert_int_equal(atoi(strrchr(kv_disk_folder(d[i]), '/') + 1), i);
    }
    assert_int_equal(kv_disk_open(&config, &more, &err), ST_BUSY);
    assert_non_null(strstr(err.text, dir));
    kv_disk_close(d[7]);
    d[7] = open_of(&config);
    assert_non_null(strstr(kv_disk_folder(d[7]), "/7"));
    for (int i = 0; i < KV_DISK_FOLDERS; i++)
        kv_disk_close(d[i]);
    struct kv_disk_config nowhere = config;
    nowhere.dir = "/dev/null/x";
    memset(&err, 0, sizeof err);
    assert_int_equal(kv_disk_open(&nowhere, &more, &err), ST_IO);
    assert_non_null(strstr(err.text, "/dev/null/x"));
    nowhere.dir = "";
    assert_int_equal(kv_disk_open(&nowhere, &more, NULL), ST_INVALID);
}

/* ---- who is behind ---- */

static atomic_bool held;

static ssize_t held_write(int fd, const void *data, size_t bytes)
{
    while (atomic_load(&held))
        usleep(200);
    return write(fd, data, bytes);
}

static void test_behind(void **state)
{
    (void)state;
    static const struct kv_disk_io io = { held_write, read };
    struct kv_disk_config config = config_of(100);
    config.io = &io;
    config.queue_bytes_max = 3 * FILE_BYTES;
    struct kv_disk *d = open_of(&config);
    const struct digest late = id_of(9);
    atomic_store(&held, true);
    put(d, 0);
    assert_int_equal(kv_disk_wants(d, &late, CONTENTS, KV_DISK_AHEAD), ST_BUSY); /* half is for those in a hurry */
    for (uint32_t i = 1; i < 3; i++)
        put(d, i);
    assert_int_equal(kv_disk_wants(d, &late, CONTENTS, KV_DISK_AHEAD), ST_BUSY);
    assert_int_equal(kv_disk_wants(d, &late, CONTENTS, 0), ST_BUSY);
    assert_int_equal(kv_disk_wants(d, &late, CONTENTS, 20), ST_BUSY);
    assert_int_equal(stats_of(d).dropped, 2);
    assert_int_equal(get(d, 0), ST_NOT_FOUND); /* not yet */
    atomic_store(&held, false);
    assert_int_equal(kv_disk_wants(d, &late, CONTENTS, 60000), ST_OK);
    for (uint32_t i = 0; i < 3; i++)
        stored(d, i, KV_DISK_STORED);
    /* Nobody takes what was read: reading waits; nobody wants it any more: it goes. */
    for (uint32_t i = 0; i < 3; i++) {
        const struct digest id = id_of(i);
        assert_int_equal(kv_disk_get(d, &id, i), ST_OK);
    }
    kv_disk_cancel(d);
    assert_int_equal(get(d, 2), ST_OK);
    struct kv_disk_event e;
    assert_false(kv_disk_next(d, &e));
    kv_disk_close(d);
}

/* ---- several threads at once ---- */

static void count(void *ctx)
{
    atomic_fetch_add((atomic_int *)ctx, 1);
}

struct user {
    struct kv_disk *disk;
    uint32_t first;
};

static void *use(void *arg)
{
    const struct user *u = arg;
    for (uint32_t i = 0; i < 200; i++) {
        const uint32_t n = u->first + i % 37;
        const struct digest id = id_of(n);
        struct kv_disk_event e;
        if (!kv_disk_wants(u->disk, &id, CONTENTS, i % 3))
            kv_disk_put(u->disk, &id, n, file_of(n), FILE_BYTES);
        kv_disk_get(u->disk, &id, n);
        while (kv_disk_next(u->disk, &e)) {
            if (e.kind == KV_DISK_READ && !e.status) {
                uint8_t *want = file_of((uint32_t)e.tag);
                if (memcmp(e.file + KV_DISK_HEADER, want + KV_DISK_HEADER, CONTENTS) != 0)
                    abort();
                free(want);
            }
            free(e.kind == KV_DISK_READ ? e.file : NULL);
        }
        if (i % 50 == 49)
            kv_disk_cancel(u->disk);
        stats_of(u->disk);
    }
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    atomic_int events = 0;
    struct kv_disk_config config = config_of(50);
    config.on_event = count;
    config.ctx = &events;
    config.queue_bytes_max = 8 * FILE_BYTES;
    struct kv_disk *d = open_of(&config);
    pthread_t threads[3];
    struct user users[3];
    for (uint32_t i = 0; i < 3; i++) {
        users[i] = (struct user){ d, i * 20 };
        assert_int_equal(pthread_create(&threads[i], NULL, use, &users[i]), 0);
    }
    for (uint32_t i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    assert_true(atomic_load(&events) > 0);
    assert_true(stats_of(d).bytes <= config.bytes_max);
    assert_int_equal(stats_of(d).refused, 0);
    kv_disk_close(d);
}

int main(void)
{
    log_set_level(LOG_LEVEL_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_kept, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bound, setup, teardown),
        cmocka_unit_test_setup_teardown(test_damaged, setup, teardown),
        cmocka_unit_test_setup_teardown(test_scanned, setup, teardown),
        cmocka_unit_test_setup_teardown(test_failing, setup, teardown),
        cmocka_unit_test_setup_teardown(test_locked, setup, teardown),
        cmocka_unit_test_setup_teardown(test_behind, setup, teardown),
        cmocka_unit_test_setup_teardown(test_threads, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
