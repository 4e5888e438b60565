/* The measurements. A job begins with a command, and ends with one line of JSON:
 *
 *   open FILE WINDOW MISSED     open the tills, WINDOW at a time; wait until each has MISSED events
 *   waves FILE SECONDS EVENTS   one poster sends a request when all tills have the EVENTS of the previous one
 *   load FILE SECONDS POSTERS RATE DELIVERIES
 *                               POSTERS connections send requests without a pause, or RATE requests per
 *                               second, or with 0 SECONDS each request once; then wait until the tills have
 *                               DELIVERIES events for each request
 *   wait EVENTS SECONDS         wait until the tills have EVENTS events in all, which another client publishes
 *   churn FILE SECONDS WINDOW   open a till, close it after its `connected` message, open the next one
 *   close                       close the tills
 */
#include "jobs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>
#include <time.h>

struct job job;
static int timer;

void arm(uint64_t at)
{
    struct itimerspec when = {.it_value = {(time_t)(at / SECOND), (long)(at % SECOND)}};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
}

void begin(enum work what, uint64_t length)
{
    job.what = what;
    job.next_item = job.done = job.failed = 0;
    job.messages = job.requests_sent = job.answered = job.in_time = job.refused = disorder = 0;
    job.answers.count = latency.count = 0;
    *complaint = '\0';
    job.processor = processor_ns();
    job.began = now_ns();
    job.ends = job.began + length;
}

void finish(void)
{
    uint64_t now = now_ns();
    long missing = 0;
    if (job.what == WAVES)
        missing = job.requests_sent * job.each_till * (long)job.tills_up - job.messages;
    else if (job.what == SETTLING)
        missing = job.answered * job.deliveries - job.messages;
    else if (job.what == WAITING)
        missing = job.deliveries - job.messages;
    job.what = IDLE;
    arm(0);
    for (size_t i = 0; i < job.poster_count; i++)
        link_close(&job.posters[i]);
    job.poster_count = job.posters_up = 0;
    printf("{\"seconds\": %.6f, \"done\": %zu, \"failed\": %zu, \"requests\": %ld, \"in_time\": %ld, "
           "\"refused\": %ld, \"messages\": %ld, \"missing\": %ld, \"disorder\": %ld, "
           "\"processor\": %.6f, \"complaint\": \"%s\"",
           (double)(now - job.began) / 1e9, job.done, job.failed + job.lost, job.answered,
           job.in_time, job.refused, job.messages, missing, disorder,
           (double)(processor_ns() - job.processor) / 1e9, complaint);
    sample_print("answer_ms", &job.answers);
    sample_print("latency_ms", &latency);
    printf("}\n");
}

/* Tills. */

static void dial_next(struct link *till)
{
    till->kind = TILL;
    till->opening = &job.openings.items[job.next_item++ % job.openings.count];
    link_dial(till);
}

static void opening_goes_on(void)
{
    if (job.what != OPENING)
        return;
    while (job.next_item < job.till_count && job.next_item - job.tills_up - job.failed < job.window)
        dial_next(&job.tills[job.next_item]);
    if (job.done + job.failed == job.till_count)
        finish();
}

void till_greeted(struct link *till)
{
    if (job.what == OPENING) {
        job.tills_up++;
        sample_add(&job.answers, now_ns() - till->began);
        job.done += job.each_till == 0;
        opening_goes_on();
    } else if (job.what == CHURNING) {
        uint64_t now = now_ns();
        sample_add(&job.answers, now - till->began);
        job.done++;
        link_close(till);
        if (now < job.ends)
            dial_next(till);
        else if (!--job.window)
            finish();
    }
}

void till_event(struct link *till, uint64_t now)
{
    (void)now;
    job.messages++;
    if (job.what == OPENING) {
        job.done += till->messages == job.each_till;
        opening_goes_on();
    } else if (job.what == WAVES) {
        next_wave();
    } else if ((job.what == SETTLING && job.messages >= job.answered * job.deliveries) ||
               (job.what == WAITING && job.messages >= job.deliveries)) {
        finish();
    }
}

