/* shmd_abi.h: every shared layout, limit, status code and exported prototype of shmdriver.
 *
 * The only source. The Python binding derives its cdef from this file by dropping the
 * preprocessor lines, so it is written in plain C: no bodies, no attributes, no sizeof in
 * array bounds; padding is spelled out. shmd_abi_check.c asserts every size and offset.
 *
 * Notation beside a field: @offset, W: who writes it (and how), R: who reads it (and how).
 * "const" means: written by the driver before the segment's magic, never after.
 * A line is 128 bytes; what different processes write never shares one.
 */
#ifndef SHMD_ABI_H
#define SHMD_ABI_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- limits and sizes ---------------------------------------------------------------- */

enum {
    SHMD_LAYOUT_VERSION = 4,
    SHMD_LINE_BYTES = 128,
    SHMD_NAME_BYTES = 64,           /* stream, client and instance names, with the final NUL */
    SHMD_TEXT_BYTES = 1024,         /* text of an answer, with the final NUL */
    SHMD_REASON_BYTES = 128,        /* text that comes with a request */
    SHMD_SCHEMA_BYTES = 1536,       /* canonical schema text, with the final NUL */
    SHMD_SEGMENT_NAME_BYTES = 96,   /* POSIX name, with the slash and the final NUL */
    SHMD_FOLDER_PATH_BYTES = 256,   /* path of a runtime folder, with the final NUL */
    SHMD_HMAC_BYTES = 32,
    SHMD_EPOCH_RECORDS = 4,         /* epochs that a stream keeps */
    SHMD_GATE_MAX = 64,             /* consumers of one stream: bits of a mask */
    SHMD_CLIENT_MAX = 4096,         /* upper limits of what a configuration may ask for */
    SHMD_LEASE_MAX = 16384,
    SHMD_STREAM_MAX = 4096,
    SHMD_SLOT_HEADER_BYTES = 24,
    SHMD_SLOT_BYTES_MIN = 64,
    SHMD_SLOT_BYTES_MAX = 65536,
    SHMD_SLOTS_MIN = 2,
    SHMD_SLOTS_MAX = 67108864,
    SHMD_ARENA_ALIGN = 64,
    SHMD_ARENA_REF_BYTES = 16,
    SHMD_TENSOR_DIMS_MAX = 32,
    SHMD_TENSOR_META_MAX = 256,
    SHMD_TENSOR_DTYPE_MAX = 1024,
    SHMD_DATA_HEADER_BYTES = 4096,
    SHMD_GATES_HEADER_BYTES = 4096,
    SHMD_CLIENT_REQUESTS = 4,       /* requests of one client that wait for the driver; divides 2^64 */
    SHMD_CLIENT_LEASES = 448,       /* leases of one client at a time: entries of its control segment */
    SHMD_LATENCY_BUCKETS = 256,
    SHMD_LOST_RANGES = 64,          /* gaps that a consumer remembers */
    SHMD_ERROR_TEXT_BYTES = 232
};

/* ---- enumerations -------------------------------------------------------------------- */

/* What a call returns: 0 or a count when all is well, one of these otherwise. */
enum {
    SHMD_OK = 0,
    SHMD_BACK_PRESSURED = -1,       /* no room now */
    SHMD_E_TIMEOUT = -2,
    SHMD_E_INVALID = -3,            /* an argument is out of its range */
    SHMD_E_TOO_LARGE = -4,          /* message larger than the stream can carry */
    SHMD_E_REVOKED = -5,            /* the lease has ended: nothing more through this handle */
    SHMD_E_END = -6,                /* clean end of the stream */
    SHMD_E_PRODUCER_LOST = -7,      /* aborted end of the stream */
    SHMD_E_DRIVER_UNAVAILABLE = -8,
    SHMD_E_REJECTED = -9,           /* the driver said no: shmd_last_error, shmd_last_reason */
    SHMD_E_LAYOUT = -10,            /* a segment is not what it should be */
    SHMD_E_CONCURRENT = -11,        /* a second thread inside one handle */
    SHMD_E_FORKED = -12,            /* a handle used in a child of the process that made it */
    SHMD_E_SYSTEM = -13,            /* a system call failed: the text names it and errno */
    SHMD_E_CLOSED = -14,            /* the handle was closed */
    SHMD_E_INTERRUPTED = -15,       /* a signal arrived while waiting; not told of one whose handler has SA_RESTART: the kernel goes on waiting */
    SHMD_E_CORRUPT = -16,           /* a checksum, length, enum or index failed its check */
    SHMD_E_NO_MEMORY = -17,
    SHMD_E_VIEWS_HELD = -18,        /* the consumer's own views fill the ring */
    SHMD_E_CLAIM = -19,             /* claim already open, or none open */
    SHMD_E_OVERRUN = -20            /* an ungated reader was lapped while it copied */
};

enum { SHMD_SEGMENT_AUTHORITY = 1, SHMD_SEGMENT_CONTROL = 2, SHMD_SEGMENT_DATA = 3, SHMD_SEGMENT_GATES = 4 };

/* Answers of the driver (shmd_event.code). */
enum { SHMD_CODE_OK = 0, SHMD_CODE_UNSUPPORTED = 1, SHMD_CODE_INVALID_PARAMS = 2, SHMD_CODE_REJECTED = 3,
       SHMD_CODE_INTERNAL_ERROR = 4 };

/* Why (shmd_event.reason): what a program branches on; the text is for people. */
enum {
    SHMD_REASON_NONE = 0,
    SHMD_REASON_DRAINING = 1, SHMD_REASON_MAINTENANCE = 2, SHMD_REASON_STOPPED = 3,
    SHMD_REASON_LIMIT = 4, SHMD_REASON_PRODUCER_EXISTS = 5, SHMD_REASON_UNKNOWN_STREAM = 6,
    SHMD_REASON_SCHEMA = 7, SHMD_REASON_LAYOUT = 8, SHMD_REASON_NO_MEMORY = 9, SHMD_REASON_BAD_NAME = 10,
    SHMD_REASON_UNDRAINED = 11, SHMD_REASON_NOT_OWNER = 12, SHMD_REASON_UNKNOWN_CLIENT = 13,
    SHMD_REASON_REFUSED_RELIABLE = 14, SHMD_REASON_TOKEN = 15, SHMD_REASON_RATE = 16, SHMD_REASON_SIZE = 17,
    SHMD_REASON_DRIVER_DIED = 18,   /* a driver died while this request was in work: it is not served again */
    /* how a lease or an epoch ended */
    SHMD_REASON_CLOSED = 32, SHMD_REASON_ABORTED = 33, SHMD_REASON_DIED = 34, SHMD_REASON_EXPIRED = 35,
    SHMD_REASON_EVICTED = 36, SHMD_REASON_REVOKED = 37, SHMD_REASON_BAD_GATE = 38, SHMD_REASON_UNCONFIRMED = 39,
    SHMD_REASON_SHUTDOWN = 40, SHMD_REASON_DELIVERED = 41, SHMD_REASON_SUPERSEDED = 42,
    SHMD_REASON_TRUNCATED = 43,
    SHMD_REASON_EXPELLED = 44       /* what its client wrote to the driver could not be read */
};

/* The purpose of a system call. One errno has different hints for different purposes (shmd_errno_hint). */
enum {
    SHMD_CALL_OTHER = 1,
    SHMD_CALL_OPEN = 2,             /* an existing segment */
    SHMD_CALL_CREATE = 8,           /* a new segment */
    SHMD_CALL_ALLOCATE = 16,        /* its memory */
    SHMD_CALL_SHARE = 32,           /* its group and mode */
    SHMD_CALL_MAP = 64,
    SHMD_CALL_LOCK = 128,
    SHMD_CALL_THREAD = 256,
    SHMD_CALL_THREAD_ASKED = 512,   /* with a policy or CPUs that the client asked for */
    SHMD_CALL_THREAD_DEADLINE = 1024, /* by a thread under SCHED_DEADLINE */
    SHMD_CALL_READ = 2048,          /* a file that the configuration or an argument names */
    SHMD_CALL_RUNTIME = 4096,       /* a file in the user's runtime directory */
    SHMD_CALL_FILE = 8192,          /* any other file of the user's: errors that are not ours have no hint */
    SHMD_CALL_CONNECT = 16384       /* to a driver's socket */
};

enum { SHMD_ROLE_PRODUCER = 1, SHMD_ROLE_CONSUMER = 2 };
enum { SHMD_DELIVERY_RELIABLE = 1, SHMD_DELIVERY_LOSSY = 2, SHMD_DELIVERY_LATEST = 3 };
enum { SHMD_START_NEWEST = 1, SHMD_START_OLDEST = 2 };
enum { SHMD_WAIT_ADAPTIVE = 1, SHMD_WAIT_SPIN = 2, SHMD_WAIT_SLEEP = 3 };
enum { SHMD_PACE_AUTO = 1, SHMD_PACE_EAGER = 2 };
enum { SHMD_SLOW_DEFAULT = 0, SHMD_SLOW_BLOCK = 1, SHMD_SLOW_EVICT = 2, SHMD_SLOW_REFUSE = 3 };

/* shmd_request.flags */
enum { SHMD_ATTACH_CREATE = 1, SHMD_ATTACH_FOLLOW = 2, SHMD_ATTACH_NO_WAKEUPS = 4, SHMD_ATTACH_TIMESTAMPS = 8,
       SHMD_DETACH_ABORTED = 16, SHMD_ATTACH_PREFAULT = 32 /* of an epoch record: each process that maps it populates it */ };

/* shmd_client_options.flags. WAIT_FOR_DRIVER: a request whose driver dies is answered by the driver that adopts, if it comes in time. */
enum { SHMD_HEARTBEAT_THREAD = 0, SHMD_HEARTBEAT_MANUAL = 1, SHMD_WAIT_FOR_DRIVER = 2 };
enum { SHMD_POLICY_OTHER = 0, SHMD_POLICY_FIFO = 1, SHMD_POLICY_RR = 2 };
enum { SHMD_CPUS_MAX = 8192 };          /* CPU numbers are below it */
enum { SHMD_INSTANCE_CHARS_MAX = 41 };

/* The low byte of a record's word; the rest is its generation, which grows with every reuse, and is odd while the record is rewritten. */
enum { SHMD_RECORD_FREE = 0, SHMD_RECORD_USED = 1, SHMD_RECORD_ENDED = 2 };
enum { SHMD_TABLE_CLIENTS = 1, SHMD_TABLE_LEASES = 2, SHMD_TABLE_STREAMS = 3 };
enum { SHMD_CLIENT_FREE = 0, SHMD_CLIENT_ALIVE = 1, SHMD_CLIENT_STALLED = 2, SHMD_CLIENT_GONE = 3 };
enum { SHMD_LEASE_FREE = 0, SHMD_LEASE_ATTACHED = 1, SHMD_LEASE_ACTIVE = 2, SHMD_LEASE_STALLED = 3,
       SHMD_LEASE_DETACHED = 4, SHMD_LEASE_EXPIRED = 5, SHMD_LEASE_REVOKED = 6 };
/* The low byte of shmd_epoch_hot.state; the rest is the epoch's number, 0 while the record is rewritten. A free record keeps the
 * number of its last epoch, and how that ended. The word of an open epoch never comes back: a producer whose epoch has ended, and
 * that has not looked since, would take another epoch for its own. So numbers go on when a stream's record is used for another stream. */
enum { SHMD_EPOCH_FREE = 0, SHMD_EPOCH_OPEN = 1, SHMD_EPOCH_SEALING = 2, SHMD_EPOCH_SEALED = 3,
       SHMD_EPOCH_RETIRED = 4 };

/* The driver's lifecycle, as clients and tools see it. */
enum { SHMD_LIFECYCLE_INIT = 0, SHMD_LIFECYCLE_HEALTHY = 1, SHMD_LIFECYCLE_DEGRADED = 2,
       SHMD_LIFECYCLE_MAINTENANCE = 3, SHMD_LIFECYCLE_DRAINING = 4, SHMD_LIFECYCLE_STOPPED = 5 };
enum { SHMD_EXIT_NONE = 0, SHMD_EXIT_CLEAN = 1, SHMD_EXIT_HANDOVER = 2, SHMD_EXIT_SUPERSEDED = 3 };

enum { SHMD_REQUEST_ATTACH = 2, SHMD_REQUEST_DETACH = 3, SHMD_REQUEST_GOODBYE = 4,
       SHMD_REQUEST_SHUTDOWN = 5, SHMD_REQUEST_ADMIN = 6 };
