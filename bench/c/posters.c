/* Posters: HTTP requests on persistent connections, and their timing. */
#include "jobs.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

static void post(struct link *poster, uint64_t at)
{
    poster->state = BUSY;
    poster->began = at;
    job.requests_sent++;
    link_send_request(poster, &job.bodies.items[job.next_item++ % job.bodies.count], at);
}

void next_wave(void)
{
    long wanted = job.requests_sent * job.each_till * (long)job.tills_up;
    if (job.messages < wanted || job.posters[0].state == BUSY)
        return;
    if (now_ns() < job.ends && !job.refused)
        post(&job.posters[0], now_ns());
    else
        finish();
}

static struct link *idle_poster(void)
{
    static size_t turn;
    for (size_t i = 0; i < job.poster_count; i++) {
        struct link *poster = &job.posters[turn++ % job.poster_count];
        if (poster->state == OPEN)
            return poster;
    }
    return NULL;
}

static bool more(uint64_t now)
{
    return now < job.ends && !(job.once && job.next_item >= job.bodies.count);
}

/* With a rate, a request without an idle poster is late. Its latency counts from its due time. */
void load_goes_on(void)
{
    struct link *poster;
    uint64_t now = now_ns();
    while (job.period && job.due <= now && more(now) && (poster = idle_poster())) {
        post(poster, job.due);
        job.due += job.period;
    }
    if (job.what != LOADING) /* a poster was lost */
        return;
    if (more(now)) {
        arm(job.period && job.due > now && job.due < job.ends ? job.due : job.ends);
        return;
    }
    if (job.answered + job.refused < job.requests_sent)
        return;
    job.what = SETTLING;
    arm(now + PATIENCE);
    if (job.messages >= job.answered * job.deliveries)
        finish();
}

void poster_opened(struct link *poster)
{
    (void)poster;
    if (++job.posters_up < job.poster_count)
        return;
    uint64_t length = job.ends - job.began;
    job.processor = processor_ns();
    job.began = job.due = now_ns();
    job.ends = job.began + length;
    if (job.what == WAVES) {
        arm(job.ends + PATIENCE);
        next_wave();
        return;
    }
    for (size_t i = 0; !job.period && i < job.poster_count && more(now_ns()); i++)
        post(&job.posters[i], now_ns());
    load_goes_on();
}

size_t poster_received(struct link *poster, char *bytes, size_t length)
{
    char *end = memmem(bytes, length, "\r\n\r\n", 4);
    if (!end)
        return 0;
    size_t head = (size_t)(end + 4 - bytes), body = 0;
    for (char *line = bytes; line < end; line = (char *)memchr(line, '\n', head) + 1)
        if (!strncasecmp(line, "content-length:", 15))
            body = strtoul(line + 15, NULL, 10);
    if (length < head + body)
        return 0;
    uint64_t now = now_ns();
    if (bytes[9] == '2') {
        job.answered++;
        job.in_time += now <= job.ends;
        sample_add(&job.answers, now - poster->began);
    } else {
        job.refused++;
        complain("a request was refused: %.*s", (int)(length < 300 ? length : 300), bytes);
    }
    poster->state = OPEN;
    if (job.refused == 100) {
        finish();
    } else if (job.what == WAVES) {
        next_wave();
    } else if (job.what == LOADING) {
        if (!job.period && more(now))
            post(poster, now);
        load_goes_on();
    }
    return head + body;
}

void dial_posters(size_t count)
{
    job.posters = realloc(job.posters, count * sizeof *job.posters);
    memset(job.posters, 0, count * sizeof *job.posters);
    job.poster_count = count;
    job.posters_up = 0;
    arm(now_ns() + PATIENCE);
    for (size_t i = 0; i < count && job.what != IDLE; i++) {
        job.posters[i].kind = POSTER;
        link_dial(&job.posters[i]);
    }
}
