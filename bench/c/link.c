/* Non-blocking TLS 1.3 connections on one epoll, level-triggered. */
#include "loader.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

static SSL_CTX *context;
static struct sockaddr_in address;
static int epoll;
static uint64_t counter;

void links_start(int on, uint16_t port)
{
    epoll = on;
    context = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION);
    /* The server is a child on loopback, so its certificate is not checked. Sessions are not resumed. */
    SSL_CTX_set_verify(context, SSL_VERIFY_NONE, NULL);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE |
                                  SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    /* Read a record with one recv(2) instead of one for its header and one for the rest. */
    SSL_CTX_set_read_ahead(context, 1);
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
}

static void watch(struct link *link, int operation, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = link};
    epoll_ctl(epoll, operation, link->fd, &event);
}

static void want_out(struct link *link, bool wanted)
{
    if (link->wants_out != wanted) {
        link->wants_out = wanted;
        watch(link, EPOLL_CTL_MOD, EPOLLIN | (wanted ? EPOLLOUT : 0));
    }
}

static void fail(struct link *link, const char *why)
{
    link_close(link);
    link_lost(link, why);
}

void link_dial(struct link *link)
{
    int on = 1;
    link->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (link->fd < 0) {
        link_lost(link, strerror(errno));
        return;
    }
    setsockopt(link->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    link->ssl = SSL_new(context);
    SSL_set_fd(link->ssl, link->fd);
    SSL_set_connect_state(link->ssl);
    SSL_set_tlsext_host_name(link->ssl, "localhost");
    link->state = CONNECTING;
    link->began = now_ns();
    link->dials++;
    link->wants_out = true;
    if (connect(link->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) {
        fail(link, strerror(errno));
        return;
    }
    watch(link, EPOLL_CTL_ADD, EPOLLIN | EPOLLOUT);
}

/* Close without waiting for a close_notify, so that the server frees its side at once. */
void link_close(struct link *link)
{
    if (link->state == CLOSED)
        return;
    if (link->state >= ASKED)
        SSL_shutdown(link->ssl);
    SSL_free(link->ssl);
    close(link->fd);
    free(link->in);
    free(link->out);
    link->in = link->out = NULL;
    link->in_length = link->out_length = link->out_at = 0;
    link->state = CLOSED;
    ERR_clear_error();
}

/* Return whether the connection is still open. */
static bool flush(struct link *link)
{
    while (link->out_at < link->out_length) {
        size_t left = link->out_length - link->out_at;
        int sent = SSL_write(link->ssl, link->out + link->out_at, (int)left);
        if (sent <= 0) {
            int error = SSL_get_error(link->ssl, sent);
            if (error == SSL_ERROR_WANT_WRITE || error == SSL_ERROR_WANT_READ) {
                want_out(link, error == SSL_ERROR_WANT_WRITE);
                return true;
            }
            fail(link, "it was closed while being written to");
            return false;
        }
        link->out_at += (size_t)sent;
    }
    free(link->out);
    link->out = NULL;
    link->out_length = link->out_at = 0;
    want_out(link, false);
    return true;
}

void link_send(struct link *link, const char *bytes, size_t length)
{
    link->out = realloc(link->out, link->out_length + length);
    memcpy(link->out + link->out_length, bytes, length);
    link->out_length += length;
    flush(link);
}

void link_send_request(struct link *link, const struct request *request, uint64_t stamp)
{
    char digits[24];
    char *bytes = malloc(request->length);
    memcpy(bytes, request->bytes, request->length);
    snprintf(digits, sizeof digits, "%019llu", (unsigned long long)stamp);
    for (size_t i = 0; i < request->stamp_count; i++)
        memcpy(bytes + request->stamps[i], digits, strlen(STAMP));
    for (size_t i = 0; i < request->counter_count; i++) {
        snprintf(digits, sizeof digits, "%016llu", (unsigned long long)++counter);
        memcpy(bytes + request->counters[i], digits, strlen(COUNTER));
    }
    link_send(link, bytes, request->length);
    free(bytes);
}

static void handshake(struct link *link)
{
    int done = SSL_do_handshake(link->ssl);
    if (done == 1) {
        link->state = OPEN;
        want_out(link, false);
        link_opened(link);
        return;
    }
    switch (SSL_get_error(link->ssl, done)) {
    case SSL_ERROR_WANT_READ:
        want_out(link, false);
        break;
    case SSL_ERROR_WANT_WRITE:
        want_out(link, true);
        break;
    default:
        fail(link, "the TLS handshake failed");
    }
}

static void receive(struct link *link)
{
    static char buffer[1 << 20];
    size_t length = link->in_length;
    if (length)
        memcpy(buffer, link->in, length);
    while (length < sizeof buffer) {
        int got = SSL_read(link->ssl, buffer + length, (int)(sizeof buffer - length));
        if (got <= 0) {
            if (SSL_get_error(link->ssl, got) == SSL_ERROR_WANT_READ)
                break;
            fail(link, "the server closed it");
            return;
        }
        length += (size_t)got;
        /* epoll reports more data in the socket again, but not more data in OpenSSL. */
        if (!SSL_has_pending(link->ssl))
            break;
    }
    size_t used = 0;
    unsigned dial = link->dials;
    while (used < length) {
        size_t step = link_received(link, buffer + used, length - used);
        if (link->state == CLOSED || link->dials != dial)
            return;
        if (!step)
            break;
        used += step;
    }
    free(link->in);
    link->in = NULL;
    link->in_length = length - used;
    if (link->in_length) {
        link->in = malloc(link->in_length);
        memcpy(link->in, buffer + used, link->in_length);
    }
}

void link_ready(struct link *link, uint32_t events)
{
    if (link->state == CLOSED)
        return;
    if (link->state == CONNECTING || link->state == HANDSHAKE) {
        link->state = HANDSHAKE;
        handshake(link);
        return;
    }
    if ((events & EPOLLOUT) && !flush(link))
        return;
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
        receive(link);
}