enum { SHMD_ADMIN_MAINTENANCE_ON = 1, SHMD_ADMIN_MAINTENANCE_OFF = 2, SHMD_ADMIN_REVOKE = 3, SHMD_ADMIN_SNAPSHOT = 4,
       SHMD_ADMIN_FORGET = 5 /* a client whose end nobody can prove: lease_id is its id */ };
enum { SHMD_SHUTDOWN_END = 1, SHMD_SHUTDOWN_HANDOVER = 2 };

enum { SHMD_EVENT_ATTACH_RESPONSE = 2, SHMD_EVENT_DETACH_RESPONSE = 3,
       SHMD_EVENT_LEASE_REVOKED = 4, SHMD_EVENT_STREAM_ANNOUNCE = 5, SHMD_EVENT_LIFECYCLE_CHANGED = 6,
       SHMD_EVENT_DRIVER_SHUTDOWN = 7, SHMD_EVENT_ERROR = 8, SHMD_EVENT_ADMIN_RESPONSE = 9,
       SHMD_EVENT_CONSUMERS_LEFT = 10 };

/* Slot flags. */
enum { SHMD_FLAG_ARENA = 1, SHMD_FLAG_TENSOR = 2 };

/* What a client's control segment says of one of its leases (shmd_client_ring_look). The low byte of shmd_lease_entry.detached is one
 * of the last two. */
enum { SHMD_ENTRY_NONE = 0, SHMD_ENTRY_CONFIRMED = 1, SHMD_ENTRY_DETACHED = 2, SHMD_ENTRY_ABORTED = 3 };

/* Driver counters, by index. src/shmdriver/observe/names.py has their names, in this order. */
enum {
    SHMD_COUNTER_TICKS = 0, SHMD_COUNTER_REQUESTS = 1, SHMD_COUNTER_REQUESTS_CORRUPT = 2,
    SHMD_COUNTER_REQUESTS_REJECTED = 3, SHMD_COUNTER_REQUESTS_EXPIRED = 4, SHMD_COUNTER_ATTACHES = 5,
    SHMD_COUNTER_DETACHES = 6, SHMD_COUNTER_LEASES_EXPIRED = 7, SHMD_COUNTER_LEASES_REVOKED = 8,
    SHMD_COUNTER_CLIENTS_DIED = 9, SHMD_COUNTER_CLIENTS_STALLED = 10, SHMD_COUNTER_EPOCHS_OPENED = 11,
    SHMD_COUNTER_EPOCHS_SEALED = 12, SHMD_COUNTER_EPOCHS_UNPROVEN = 13, SHMD_COUNTER_EPOCHS_RETIRED = 14,
    SHMD_COUNTER_SEGMENTS_CREATED = 15, SHMD_COUNTER_SEGMENTS_UNLINKED = 16, SHMD_COUNTER_SEGMENT_BYTES = 17,
    SHMD_COUNTER_EVENTS = 20,
    SHMD_COUNTER_ERRORS = 21, SHMD_COUNTER_TICK_OVERRUNS = 22, SHMD_COUNTER_TICK_LATE_MAX_NS = 23,
    SHMD_COUNTER_ADOPTIONS = 24, SHMD_COUNTER_AUTH_REFUSED = 25, SHMD_COUNTER_EVICTIONS = 26,
    SHMD_COUNTER_BAD_GATES = 27, SHMD_COUNTER_IDLE_CHECKS = 28, SHMD_COUNTER_HARD_LINKS = 29,
    SHMD_COUNTER_MAX = 64
};

/* ---- every segment ------------------------------------------------------------------- */

typedef struct shmd_header {        /* 128 bytes */
    uint64_t magic;                 /* @0   W:driver(release, last) R:all(acquire, first) */
    uint32_t layout_version;        /* @8   const; checked before any field below is used */
    uint32_t kind;                  /* @12  const; SHMD_SEGMENT_* */
    uint64_t segment_bytes;         /* @16  const */
    uint64_t boot_id;               /* @24  const; of the driver that made it */
    uint32_t stream_id;             /* @32  const; 0 in authority and control */
    uint32_t epoch;                 /* @36  const; 0 in authority and control */
    uint64_t created_ns;            /* @40  const; monotonic */
    uint8_t pad[80];                /* @48 */
} shmd_header_t;

/* ---- authority: W:driver R:clients, tools -------------------------------------------- */

typedef struct shmd_client_record { /* 512 bytes */
    uint64_t word;                  /* @0   W:driver(release) R:all(acquire); generation << 8 | SHMD_CLIENT_* */
    uint64_t client_id;             /* @8   never reused */
    uint64_t serial;                /* @16  of the newest Hello; one with a lower number is not heeded */
    uint64_t nonce;                 /* @24  brought by the Hello; keys the checksums of this client's requests */
    int64_t pid;                    /* @32  as the driver that heard the Hello read it; 0: a process of another PID namespace */
    uint64_t start_time;            /* @40  likewise, clock ticks since boot (/proc/PID/stat field 22); 0: not known */
    uint64_t pid_namespace;         /* @48  inode; that driver's */
    uint64_t attached_ns;           /* @56 */
    uint64_t seen_ns;               /* @64  W:driver(relaxed) when it saw the heartbeat change */
    uint32_t provable;              /* @72  1: death can be proved by pidfd */
    uint32_t index;                 /* @76 */
    char name[64];                  /* @80 */
    uint64_t time_namespace;        /* @144 inode; that driver's, in which start_time was read. 0: not known */
    uint64_t image;                 /* @152 as the Hello says; 0: not known */
    uint32_t uid;                   /* @160 of the process that connected, as the kernel says */
    uint32_t gid;                   /* @164 likewise */
    uint32_t connected;             /* @168 W:driver(relaxed) R:tools; 1: it has a connection */
    uint32_t reserved;              /* @172 */
    uint8_t secret_sha256[32];      /* @176 of the secret that the first Hello brought */
    uint8_t pad0[48];               /* @208 */
    uint64_t control_cursor;        /* @256 W:driver(release) R:that client(acquire), successor; for a control ring of its own */
    uint8_t pad1[120];              /* @264 */
    char control_name[96];          /* @384 likewise: its segment */
    uint64_t control_bytes;         /* @480 */
    uint8_t pad2[24];               /* @488 */
} shmd_client_record_t;

typedef struct shmd_lease_record {  /* 256 bytes */
    uint64_t word;                  /* @0   W:driver(release) R:all(acquire); generation << 8 | SHMD_LEASE_* */
    uint64_t lease_id;              /* @8   never reused */
    uint64_t client_id;             /* @16 */
    uint64_t correlation_id;        /* @24  of the attach */
    uint64_t start_seq;             /* @32  consumer: first seq that it is wired to, in first_epoch */
    uint64_t joined_seq;            /* @40  consumer: lossless from here (= start_seq unless start was oldest) */
    uint64_t attached_ns;           /* @48 */
    uint64_t deadline_ns;           /* @56  unconfirmed at this time: detached */
    uint64_t ended_ns;              /* @64 */
    uint64_t schema_hash;           /* @72  of the schema that the client declared; 0: none */
    uint32_t client_index;          /* @80 */
    uint32_t stream_index;          /* @84 */
    uint32_t stream_id;             /* @88 */
    uint32_t role;                  /* @92 */
    uint32_t delivery;              /* @96 */
    uint32_t start;                 /* @100 */
    uint32_t wait;                  /* @104 */
    uint32_t flags;                 /* @108 SHMD_ATTACH_* */
    uint32_t gate;                  /* @112 consumer: index of its gate and bit, the same in every epoch */
    uint32_t first_epoch;           /* @116 epoch that it was first wired to; 0: none yet */
    uint32_t epoch;                 /* @120 producer: its epoch */
    uint32_t record;                /* @124 producer: index of its epoch record */
    uint32_t end_reason;            /* @128 SHMD_REASON_* once ended */
    uint32_t quarantined;           /* @132 1: ended without proof of death, not to be reused yet */
    uint32_t slow_consumer;         /* @136 producer's policy */
    uint32_t min_consumers;         /* @140 */
    uint32_t index;                 /* @144 */
    uint32_t shards;                /* @148 consumer: among so many the stream's messages are shared out; 0 or 1: not */
    uint32_t entry;                 /* @152 of its client's control segment, where that says what it does with this lease */
    uint8_t pad[100];               /* @156 */
} shmd_lease_record_t;

/* What the hot paths load: one read-mostly line an epoch. */
typedef struct shmd_epoch_hot {     /* 128 bytes */
    uint64_t state;                 /* @0   W:driver(release, seq_cst) R:all(acquire); epoch << 8 | SHMD_EPOCH_* */
    uint64_t gate_mask;             /* @8   W:driver(seq_cst) R:producer(acquire), consumers; reliable consumers */
    uint64_t sleep_mask;            /* @16  W:driver(seq_cst) R:producer; consumers that may sleep at all */
    uint64_t sealed_seq;            /* @24  W:driver(release) R:all; valid when SEALED, and then until the record is rewritten */
    uint64_t wired_mask;            /* @32  W:driver(release) R:consumers, tools; all consumers of this epoch */
    uint8_t pad[88];                /* @40 */
} shmd_epoch_hot_t;

typedef struct shmd_epoch_record {  /* 512 bytes */
    shmd_epoch_hot_t hot;           /* @0 */
    uint64_t producer_lease_id;     /* @128 */
    uint64_t opened_ns;             /* @136 */
    uint64_t sealed_ns;             /* @144 */
    uint64_t arena_bytes;           /* @152 */
    uint64_t data_bytes;            /* @160 */
    uint64_t gates_bytes;           /* @168 */
    uint32_t slots;                 /* @176 */
    uint32_t slot_bytes;            /* @180 */
    uint32_t gate_count;            /* @184 */
    uint32_t end_reason;            /* @188 SHMD_REASON_* once sealing */
    uint32_t unproven;              /* @192 1: sealed without proof that the producer is dead */
    uint32_t flags;                 /* @196 SHMD_ATTACH_NO_WAKEUPS, TIMESTAMPS, PREFAULT */
    uint32_t stream_id;             /* @200 */
    uint32_t epoch;                 /* @204 */
    int64_t producer_pid;           /* @208 */
    uint8_t pad0[40];               /* @216 */
    char data_name[96];             /* @256 */
    char gates_name[96];            /* @352 */
    uint8_t pad1[64];               /* @448 */
} shmd_epoch_record_t;

typedef struct shmd_stream_record { /* 4096 bytes */
    uint64_t word;                  /* @0   W:driver(release) R:all(acquire); generation << 8 | SHMD_RECORD_* */
    uint64_t epoch_count;           /* @8   W:driver(release) R:consumers(acquire); number of the newest epoch; 0: it has had none */
    uint64_t producer_lease_id;     /* @16  0: no producer now */
    uint64_t gates_used;            /* @24  gate indexes that live or quarantined leases hold */
    uint32_t stream_id;             /* @32  never reused within a boot id */
    uint32_t schema_bytes;          /* @36  0: bytes */
    uint64_t schema_hash;           /* @40 */
    uint64_t created_ns;            /* @48 */
    uint32_t index;                 /* @56 */
    uint32_t max_consumers;         /* @60 */
    char name[64];                  /* @64 */
    uint8_t pad0[128];              /* @128 */
    char schema[1536];              /* @256 */
    shmd_epoch_record_t epochs[4];  /* @1792 */
    uint64_t epochs_before;         /* @3840 the last number of the streams that had this record before; its own follow */
    uint8_t pad1[248];              /* @3848 */
} shmd_stream_record_t;

typedef struct shmd_error_record {  /* 256 bytes; distinct errors, counted */
    uint64_t count;                 /* @0   W:driver(release) R:tools(acquire); 0: unused */
    uint64_t first_ns;              /* @8 */
    uint64_t last_ns;               /* @16  W:driver(relaxed) */
    char text[232];                 /* @24 */
} shmd_error_record_t;

/* A request in work: noted before it is served, so that a successor knows what was in work when a driver died. Entry
 * SHMD_WORK_LOOP is what the driver's loop serves or grants, SHMD_WORK_MEMORY an attach whose memory the loop itself makes,
 * SHMD_WORK_THREAD one whose memory the helper thread makes. Those from SHMD_WORK_REMEMBERED on are requests at which drivers
 * have died. W:driver R:successor, once it holds the lock. Fields, then state. */
