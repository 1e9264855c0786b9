/* The load of the data plane benchmark: one thread, epoll, closed loop. Prints one line of JSON.
 *
 *   load MODE PORT PEERS SECONDS WARM_SECONDS SIZE
 *
 * requests  POST of SIZE bytes, the next when the answer is there
 * paced     SIZE small POSTs a second, each when it is due, on whichever peer is idle; the delay is that since then
 * events    each peer takes one stream of an event every SIZE microseconds; the delay is that of each event
 * echo      64 bytes through an upgraded connection and back
 * upload, download  transfers of SIZE bytes until the time is over; SECONDS 0: one per peer
 * hold      as events, until stdin ends; "open" is printed when each has had its first event
 * flood     reads what never ends as fast as it comes, until stdin ends; "open" as above
 * stall     downloads of which only the first bytes are read, until stdin ends; "open" as above
 *
 * What happens in the first WARM_SECONDS counts in "total", not among the latencies. Anything unexpected ends it.
 */
#include "common.h"
#include <sys/timerfd.h>

#define MESSAGE_BYTES 70  /* a WebSocket frame: 2 bytes of head, 4 of mask, 64 of text */
#define PACED_BYTES 64
#define QUIET_MS 20000
#define OPEN_LIMIT_S 30
#define STAMP_BYTES ((ssize_t)(sizeof STAMP - 1 + STAMP_DIGITS))

/* From HOLD on: until stdin ends. */
enum mode { REQUESTS, PACED, EVENTS, ECHO, UPLOAD, DOWNLOAD, HOLD, FLOOD, STALL, MODES };
static const char *const NAMES[MODES] = {"requests", "paced", "events", "echo", "upload", "download", "hold", "flood", "stall"};

struct peer {
    int fd, open, wants_out;
    size_t size;       /* bytes in data */
    int64_t began, out_left, in_left;  /* in_left -1: the head of the answer is not here yet */
    char data[HEAD_BYTES + 1];
};

static enum mode mode;
static int port, peer_count, poller, open_count, ended_count, pacer, idle_count;
static struct peer **peers, **idle;  /* idle: those without a request, in mode PACED */
static int64_t body_bytes, start_ns, warm_ns, end_ns, due_ns, last_ns, total, moved;
static char request[HEAD_BYTES + BLOCK_BYTES], message[MESSAGE_BYTES], block[BLOCK_BYTES + HEAD_BYTES];
static size_t request_size;
static int64_t *samples;
static size_t sample_count, sample_room;

static void sample(int64_t value)
{
    if (sample_count == sample_room) {
        sample_room = sample_room ? 2 * sample_room : 65536;
        samples = realloc(samples, sample_room * sizeof *samples);
        if (!samples)
            fail("memory");
    }
    samples[sample_count++] = value;
}

static void send_all(struct peer *p, const char *data, size_t size)
{
    if (send(p->fd, data, size, 0) != (ssize_t)size)
        fail("send");
}

static void watch_output(struct peer *p, int wanted)
{
    if (p->wants_out == wanted)
        return;
    p->wants_out = wanted;
    struct epoll_event event = {.events = EPOLLIN | (wanted ? EPOLLOUT : 0), .data.ptr = p};
    epoll_ctl(poller, EPOLL_CTL_MOD, p->fd, &event);
}

static void send_body(struct peer *p)
{
    while (p->out_left > 0) {
        ssize_t sent = send(p->fd, block, p->out_left < BLOCK_BYTES ? p->out_left : BLOCK_BYTES, 0);
        if (sent < 0) {
            if (errno != EAGAIN)
                fail("upload");
            watch_output(p, 1);
            return;
        }
        p->out_left -= sent;
    }
    watch_output(p, 0);
}

static void begin(struct peer *p)
{
    p->began = now_ns();
    p->size = 0;
    p->in_left = -1;
    send_all(p, request, request_size);
    if (mode == UPLOAD) {
        p->out_left = body_bytes;
        send_body(p);
    }
}

