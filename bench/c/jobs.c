/* What is measured. A job begins with a command, and ends with one line of JSON:
 *
 *   open FILE WINDOW MISSED     open a till for each opening, WINDOW at a time; until each has its MISSED events
 *   waves FILE SECONDS EVENTS   one poster; the next request when all tills have the EVENTS of the last one
 *   load FILE SECONDS POSTERS RATE DELIVERIES
 *                               POSTERS connections, as fast as answers come or RATE requests a second; then
 *                               wait for the DELIVERIES to tills that each request is worth
 *   churn FILE SECONDS WINDOW   open a till, close it when it has its greeting, open the next one
 *   close                       close the tills
 */
#include "loader.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/timerfd.h>
#include <time.h>

#define SECOND 1000000000ull
/* How long a job waits for what does not come. */
#define PATIENCE (15 * SECOND)

static enum { IDLE, OPENING, WAVES, LOADING, SETTLING, CHURNING } job;
static int timer;
static struct link *tills, *posters;
static size_t till_count, poster_count, tills_up, posters_up;
static struct requests openings, bodies;
static size_t next_item, done, failed, window;
static long messages, each_till, deliveries, requests_sent, answered, in_time, refused;
static uint64_t began, ends, due, period, processor;
static struct sample answers;

static void arm(uint64_t at)
{
    struct itimerspec when = {.it_value = {(time_t)(at / SECOND), (long)(at % SECOND)}};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
}

static void begin(int what, uint64_t seconds_ns)
{
    job = what;
    next_item = done = failed = 0;
    messages = requests_sent = answered = in_time = refused = disorder = 0;
    answers.count = latency.count = 0;
    *complaint = '\0';
    processor = processor_ns();
    began = now_ns();
    ends = began + seconds_ns;
}

static void finish(void)
{
    uint64_t now = now_ns();
    long missing = 0;
    if (job == WAVES)
        missing = requests_sent * each_till * (long)tills_up - messages;
    else if (job == SETTLING)
        missing = answered * deliveries - messages;
    job = IDLE;
    arm(0);
    for (size_t i = 0; i < poster_count; i++)
        link_close(&posters[i]);
    poster_count = posters_up = 0;
    printf("{\"seconds\": %.6f, \"done\": %zu, \"failed\": %zu, \"requests\": %ld, \"in_time\": %ld, "
           "\"refused\": %ld, \"messages\": %ld, \"missing\": %ld, \"disorder\": %ld, "
           "\"processor\": %.6f, \"complaint\": \"%s\"",
           (double)(now - began) / 1e9, done, failed, answered, in_time, refused, messages, missing,
           disorder, (double)(processor_ns() - processor) / 1e9, complaint);
    sample_print("answer_ms", &answers);
    sample_print("latency_ms", &latency);
    printf("}\n");
}

/* Tills. */

static void dial_next(struct link *till)
{
    till->kind = TILL;
    till->opening = &openings.items[next_item++ % openings.count];
    link_dial(till);
}

static void opening_goes_on(void)
{
    if (job != OPENING)
        return;
    while (next_item < till_count && next_item - tills_up - failed < window)
        dial_next(&tills[next_item]);
    if (done + failed == till_count)
        finish();
}

void till_greeted(struct link *till)
{
    if (job == OPENING) {
        tills_up++;
        sample_add(&answers, now_ns() - till->began);
        done += each_till == 0;
        opening_goes_on();
    } else if (job == CHURNING) {
        uint64_t now = now_ns();
        sample_add(&answers, now - till->began);
        done++;
        link_close(till);
        if (now < ends)
            dial_next(till);
        else if (!--window)
            finish();
    }
}

static void next_wave(void);

void till_event(struct link *till, uint64_t now)
{
    (void)now;
    messages++;
    if (job == OPENING) {
        done += till->messages == each_till;
        opening_goes_on();
    } else if (job == WAVES) {
        next_wave();
    } else if (job == SETTLING && messages >= answered * deliveries) {
        finish();
    }
}

/* Posters. */

static void post(struct link *poster, uint64_t at)
{
    poster->state = BUSY;
    poster->began = at;
    requests_sent++;
    link_send_request(poster, &bodies.items[next_item++ % bodies.count], at);
}

static void next_wave(void)
{
    if (messages < requests_sent * each_till * (long)tills_up || posters[0].state == BUSY)
        return;
    if (now_ns() < ends)
        post(&posters[0], now_ns());
    else
        finish();
}

static struct link *idle_poster(void)
{
    static size_t turn;
    for (size_t i = 0; i < poster_count; i++) {
        struct link *poster = &posters[turn++ % poster_count];
        if (poster->state == OPEN)
            return poster;
    }
    return NULL;
}