enum { SHMD_WORK_LOOP = 0, SHMD_WORK_MEMORY = 1, SHMD_WORK_THREAD = 2, SHMD_WORK_REMEMBERED = 3, SHMD_WORK_ENTRIES = 8 };
typedef struct shmd_work {          /* 64 bytes */
    uint64_t state;                 /* @0   W:driver(release) R:successor; 0: free; 1: in work, or remembered; 2: remembered, and its client was told */
    uint64_t client_id;             /* @8   0 for a Hello */
    uint64_t correlation_id;        /* @16  the request's */
    uint64_t bytes;                 /* @24  of memory that is made for it; 0: none */
    uint64_t deaths;                /* @32  how many drivers had died at it before */
    uint64_t died_ns;               /* @40  remembered: when a successor found it */
    int64_t driver_pid;             /* @48  remembered: the last driver that died at it */
    uint64_t stream_hash;           /* @56  of an attach's stream and role; 0: no attach */
} shmd_work_t;

typedef struct shmd_authority {     /* 2048 bytes, then the tables at their offsets */
    shmd_header_t header;           /* @0 */
    uint32_t client_max;            /* @128 const */
    uint32_t lease_max;             /* @132 const */
    uint32_t stream_max;            /* @136 const */
    uint32_t event_slots;           /* @140 const; power of two */
    uint32_t event_slot_bytes;      /* @144 const */
    uint32_t counter_max;           /* @148 const */
    uint32_t error_max;             /* @152 const */
    uint32_t config_bytes;          /* @156 const */
    uint64_t clients_offset;        /* @160 const */
    uint64_t leases_offset;         /* @168 const */
    uint64_t streams_offset;        /* @176 const */
    uint64_t events_offset;         /* @184 const */
    uint64_t counters_offset;       /* @192 const */
    uint64_t errors_offset;         /* @200 const */
    uint64_t config_offset;         /* @208 const */
    uint64_t reserved;              /* @216 */
    uint64_t heartbeat_interval_ns; /* @224 W:driver(relaxed) R:clients */
    uint64_t lease_timeout_ns;      /* @232 W:driver(relaxed) R:clients, tools */
    char instance[64];              /* @240 const */
    uint8_t pad0[208];              /* @304 */
    uint64_t lifecycle;             /* @512 W:driver(release) R:all(acquire); SHMD_LIFECYCLE_* */
    uint64_t exit_kind;             /* @520 W:driver(release) R:all(acquire); SHMD_EXIT_*; not NONE: this driver is over */
    uint64_t heartbeat_ns;          /* @528 W:driver(release) R:clients, tools; time of its last tick or idle check */
    uint64_t degraded;              /* @536 W:driver(relaxed) R:tools; bits of reasons */
    int64_t driver_pid;             /* @544 W:driver(relaxed) R:clients, tools */
    uint64_t driver_start_time;     /* @552 likewise */
    uint64_t driver_pid_namespace;  /* @560 likewise */
    uint64_t started_ns;            /* @568 likewise; this driver process */
    uint64_t adoptions;             /* @576 likewise; how often the segments were taken over */
    uint64_t shutdown_deadline_ns;  /* @584 likewise; 0: not draining */
    uint64_t shutdown_mode;         /* @592 likewise; SHMD_SHUTDOWN_* */
    uint64_t driver_time_namespace; /* @600 likewise; in which driver_start_time was read */
    uint8_t pad1[32];               /* @608 */
    uint64_t reserved2;             /* @640 */
    uint64_t next_client_id;        /* @648 W:driver before it is used R:successor */
    uint64_t next_lease_id;         /* @656 likewise */
    uint64_t next_stream_id;        /* @664 likewise */
    uint64_t last_nonce;            /* @672 W:driver before acting R:successor */
    uint8_t pad2[88];               /* @680 */
    uint64_t event_head;            /* @768 W:driver(release) R:clients, tools(acquire) */
    uint8_t pad3[120];              /* @776 */
    uint32_t event_word;            /* @896 W:driver; futex: bumped at every event */
    uint32_t change_word;           /* @900 W:driver; futex: bumped when a lease or an epoch has changed */
    uint8_t pad4[120];              /* @904 */
    shmd_work_t work[8];            /* @1024 */
    char folder[256];               /* @1536 W:driver before exit_kind R:successor, tools; path of its runtime folder, where its lock is */
    uint64_t folder_device;         /* @1792 likewise; st_dev of that folder */
    uint64_t folder_inode;          /* @1800 likewise; its st_ino: a path may lead elsewhere in another mount namespace */
    uint64_t lock_inode;            /* @1808 likewise; st_ino of the lock in it: another one proves nothing of that driver */
    uint64_t claim;                 /* @1816 W:driver(cas, release) R:successor; odd: somebody takes it over; even: the lock above decides */
    uint8_t pad5[224];              /* @1824 */
} shmd_authority_t;

typedef struct shmd_event {         /* 1192 bytes, the payload of an event-ring slot */
    uint32_t kind;                  /* @0   SHMD_EVENT_* */
    uint32_t code;                  /* @4   SHMD_CODE_* */
    uint32_t reason;                /* @8   SHMD_REASON_* */
    uint32_t text_bytes;            /* @12  without the NUL */
    uint64_t correlation_id;        /* @16 */
    uint64_t client_id;             /* @24 */
    uint64_t lease_id;              /* @32 */
    uint32_t client_index;          /* @40 */
    uint32_t lease_index;           /* @44 */
    uint32_t stream_index;          /* @48 */
    uint32_t stream_id;             /* @52 */
    uint32_t epoch;                 /* @56 */
    uint32_t record;                /* @60 */
    uint32_t gate;                  /* @64 */
    uint32_t state;                 /* @68  SHMD_LIFECYCLE_*, SHMD_EPOCH_* or SHMD_LEASE_*, by kind */
    uint64_t start_seq;             /* @72 */
    uint64_t value;                 /* @80  by kind: sealed_seq, milliseconds, ... */
    uint64_t time_ns;               /* @88 */
    char stream[64];                /* @96 */
    char text[1024];                /* @160 */
    uint32_t entry;                 /* @1184 attach: of the client's control segment */
    uint32_t reserved;              /* @1188 */
} shmd_event_t;

/* ---- control, one for each client: W:that client R:driver ------------------------------- */

typedef struct shmd_request {       /* 2176 bytes */
    uint64_t checksum;              /* @0   over position, who, the client's nonce and all bytes from @8 on */
    uint64_t position;              /* @8 */
    uint64_t correlation_id;        /* @16 */
    uint64_t client_id;             /* @24 */
    uint64_t deadline_ns;           /* @32  monotonic; dropped past it */
    uint32_t kind;                  /* @40  SHMD_REQUEST_* */
    uint32_t layout_version;        /* @44 */
    uint8_t pad0[24];               /* @48  zero */
    uint64_t nonce;                 /* @72  Shutdown, Admin: increasing */
    uint32_t role;                  /* @80  Attach, Detach */
    uint32_t delivery;              /* @84  Attach */
    uint32_t start;                 /* @88  Attach */
    uint32_t wait;                  /* @92  Attach */
    uint32_t flags;                 /* @96  SHMD_ATTACH_*, SHMD_DETACH_ABORTED */
    uint32_t slow_consumer;         /* @100 Attach, producer */
    uint32_t min_consumers;         /* @104 Attach, producer */
    uint32_t slots;                 /* @108 Attach, producer; 0: as the profile says */
    uint32_t slot_bytes;            /* @112 Attach, producer; 0: as the profile says */
    uint32_t schema_bytes;          /* @116 Attach; without the NUL; 0: none */
    uint64_t max_message;           /* @120 Attach, producer; 0: as the profile says */
    uint64_t arena_bytes;           /* @128 Attach, producer; UINT64_MAX: as the profile says */
    uint64_t lease_id;              /* @136 Detach, Admin (of FORGET: the client's id); 0 in a Detach: by target_correlation_id */
    uint64_t target_correlation_id; /* @144 Detach */
    uint32_t admin;                 /* @152 SHMD_ADMIN_*; Shutdown: SHMD_SHUTDOWN_* */
    uint32_t shards;                /* @156 Attach, consumer; among so many the stream's messages are shared out; 0: not */
    uint8_t hmac[32];               /* @160 Shutdown, Admin */
    char stream[64];                /* @192 */
    uint8_t pad1[64];               /* @256 zero */
    char text[128];                 /* @320 reason */
    char schema[1536];              /* @448 */
    uint8_t pad2[192];              /* @1984 zero */
} shmd_request_t;

typedef struct shmd_heartbeat {     /* 128 bytes */
    uint64_t beat;                  /* @0   W:that client(release) R:driver(acquire) */
    uint64_t client_id;             /* @8   W:that client */
    uint8_t pad[112];               /* @16 */
} shmd_heartbeat_t;

typedef struct shmd_lease_entry {   /* 16 bytes; a note stays until the entry serves a later lease: ids tell whose it is */
    uint64_t confirmed;             /* @0   W:that client(release) R:driver(acquire); the lease id, once the stream is mapped */
    uint64_t detached;              /* @8   W:that client(release) R:driver(acquire); lease id << 8 | SHMD_ENTRY_DETACHED or _ABORTED */
} shmd_lease_entry_t;

typedef struct shmd_control {       /* 16384 bytes */
    shmd_header_t header;           /* @0   const */
    uint64_t client_id;             /* @128 const */
    uint32_t request_count;         /* @136 const */
    uint32_t lease_count;           /* @140 const */
    uint8_t pad0[112];              /* @144 */
    uint64_t tail;                  /* @256 W:that client(release) R:driver(acquire); position of its next request */
    uint8_t pad1[120];              /* @264 */
    shmd_heartbeat_t heartbeat;     /* @384 */
    shmd_request_t requests[4];     /* @512 slot = position % 4 */
    shmd_lease_entry_t leases[448]; /* @9216 */
} shmd_control_t;

/* ---- Hello: one message each way on a connection of type SOCK_SEQPACKET ---------------- */

enum { SHMD_MESSAGE_HELLO = 16, SHMD_MESSAGE_WELCOME = 17 }; /* kinds, for shmd_magic */
enum { SHMD_SECRET_BYTES = 16 };

typedef struct shmd_hello {         /* 512 bytes; W:client R:driver, a copy. The first 16 bytes have this meaning in every layout */
    uint64_t magic;                 /* @0 */
    uint32_t layout_version;        /* @8 */
    uint32_t bytes;                 /* @12  of the message */
    uint64_t boot_id;               /* @16  of the former registration; 0: none */
    uint64_t client_id;             /* @24  likewise; 0: a new client */
    uint64_t serial;                /* @32  monotonic time in ns: grows with each Hello of a process, whichever its client or image */
    uint64_t image;                 /* @40  shmd_image of the instance: who has called exec has another one. 0: not known */
    uint64_t nonce;                 /* @48  keys the checksums of this client's requests */
    uint64_t start_time;            /* @56  as the client reads its own, to be refused by only; 0: it cannot */
    uint64_t pid_namespace;         /* @64  likewise */
    uint64_t time_namespace;        /* @72  likewise */
    uint8_t secret[16];             /* @80  drawn once a client; proves a former registration */
    uint32_t flags;                 /* @96  zero */
    uint32_t reserved;              /* @100 zero */
    char name[64];                  /* @104 the client's */
    uint8_t pad[344];               /* @168 zero */
} shmd_hello_t;

typedef struct shmd_welcome {       /* 2048 bytes; W:driver R:client, a copy. The first 16 bytes likewise */
    uint64_t magic;                 /* @0 */
    uint32_t layout_version;        /* @8 */
    uint32_t bytes;                 /* @12  of the message */
    uint32_t code;                  /* @16  SHMD_CODE_*; OK: comes with two descriptors, authority and control */
    uint32_t reason;                /* @20  SHMD_REASON_* */
    uint64_t boot_id;               /* @24 */
    uint64_t client_id;             /* @32 */
    uint32_t client_index;          /* @40 */
    uint32_t text_bytes;            /* @44  without the NUL */
    uint64_t authority_bytes;       /* @48 */
    uint64_t control_bytes;         /* @56 */
    char text[1024];                /* @64 */
    uint8_t pad[960];               /* @1088 zero */
} shmd_welcome_t;

/* ---- data: W:one producer R:its consumers, driver, tools ------------------------------ */

typedef struct shmd_slot {          /* the first 24 bytes of a slot; the payload follows */
    uint64_t commit;                /* @0   W:producer(release) R:consumers(acquire); seq << 1 | committed */
    uint32_t length;                /* @8   payload bytes */
    uint16_t type;                  /* @12  the user's */
    uint16_t flags;                 /* @14  SHMD_FLAG_* */
    uint64_t timestamp_ns;          /* @16  publish time, 0 when stamping is off */
} shmd_slot_t;

