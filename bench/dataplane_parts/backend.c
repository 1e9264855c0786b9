/* The backend of the data plane benchmark: one thread, epoll, 127.0.0.1 only. Prints its port.
 *
 * By path, wherever it stands below:
 *   /events?interval_us=N&count=N   server-sent events of 200 bytes, each in a chunk and a write of its own
 *   /download?bytes=N               so many bytes
 *   /flood                          chunks of 200 bytes as fast as they are taken, without end
 *   /echo                           101, then every byte is sent back
 *   else                            reads the body, answers a small piece of JSON
 */
#include "common.h"
#include <sys/timerfd.h>

#define EVENT_BYTES 200
#define MAX_STREAMS 20000
#define CHUNK_BYTES (EVENT_BYTES + 6)  /* with its size line and its end */
#define FLOOD_BYTES (BLOCK_BYTES / CHUNK_BYTES * CHUNK_BYTES)

enum mode { READING_HEAD, READING_BODY, SENDING, STREAMING, ECHOING };

struct connection {
    int fd;
    enum mode mode;
    int active;  /* place in the list of streams, -1 if it is none */
    int wants_out;
    int floods;
    size_t head_size;
    int64_t body_left, out_left, interval_ns, due_ns, events_left;
    char head[HEAD_BYTES + 1];
};

static char block[BLOCK_BYTES], flood[FLOOD_BYTES];
static struct connection *streams[MAX_STREAMS];
static int stream_count, poller, timer;

#define ANSWER_BODY \
    "{\"id\":\"cmpl-0123456789abcdef\",\"object\":\"text_completion\",\"created\":1700000000,\"model\":\"bench\"," \
    "\"choices\":[{\"index\":0,\"text\":\" Once upon a time there was a proxy\",\"finish_reason\":\"stop\"}]}"

static char answer_bytes[1024];  /* the small answer, made once */
static int answer_size;

