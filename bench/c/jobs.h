/* The current job, as jobs.c and posters.c use it. */
#ifndef JOBS_H
#define JOBS_H

#include "loader.h"

#define SECOND 1000000000ull
/* How long a job waits for missing data. */
#define PATIENCE (15 * SECOND)

enum work { IDLE, OPENING, WAVES, LOADING, SETTLING, WAITING, CHURNING };

struct job {
    enum work what;
    uint64_t began, ends;
    uint64_t processor; /* processor time of this process at the beginning of the job */

    struct requests openings;
    struct link *tills;
    size_t till_count, tills_up;
    size_t window;       /* number of concurrent openings */
    size_t done, failed; /* tills */
    size_t lost;         /* tills that were disconnected between two jobs */
    long each_till;      /* events for each till: after its opening, or for a request */
    long messages;

    struct requests bodies;
    struct link *posters;
    size_t poster_count, posters_up;
    uint64_t period, due; /* between two requests, 0 for as fast as possible; when the next one is due */
    bool once;            /* each request once */
    long requests_sent, answered, refused;
    long in_time;    /* answers before the end */
    long deliveries; /* events at the tills for each request, or in all */
    size_t next_item; /* index of the next opening or request */
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