typedef struct shmd_arena_ref {     /* the payload of a slot with SHMD_FLAG_ARENA */
    uint64_t position;              /* @0   absolute, a multiple of 64; offset = position % arena_bytes */
    uint64_t bytes;                 /* @8   reserved there: length rounded up to 64 */
} shmd_arena_ref_t;

typedef struct shmd_tensor {        /* the head of a payload with SHMD_FLAG_TENSOR */
    uint32_t header_bytes;          /* @0   multiple of 64: where the elements begin */
    uint16_t dtype_bytes;           /* @4   text, after the shape */
    uint16_t meta_bytes;            /* @6   user's, after the dtype */
    uint8_t version;                /* @8   1 */
    uint8_t ndim;                   /* @9 */
    uint8_t fortran;                /* @10  1: column-major */
    uint8_t reserved[5];            /* @11 */
} shmd_tensor_t;                    /* 16 bytes; then u64 shape[ndim], dtype text, meta, zeros */

typedef struct shmd_data {          /* 4096 bytes, then slots, then arena, both whole pages */
    shmd_header_t header;           /* @0 */
    uint32_t slots;                 /* @128 const; power of two */
    uint32_t slot_bytes;            /* @132 const; multiple of 64 */
    uint64_t arena_bytes;           /* @136 const; whole pages, may be 0 */
    uint64_t ring_offset;           /* @144 const */
    uint64_t arena_offset;          /* @152 const */
    uint32_t flags;                 /* @160 const */
    uint32_t schema_bytes;          /* @164 const; without the NUL */
    uint8_t pad0[88];               /* @168 */
    uint64_t head;                  /* @256 W:producer(release) R:consumers, driver, tools(acquire) */
    uint64_t bytes;                 /* @264 W:producer(relaxed) R:tools; payload bytes ever published */
    uint8_t pad1[112];              /* @272 */
    uint64_t arena_intent;          /* @384 W:producer(relaxed, then release fence) R:ungated; bytes below may be overwritten by - arena_bytes */
    uint8_t pad2[120];              /* @392 */
    uint32_t wake_word;             /* @512 W:producer; futex: consumers sleep on it */
    uint8_t pad3[124];              /* @516 */
    uint32_t room_waiting;          /* @640 W:producer(seq_cst) R:consumers; ticket << 8 | gate it waits for + 1; 0: not waiting */
    uint32_t blocked_gate;          /* @644 W:producer(relaxed) R:driver, tools; gate that holds it back + 1; 65: no consumer yet; 0: none */
    uint64_t blocked_since_ns;      /* @648 W:producer(relaxed); monotonic */
    uint64_t blocked_position;      /* @656 W:producer(relaxed); where that gate stands */
    uint64_t blocked_total_ns;      /* @664 W:producer(relaxed); of finished waits */
    uint64_t blocked_count;         /* @672 W:producer(relaxed) */
    uint8_t pad4[88];               /* @680 */
    uint64_t aborted_claims;        /* @768 W:producer(relaxed) R:tools */
    uint64_t wakes;                 /* @776 W:producer(relaxed) R:tools; futex wake calls */
    uint8_t pad5[1264];             /* @784 */
    char schema[1536];              /* @2048 const */
    uint8_t pad6[512];              /* @3584 */
} shmd_data_t;

/* ---- gates: W:its consumers R:that producer, driver, tools ---------------------------- */

typedef struct shmd_gate {          /* 2048 bytes */
    uint64_t position;              /* @0   W:driver until the attach is answered, then consumer(release) R:producer(acquire) */
    uint64_t cursor;                /* @8   W:consumer(relaxed) R:tools; next seq to read, at or past position */
    uint64_t delivered;             /* @16  W:consumer(release) R:clients; how far a reliable consumer got, kept when the gate is another's */
    uint8_t pad0[104];              /* @24 */
    uint64_t left;                  /* @128 W:consumer(release) R:driver(acquire); its lease id once it has left this epoch */
    uint32_t sleeping;              /* @136 W:consumer(seq_cst) R:producer; wake_word that it sleeps on << 1 | 1; 0: it does not sleep */
    uint8_t pad1[116];              /* @140 */
    uint32_t room_word;             /* @256 W:consumer; futex: the producer sleeps on it */
    uint8_t pad2[124];              /* @260 */
    uint64_t consumed;              /* @384 W:consumer(relaxed) R:tools */
    uint64_t lost;                  /* @392 W:consumer(relaxed) R:tools */
    uint64_t skipped;               /* @400 W:consumer(relaxed) R:tools; latest: passed over by intent */
    uint64_t last_read_ns;          /* @408 W:consumer(relaxed) R:tools */
    uint8_t pad3[96];               /* @416 */
    uint64_t lease_id;              /* @512 W:driver(release) R:tools; who holds this gate */
    uint8_t pad4[504];              /* @520 */
    uint32_t latency[256];          /* @1024 W:consumer(relaxed) R:tools; log-linear buckets, see shmd_latency_bucket */
} shmd_gate_t;

typedef struct shmd_gates {         /* 4096 bytes, then gate_count gates */
    shmd_header_t header;           /* @0 */
    uint32_t gate_count;            /* @128 const */
    uint32_t reserved;              /* @132 */
    uint8_t pad[3960];              /* @136 */
} shmd_gates_t;

/* ---- private structures that cross the C/Python border (never in shared memory) ------- */

typedef struct shmd_authority_params {
    const char *instance;
    uint64_t boot_id;
    uint64_t now_ns;
    uint64_t heartbeat_interval_ns;
    uint64_t lease_timeout_ns;
    uint32_t client_max;
    uint32_t lease_max;
    uint32_t stream_max;
    uint32_t event_slots;
    uint32_t config_bytes;
    uint32_t error_max;
} shmd_authority_params_t;

typedef struct shmd_geometry {      /* of one epoch; from authority or configuration, never from a client's memory */
    uint32_t slots;
    uint32_t slot_bytes;
    uint64_t arena_bytes;
    uint32_t gate_count;
    uint32_t flags;
    uint32_t stream_id;
    uint32_t epoch;
    uint64_t boot_id;
    uint64_t now_ns;
} shmd_geometry_t;

typedef struct shmd_client_watch {  /* the driver's memory of one client's heartbeat */
    uint64_t client_id;
    uint64_t beat;
    uint64_t seen_ns;
    const shmd_control_t *control; /* its segment; NULL: none, so neither beats nor notes of leases are seen */
} shmd_client_watch_t;

/* The numbers that identify a process, and the namespaces in which they are valid. A field of 0 is not known. */
typedef struct shmd_process {
    int64_t pid;
    uint64_t start_time;            /* clock ticks since boot, as /proc/PID/stat says in that time namespace */
    uint64_t pid_namespace;         /* inode */
    uint64_t time_namespace;        /* inode; 1: this kernel has none */
} shmd_process_t;

/* The verdict on a process. A check that fails is UNKNOWN, never DEAD; whoever would free something treats
 * UNKNOWN as ALIVE. */
enum { SHMD_PROCESS_UNKNOWN = 0, SHMD_PROCESS_ALIVE = 1, SHMD_PROCESS_DEAD = 2 };
enum {
    SHMD_EVIDENCE_NONE = 0,
    SHMD_EVIDENCE_START_TIME = 1,   /* ALIVE: it began when the process did that is meant */
    SHMD_EVIDENCE_NO_PROCESS = 2, SHMD_EVIDENCE_PIDFD = 3, SHMD_EVIDENCE_OTHER_START = 4, /* DEAD */
    SHMD_EVIDENCE_NO_LIFE = 5, SHMD_EVIDENCE_EXIT_KIND = 6,                               /* DEAD, of a driver */
    SHMD_EVIDENCE_PID_NAMESPACE = 7, SHMD_EVIDENCE_TIME_NAMESPACE = 8, SHMD_EVIDENCE_NAMESPACES = 9, /* UNKNOWN from here on */
    SHMD_EVIDENCE_NO_DESCRIPTOR = 10, SHMD_EVIDENCE_NO_PIDFD = 11, SHMD_EVIDENCE_PROC_HIDDEN = 12, SHMD_EVIDENCE_PROC_FOREIGN = 13,
    SHMD_EVIDENCE_PROC_UNREADABLE = 14, SHMD_EVIDENCE_NO_START_TIME = 15, SHMD_EVIDENCE_ZOMBIE = 16
};

/* The driver's socket. Not in shared memory; `waiting` and `entries` are the listener's own. */
enum { SHMD_LISTENER_WAITING = 64 };    /* connections that have not said Hello yet */
typedef struct shmd_listener {
    int fd;                         /* the socket; -1: none */
    int epoll;                      /* readable while accept or hello has something to do; put only this one into an epoll of your own */
    int spare;                      /* given up when there is no descriptor left to accept with */
    uint32_t uid;                   /* of this driver: the share of other users is limited */
    uint64_t device;                /* of the socket's name, */
    uint64_t inode;                 /* as shmd_listener_check compares it */
    uint64_t accepted;              /* connections, ever */
    uint64_t refused;               /* of those, by this listener: no descriptor, no share, no Hello in time, no Hello */
    uint32_t count;                 /* connections that have not said Hello yet */
    uint32_t reserved;
    void *waiting;
} shmd_listener_t;

/* Who has connected, as the kernel says. */
typedef struct shmd_peer {
    int fd;                         /* the connection; -1: none (any more) */
    int pidfd;                      /* -1: none, pidfd_error says why, and that proves nothing */
    int pidfd_error;                /* errno: EMFILE, EPERM, ENOSYS, ENODATA, ...; ESRCH: the process has ended */
    uint32_t is_of_peer;            /* 1: the pidfd is the kernel's of this connection; 0: it was opened by number, and the start time compared */
    uint32_t uid;
    uint32_t gid;
    uint64_t pidfd_inode;           /* the same for all pidfds of one process, of no other one ever (Linux 6.9); 0: not known */
    shmd_process_t process;         /* pid (0: another PID namespace) and start time (0: not known) as read here; the namespaces are this process's */
    uint64_t accepted_ns;
} shmd_peer_t;

/* Where runtime folders are, in the order in which a driver tries them. */
enum { SHMD_PLACE_NAMED = 1,        /* $SHMDRIVER_RUNTIME_DIR: where that is set, nothing else is tried */
       SHMD_PLACE_SYSTEM = 2,       /* /run/shmdriver */
       SHMD_PLACE_USER = 3,         /* /run/user/UID/shmdriver */
       SHMD_PLACE_XDG = 4,          /* $XDG_RUNTIME_DIR/shmdriver */
       SHMD_PLACE_SHM = 5 };        /* /dev/shm/shmdriver-UID.RANDOM, found by its owner */

typedef struct shmd_folder {        /* the runtime folder of one instance */
    int fd;                         /* O_PATH: files in it are opened relative to this; -1: none */
    uint32_t place;                 /* SHMD_PLACE_* */
    uint32_t owner;                 /* uid */
    uint32_t reserved;
    char path[256];                 /* absolute, without symbolic links: to be shown and recorded */
} shmd_folder_t;

typedef struct shmd_found {         /* an authority in /dev/shm */
    char name[96];                  /* POSIX name */
    uint64_t inode;
    uint64_t device;
    uint64_t bytes;
    uint64_t created_ns;            /* 0 unless it is complete */
    uint64_t boot_id;               /* likewise */
    uint32_t owner;                 /* uid */
    uint32_t layout_version;        /* 0: no magic yet. Of another layout than ours only the header was read */
    int life;                       /* as shmd_life_seen */
    uint32_t is_complete;           /* 0: being made, left half made, or cut short */
    uint32_t exit_kind;             /* SHMD_EXIT_* */
    uint32_t reserved;
} shmd_found_t;

enum { SHMD_CHECK_CONFIRMED = 1, SHMD_CHECK_UNCONFIRMED = 2, SHMD_CHECK_CLIENT_STALLED = 3,
       SHMD_CHECK_CLIENT_RECOVERED = 4, SHMD_CHECK_CLIENT_EXPIRED = 5, SHMD_CHECK_DETACHED = 6, SHMD_CHECK_ABORTED = 7,
       SHMD_CHECK_REQUESTS = 8 };

typedef struct shmd_check {         /* one finding of shmd_lease_check */
    uint32_t what;                  /* SHMD_CHECK_* */
    uint32_t index;                 /* of the lease record (CONFIRMED, UNCONFIRMED, DETACHED, ABORTED) or client record */
    uint64_t silent_ns;
} shmd_check_t;

