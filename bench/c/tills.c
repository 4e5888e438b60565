/* Tills: the client side of a WebSocket (RFC 6455), and the check that no event is missing. */
#include "loader.h"

#include <stdlib.h>
#include <string.h>

long disorder;
struct sample latency;

void till_opened(struct link *till)
{
    till->state = ASKED;
    till->last = -1;
    till->messages = 0;
    link_send_request(till, till->opening, 0);
}

/* Return the number after `name` in the text, or -1. */
static int64_t number_after(const char *text, size_t length, const char *name)
{
    size_t size = strlen(name);
    const char *found = memmem(text, length, name, size);
    if (!found)
        return -1;
    int64_t value = 0;
    const char *at = found + size, *end = text + length;
    if (at == end || *at < '0' || *at > '9')
        return -1;
    for (; at < end && *at >= '0' && *at <= '9'; at++)
        value = 10 * value + (*at - '0');
    return value;
}

static bool starts_with(const char *text, size_t length, const char *start)
{
    size_t size = strlen(start);
    return length >= size && !memcmp(text, start, size);
}

/* The first `"id":` of an event is its position: posd writes the envelope before the data. */
static void message(struct link *till, const char *text, size_t length)
{
    if (starts_with(text, length, "{\"type\":\"connected\"")) {
        int64_t resumed = number_after(text, length, "\"resumedFrom\":");
        till->last = resumed >= 0 ? resumed : number_after(text, length, "\"lastEventId\":");
        till_greeted(till);
        return;
    }
    int64_t id = number_after(text, length, "\"id\":");
    if (id < 0)
        return;
    if (id != till->last + 1) {
        disorder++;
        complain("a till got event %lld after %lld", (long long)id, (long long)till->last);
    }
    till->last = id;
    till->messages++;
    uint64_t now = now_ns();
    int64_t sent = number_after(text, length, "\"t\":\"");
    if (sent < 0) /* an order has the time in another member */
        sent = number_after(text, length, "\"customerName\":\"");
    if (sent > 0)
        sample_add(&latency, now - (uint64_t)sent);
    till_event(till, now);
}

/* Write a frame of less than 126 bytes. Its mask is zero: RFC 6455 §5.3 lets the client choose it. */
static void reply(struct link *till, int opcode, const char *payload, size_t length)
{
    char frame[6 + 125] = {(char)(0x80 | opcode), (char)(0x80 | length)};
    memcpy(frame + 6, payload, length);
    link_send(till, frame, 6 + length);
}

static size_t opening_answer(struct link *till, char *bytes, size_t length)
{
    char *end = memmem(bytes, length, "\r\n\r\n", 4);
    if (!end)
        return 0;
    if (!starts_with(bytes, length, "HTTP/1.1 101")) {
        complain("a till was refused: %.*s", (int)(length < 300 ? length : 300), bytes);
        link_close(till);
        link_lost(till, "it was refused");
        return length;
    }
    till->state = OPEN;
    return (size_t)(end + 4 - bytes);
}

size_t till_received(struct link *till, char *bytes, size_t length)
{
    if (till->state == ASKED)
        return opening_answer(till, bytes, length);
    const unsigned char *head = (unsigned char *)bytes;
    if (length < 2)
        return 0;
    size_t size = head[1] & 0x7f, at = 2;
    if (size >= 126) {
        size_t width = size == 126 ? 2 : 8;
        if (length < 2 + width)
            return 0;
        size = 0;
        for (size_t i = 0; i < width; i++)
            size = size << 8 | head[2 + i];
        at += width;
    }
    if (length - at < size)
        return 0;
    switch (head[0] & 0x0f) {
    case 1:
        message(till, bytes + at, size);
        break;
    case 8:
        link_close(till);
        link_lost(till, "the server sent a close frame");
        break;
    case 9:
        if (size <= 125)
            reply(till, 10, bytes + at, size);
        break;
    }
    return at + size;
}