/* One request, round trip or transfer is over. */
static void finished(struct peer *p, int64_t now)
{
    total++;
    last_ns = now;
    if (p->began >= start_ns + warm_ns)
        sample(now - p->began);
    if (mode == PACED)
        idle[idle_count++] = p;
    else if (now >= end_ns)
        ended_count++;
    else if (mode == ECHO) {
        p->began = now_ns();
        p->size = 0;
        send_all(p, message, MESSAGE_BYTES);
    } else
        begin(p);
}

static void arm_pacer(void)
{
    struct itimerspec when = {.it_value = {.tv_sec = due_ns / SECOND_NS, .tv_nsec = due_ns % SECOND_NS}};
    timerfd_settime(pacer, TFD_TIMER_ABSTIME, &when, NULL);
}

/* Whatever is due; over when the last answer is there. */
static void pace(void)
{
    uint64_t expirations;
    if (read(pacer, &expirations, sizeof expirations) < 0 && errno != EAGAIN)
        fail("timer");
    for (; due_ns <= now_ns() && due_ns < end_ns; due_ns += SECOND_NS / body_bytes) {
        if (!idle_count) {
            errno = 0;
            fail("every peer waits for an answer");
        }
        struct peer *p = idle[--idle_count];
        begin(p);
        p->began = due_ns;
    }
    arm_pacer();
    if (due_ns >= end_ns && idle_count == peer_count)
        ended_count = peer_count;
}

static void start_pacing(void)
{
    pacer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(poller, EPOLL_CTL_ADD, pacer, &event);
    memcpy(idle, peers, peer_count * sizeof *peers);
    idle_count = peer_count;
    due_ns = start_ns;
    arm_pacer();
}

static void opened(struct peer *p)
{
    if (!p->open) {
        p->open = 1;
        if (++open_count == peer_count && mode >= HOLD) {
            alarm(0);
            puts("open");
            fflush(stdout);
        }
    }
}

/* Read into data up to the end of the head; returns its length, or 0 if it is not here whole. */
static size_t read_head(struct peer *p)
{
    ssize_t got = recv(p->fd, p->data + p->size, HEAD_BYTES - p->size, 0);
    if (got < 0 && errno == EAGAIN)
        return 0;
    if (got <= 0)
        fail("the answer ended in its head");
    p->size += got;
    p->data[p->size] = 0;
    size_t end = head_end(p->data, p->size);
    if (!end && p->size == HEAD_BYTES)
        fail("the head of the answer is too long");
    if (end && strncmp(p->data, mode == ECHO ? "HTTP/1.1 101" : "HTTP/1.1 200", 12)) {
        p->data[end] = 0;
        errno = 0;
        fprintf(stderr, "%s", p->data);
        fail("the answer");
    }
    return end;
}

static void on_message(struct peer *p)
{
    ssize_t got = recv(p->fd, block, BLOCK_BYTES, 0);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0)
        fail("the echo ended");
    p->size += got;
    if (p->size == MESSAGE_BYTES)
        finished(p, now_ns());
}

/* Answers with a length: read and thrown away. */
static void on_body(struct peer *p)
{
    while (p->in_left > 0) {
        ssize_t got = recv(p->fd, block, BLOCK_BYTES, MSG_TRUNC);
        if (got < 0 && errno == EAGAIN)
            return;
        if (got <= 0)
            fail("the answer ended early");
        p->in_left -= got;
    }
    if (p->in_left < 0)
        fail("the answer is too long");
    moved += mode == UPLOAD || mode == DOWNLOAD ? body_bytes : 0;
    finished(p, now_ns());
}