typedef struct shmd_client_options {
    const char *name;               /* what tools call this client; NULL: the program's name */
    uint64_t timeout_ns;            /* of the connect */
    const uint32_t *cpus;           /* where the library's threads run; NULL: wherever this process may */
    uint32_t cpu_count;
    uint32_t policy;                /* SHMD_POLICY_* of the library's threads */
    uint32_t priority;              /* 1 to 99 with SHMD_POLICY_FIFO and SHMD_POLICY_RR; else 0 */
    uint32_t flags;                 /* SHMD_HEARTBEAT_MANUAL | SHMD_WAIT_FOR_DRIVER */
    const char *owner;              /* whose driver, a user's name or number, and nobody else's; NULL: this user's, root's, ... (shmd_trusts) */
} shmd_client_options;

typedef struct shmd_producer_options {
    const char *schema;             /* canonical text or NULL */
    uint64_t max_message;           /* 0: as the profile says */
    uint64_t arena_bytes;           /* UINT64_MAX: derived; 0: none */
    uint64_t timeout_ns;            /* of the attach */
    uint32_t slots;                 /* 0: as the profile says */
    uint32_t slot_bytes;            /* 0: as the profile says */
    uint32_t min_consumers;
    uint32_t slow_consumer;         /* SHMD_SLOW_* */
    uint32_t flags;                 /* SHMD_ATTACH_CREATE | NO_WAKEUPS | TIMESTAMPS */
    uint32_t reserved;
} shmd_producer_options;

typedef struct shmd_consumer_options {
    const char *schema;
    uint64_t timeout_ns;
    uint32_t delivery;              /* SHMD_DELIVERY_*; 0: reliable */
    uint32_t start;                 /* SHMD_START_*; 0: newest */
    uint32_t wait;                  /* SHMD_WAIT_*; 0: adaptive */
    uint32_t flags;                 /* SHMD_ATTACH_CREATE | FOLLOW */
    uint32_t shard;                 /* only messages with seq % shards == shard */
    uint32_t shards;                /* 0 or 1: all messages; at most SHMD_GATE_MAX */
    uint32_t pace;                  /* SHMD_PACE_*; 0: auto. Eager: a poll never holds still */
    uint32_t reserved;
} shmd_consumer_options;

typedef struct shmd_message {
    const void *data;               /* payload, in shared memory */
    uint64_t seq;
    uint64_t timestamp_ns;
    uint32_t length;
    uint16_t type;
    uint16_t flags;
} shmd_message;

typedef struct shmd_client shmd_client;
typedef struct shmd_producer shmd_producer;
typedef struct shmd_consumer shmd_consumer;
typedef struct shmd_mapping shmd_mapping;
typedef struct shmd_watch shmd_watch;
typedef struct shmd_event_writer shmd_event_writer;
typedef struct shmd_sleeper shmd_sleeper;

typedef struct shmd_client_ring_reader { /* the driver's: how far it has read one client's requests */
    const shmd_control_t *control;
    uint64_t *published;            /* the cursor in the client's record */
    uint64_t cursor;
    uint64_t client_id;
    uint64_t nonce;
    uint32_t who;
    uint32_t is_polled;             /* 1: poll found a request at the cursor */
} shmd_client_ring_reader_t;

/* What a descriptor is, and so what its readiness means. */
enum {
    SHMD_SLEEPER_WAKE = 0,          /* not a descriptor of the caller's: shmd_sleeper_wake was called */
    SHMD_SLEEPER_READ = 1,      /* a listener, a connection before its Hello: the caller reads, or it is told again */
    SHMD_SLEEPER_DOORBELL = 2,  /* a client's connection: its bytes only wake, and are read here, at most `budget` messages until ... */
    SHMD_SLEEPER_SIGNAL = 3,    /* the end of a socket pair into which signal handlers write: its bytes are read here */
    SHMD_SLEEPER_DEATH = 4      /* a pidfd: told once */
};

/* shmd_wakeup.what */
enum {
    SHMD_WOKEN_READABLE = 1,    /* of SHMD_SLEEPER_DOORBELL: it has rung */
    SHMD_WOKEN_ENDED = 2,       /* the other side is closed, or the socket failed: no longer watched. A hint to look, no proof */
    SHMD_WOKEN_DISARMED = 4     /* its budget is used up: not watched until shmd_sleeper_arm */
};

typedef struct shmd_wakeup {
    uint64_t key;               /* the caller's */
    uint32_t kind;              /* SHMD_SLEEPER_* */
    uint32_t what;              /* SHMD_WOKEN_* */
} shmd_wakeup_t;

typedef struct shmd_epoch_watch {   /* the driver's memory of one epoch, and where it looks */
    const shmd_epoch_hot_t *hot;
    const shmd_data_t *data;
    const shmd_gates_t *gates;
    uint64_t slots;                 /* private, as gate_count */
    uint32_t gate_count;
    uint32_t evicts;                /* 1: whoever holds its producer back for too long is evicted */
    uint64_t positions[64];         /* where each gate was last seen, while the epoch is open */
    uint64_t left[64];              /* each wired gate's left mark, once it is sealed, as the driver last acted on it */
} shmd_epoch_watch_t;

typedef struct shmd_rest {          /* what shmd_driver_rests looks at; all of it the driver's own memory or mappings */
    shmd_authority_t *authority;
    shmd_client_watch_t *clients;   /* one a client record */
    shmd_epoch_watch_t **epochs;    /* open ones that have consumers, sealed ones */
    uint64_t epoch_count;
    uint64_t stalled_ns;            /* a client that is silent for so long ends the rest */
    uint64_t gap_ns;                /* no look for so long: the silence is the driver's own, which a tick has to know */
    uint64_t check_interval_ns;
    uint64_t gates_interval_ns;
    uint64_t check_due_ns;          /* when the next look is due */
    uint64_t looked_ns;             /* time of the last one, or of the last tick */
    uint64_t gates_ns;              /* when gates were last looked at */
    uint64_t bus_errors;            /* shmd_bus_errors() at the last tick: one more ends the rest */
} shmd_rest_t;

typedef struct shmd_producer_info {
    uint64_t lease_id;
    uint64_t seq;                   /* next */
    uint64_t max_message;
    uint64_t arena_bytes;
    uint64_t sealed_seq;            /* once revoked: what of it will be read */
    uint32_t slots;
    uint32_t slot_bytes;
    uint32_t inline_max;
    uint32_t epoch;
    uint32_t stream_id;
    uint32_t stream_index;
    uint32_t lease_index;
    uint32_t consumers;             /* reliable ones, now */
    uint32_t blocked_gate;          /* + 1; 0: none; 65: no consumer yet */
    uint32_t end_reason;            /* SHMD_REASON_* once revoked */
    uint64_t blocked_since_ns;
    uint64_t blocked_total_ns;
    uint64_t blocked_position;
} shmd_producer_info_t;

typedef struct shmd_consumer_info {
    uint64_t lease_id;
    uint64_t position;              /* next seq to read */
    uint64_t gate;                  /* as published */
    uint64_t head;                  /* the producer's, 0 without an epoch */
    uint64_t lost;                  /* of all epochs */
    uint64_t skipped;
    uint64_t consumed;
    uint64_t sealed_seq;            /* of the epoch that ended or that the lease was revoked in */
    uint64_t mapping_serial;        /* grows whenever another epoch is mapped */
    uint64_t lost_range_count;      /* ever */
    uint64_t holds;                 /* polls that held still, so that the producer gets ahead */
    uint32_t slots;                 /* 0 without an epoch */
    uint32_t slot_bytes;
    uint32_t inline_max;
    uint32_t epoch;                 /* the newest that it has read; 0: none yet */
    uint32_t stream_id;
    uint32_t stream_index;
    uint32_t lease_index;
    uint32_t gate_index;
    uint32_t end_reason;            /* SHMD_REASON_* once ended */
    uint32_t delivery;
    int64_t producer_pid;
} shmd_consumer_info_t;

typedef struct shmd_lost_range { uint32_t epoch; uint32_t reserved; uint64_t first; uint64_t last; } shmd_lost_range_t;

/* What shmd_guarded_fetch found. copied: count messages of the same length stand in the caller's
 * buffer as packed little-endian records: u64 seq, u64 timestamp_ns, u16 type, u16 flags, payload
 * (20 + length bytes each), without a gap between them. Not copied: one message whose payload is in place in shared memory. */
typedef struct shmd_batch {
    uint64_t count;
    uint64_t seq;                   /* of the first */
    uint64_t timestamp_ns;
    const void *data;
    uint32_t length;
    uint32_t stride;                /* records: bytes from one payload to the next */
    uint16_t type;
    uint16_t flags;
    uint32_t copied;
    uint64_t mapping_serial;
    uint64_t lost;                  /* before the first: as shmd_consumer_info, which may know of more by now */
    uint64_t lost_range_count;      /* likewise */
} shmd_batch_t;

enum { SHMD_RUN_LENGTH_SHIFT = 16 };

/* A reader's own: where shmd_guarded_next puts what it finds. */
typedef struct shmd_run {
    void *out;
    uint64_t out_bytes;
    uint64_t limit;                 /* messages, at most 65535 */
    shmd_batch_t batch;
} shmd_run_t;

/* A second mapping of a producer's ring or arena, through which a caller that may keep pointers writes its claims. */
typedef struct shmd_window {
    shmd_mapping *mapping;          /* held: whose ring or arena it shows */
    void *start;
    uint64_t bytes;
    uint64_t inline_max;            /* the longest message that lies in its slot, and so in the ring's window */
    uint64_t prefaults;             /* 1: the epoch's pages are populated where they are mapped */
} shmd_window_t;

/* ---- exported functions: common -------------------------------------------------------- */

uint64_t shmd_magic(uint32_t kind);
const char *shmd_version(void);
const char *shmd_strerror(int code);
const char *shmd_last_error(void);              /* thread-local text of the last failure; "" when none */
uint32_t shmd_last_reason(void);                /* SHMD_REASON_* of the last SHMD_E_REJECTED */
uint32_t shmd_last_code(void);                  /* SHMD_CODE_* likewise */
const char *shmd_reason_text(uint32_t reason);  /* SHMD_REASON_* in a few words, for the middle of a sentence; a thread's until its next call */
const char *shmd_errno_hint(uint32_t call, int error);
    /* The meaning of an errno for a call (SHMD_CALL_*), with a remedy; "" when nothing is known. The text is the calling thread's,
       and is valid until that thread's next call. */
uint64_t shmd_now_ns(void);                     /* CLOCK_MONOTONIC */
uint64_t shmd_hash(const void *data, uint64_t bytes, uint64_t seed);
void shmd_process_self(shmd_process_t *out);                      /* the calling one; what cannot be read is 0 */
int shmd_process_look(const shmd_process_t *process, int *pidfd, uint32_t *evidence);
    /* SHMD_PROCESS_*, and from what (SHMD_EVIDENCE_*). pidfd (may be NULL): one that fires when it ends, the caller's; -1: none.
       It proves that death also when this look is UNKNOWN. */
const char *shmd_evidence_text(uint32_t evidence);
uint64_t shmd_pid_namespace(void);                                /* inode; 0: not known */
const char *shmd_pid_text(int64_t pid, uint64_t pid_namespace);   /* "pid 7", with where that number means something when not here; likewise */
int shmd_instance_is_embedded(const char *instance);              /* 1: made by an embedded driver for itself; no other one ever adopts it */

uint64_t shmd_word_load(const uint64_t *word);                    /* acquire */
void shmd_word_store(uint64_t *word, uint64_t value);             /* release */
int shmd_word_swap(uint64_t *word, uint64_t expected, uint64_t value); /* seq_cst; 1: it was expected and is value now; 0: neither */
void shmd_thread_settle(void);
    /* the calling thread runs under SCHED_OTHER on all CPUs that this process may use, where the system allows that */
void shmd_word_store_seq_cst(uint64_t *word, uint64_t value);
uint32_t shmd_futex_load(const uint32_t *word);                   /* acquire */
int shmd_futex_wait(const uint32_t *word, uint32_t seen, uint64_t timeout_ns); /* 0 woken or changed, SHMD_E_TIMEOUT, SHMD_E_INTERRUPTED */
void shmd_futex_wake(const uint32_t *word);                       /* everybody */
void shmd_futex_change(uint32_t *word);                           /* + 1 (seq_cst), then wakes everybody */
void shmd_record_rewrite(uint64_t *word, uint64_t value);         /* from here on its fields are rewritten (core/shmd_seqlock.h); ends with shmd_word_store */
int shmd_record_copy(void *out, const void *record, uint64_t bytes);
    /* of a table entry. 1: consistent copy; 0: it changed meanwhile, or is being rewritten. The first 8 bytes are its word */
