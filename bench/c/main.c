/* loader PORT: one thread and one epoll; commands on stdin, one JSON object for each on stdout. */
#include "loader.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/timerfd.h>
#include <unistd.h>

static void find(const struct request *request, const char *mark, size_t **places, size_t *count)
{
    const char *at = request->bytes, *end = request->bytes + request->length;
    while ((at = memmem(at, (size_t)(end - at), mark, strlen(mark)))) {
        *places = realloc(*places, (*count + 1) * sizeof **places);
        (*places)[(*count)++] = (size_t)(at - request->bytes);
        at += strlen(mark);
    }
}

/* Read a file of requests: for each the length in decimal, a newline, and its bytes. */
bool requests_read(struct requests *requests, const char *path)
{
    FILE *file = fopen(path, "rb");
    size_t length;
    *requests = (struct requests){0};
    if (!file)
        return false;
    while (fscanf(file, "%zu", &length) == 1 && fgetc(file) == '\n') {
        requests->items =
            realloc(requests->items, (requests->count + 1) * sizeof *requests->items);
        struct request *request = &requests->items[requests->count];
        *request = (struct request){.bytes = malloc(length), .length = length};
        if (fread(request->bytes, 1, length, file) != length)
            break;
        find(request, STAMP, &request->stamps, &request->stamp_count);
        find(request, COUNTER, &request->counters, &request->counter_count);
        requests->count++;
    }
    fclose(file);
    return requests->count > 0;
}

static bool commands(void)
{
    static char line[4096];
    static size_t length;
    ssize_t got = read(STDIN_FILENO, line + length, sizeof line - length - 1);
    if (got <= 0)
        return got < 0 && errno == EAGAIN;
    length += (size_t)got;
    char *end;
    while ((end = memchr(line, '\n', length))) {
        *end = '\0';
        job_command(line);
        length -= (size_t)(end + 1 - line);
        memmove(line, end + 1, length);
    }
    return true;
}

int main(int count, char **arguments)
{
    if (count != 2)
        return fprintf(stderr, "usage: loader PORT\n"), 2;
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_TIMERSLACK, 1);
    fcntl(STDIN_FILENO, F_SETFL, O_NONBLOCK);
    setvbuf(stdout, NULL, _IOLBF, 0);
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    links_start(epoll, (uint16_t)atoi(arguments[1]));
    /* Descriptors that are not links: a null pointer marks stdin, and this one the timer. */
    static int timer_mark;
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN};
    epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &event);
    event.data.ptr = &timer_mark;
    epoll_ctl(epoll, EPOLL_CTL_ADD, timer, &event);
    jobs_start(timer);
    for (;;) {
        struct epoll_event ready[256];
        int number = epoll_wait(epoll, ready, 256, -1);
        bool commanded = false;
        for (int i = 0; i < number; i++) {
            if (!ready[i].data.ptr)
                commanded = true;
            else if (ready[i].data.ptr == &timer_mark) {
                uint64_t expirations;
                if (read(timer, &expirations, sizeof expirations) > 0)
                    job_timer();
            } else {
                link_ready(ready[i].data.ptr, ready[i].events);
            }
        }
        /* Handle commands last, because they may free links that are in `ready`. */
        if (commanded && !commands())
            return 0;
    }
}