static void on_events(struct peer *p)
{
    /* Kept in data: what came behind the head, or what may be the beginning of a stamp. */
    memcpy(block, p->data, p->size);
    ssize_t got = recv(p->fd, block + p->size, BLOCK_BYTES, 0);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0)
        fail("the events ended early");
    int64_t now = now_ns();
    char *position = block, *end = block + p->size + got, *found;
    while ((found = memmem(position, end - position, STAMP, sizeof STAMP - 1)) && end - found >= STAMP_BYTES) {
        char digits[STAMP_DIGITS + 1] = {0};
        memcpy(digits, found + sizeof STAMP - 1, STAMP_DIGITS);
        int64_t sent = atoll(digits);
        total++;
        last_ns = now;
        if (sent >= start_ns + warm_ns)
            sample(now - sent);
        position = found + STAMP_BYTES;
        opened(p);
    }
    if (mode == EVENTS && end - block >= 7 && !memcmp(end - 7, "\r\n0\r\n\r\n", 7))
        ended_count++;
    ssize_t kept = end - position;
    p->size = kept < STAMP_BYTES - 1 ? kept : STAMP_BYTES - 1;
    memcpy(p->data, end - p->size, p->size);
}

static void on_input(struct peer *p)
{
    if (p->in_left == -1) {
        size_t end = read_head(p);
        if (!end)
            return;
        p->in_left = 0;
        p->data[end - 1] = 0;
        size_t early = p->size - end;
        if (mode == ECHO) {
            p->size = 0;
            p->began = now_ns();
            send_all(p, message, MESSAGE_BYTES);
        } else if (mode == EVENTS || mode == HOLD) {
            memmove(p->data, p->data + end, early);
            p->size = early;
        } else if (mode == FLOOD) {
            opened(p);
            p->in_left = INT64_MAX;
        } else if (mode == STALL) {
            opened(p);
            epoll_ctl(poller, EPOLL_CTL_DEL, p->fd, NULL);
        } else {
            p->in_left = content_length(p->data) - early;
            on_body(p);
        }
    } else if (mode == ECHO)
        on_message(p);
    else if (mode == EVENTS || mode == HOLD)
        on_events(p);
    else
        on_body(p);
}

/* The fields of a client of OpenAI's library. */
static void make_request(const char *method, const char *path, int64_t length, const char *more)
{
    request_size = sprintf(request,
                           "%s /bench%s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept-Encoding: gzip, deflate\r\n"
                           "Connection: %s\r\nAccept: application/json\r\n",
                           method, path, port, mode == ECHO ? "Upgrade" : "keep-alive");
    char *end = request + request_size;
    if (mode != ECHO)
        end += sprintf(end,
                       "Content-Type: application/json\r\nUser-Agent: OpenAI/Python 2.0.0\r\n"
                       "X-Stainless-Lang: python\r\n"
                       "X-Stainless-Package-Version: 2.0.0\r\nX-Stainless-OS: Linux\r\nX-Stainless-Arch: x64\r\n"
                       "X-Stainless-Runtime: CPython\r\nX-Stainless-Runtime-Version: 3.12.0\r\n"
                       "Authorization: Bearer sk-0123456789\r\nX-Stainless-Async: false\r\n"
                       "x-stainless-retry-count: 0\r\nx-stainless-read-timeout: 600\r\n");
    if (length >= 0)
        end += sprintf(end, "Content-Length: %lld\r\n", (long long)length);
    end += sprintf(end, "%s\r\n", more);
    request_size = end - request;
}

/* Of each stream. */
static int64_t event_count(void)
{
    return mode == HOLD ? 1000000 : (end_ns - start_ns) / 1000 / body_bytes;
}