int shmd_epoch_copy(shmd_epoch_record_t *out, const shmd_epoch_record_t *record); /* likewise, of an epoch; out->epoch says of which */
int shmd_epoch_end(const shmd_epoch_record_t *record, uint32_t epoch, uint64_t *sealed_seq, uint32_t *reason);
    /* 1: how that epoch ended and where its seal is; 0: it has not ended, or the record does not say (any more) */

/* ---- exported functions: the driver's socket (driver/shmd_listener.c) ------------------- */

int shmd_listener_open(int folder_fd, const char *folder_path, uint32_t gid, int replace, shmd_listener_t *out);
    /* A socket that listens, under the name `socket` in the folder; mode 0600, with a group (UINT32_MAX: none) 0660. It is made aside and
       put in place whole. replace 1: over whatever stands there; 0: only where nothing stands, else SHMD_E_INVALID.
       folder_path: only used where /proc is not mounted. 0, SHMD_E_INVALID, SHMD_E_SYSTEM, SHMD_E_NO_MEMORY */
int shmd_listener_check(const shmd_listener_t *listener, int folder_fd);
    /* 1: its name leads to it; 0: the name is missing (open another one with replace 0, and close this one); SHMD_E_INVALID: something
       else stands there; SHMD_E_SYSTEM: cannot be told */
int shmd_listener_accept(shmd_listener_t *listener, uint64_t now_ns, uint32_t budget);
    /* Accepts at most so many, which then wait to say Hello: 2 s, at most SHMD_LISTENER_WAITING, of another user's than this driver's
       and root's at most 8, of all of those at most 32. Beyond that the oldest silent one is closed: of that user, or of whoever has
       most of them. How many were accepted, those refused included; hear them in the same turn. SHMD_E_SYSTEM: accept fails. Without a
       descriptor to accept with one is refused by number (counted in `refused`) */
int shmd_listener_hello(shmd_listener_t *listener, uint64_t now_ns, shmd_peer_t *peer, shmd_hello_t *hello);
    /* 1: a Hello that is well-formed (what it claims is not checked), the descriptors of peer are the caller's now; 0: no more at this
       time. Negative: one was answered with a refusal and closed, or closed; the text says why, peer who (its fd and pidfd are -1), and the
       caller calls again: SHMD_E_LAYOUT another layout, SHMD_E_INVALID no Hello, SHMD_E_TIMEOUT none in time, SHMD_E_CLOSED it left without
       one, SHMD_E_SYSTEM. No descriptor that comes with a Hello is ever installed */
int shmd_listener_answer(int fd, shmd_welcome_t *welcome, int authority_fd, int control_fd);
    /* Never waits. Fills magic, version and bytes. Descriptors only with SHMD_CODE_OK. 0; SHMD_E_SYSTEM: close this connection (ETOOMANYREFS
       and others concern it alone); SHMD_E_CLOSED: it has left */
void shmd_listener_close(shmd_listener_t *listener);
    /* Also in a forked child, where it changes nothing for the parent. Names in the folder stay. Twice is once */
uint64_t shmd_image(const char *instance);
    /* A keyed one-way function of the instance's name; the key is new at each exec, and the same for all copies of this library in
       one image. 0: not known */
void shmd_hello_begin(shmd_hello_t *hello, const char *instance);
    /* Zeros, then what says that it is a Hello, and the calling process's own image, start time and namespaces */
int shmd_hello_check(const void *message, uint64_t bytes, shmd_hello_t *out);
    /* a private copy of a whole message: 0; SHMD_E_INVALID, SHMD_E_LAYOUT with a text */

/* ---- exported functions: segments ------------------------------------------------------ */

int shmd_keep_standard_descriptors(void);
    /* Opens /dev/null as each of 0, 1 and 2 that is closed. SHMD_E_SYSTEM: it cannot be opened.
       Call it before a descriptor is opened: then none of ours is 0, 1 or 2. */
int shmd_segment_open(const char *name, int writable, uint64_t *bytes);
    /* fd of one that is this user's or root's, never created; or SHMD_E_SYSTEM, SHMD_E_LAYOUT */
int shmd_segment_open_of(const char *name, uint32_t owner, int writable, uint64_t *bytes); /* likewise, of that user's and nobody else's */
int shmd_segment_map(int fd, uint64_t offset, uint64_t bytes, int writable, int prefault, void **out);
int shmd_segment_map_mirrored(int fd, uint64_t offset, uint64_t bytes, int writable, int prefault, void **out); /* twice in a row */
int shmd_segment_unmap(void *base, uint64_t bytes);
int shmd_segment_lock(const void *base, uint64_t bytes);         /* its pages stay in memory until it is unmapped; 0, SHMD_E_SYSTEM */
int shmd_segment_renew(int fd, void *base, uint64_t bytes, int writable); /* maps the file (once, from its start) over a damaged mapping again */
int shmd_segment_is_damaged(const void *base);
    /* 1: somebody truncated the segment that is mapped at base, and this process has touched a missing page */
const void *shmd_segment_next_damaged(uint64_t *cursor);          /* walks over the damaged mappings of this process; *cursor begins at 0; NULL: no more */
uint32_t shmd_bus_errors(void);                                   /* how many missing pages this process has met and survived */
int shmd_guard_truncation(void);
    /* From now on this process survives that somebody truncates a segment which it has mapped: a handler of SIGBUS puts zero pages in
       the place of the missing ones, and the handles there end with SHMD_E_REVOKED. It passes any other SIGBUS on to the handler that was
       installed before. 1: installed; 0: SHMDRIVER_TRUNCATION_GUARD is off; SHMD_E_SYSTEM. Idempotent. Threads must not block SIGBUS. */
int shmd_header_check(const void *base, uint64_t bytes, uint32_t kind, uint64_t boot_id, uint32_t stream_id, uint32_t epoch); /* boot_id 0: any */
void shmd_segment_complete(void *base);                           /* stores the magic, release */

/* ---- exported functions: places, authorities, whom to trust ----------------------------- */

int shmd_folder_make(const char *instance, int for_group, shmd_folder_t *out);
    /* A driver's: the first usable place, the instance's folder there made, 0700; for_group 1: 0711, below parents that others may
       pass. 0; SHMD_E_INVALID: $SHMDRIVER_RUNTIME_DIR is not usable; SHMD_E_SYSTEM: no place is: the text tells why of each */
int shmd_folder_find(const char *instance, uint32_t owner, uint32_t *cursor, shmd_folder_t *out);
    /* The next existing folder of this instance that can be trusted. *cursor begins at 0 and is moved. owner: a uid, or UINT32_MAX: this
       user's, then the system's. 1: found; 0: no more; negative, as the last answer: some place could not be looked at */
int shmd_folder_remove(const shmd_folder_t *folder);
    /* Removes an empty folder, and the folder in /dev/shm that stands around it once that is empty, too. 0: done, or others did so
       or use it; SHMD_E_SYSTEM */
void shmd_folder_close(shmd_folder_t *folder);
const char *shmd_folder_notes(void);            /* this thread's: what the last call passed over that somebody should look at; "": nothing */

int shmd_life_show(int fd);
    /* The sign of life: a read lock of fd's file description on the authority, until its last descriptor is closed. Show it by a
       description of its own, which no mapping and no child keeps. 0; SHMD_E_SYSTEM */
int shmd_life_seen(int fd);
    /* 1: a lock of another file description stands on that file; 0: none; negative: that cannot be told. Leaves nothing behind */

int shmd_held_add(int fd);                      /* from now on each child that this process forks closes fd at once. 0; SHMD_E_NO_MEMORY */
void shmd_held_drop(int fd);                    /* no more: before it is closed here. One that is not known: nothing */
void shmd_held_close(void);                     /* in a forked child: closes and forgets what shmd_held_add was told of */

int shmd_authorities_find(const char *instance, uint32_t owner, shmd_found_t *out, uint32_t room);
    /* The authorities of this instance (NULL: of all) in /dev/shm: regular files with one link whose header says so. Of one owner, or
       UINT32_MAX: of all whom this process trusts, this user first. Those with a sign of life first, then by owner, then the newest.
       How many there are, at most room of them in out; negative: that cannot be told */
int shmd_authority_choose(const char *instance, uint32_t named, shmd_found_t *out);
    /* The one that clients and tools use. named: that user's (UINT32_MAX: whomever this process trusts): this user's own before all
       others, then one that lives. 1; 0: there is none, and none of a layout before; SHMD_E_INVALID: two users have one, and one of them
       has to be named; SHMD_E_LAYOUT: as shmd_old_layout; SHMD_E_SYSTEM: that cannot be told */
const char *shmd_authorities_notes(void);       /* as shmd_folder_notes: names of our pattern that were passed over, and why */
int shmd_found_open(const shmd_found_t *found, int writable); /* fd of that very file, if it still has its name and one link; SHMD_E_SYSTEM, SHMD_E_LAYOUT */
int shmd_old_layout(const char *instance);
    /* 0: there is no authority of a layout before 4; SHMD_E_LAYOUT: there is one of this user or of root: the text tells what to do;
       SHMD_E_SYSTEM: that cannot be told */

int shmd_trusts(uint32_t owner, uint32_t named, const shmd_folder_t *folder);
    /* Whether this process attaches to a driver of that user: its own user, root, named (UINT32_MAX: nobody), and the owner of a
       folder of SHMD_PLACE_SYSTEM, unless this process is root's. NULL: no folder. 1; 0; negative: that cannot be told */
int shmd_owner_named(const char *owner, uint32_t *uid); /* a user's name or number; SHMD_E_INVALID: there is no such user */

/* ---- exported functions: the driver's side --------------------------------------------- */

uint64_t shmd_authority_footprint(const shmd_authority_params_t *params);  /* 0: out of range */
uint64_t shmd_data_footprint(const shmd_geometry_t *geometry);
uint64_t shmd_gates_footprint(uint32_t gate_count);
void shmd_geometry_round(uint32_t *slots, uint32_t *slot_bytes, uint64_t *arena_bytes); /* to powers of two and whole pages */
int shmd_authority_init(void *base, uint64_t bytes, const shmd_authority_params_t *params);  /* all but the magic */
int shmd_data_init(void *base, uint64_t bytes, const shmd_geometry_t *geometry, const char *schema); /* base: at least the first 4096 bytes mapped */
int shmd_gates_init(void *base, uint64_t bytes, const shmd_geometry_t *geometry);
int shmd_authority_check(const void *base, uint64_t bytes);       /* offsets and counts against the size, after shmd_header_check */

shmd_client_record_t *shmd_authority_client(const shmd_authority_t *authority, uint32_t index);
shmd_lease_record_t *shmd_authority_lease(const shmd_authority_t *authority, uint32_t index);
shmd_stream_record_t *shmd_authority_stream(const shmd_authority_t *authority, uint32_t index);
int64_t shmd_authority_next(const shmd_authority_t *authority, int table, uint64_t states, uint32_t first);
    /* index of the next record of SHMD_TABLE_*, from first on, whose state's bit is in states; -1: none */
shmd_error_record_t *shmd_authority_error(const shmd_authority_t *authority, uint32_t index);
char *shmd_authority_config(const shmd_authority_t *authority);   /* config_bytes, NUL-terminated text */
shmd_gate_t *shmd_gates_gate(const shmd_gates_t *gates, uint32_t index);

void shmd_counter_add(shmd_authority_t *authority, uint32_t counter, uint64_t n);
void shmd_counter_max(shmd_authority_t *authority, uint32_t counter, uint64_t value);
void shmd_counter_set(shmd_authority_t *authority, uint32_t counter, uint64_t value);
uint64_t shmd_counter_get(const shmd_authority_t *authority, uint32_t counter);
int shmd_error_log_add(shmd_authority_t *authority, const char *text, uint64_t now_ns); /* index of the record, or -1: table full (counted) */

shmd_event_writer *shmd_event_writer_new(shmd_authority_t *authority);   /* resumes by scanning; NULL: no memory */
void shmd_event_writer_free(shmd_event_writer *writer);
uint64_t shmd_event_publish(shmd_event_writer *writer, const shmd_event_t *event);
    /* Its seq; wakes those that wait for events. */
void shmd_authority_changed(shmd_authority_t *authority);
    /* After a lease, an epoch or a mask has changed: wakes those that wait for messages, for room,
       for the next epoch. */
int shmd_event_poll(const shmd_authority_t *authority, uint64_t *cursor, shmd_event_t *out, uint64_t *lost); /* 1, 0 */

