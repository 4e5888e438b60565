/* floor PORT CERTIFICATE KEY: a minimal server, which shows the maximal rate of the load client.
 *
 * GET opens a WebSocket. POST sends the `data` of its body to all WebSockets, and is then answered. There are
 * no keys, tenants and database. If a message cannot be written at once, the connection is closed.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

struct peer {
    int fd;
    SSL *ssl;
    bool till;
    size_t place; /* among the tills */
    char *in;
    size_t length;
};

static struct peer *tills[65536];
static size_t till_count;
static int epoll;
static long events;

static void drop(struct peer *peer)
{
    if (peer->till) {
        tills[peer->place] = tills[--till_count];
        tills[peer->place]->place = peer->place;
    }
    SSL_free(peer->ssl);
    close(peer->fd);
    free(peer->in);
    free(peer);
}

static size_t frame(char *out, const char *text, size_t length)
{
    size_t at = 0;
    out[at++] = (char)0x81;
    if (length < 126) {
        out[at++] = (char)length;
    } else {
        out[at++] = 126;
        out[at++] = (char)(length >> 8);
        out[at++] = (char)length;
    }
    memcpy(out + at, text, length);
    return at + length;
}

static void publish(struct peer *poster, const char *body, size_t length)
{
    static char text[65536], framed[65600];
    static const char answer[] =
        "HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n"
        "{\"success\":true}";
    const char *data = memmem(body, length, "\"data\":", 7);
    if (!data || length > 60000)
        data = "\"data\":{}}", length = 10;
    else
        length -= (size_t)(data - body);
    int size = snprintf(text, sizeof text, "{\"type\":\"notice\",\"id\":%ld,%.*s", ++events,
                        (int)length, data);
    size_t whole = frame(framed, text, (size_t)size);
    for (size_t i = till_count; i-- > 0;)
        if (SSL_write(tills[i]->ssl, framed, (int)whole) != (int)whole)
            drop(tills[i]);
    SSL_write(poster->ssl, answer, sizeof answer - 1);
}

static void greet(struct peer *peer)
{
    static const char answer[] =
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        /* The load client always sends the key of RFC 6455 §1.3. */
        "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    char text[100], framed[400];
    int size = snprintf(text, sizeof text, "{\"type\":\"connected\",\"lastEventId\":%ld}", events);
    memcpy(framed, answer, sizeof answer - 1);
    size_t whole = sizeof answer - 1 + frame(framed + sizeof answer - 1, text, (size_t)size);
    SSL_write(peer->ssl, framed, (int)whole);
    peer->till = true;
    peer->place = till_count;
    tills[till_count++] = peer;
}

/* Return false if the peer is gone. Data of tills is ignored. */
static bool serve(struct peer *peer)
{
    char bytes[16384];
    int got = SSL_read(peer->ssl, bytes, sizeof bytes);
    if (got <= 0)
        return SSL_get_error(peer->ssl, got) == SSL_ERROR_WANT_READ;
    if (peer->till)
        return true;
    peer->in = realloc(peer->in, peer->length + (size_t)got + 1);
    memcpy(peer->in + peer->length, bytes, (size_t)got);
    peer->length += (size_t)got;
    peer->in[peer->length] = '\0';
    char *end = strstr(peer->in, "\r\n\r\n");
    if (!end)
        return true;
    char *announced = strcasestr(peer->in, "content-length:");
    size_t body = announced && announced < end ? strtoul(announced + 15, NULL, 10) : 0;
    if (peer->length < (size_t)(end + 4 - peer->in) + body)
        return true;
    if (peer->in[0] == 'G')
        greet(peer);
    else
        publish(peer, end + 4, body);
    free(peer->in);
    peer->in = NULL;
    peer->length = 0;
    return true;
}

static void welcome(int listener, SSL_CTX *context)
{
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct peer *peer = calloc(1, sizeof *peer);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        peer->fd = fd;
        peer->ssl = SSL_new(context);
        SSL_set_fd(peer->ssl, fd);
        SSL_set_accept_state(peer->ssl);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = peer};
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
    }
}

int main(int count, char **arguments)
{
    if (count != 4)
        return fprintf(stderr, "usage: floor PORT CERTIFICATE KEY\n"), 2;
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    SSL_CTX *context = SSL_CTX_new(TLS_server_method());
    SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION);
    SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_num_tickets(context, 0);
    if (SSL_CTX_use_certificate_chain_file(context, arguments[2]) != 1 ||
        SSL_CTX_use_PrivateKey_file(context, arguments[3], SSL_FILETYPE_PEM) != 1)
        return fprintf(stderr, "the certificate cannot be used\n"), 1;
    int on = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)atoi(arguments[1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096))
        return perror("listen"), 1;
    epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN};
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        /* Handle one event at a time, because publishing may drop another peer. */
        if (epoll_wait(epoll, &event, 1, -1) != 1)
            continue;
        struct peer *peer = event.data.ptr;
        if (!peer)
            welcome(listener, context);
        else if (!serve(peer))
            drop(peer);
    }
}