static void prepare_request(void)
{
    char path[128] = "/v1/completions";
    memset(message, 'm', sizeof message);
    message[0] = (char)0x81;
    message[1] = (char)(0x80 | 64);
    if (mode == EVENTS || mode == HOLD) {
        sprintf(path, "/events?interval_us=%lld&count=%lld", (long long)body_bytes, (long long)event_count());
        make_request("POST", path, 0, "");
    } else if (mode == ECHO) {
        make_request("GET", "/echo", -1,
                     "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                     "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n");
    } else if (mode == FLOOD) {
        make_request("GET", "/flood", -1, "");
    } else if (mode == DOWNLOAD || mode == STALL) {
        sprintf(path, "/download?bytes=%lld", (long long)body_bytes);
        make_request("GET", path, -1, "");
    } else {
        make_request("POST", path, mode == PACED ? PACED_BYTES : body_bytes, "");
    }
    if (mode == REQUESTS || mode == PACED) {
        int64_t size = mode == PACED ? PACED_BYTES : body_bytes;
        memset(request + request_size, 'x', size);
        request_size += size;
    }
}

static struct peer *join(void)
{
    struct peer *p = calloc(1, sizeof *p);
    struct sockaddr_in address = loopback(port);
    p->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(p->fd, (struct sockaddr *)&address, sizeof address))
        fail("connect");
    prepare_socket(p->fd);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = p};
    epoll_ctl(poller, EPOLL_CTL_ADD, p->fd, &event);
    return p;
}

static int ascending(const void *left, const void *right)
{
    int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;
    return (a > b) - (a < b);
}

static void run(void)
{
    struct epoll_event ready[256];
    while (ended_count < peer_count) {
        int count = epoll_wait(poller, ready, 256, mode >= HOLD ? -1 : QUIET_MS);
        if (!count)
            fail("nothing comes any more");
        for (int i = 0; i < count; i++) {
            struct peer *p = ready[i].data.ptr;
            char byte;
            if (!p && mode == PACED) {
                pace();
                continue;
            }
            if (!p) {
                if (read(0, &byte, 1) <= 0)
                    return;
                continue;
            }
            if (ready[i].events & EPOLLOUT)
                send_body(p);
            if (ready[i].events & ~(uint32_t)EPOLLOUT)
                on_input(p);
        }
    }
}

int main(int count, char **words)
{
    prepare_process();
    if (count != 7)
        fail("usage: load MODE PORT PEERS SECONDS WARM_SECONDS SIZE");
    while (mode < MODES && strcmp(words[1], NAMES[mode]))
        mode++;
    if (mode == MODES)
        fail("no such mode");
    port = atoi(words[2]);
    peer_count = atoi(words[3]);
    double seconds = atof(words[4]), warm = atof(words[5]);
    body_bytes = atoll(words[6]);
    warm_ns = (int64_t)(warm * 1e9);
    end_ns = start_ns + warm_ns + (int64_t)(seconds * 1e9);
    prepare_request();
    if (mode == REQUESTS && body_bytes > BLOCK_BYTES)
        fail("such a request is an upload");
    poller = epoll_create1(0);
    if (mode >= HOLD) {
        alarm(OPEN_LIMIT_S);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
        epoll_ctl(poller, EPOLL_CTL_ADD, 0, &event);
    }
    peers = calloc(peer_count, sizeof *peers);
    idle = calloc(peer_count, sizeof *idle);
    for (int i = 0; i < peer_count; i++)
        peers[i] = join();
    start_ns = now_ns();
    end_ns += start_ns;
    if (mode == PACED)
        start_pacing();
    else
        for (int i = 0; i < peer_count; i++)
            begin(peers[i]);
    run();
    if (mode == EVENTS && total != peer_count * event_count())
        fail("events were lost");
    qsort(samples, sample_count, sizeof *samples, ascending);
    double p50 = sample_count ? samples[sample_count / 2] / 1e3 : 0;
    double p99 = sample_count ? samples[sample_count * 99 / 100] / 1e3 : 0;
    printf("{\"total\": %lld, \"measured\": %zu, \"seconds\": %.6f, \"bytes\": %lld, \"p50_us\": %.2f, "
           "\"p99_us\": %.2f}\n",
           (long long)total, sample_count, (last_ns - start_ns) / 1e9, (long long)moved, p50, p99);
    return 0;
}
