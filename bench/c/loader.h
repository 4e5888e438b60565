/* The declarations that the files of the load client share. README.md describes the load client. */
#ifndef LOADER_H
#define LOADER_H

#define _GNU_SOURCE /* memmem */

#include <openssl/ssl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Nineteen digits of CLOCK_MONOTONIC nanoseconds replace this text in a request when it is sent. */
#define STAMP "@@@@@@@@@@@@@@@@@@@"
/* A unique number of sixteen digits replaces this text in a request. */
#define COUNTER "################"

/* The bytes of a request or a WebSocket opening, and the places of the placeholders. */
struct request {
    char *bytes;
    size_t length;
    size_t *stamps, stamp_count;
    size_t *counters, counter_count;
};

struct requests {
    struct request *items;
    size_t count;
};

enum kind { TILL, POSTER };
enum state { CLOSED, CONNECTING, HANDSHAKE, ASKED, OPEN, BUSY };

/* One TLS connection. */
struct link {
    int fd;
    SSL *ssl;
    enum kind kind;
    enum state state;
    bool wants_out;
    char *in; /* received data without a complete message */
    size_t in_length;
    char *out; /* data that OpenSSL has not accepted yet */
    size_t out_length, out_at;
    unsigned dials; /* counts connections, so that a handler notices a new one */
    uint64_t began; /* time of the connection attempt; for a poster, the due time of its request */
    /* Only for tills. */
    const struct request *opening;
    int64_t last; /* id of the last event; -1 before `connected` */
    long messages;
};

/* All values of one job, for exact quantiles. */
struct sample {
    uint32_t *tenths; /* of a microsecond */
    size_t count, capacity;
};

/* link.c: non-blocking TLS connections on one epoll. */
void links_start(int epoll, uint16_t port);
void link_dial(struct link *link);
void link_send(struct link *link, const char *bytes, size_t length);
void link_send_request(struct link *link, const struct request *request, uint64_t stamp);
void link_ready(struct link *link, uint32_t events);
void link_close(struct link *link);

/* Functions that link.c calls. `received` returns the number of bytes that it has used. */
void link_opened(struct link *link);
size_t link_received(struct link *link, char *bytes, size_t length);
void link_lost(struct link *link, const char *why);

/* tills.c: WebSockets that verify the order of what they receive. */
void till_opened(struct link *till);
size_t till_received(struct link *till, char *bytes, size_t length);

/* Functions that tills.c calls after a `connected` message and after an event. */
void till_greeted(struct link *till);
void till_event(struct link *till, uint64_t now);

extern long disorder;         /* events whose id is not the previous one plus one */
extern char complaint[400];   /* the first error, as text */
extern struct sample latency; /* from the stamp in an event to its arrival */

/* figures.c: clocks, samples, and their quantiles. */
uint64_t now_ns(void);
uint64_t processor_ns(void);
void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));
void sample_add(struct sample *sample, uint64_t nanoseconds);
void sample_print(const char *name, struct sample *sample);

/* main.c */
bool requests_read(struct requests *requests, const char *path);

/* jobs.c: the measurements, one job after the other. */
void jobs_start(int epoll);
void job_command(const char *line);
void job_timer(void);

#endif
