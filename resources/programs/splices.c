/* splice, tee, vmsplice, sendfile, copy_file_range: bytes arrive whole and in order, offsets move as they should, and what can't be
 * done is refused with the right error. */
#define _GNU_SOURCE
#include "check.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SIZE = 150000 };
static unsigned char pattern[SIZE], seen[SIZE];

static int file_of(const void *bytes, size_t n) {
    FILE *f = tmpfile();
    int fd = fileno(f);
    CHECK(f && write(fd, bytes, n) == (ssize_t)n && lseek(fd, 0, SEEK_SET) == 0, "a file of %zu bytes", n);
    return fd;
}

static void expect(int fd, const void *bytes, size_t n, const char *what) {
    size_t have = 0;
    while (have < n) {
        ssize_t r = read(fd, seen + have, n - have);
        CHECK(r > 0, "%s: read gives %zd after %zu", what, r, have);
        have += (size_t)r;
    }
    CHECK(!memcmp(seen, bytes, n), "%s: other bytes", what);
}

static void through_a_pipe(void) {
    int in = file_of(pattern, SIZE), out = file_of("", 0), p[2];
    CHECK(pipe(p) == 0, "pipe");
    size_t left = SIZE;
    while (left > 0) {
        ssize_t n = splice(in, NULL, p[1], NULL, left, SPLICE_F_MOVE);
        CHECK(n > 0, "splice from a file: %zd", n);
        for (ssize_t to_go = n; to_go > 0;) {
            ssize_t m = splice(p[0], NULL, out, NULL, (size_t)to_go, 0);
            CHECK(m > 0, "splice to a file: %zd", m);
            to_go -= m;
        }
        left -= (size_t)n;
    }
    CHECK(splice(in, NULL, p[1], NULL, 10, 0) == 0, "splice at the end");
    lseek(out, 0, SEEK_SET);
    expect(out, pattern, SIZE, "through a pipe");
    loff_t from = 1000, to = 5;
    CHECK(splice(in, &from, p[1], NULL, 3000, 0) == 3000 && from == 4000, "splice at an offset");
    CHECK(splice(p[0], NULL, out, &to, 3000, 0) == 3000 && to == 3005, "splice to an offset");
    CHECK(pread(out, seen, 3000, 5) == 3000 && !memcmp(seen, pattern + 1000, 3000), "bytes at an offset");
    CHECK(splice(p[0], NULL, out, NULL, 10, SPLICE_F_NONBLOCK) == -1 && errno == EAGAIN, "splice from an empty pipe");
    close(p[1]);
    CHECK(splice(p[0], NULL, out, NULL, 10, 0) == 0, "splice from a pipe without writers");
    puts("through a pipe");
}

static void between_pipes(void) {
    int a[2], b[2], pair[2];
    CHECK(pipe(a) == 0 && pipe(b) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0, "pipes");
    CHECK(write(a[1], pattern, 10000) == 10000, "write");
    CHECK(tee(a[0], b[1], 20000, 0) == 10000, "tee");
    expect(b[0], pattern, 10000, "tee");
    CHECK(splice(a[0], NULL, b[1], NULL, 20000, 0) == 10000, "splice between pipes");
    expect(b[0], pattern, 10000, "splice between pipes");
    CHECK(tee(a[0], b[1], 10, SPLICE_F_NONBLOCK) == -1 && errno == EAGAIN, "tee of an empty pipe");
    struct iovec v[2] = {{pattern, 3000}, {pattern + 3000, 2000}};
    CHECK(vmsplice(a[1], v, 2, 0) == 5000, "vmsplice");
    CHECK(splice(a[0], NULL, pair[0], NULL, 5000, 0) == 5000, "splice to a socket");
    expect(pair[1], pattern, 5000, "a socket");
    CHECK(write(pair[1], pattern, 100) == 100 && splice(pair[0], NULL, a[1], NULL, 1000, 0) == 100, "splice from a socket");
    struct iovec into = {seen, 100};
    CHECK(vmsplice(a[0], &into, 1, 0) == 100 && !memcmp(seen, pattern, 100), "vmsplice from a pipe");
    fcntl(b[1], F_SETFL, O_NONBLOCK);
    while (write(b[1], pattern, 4096) > 0)
        ;
    CHECK(write(a[1], pattern, 10) == 10, "write");
    CHECK(splice(a[0], NULL, b[1], NULL, 10, 0) == -1 && errno == EAGAIN, "splice to a full pipe");
    signal(SIGPIPE, SIG_IGN);
    close(b[0]);
    CHECK(splice(a[0], NULL, b[1], NULL, 10, 0) == -1 && errno == EPIPE, "splice to nobody");
    puts("between pipes");
}