static void watch_output(struct connection *c, int wanted)
{
    if (c->wants_out == wanted)
        return;
    c->wants_out = wanted;
    struct epoll_event event = {.events = EPOLLIN | (wanted ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event);
}

static void leave_streams(struct connection *c)
{
    if (c->active < 0)
        return;
    struct connection *last = streams[--stream_count];
    streams[c->active] = last;
    last->active = c->active;
    c->active = -1;
}

static void drop(struct connection *c)
{
    leave_streams(c);
    close(c->fd);
    c->fd = -1;
    free(c);
}

/* Small answers always fit into the socket's buffer; whoever lets them pile up is cut. */
static int say(struct connection *c, const char *data, size_t size)
{
    return send(c->fd, data, size, 0) == (ssize_t)size ? 0 : -1;
}

static int send_more(struct connection *c)
{
    while (c->out_left > 0) {
        ssize_t sent;
        if (c->floods) {
            size_t done = FLOOD_BYTES - c->out_left;
            sent = send(c->fd, flood + done, c->out_left, 0);
        } else {
            sent = send(c->fd, block, c->out_left < BLOCK_BYTES ? c->out_left : BLOCK_BYTES, 0);
        }
        if (sent < 0) {
            if (errno != EAGAIN)
                return -1;
            watch_output(c, 1);
            return 0;
        }
        c->out_left -= sent;
        if (c->floods && !c->out_left) {
            c->out_left = FLOOD_BYTES;
            watch_output(c, 1);  /* the others' turn */
            return 0;
        }
    }
    watch_output(c, 0);
    c->mode = READING_HEAD;
    return 0;
}

static int64_t parameter(const char *head, const char *name)
{
    const char *found = strstr(head, name);
    return found ? atoll(found + strlen(name)) : 0;
}

static int send_event(struct connection *c, int64_t now)
{
    char chunk[EVENT_BYTES + 64];
    memset(chunk, '.', sizeof chunk);
    int start = sprintf(chunk, "%x\r\n", EVENT_BYTES);
    int size = sprintf(chunk + start, "data: {%s%0*lld,\"choices\":[{\"delta\":{\"content\":\"", STAMP, STAMP_DIGITS,
                       (long long)now);
    chunk[start + size] = '.';
    memcpy(chunk + start + EVENT_BYTES - 7, "\"}}]}\n\n\r\n", 9);
    if (say(c, chunk, start + EVENT_BYTES + 2))
        return -1;
    c->due_ns += c->interval_ns;
    if (--c->events_left > 0)
        return 0;
    leave_streams(c);
    c->mode = READING_HEAD;
    return say(c, "0\r\n\r\n", 5);
}

static void arm_timer(void)
{
    int64_t soonest = INT64_MAX;
    for (int i = 0; i < stream_count; i++)
        if (streams[i]->due_ns < soonest)
            soonest = streams[i]->due_ns;
    struct itimerspec when = {0};
    if (stream_count) {
        when.it_value.tv_sec = soonest / SECOND_NS;
        when.it_value.tv_nsec = soonest % SECOND_NS;
    }
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
}

static void send_due(void)
{
    for (int i = stream_count - 1; i >= 0; i--) {
        struct connection *c = streams[i];
        int64_t now = now_ns();
        if (c->due_ns <= now && send_event(c, now))
            drop(c);
    }
}

/* The request is here whole. */
static int answer(struct connection *c)
{
    c->mode = READING_HEAD;
    if (strstr(c->head, "/events?")) {
        if (stream_count == MAX_STREAMS)
            return -1;
        c->interval_ns = parameter(c->head, "interval_us=") * 1000;
        c->events_left = parameter(c->head, "count=");
        c->due_ns = now_ns() + (int64_t)(c->interval_ns * drand48());
        c->mode = STREAMING;
        c->active = stream_count;
        streams[stream_count++] = c;
        static const char head[] = "HTTP/1.1 200 OK\r\nServer: bench\r\nContent-Type: text/event-stream\r\n"
                                   "Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n";
        return say(c, head, sizeof head - 1);
    }
    if (strstr(c->head, "/download?")) {
        char head[256];
        c->out_left = parameter(c->head, "bytes=");
        int size = sprintf(head,
                           "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
                           "Content-Length: %lld\r\n\r\n",
                           (long long)c->out_left);
        c->mode = SENDING;
        return say(c, head, size) ? -1 : send_more(c);
    }
    if (strstr(c->head, "/flood ")) {
        static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                                   "Transfer-Encoding: chunked\r\n\r\n";
        c->floods = 1;
        c->out_left = FLOOD_BYTES;
        c->mode = SENDING;
        return say(c, head, sizeof head - 1) ? -1 : send_more(c);
    }
    if (strstr(c->head, "/echo ")) {
        static const char head[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                                   "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        c->mode = ECHOING;
        return say(c, head, sizeof head - 1);
    }
    return say(c, answer_bytes, answer_size);
}

static int read_head(struct connection *c)
{
    ssize_t got = recv(c->fd, c->head + c->head_size, HEAD_BYTES - c->head_size, 0);
    if (got <= 0)
        return got < 0 && errno == EAGAIN ? 0 : -1;
    c->head_size += got;
    size_t end = head_end(c->head, c->head_size);
    if (!end)
        return c->head_size == HEAD_BYTES ? -1 : 0;
    int64_t early = c->head_size - end;
    c->head[end] = 0;
    c->head_size = 0;
    int64_t length = content_length(c->head);
    c->body_left = (length > 0 ? length : 0) - early;
    if (c->body_left < 0)
        return -1;  /* pipelined: nobody here does that */
    if (!c->body_left)
        return answer(c);
    c->mode = READING_BODY;
    return 0;
}

static int on_input(struct connection *c)
{
    if (c->mode == READING_HEAD)
        return read_head(c);
    int echoes = c->mode == ECHOING;
    /* MSG_TRUNC throws the bytes of a body away without copying them. */
    ssize_t got = recv(c->fd, block, BLOCK_BYTES, c->mode == READING_BODY ? MSG_TRUNC : 0);
    if (got <= 0)
        return got < 0 && errno == EAGAIN ? 0 : -1;
    if (echoes)
        return say(c, block, got);
    if (c->mode != READING_BODY)
        return -1;
    c->body_left -= got;
    if (c->body_left < 0)
        return -1;
    return c->body_left ? 0 : answer(c);
}

static void accept_all(int listener)
{
    int fd;
    while ((fd = accept(listener, NULL, NULL)) >= 0) {
        prepare_socket(fd);
        struct connection *c = calloc(1, sizeof *c);
        c->fd = fd;
        c->active = -1;
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
    }
}

int main(void)
{
    prepare_process();
    memset(block, 'x', sizeof block);
    memset(flood, '.', sizeof flood);
    for (char *chunk = flood; chunk < flood + FLOOD_BYTES; chunk += CHUNK_BYTES) {
        memcpy(chunk, "c8\r\ndata: ", 10);
        memcpy(chunk + CHUNK_BYTES - 4, "\n\n\r\n", 4);
    }
    answer_size = sprintf(answer_bytes,
                          "HTTP/1.1 200 OK\r\nServer: bench\r\nContent-Type: application/json; charset=utf-8\r\n"
                          "Access-Control-Allow-Origin: *\r\nContent-Length: %zu\r\n\r\n%s",
                          sizeof ANSWER_BODY - 1, ANSWER_BODY);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in address = loopback(0);
    socklen_t size = sizeof address;
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 4096))
        fail("listen");
    getsockname(listener, (struct sockaddr *)&address, &size);
    poller = epoll_create1(0);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = &listener};
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    event.data.ptr = &timer;
    epoll_ctl(poller, EPOLL_CTL_ADD, timer, &event);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    struct epoll_event ready[256];
    for (;;) {
        int count = epoll_wait(poller, ready, 256, -1), due = 0, before = stream_count;
        for (int i = 0; i < count; i++) {
            struct connection *c = ready[i].data.ptr;
            if (ready[i].data.ptr == &listener) {
                accept_all(listener);
            } else if (ready[i].data.ptr == &timer) {
                due = 1;
            } else {
                int bad = 0;
                if (ready[i].events & EPOLLOUT)
                    bad = send_more(c);
                if (!bad && ready[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
                    bad = on_input(c);
                if (bad)
                    drop(c);
            }
        }
        if (due) {
            uint64_t expirations;
            if (read(timer, &expirations, sizeof expirations) < 0 && errno != EAGAIN)
                fail("timer");
            send_due();
        }
        if (due || stream_count != before)
            arm_timer();
    }
}