void link_opened(struct link *link)
{
    if (link->kind == TILL)
        till_opened(link);
    else
        poster_opened(link);
}

size_t link_received(struct link *link, char *bytes, size_t length)
{
    return link->kind == TILL ? till_received(link, bytes, length)
                              : poster_received(link, bytes, length);
}

void link_lost(struct link *link, const char *why)
{
    complain("%s: %s", link->kind == TILL ? "a till" : "a poster", why);
    if (link->kind == POSTER) {
        if (job.what != IDLE)
            finish();
        return;
    }
    if (job.what == IDLE) {
        job.lost++;
        return;
    }
    job.failed++;
    if (job.what == OPENING)
        opening_goes_on();
    else if (job.what != CHURNING || job.failed == 100 || !--job.window)
        finish();
}

/* Commands. */

static void close_tills(void)
{
    for (size_t i = 0; i < job.till_count; i++)
        link_close(&job.tills[i]);
    job.till_count = job.tills_up = job.lost = 0;
}

void jobs_start(int with)
{
    timer = with;
}

void job_timer(void)
{
    uint64_t now = now_ns();
    if (job.what == LOADING && now < job.ends + PATIENCE) {
        load_goes_on();
        if (job.what == LOADING && now >= job.ends)
            arm(job.ends + PATIENCE);
    } else if (job.what != IDLE) {
        complain("it did not end in time");
        finish();
    }
}

/* Allocate a till for each opening in the file, or `count` of them. */
static bool read_openings(const char *path, size_t count)
{
    close_tills();
    if (!requests_read(&job.openings, path))
        return false;
    job.till_count = count ? count : job.openings.count;
    job.tills = realloc(job.tills, job.till_count * sizeof *job.tills);
    memset(job.tills, 0, job.till_count * sizeof *job.tills);
    return true;
}

static bool command(const char *line)
{
    char path[1024];
    double seconds, rate;
    size_t number;
    if (sscanf(line, "open %1023s %zu %ld", path, &job.window, &job.each_till) == 3) {
        if (!read_openings(path, 0))
            return false;
        begin(OPENING, 0);
        arm(job.began + 4 * PATIENCE);
        opening_goes_on();
    } else if (sscanf(line, "waves %1023s %lf %ld", path, &seconds, &job.each_till) == 3) {
        if (!requests_read(&job.bodies, path))
            return false;
        begin(WAVES, (uint64_t)(seconds * 1e9));
        dial_posters(1);
    } else if (sscanf(line, "load %1023s %lf %zu %lf %ld", path, &seconds, &number, &rate,
                      &job.deliveries) == 5) {
        if (!requests_read(&job.bodies, path))
            return false;
        job.period = rate > 0 ? (uint64_t)(1e9 / rate) : 0;
        job.once = seconds == 0;
        begin(LOADING, job.once ? 4 * PATIENCE : (uint64_t)(seconds * 1e9));
        dial_posters(number);
    } else if (sscanf(line, "wait %ld %lf", &job.deliveries, &seconds) == 2) {
        begin(WAITING, (uint64_t)(seconds * 1e9));
        arm(job.ends);
    } else if (sscanf(line, "churn %1023s %lf %zu", path, &seconds, &job.window) == 3) {
        if (!read_openings(path, job.window))
            return false;
        begin(CHURNING, (uint64_t)(seconds * 1e9));
        arm(job.ends + PATIENCE);
        for (size_t i = 0; i < job.till_count && job.what == CHURNING; i++)
            dial_next(&job.tills[i]);
    } else if (!strcmp(line, "close")) {
        close_tills();
        begin(IDLE, 0);
        finish();
    } else {
        return false;
    }
    return true;
}

void job_command(const char *line)
{
    if (!command(line))
        printf("{\"error\": \"no such command, or a file that cannot be read\"}\n");
}
