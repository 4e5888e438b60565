/* Clocks, samples, and their quantiles as JSON. */
#include "loader.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

char complaint[400];

static uint64_t nanoseconds(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

uint64_t now_ns(void)
{
    return nanoseconds(CLOCK_MONOTONIC);
}

uint64_t processor_ns(void)
{
    return nanoseconds(CLOCK_PROCESS_CPUTIME_ID);
}

/* Store the first complaint, without characters that JSON must escape. */
void complain(const char *format, ...)
{
    if (*complaint)
        return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(complaint, sizeof complaint, format, arguments);
    va_end(arguments);
    for (char *at = complaint; *at; at++)
        if (*at == '"' || *at == '\\' || *at < ' ' || *at == 127)
            *at = ' ';
}

void sample_add(struct sample *sample, uint64_t nanoseconds)
{
    if (sample->count == sample->capacity) {
        sample->capacity = sample->capacity ? 2 * sample->capacity : 1 << 16;
        sample->tenths = realloc(sample->tenths, sample->capacity * sizeof *sample->tenths);
    }
    uint64_t tenths = nanoseconds / 100;
    sample->tenths[sample->count++] = tenths > UINT32_MAX ? UINT32_MAX : (uint32_t)tenths;
}

static int ascending(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* Print a member of a JSON object, in milliseconds. Print nothing if there are no values. */
void sample_print(const char *name, struct sample *sample)
{
    size_t count = sample->count;
    if (!count)
        return;
    qsort(sample->tenths, count, sizeof *sample->tenths, ascending);
    printf(", \"%s\": {\"p50\": %.4f, \"p99\": %.4f, \"max\": %.4f}", name,
           sample->tenths[count / 2] / 1e4, sample->tenths[count * 99 / 100] / 1e4,
           sample->tenths[count - 1] / 1e4);
}