int shmd_request_check(const shmd_request_t *request);            /* 0, SHMD_E_INVALID (text), SHMD_E_LAYOUT: enums, ranges, names, UTF-8 */
int shmd_name_check(const char *name);                            /* 0 or SHMD_E_INVALID with a text; name: up to SHMD_NAME_BYTES */

/* The control segment of one client: made by the driver, mapped writable by its client, read-only by the driver. */
uint64_t shmd_client_ring_footprint(void);
int shmd_client_ring_init(void *base, uint64_t bytes, uint64_t client_id, uint64_t boot_id, uint64_t now_ns);
    /* All but the magic. The driver stores 0 in the client's cursor as well. 0, SHMD_E_INVALID */
int shmd_client_ring_check(const void *base, uint64_t bytes, uint64_t client_id, uint64_t boot_id);
    /* Whether this is that client's segment, of this layout; boot_id 0: any. SHMD_E_LAYOUT with a text. Nothing in the segment is an
       offset or a size, so nothing of it has to be kept. */
void shmd_client_ring_reader_init(shmd_client_ring_reader_t *reader, const shmd_control_t *control, uint64_t *cursor,
                                  uint64_t client_id, uint32_t client_index, uint64_t nonce);
    /* Goes on at *cursor, which a new driver finds as its predecessor left it. */
int shmd_client_ring_poll(shmd_client_ring_reader_t *reader, shmd_request_t *out);
    /* 1: the next request, a private copy that is whole and of this client; the same again until shmd_client_ring_advance.
       0: none. SHMD_E_CORRUPT with a text: bad bytes, or a tail that is impossible. Only this client can have written them. */
void shmd_client_ring_advance(shmd_client_ring_reader_t *reader);
    /* Past what poll found, good or bad. Does nothing where poll found no request: an impossible tail stays. */
int shmd_client_ring_rests(const shmd_client_ring_reader_t *reader); /* 1: a poll would return 0 */
int shmd_client_ring_look(const shmd_control_t *control, uint32_t entry, uint64_t lease_id);
    /* SHMD_ENTRY_*: what the client says of this lease; a detach counts more than a confirmation. SHMD_E_CORRUPT: no detach has
       that low byte. SHMD_E_INVALID: there is no such entry. */

/* Where the driver sleeps: one epoll set of all that may wake it. One thread, the driver's, calls all of these but shmd_sleeper_wake.
   In a forked child each returns SHMD_E_FORKED and does nothing, because the epoll set and the eventfd are the parent's. */
shmd_sleeper *shmd_sleeper_new(uint32_t budget); /* of doorbells for each client between two calls of shmd_sleeper_arm. NULL with a text */
void shmd_sleeper_free(shmd_sleeper *sleeper);   /* closes its own two descriptors; those that were added stay the caller's */
void shmd_sleeper_close_in_child(shmd_sleeper *sleeper);
    /* For a handler that runs in each forked child: closes the child's copies of its own two descriptors, and takes nothing out
       of the set, which is the parent's. Does nothing in the parent. */
int shmd_sleeper_add(shmd_sleeper *sleeper, int fd, uint32_t kind, uint64_t key);
    /* Also of one that is watched: its kind and key change, its budget is new. 0, SHMD_E_INVALID, SHMD_E_NO_MEMORY, SHMD_E_SYSTEM */
int shmd_sleeper_remove(shmd_sleeper *sleeper, int fd);
    /* Before the caller closes it. While a child has a copy, the kernel goes on watching a descriptor that was only closed. */
int shmd_sleeper_disarm(shmd_sleeper *sleeper, int fd); /* not watched until shmd_sleeper_arm: a listener whose accepts are used up */
int shmd_sleeper_arm(shmd_sleeper *sleeper);
    /* At each tick that time brings, not after each wake-up: watches again what was disarmed, with a new budget for all. What
       came meanwhile is told by the next wait. */
int shmd_sleeper_wait(shmd_sleeper *sleeper, shmd_rest_t *rest, uint64_t now_ns, uint64_t until_ns, shmd_wakeup_t *out, uint32_t limit);
    /* Sleeps until something is ready, and says what, at most `limit` of it (the next call says the rest). 0: until_ns has come
       (UINT64_MAX: never), or a signal, or a tick is due. With `rest`, what a lease check would look at is looked at whenever
       that is due (shmd_driver_rests), and only a look that finds something ends the sleep. As long as a descriptor is
       disarmed, the tick that arms it again comes in place of that look. SHMD_E_SYSTEM */
void shmd_sleeper_wake(const shmd_sleeper *sleeper);
    /* From any thread and any signal handler: ends the present wait, or the next one */

int shmd_lease_unconfirmed(const shmd_authority_t *authority);    /* 1: some lease waits for its client's confirmation */
int shmd_driver_rests(shmd_rest_t *rest, uint64_t now_ns);
    /* 1: a lease check at now_ns would find nothing. Then clients have been renewed and gates noted as a check does, the
       driver's heartbeat stored, an idle check counted, the next look set. 0: a tick is due, and finds all by itself. */
int64_t shmd_lease_check(shmd_authority_t *authority, shmd_client_watch_t *watches, uint64_t now_ns, uint64_t stalled_ns,
                         uint64_t timeout_ns, shmd_check_t *out, uint64_t limit);
    /* How many findings. Each live client: its beats, and whether its ring has something to read or an impossible tail. Each live
       lease: what its client says of it. */

uint64_t shmd_epoch_join(shmd_epoch_hot_t *hot, const shmd_data_t *data, shmd_gates_t *gates, const shmd_geometry_t *geometry,
                         uint32_t gate, int reliable, int may_sleep, uint64_t lease_id, int oldest, uint64_t peers, uint64_t *cursor);
    /* wires a consumer into a live epoch: returns h, from which on it is lossless; *cursor: where it starts. peers: the gates of
       reliable consumers, the slowest of which tells h; 0: h is the head */
void shmd_epoch_leave(shmd_epoch_hot_t *hot, uint32_t gate);      /* clears its bits in all masks */
uint64_t shmd_epoch_seal(shmd_epoch_hot_t *hot, const shmd_data_t *data, const void *ring, const shmd_geometry_t *geometry,
                         int clean, int proved);                  /* sealed_seq; state becomes SEALED. Idempotent */
uint64_t shmd_data_head(const shmd_data_t *data);                 /* acquire */
uint64_t shmd_gate_position(const shmd_gates_t *gates, uint32_t gate);   /* acquire */
uint64_t shmd_gate_left(const shmd_gates_t *gates, uint32_t gate);       /* acquire; lease id */

/* ---- exported functions: client ------------------------------------------------------- */

int shmd_connect(const char *instance, uint64_t timeout_ns, shmd_client **out);
    /* with the default options. instance NULL: $SHMDRIVER_DRIVER_INSTANCE, else "default" */
void shmd_client_options_init(shmd_client_options *options);
    /* what NULL options mean: the program's name, 5 s, and threads of the library that run under SCHED_OTHER on all CPUs that
       this process may use, whatever the calling thread is pinned to */
int shmd_client_connect(const char *instance, const shmd_client_options *options, shmd_client **out);
    /* SHMD_E_INVALID: an instance name or an option; SHMD_E_SYSTEM: the system refuses such threads; SHMD_E_DRIVER_UNAVAILABLE,
       SHMD_E_TIMEOUT, SHMD_E_REJECTED */
int shmd_disconnect(shmd_client *client);       /* goodbye, join the heartbeat thread, free; not waiting for the answer. With handles open: when the last is closed */
void shmd_client_abandon(shmd_client *client);  /* likewise for finalisers: never waits. The heartbeat thread frees it. With manual heartbeats a full
       ring takes no goodbye, and the thread that feeds fds is joined, which waits for nobody */
int shmd_keepalive(shmd_client *client);
    /* for SHMD_HEARTBEAT_MANUAL, at least once in a heartbeat interval: one beat, at the same cost whatever others do. Calls that
       wait beat by themselves meanwhile. SHMD_E_REVOKED: the driver has expelled this client, its leases have ended;
       SHMD_E_DRIVER_UNAVAILABLE: its driver was stopped or superseded. Connect anew after either */
const shmd_authority_t *shmd_client_authority(const shmd_client *client);
void shmd_client_keep_authority(shmd_client *client);       /* the authority stays mapped, past the disconnect, until ... */
void shmd_client_drop_authority(shmd_client *client);       /* ... this, after which neither is used any more */
uint64_t shmd_client_id(const shmd_client *client);
uint64_t shmd_client_boot_id(const shmd_client *client);
int shmd_driver_look(const shmd_authority_t *authority, int authority_fd, uint32_t *evidence);
    /* SHMD_PROCESS_* of its driver. authority_fd: an open descriptor of that segment, whose sign of life is looked for when the
       process cannot be looked at: without one no driver drives, which is proved in every namespace. -1: none. DEAD sets a text */
int shmd_client_driver_alive(const shmd_client *client);    /* 1 alive or not known, 0 provably gone, cleanly stopped or superseded, or its segments were removed and show no sign of life; text says which */
uint64_t shmd_streams_named(const shmd_authority_t *authority, const char *prefix, uint32_t *indexes, uint64_t limit);
    /* the streams whose name begins with prefix, at most limit of them: how many, and where in the directory */
int shmd_client_request(shmd_client *client, shmd_request_t *request, shmd_event_t *answer, uint64_t timeout_ns);
    /* fills identity, position and checksum, sends (again, when unanswered), waits for the answer; SHMD_E_DRIVER_UNAVAILABLE as soon as it
       is proved that nobody will answer: its driver was stopped, superseded, removed; killed (with SHMD_WAIT_FOR_DRIVER its successor is awaited) */

void shmd_producer_options_init(shmd_producer_options *options);
    /* what NULL options mean: made when it is new, sized as the profile says, 5 s for the attach */
void shmd_consumer_options_init(shmd_consumer_options *options);
    /* what NULL options mean: reliable, from the newest message on, adaptive waits, made when it is new, 5 s for the attach */
int shmd_producer_attach(shmd_client *client, const char *stream, const shmd_producer_options *options, shmd_producer **out);
int shmd_consumer_attach(shmd_client *client, const char *stream, const shmd_consumer_options *options, shmd_consumer **out);
int shmd_producer_close(shmd_producer *producer);          /* clean end, frees the handle */
int shmd_producer_abort(shmd_producer *producer);          /* aborted end, frees the handle */
int shmd_consumer_close(shmd_consumer *consumer);
void shmd_producer_abandon(shmd_producer *producer);       /* for finalisers: an aborted end that never waits, neither for the driver nor for a thread. Frees the handle; */
void shmd_consumer_abandon(shmd_consumer *consumer);       /* the client's beats see to it that the lease ends, whenever a driver serves */

int shmd_publish(shmd_producer *producer, const void *data, uint32_t length, uint16_t type);
int shmd_publish_wait(shmd_producer *producer, const void *data, uint32_t length, uint16_t type, uint64_t timeout_ns);
int64_t shmd_publish_records(shmd_producer *producer, const void *records, uint32_t record_bytes, uint64_t n, uint64_t timeout_ns);
    /* how many went in (fewer than n at the timeout), or a negative code when none did */
int shmd_claim(shmd_producer *producer, uint32_t length, void **data);
int shmd_commit(shmd_producer *producer, uint32_t length, uint16_t type);
int shmd_abort(shmd_producer *producer);
int shmd_producer_wait_room(shmd_producer *producer, uint32_t length, uint64_t timeout_ns);  /* 0, SHMD_BACK_PRESSURED, ... */
int shmd_producer_keep(shmd_producer *producer, uint64_t bound);
    /* before the first message: what no reliable consumer has read is never overwritten, also while there is none, and at
       most bound messages wait to be read (at most the ring's slots); SHMD_E_INVALID */
void shmd_producer_info(const shmd_producer *producer, shmd_producer_info_t *out);

int shmd_poll(shmd_consumer *consumer, shmd_message *out);
    /* 1: the next message; 0: none now; negative: over. A reliable consumer with SHMD_PACE_AUTO that has read all of a fast
       flow holds still, in this call and in the others that read: for 2 us in a ring of 1,024 slots or more, for 1 us in one
       of 512, never in smaller ones. Messages 100 ns apart or less get such a hold as a trial, ever more rarely while
       trials find no flow. With SHMD_PACE_EAGER no call holds still */
int64_t shmd_poll_many(shmd_consumer *consumer, shmd_message *out, uint64_t limit);
    /* as many as there are, at most limit */