/* At a rate, a request that finds no idle poster is late, and its latency counts from when it was due. */
static void load_goes_on(void)
{
    struct link *poster;
    uint64_t now = now_ns();
    while (period && due <= now && due < ends && (poster = idle_poster())) {
        post(poster, due);
        due += period;
    }
    if (now < ends) {
        arm(period && due > now && due < ends ? due : ends);
        return;
    }
    if (answered + refused < requests_sent)
        return;
    job = SETTLING;
    arm(now + PATIENCE);
    if (messages >= answered * deliveries)
        finish();
}

static void poster_opened(struct link *poster)
{
    (void)poster;
    if (++posters_up < poster_count)
        return;
    uint64_t length = ends - began;
    processor = processor_ns();
    began = due = now_ns();
    ends = began + length;
    if (job == WAVES) {
        arm(ends + PATIENCE);
        next_wave();
        return;
    }
    if (!period)
        for (size_t i = 0; i < poster_count; i++)
            post(&posters[i], now_ns());
    load_goes_on();
}

void link_opened(struct link *link)
{
    if (link->kind == TILL)
        till_opened(link);
    else
        poster_opened(link);
}

static size_t poster_received(struct link *poster, char *bytes, size_t length)
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
        answered++;
        in_time += now <= ends;
        sample_add(&answers, now - poster->began);
    } else {
        refused++;
        complain("a request was refused: %.*s", (int)(length < 300 ? length : 300), bytes);
    }
    poster->state = OPEN;
    if (job == WAVES) {
        next_wave();
    } else if (job == LOADING) {
        if (!period && now < ends)
            post(poster, now);
        load_goes_on();
    }
    return head + body;
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
        if (job != IDLE)
            finish();
        return;
    }
    failed++;
    if (job == OPENING)
        opening_goes_on();
    else if (job == CHURNING && (failed == 100 || !--window))
        finish();
    else if (job != IDLE)
        finish();
}

/* Commands. */

static void close_tills(void)
{
    for (size_t i = 0; i < till_count; i++)
        link_close(&tills[i]);
    till_count = tills_up = 0;
}

static void dial_posters(size_t count)
{
    posters = realloc(posters, count * sizeof *posters);
    memset(posters, 0, count * sizeof *posters);
    poster_count = count;
    posters_up = 0;
    arm(now_ns() + PATIENCE);
    for (size_t i = 0; i < count && job != IDLE; i++) {
        posters[i].kind = POSTER;
        link_dial(&posters[i]);
    }
}

void jobs_start(int with)
{
    timer = with;
}

void job_timer(void)
{
    uint64_t now = now_ns();
    if (job == LOADING && now < ends + PATIENCE) {
        load_goes_on();
        if (job == LOADING && now >= ends)
            arm(ends + PATIENCE);
    } else if (job != IDLE) {
        complain("it did not end in time");
        finish();
    }
}

void job_command(char *line)
{
    char path[1024];
    double seconds, rate;
    size_t number;
    if (sscanf(line, "open %1023s %zu %ld", path, &window, &each_till) == 3) {
        close_tills();
        if (!requests_read(&openings, path))
            goto unusable;
        tills = realloc(tills, openings.count * sizeof *tills);
        memset(tills, 0, openings.count * sizeof *tills);
        till_count = openings.count;
        begin(OPENING, 0);
        arm(began + 4 * PATIENCE);
        opening_goes_on();
    } else if (sscanf(line, "waves %1023s %lf %ld", path, &seconds, &each_till) == 3) {
        if (!requests_read(&bodies, path))
            goto unusable;
        begin(WAVES, (uint64_t)(seconds * 1e9));
        dial_posters(1);
    } else if (sscanf(line, "load %1023s %lf %zu %lf %ld", path, &seconds, &number, &rate,
                      &deliveries) == 5) {
        if (!requests_read(&bodies, path))
            goto unusable;
        period = rate > 0 ? (uint64_t)(1e9 / rate) : 0;
        begin(LOADING, (uint64_t)(seconds * 1e9));
        dial_posters(number);
    } else if (sscanf(line, "churn %1023s %lf %zu", path, &seconds, &window) == 3) {
        close_tills();
        if (!requests_read(&openings, path))
            goto unusable;
        tills = realloc(tills, window * sizeof *tills);
        memset(tills, 0, window * sizeof *tills);
        till_count = window;
        begin(CHURNING, (uint64_t)(seconds * 1e9));
        arm(ends + PATIENCE);
        for (size_t i = 0; i < till_count && job == CHURNING; i++)
            dial_next(&tills[i]);
    } else if (!strcmp(line, "close")) {
        close_tills();
        begin(IDLE, 0);
        finish();
    } else {
        goto unusable;
    }
    return;
unusable:
    printf("{\"error\": \"not a command, or a file that cannot be read\"}\n");
}
