/* The job that runs: what jobs.c and posters.c know of it. */
#ifndef JOBS_H
#define JOBS_H

#include "loader.h"

#define SECOND 1000000000ull
/* How long a job waits for what does not come. */
#define PATIENCE (15 * SECOND)

enum work { IDLE, OPENING, WAVES, LOADING, SETTLING, WAITING, CHURNING };

struct job {
    enum work what;
    uint64_t began, ends;
    uint64_t processor; /* what this process had used when the job began */

    struct requests openings;
    struct link *tills;
    size_t till_count, tills_up;
    size_t window;       /* how many are opened at a time */
    size_t done, failed; /* tills */
    size_t lost;         /* tills that were lost between two jobs */
    long each_till;      /* events that each till has to get: after it is opened, or for a request */
    long messages;

    struct requests bodies;
    struct link *posters;
    size_t poster_count, posters_up;
    uint64_t period, due; /* between two requests, 0 for as fast as possible; when the next one is due */
    bool once;            /* each request once */
    long requests_sent, answered, refused;
    long in_time;    /* answers before the end */
    long deliveries; /* events to tills that each request is worth, or that are waited for */
    size_t next_item; /* of the openings or the bodies */
    struct sample answers;
};

extern struct job job;

/* jobs.c */
void begin(enum work what, uint64_t length);
void finish(void);
void arm(uint64_t at);

/* posters.c */
void dial_posters(size_t count);
void poster_opened(struct link *poster);
size_t poster_received(struct link *poster, char *bytes, size_t length);
void load_goes_on(void);
void next_wave(void);

#endif