int shmd_advance(shmd_consumer *consumer);
    /* over all that the last poll handed out; SHMD_E_REVOKED, and nothing moves, unless it was protected until now: what was
       made of it may be made of a later message's bytes */
int shmd_consumer_valid(const shmd_consumer *consumer);
    /* 1: the producer has overwritten nothing that the last poll handed out; 0: it may have, because the lease has ended */
int shmd_consumer_prepare(shmd_consumer *consumer);
    /* Maps the next epoch that this consumer is to read, as soon as there is one, and unmaps earlier ones. The poll that enters
       the epoch then makes no system call and meets no page fault. 1: it is mapped; 0: there is none yet; negative: it could not
       be mapped, and the poll will try again. Call it from time to time; a call that finds nothing to do makes no system call.
       From any thread, also while other threads are inside this consumer's calls. Each call has to return before the consumer
       is closed */
int shmd_wait(shmd_consumer *consumer, uint64_t timeout_ns);      /* 1 something to see, 0 timeout, SHMD_E_INTERRUPTED */
int shmd_wait_many(shmd_consumer **consumers, size_t n, uint64_t timeout_ns); /* how many have something to see */
int shmd_consumer_watch(shmd_consumer *consumer, int fd);
    /* fd, a non-blocking eventfd of the caller's, is readable from now on while a poll would find something: messages, an end, a
       new epoch. After a poll that returned 0, call shmd_consumer_settle before waiting for fd. Closing the consumer leaves
       it readable; then the caller may close it. One thread a client feeds all of them. -1: no more. */
int shmd_consumer_settle(shmd_consumer *consumer);         /* 1: there is more, fd stays readable; 0: fd is not readable until there is */
int shmd_copy(shmd_consumer *consumer, void *out, uint64_t out_bytes, shmd_message *message);
    /* the next message, copied whole, verified after its last byte; 1, 0, SHMD_E_TOO_LARGE (message->length says), ... */
void shmd_consumer_info(const shmd_consumer *consumer, shmd_consumer_info_t *out);
void shmd_consumer_begin_at(shmd_consumer *consumer, uint32_t epoch, uint64_t seq);
    /* right after an attach: what stands before seq of that epoch was read by the attach before, and is passed over */
uint64_t shmd_consumer_delivered(const shmd_consumer *consumer);
    /* how far any reliable Python consumer, alive or not, has got in the epoch that is mapped; 0: none */
void shmd_consumer_resume(shmd_consumer *consumer);
    /* right after an attach: here and in every epoch that follows it begins at shmd_consumer_delivered */
int shmd_guarded_drain(shmd_consumer *consumer);
    /* for one that resumes, after SHMD_E_REVOKED: 1, it reads on to the seal of the epoch that is mapped, because nobody else can any
       more and its producer, which keeps what is unread (shmd_producer_keep), has overwritten nothing of that; 0: not so */
uint64_t shmd_consumer_end_seq(const shmd_consumer *consumer);
    /* of the epoch that it reads: its seal; not sealed or not known any more: what its ring shows committed */
uint64_t shmd_consumer_lost_ranges(const shmd_consumer *consumer, shmd_lost_range_t *out, uint64_t limit);
uint32_t shmd_latency_bucket(uint64_t ns);
uint64_t shmd_latency_bucket_floor(uint32_t bucket);

/* ---- exported functions: client, guarded (one thread at a time, not across fork) ------- */

int shmd_guarded_publish(shmd_producer *producer, const uint8_t *data, uint32_t length, uint16_t type);
int shmd_guarded_publish_flags(shmd_producer *producer, const uint8_t *head, uint32_t head_bytes, const void *data, uint64_t bytes, uint16_t type, uint16_t flags);
    /* head and data one after the other as one message */
int64_t shmd_guarded_publish_records(shmd_producer *producer, const void *records, uint32_t record_bytes, uint64_t stride, uint64_t n, uint64_t timeout_ns);
int64_t shmd_guarded_claim(shmd_producer *producer, uint32_t length);
    /* where in the slots it lies (in the arena when length is above inline_max), or a negative code */
int shmd_guarded_commit(shmd_producer *producer, uint32_t length, uint16_t type, uint16_t flags);
int shmd_guarded_abort(shmd_producer *producer);
typedef struct shmd_word { const uint32_t *word; uint32_t seen; } shmd_word_t; /* a futex word, and the value with which one sleeps on it */

int shmd_guarded_wait_room(shmd_producer *producer, uint32_t length, uint64_t timeout_ns);
int shmd_guarded_wait_room_or(shmd_producer *producer, uint32_t length, uint64_t timeout_ns, const shmd_word_t *other);
    /* also ends, as at the timeout, once `other` is not what was seen; whoever changes it wakes it */
int shmd_producer_sleep(const shmd_producer *producer, const uint32_t *word, uint32_t seen, uint64_t timeout_ns);
    /* from any thread: as shmd_futex_wait, and a close of the producer ends it: SHMD_E_CLOSED then, or from the next call on */
int64_t shmd_guarded_unread(shmd_producer *producer, uint64_t bound);
    /* for one that keeps: how many messages nobody has read; from now on at most bound may wait to be read (at most the ring's slots) */
int shmd_guarded_producer_close(shmd_producer *producer, int aborted);   /* leaves a tombstone; SHMD_E_CONCURRENT when a thread stays inside */
int shmd_guarded_producer_abandon(shmd_producer *producer);              /* likewise as aborted, and never waits; SHMD_E_CONCURRENT: not now, a thread is inside */
int shmd_guarded_window(shmd_producer *producer, uint64_t length, shmd_window_t *out); /* maps the one in which a claim of that length lies */
void shmd_window_prefault(void *start, uint64_t bytes);                  /* so that writing there takes no page faults */
int shmd_window_take_back(void *start, uint64_t bytes);                  /* its whole pages become private copies: pointers into them reach no message any more */
void shmd_window_close(shmd_window_t *window);
int64_t shmd_guarded_fetch(shmd_consumer *consumer, uint64_t hold_seq, uint64_t limit, uint64_t timeout_ns, void *out, uint64_t out_bytes, shmd_batch_t *batch);
    /* first advances the gate to min(position, hold_seq); hold_seq UINT64_MAX: nothing is held. Then up to limit messages:
       a run of equal length is copied (and the gate passes it at once), a message in the arena of a gated consumer is left in place. count, 0 at the
       timeout (0 ns: never waits), SHMD_E_TOO_LARGE when out is too small for an ungated message (batch->length says) */
int64_t shmd_guarded_next(shmd_consumer *consumer, int64_t hold_seq, uint64_t timeout_ns, shmd_run_t *run);
    /* the same with fewer arguments; hold_seq -1: nothing is held. Copied messages' length << SHMD_RUN_LENGTH_SHIFT | count;
       INT64_MAX: one in place */
int64_t shmd_guarded_fetch_records(shmd_consumer *consumer, uint64_t hold_seq, uint64_t limit, uint32_t record_bytes, uint64_t timeout_ns, void *out, uint64_t out_bytes, shmd_batch_t *batch);
    /* a contiguous run of inline messages of record_bytes each: in place (gated; batch->data, stride) or packed into out. All of the epoch
       whose mapping batch->mapping_serial names; 0 and another name there: the next message is of that one. limit 0: 1 when there is a message, which stays */
int shmd_guarded_release(shmd_consumer *consumer, uint64_t hold_seq);    /* advances the gate only */
int shmd_guarded_wait(shmd_consumer *consumer, uint64_t timeout_ns);
int shmd_guarded_wait_many(shmd_consumer **consumers, size_t n, uint64_t timeout_ns, const shmd_word_t *others, uint32_t count);
    /* also ends, as at the timeout, once one of `others` is not what was seen, or a producer waits for places that the callers hold:
       they tell their holds anew then. As long as one waits for that already, after 50 ms */
uint64_t shmd_consumer_count(const shmd_consumer *consumer, uint64_t types);
    /* from any thread: how many messages that it has not read, in the epoch that is mapped, have a type whose last 6 bits are in
       `types`, one bit a type */
int64_t shmd_guarded_oldest(shmd_consumer **consumers, uint32_t n, uint32_t most, const uint64_t *event_head, uint64_t events_seen);
    /* index of the one whose next message was published first (its producer stamps), and << 32 how many messages of that one, at most
       `most`, come before those of all others; -1: none has any. One that a fetch has an end to tell of comes first. -2: event_head,
       the driver's unless NULL, is not events_seen: there may be others by now */
int shmd_guarded_watch(shmd_consumer *consumer, int fd, int is_readable); /* is_readable: the caller has messages of a run left */
int shmd_guarded_settle(shmd_consumer *consumer); /* the run that shmd_guarded_fetch copied is used up; other fetches settle by themselves */
void shmd_guarded_idle(shmd_consumer *consumer); /* nothing came, and nobody waits: whether anybody will ever serve it again, looked at as waits do */
int shmd_guarded_consumer_close(shmd_consumer *consumer);                /* leaves a tombstone; SHMD_E_CONCURRENT when a thread stays inside */
int shmd_guarded_consumer_abandon(shmd_consumer *consumer);              /* never waits; SHMD_E_CONCURRENT: not now, a thread is inside */
int shmd_guarded_consumer_mapping(shmd_consumer *consumer, shmd_mapping **out); /* the current one with one more hold, the caller's; NULL without an epoch */
int64_t shmd_guarded_schema(shmd_consumer *consumer, uint64_t mapping_serial, char *out, uint64_t out_bytes);
    /* of the epoch in that mapping, the present one or the one before: its length, 0: bytes; SHMD_E_LAYOUT: it is not mapped any more */
uint64_t shmd_consumer_copies(const shmd_consumer *consumer);
    /* how many bytes of one message the next fetch may have to copy; UINT64_MAX: not known, or it may have an epoch to map or unmap */
int shmd_mapping_protects(const shmd_mapping *mapping, const shmd_epoch_hot_t *hot, uint32_t gate, uint64_t lease_id);
    /* 1: what the reliable consumer of that lease was handed out in this mapping is still what was published: its bit stands, or it
       has left the epoch. hot: the epoch's, NULL when its record serves another by now */
void shmd_mapping_hold(shmd_mapping *mapping);                           /* one more owner */
void shmd_mapping_free(shmd_mapping *mapping);                           /* one owner less; unmaps with the last */
uint32_t shmd_fork_generation(void);                                     /* grows in every forked child */

/* ---- exported functions: owners, which Python makes before it acquires (core/shmd_owner.c). `drop` is a destructor: it never waits */

typedef struct shmd_connection {
    shmd_client *client;            /* NULL: not connected yet; its authority stays mapped until the drop */
    uint32_t state;
    uint32_t opening;               /* 1: a thread connects */
    uint32_t fork_generation;       /* in another process it does nothing */
} shmd_connection_t;

void shmd_connection_init(shmd_connection_t *connection);
int shmd_connection_open(shmd_connection_t *connection, const char *instance, const shmd_client_options *options);
    /* connects; threads that come at once get the same client. SHMD_E_CLOSED after a close */
void shmd_connection_close(shmd_connection_t *connection);               /* as shmd_disconnect; twice is once */
void shmd_connection_abandon(shmd_connection_t *connection);             /* as shmd_client_abandon; twice is once */
void shmd_connection_drop(shmd_connection_t *connection);
int shmd_guarded_producer_attach(shmd_client *client, const char *stream, const shmd_producer_options *options, shmd_producer **slot);
int shmd_guarded_consumer_attach(shmd_client *client, const char *stream, const shmd_consumer_options *options, shmd_consumer **slot);
    /* also while another thread closes the client: SHMD_E_CLOSED; the caller keeps the client's authority */
void shmd_guarded_producer_drop(shmd_producer **slot);                   /* abandons and frees */
void shmd_guarded_consumer_drop(shmd_consumer **slot);
void shmd_mapping_drop(shmd_mapping **slot);
int shmd_descriptor_open_segment(const char *name, uint32_t owner, uint64_t *bytes, int *slot); /* to be read; as shmd_segment_open_of, UINT32_MAX: as shmd_segment_open */
int shmd_descriptor_open_event(int *slot);                               /* a non-blocking eventfd */
int shmd_descriptor_copy(int fd, int *slot);
void shmd_descriptor_close(int *slot);

typedef struct shmd_view { void *base; uint64_t bytes; } shmd_view_t; /* a read-only mapping; NULL: none */

int shmd_view_map(shmd_view_t *slot, int fd, uint64_t bytes);
void shmd_view_drop(shmd_view_t *slot);

#ifdef __cplusplus
}
#endif
#endif
