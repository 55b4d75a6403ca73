/* Reads of packed checkpoints as from a slow disk, for whoever this library is loaded into.

   SLOW_DISK_BYTES_PER_SECOND  how fast it is. Unset: as fast as the real one.
   SLOW_DISK_GIVES             a file with a number: so many bytes are given once it is written, and
                               whoever asks for more waits until it is gone. Unset, or no such file:
                               all are given. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

typedef ssize_t read_function(int, const struct iovec *, int, off64_t, int);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static double free_at;
static long long asked;
static struct timespec counted_since;

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec + time.tv_nsec / 1e9;
}

static void sleep_for(double seconds) {
  if (seconds <= 0) return;
  struct timespec time = {(time_t)seconds, (long)((seconds - (time_t)seconds) * 1e9)};
  nanosleep(&time, NULL);
}

static int is_of_a_checkpoint(int fd) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t size = readlink(link, path, sizeof path - 1);
  if (size < 0) return 0;
  path[size] = 0;
  /* A node measures its disk when it starts, with a file of its own. */
  return strstr(path, "/partition-") != NULL || strstr(path, "/.probe") != NULL;
}

/* Counts anew if the file was written since. Under the lock. */
static void begin_to_count(void) {
  struct stat found;
  const char *path = getenv("SLOW_DISK_GIVES");
  if (!path || stat(path, &found)) return;
  if (found.st_mtim.tv_sec == counted_since.tv_sec && found.st_mtim.tv_nsec == counted_since.tv_nsec)
    return;
  counted_since = found.st_mtim;
  asked = 0;
}

static void wait_until_given(long long last) {
  const char *path = getenv("SLOW_DISK_GIVES");
  while (path) {
    long long given = 0;
    FILE *file = fopen(path, "r");
    if (!file) return;
    if (fscanf(file, "%lld", &given) != 1) given = 0;
    fclose(file);
    if (last <= given) return;
    sleep_for(0.002);
  }
}

static ssize_t slowed(read_function *real, int fd, const struct iovec *parts, int count,
                      off64_t offset, int flags) {
  if (!is_of_a_checkpoint(fd)) return real(fd, parts, count, offset, flags);
  const char *rate = getenv("SLOW_DISK_BYTES_PER_SECOND");
  long long size = 0;
  for (int part = 0; part < count; part++) size += parts[part].iov_len;
  pthread_mutex_lock(&lock);
  begin_to_count();
  asked += size;
  long long last = asked;
  double began = now();
  if (free_at < began) free_at = began;
  if (rate) free_at += size / atof(rate);
  double until = free_at;
  pthread_mutex_unlock(&lock);
  wait_until_given(last);
  ssize_t done = real(fd, parts, count, offset, flags);
  if (rate) sleep_for(until - now());
  return done;
}

ssize_t preadv64v2(int fd, const struct iovec *parts, int count, off64_t offset, int flags) {
  static read_function *real;
  if (!real) real = (read_function *)dlsym(RTLD_NEXT, "preadv64v2");
  return slowed(real, fd, parts, count, offset, flags);
}

ssize_t preadv2(int fd, const struct iovec *parts, int count, off64_t offset, int flags) {
  static read_function *real;
  if (!real) real = (read_function *)dlsym(RTLD_NEXT, "preadv2");
  return slowed(real, fd, parts, count, offset, flags);
}