/* A reader that splices and a writer that does, at once; the pipe is smaller than what goes through. */
static void at_once(void) {
    int p[2], in = file_of(pattern, SIZE), out = file_of("", 0);
    CHECK(pipe(p) == 0, "pipe");
    pid_t pid = fork();
    if (pid == 0) {
        close(p[0]);
        for (size_t left = SIZE; left > 0;) {
            ssize_t n = splice(in, NULL, p[1], NULL, left, 0);
            CHECK(n > 0, "splice: %zd", n);
            left -= (size_t)n;
        }
        _exit(0);
    }
    close(p[1]);
    ssize_t n;
    size_t all = 0;
    while ((n = splice(p[0], NULL, out, NULL, SIZE, 0)) > 0)
        all += (size_t)n;
    int status;
    CHECK(n == 0 && all == SIZE && waitpid(pid, &status, 0) == pid && status == 0, "%zu bytes, status %#x", all, status);
    lseek(out, 0, SEEK_SET);
    expect(out, pattern, SIZE, "at once");
    puts("at once");
}

static void between_files(void) {
    int in = file_of(pattern, SIZE), out = file_of("", 0), p[2];
    CHECK(pipe(p) == 0, "pipe");
    off_t at = 100;
    CHECK(sendfile(out, in, &at, 5000) == 5000 && at == 5100 && lseek(in, 0, SEEK_CUR) == 0, "sendfile at an offset");
    CHECK(sendfile(p[1], in, NULL, 4000) == 4000 && lseek(in, 0, SEEK_CUR) == 4000, "sendfile to a pipe");
    expect(p[0], pattern, 4000, "sendfile to a pipe");
    loff_t from = 0, to = 10000;
    CHECK(copy_file_range(in, &from, out, &to, 3000, 0) == 3000 && from == 3000 && to == 13000, "copy_file_range");
    CHECK(pread(out, seen, 3000, 10000) == 3000 && !memcmp(seen, pattern, 3000), "copy_file_range: bytes");
    CHECK(pread(out, seen, 5000, 0) == 5000 && !memcmp(seen, pattern + 100, 5000), "sendfile: bytes");
    CHECK(sendfile(out, p[0], NULL, 10) == -1 && errno == EINVAL, "sendfile from a pipe");
    CHECK(copy_file_range(p[0], NULL, out, NULL, 10, 0) == -1 && errno == EINVAL, "copy_file_range from a pipe");
    CHECK(copy_file_range(in, NULL, out, NULL, 10, 1) == -1 && errno == EINVAL, "copy_file_range with flags");
    puts("between files");
}

static void refusals(void) {
    int in = file_of(pattern, 100), p[2], q[2];
    loff_t at = 0;
    CHECK(pipe(p) == 0 && pipe(q) == 0, "pipes");
    CHECK(splice(in, NULL, in, NULL, 10, 0) == -1 && errno == EINVAL, "splice without a pipe");
    CHECK(splice(p[0], NULL, p[1], NULL, 10, 0) == -1 && errno == EINVAL, "splice of a pipe with itself");
    CHECK(splice(in, NULL, p[1], &at, 10, 0) == -1 && errno == ESPIPE, "an offset in a pipe");
    CHECK(splice(p[1], NULL, q[1], NULL, 10, 0) == -1 && errno == EBADF, "splice from the wrong end");
    CHECK(splice(in, NULL, p[0], NULL, 10, 0) == -1 && errno == EBADF, "splice to the wrong end");
    CHECK(splice(-1, NULL, p[1], NULL, 10, 0) == -1 && errno == EBADF, "splice from nothing");
    CHECK(splice(in, NULL, p[1], NULL, 10, 16) == -1 && errno == EINVAL, "an unknown flag");
    CHECK(splice(in, NULL, p[1], NULL, 0, 0) == 0, "splice of nothing");
    CHECK(tee(in, p[1], 10, 0) == -1 && errno == EINVAL, "tee of a file");
    struct iovec v = {pattern, 10};
    CHECK(vmsplice(in, &v, 1, 0) == -1 && errno == EBADF, "vmsplice to a file");
    fcntl(in, F_SETFL, O_APPEND);
    CHECK(write(p[1], "x", 1) == 1 && splice(p[0], NULL, in, NULL, 1, 0) == -1 && errno == EINVAL, "splice to an appending file");
    puts("refusals");
}

int main(void) {
    for (int i = 0; i < SIZE; i++)
        pattern[i] = (unsigned char)(i * 7 + i / 251);
    setvbuf(stdout, NULL, _IOLBF, 0);
    through_a_pipe();
    between_pipes();
    at_once();
    between_files();
    refusals();
    puts("PASS splices");
    return 0;
}
