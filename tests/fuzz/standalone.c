/* standalone.c: runs a fuzz target without libFuzzer: every file of the corpus, then mutations of them until the time is over.
 *
 *     TARGET CORPUS_FOLDER SECONDS [SEED]
 *
 * Not guided by coverage: it repeats what libFuzzer once found (the corpus) and looks around it. The input under way is kept in
 * TARGET.crash until it was survived, so that a crash can be repeated. */
#include "fuzz.h"

#include <dirent.h>

enum { FILES_MAX = 4096, INPUT_BYTES_MAX = 4096 };

typedef struct file {
    uint8_t *data;
    size_t size;
} file_t;

static file_t files[FILES_MAX];
static size_t file_count;

static void read_corpus(const char *folder)
{
    DIR *listing = opendir(folder);
    struct dirent *entry;
    char path[4096];
    while (listing != NULL && (entry = readdir(listing)) != NULL && file_count < FILES_MAX) {
        (void)snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        FILE *stream = entry->d_name[0] == '.' ? NULL : fopen(path, "rb");
        if (stream == NULL)
            continue;
        file_t *file = &files[file_count++];
        file->data = malloc(INPUT_BYTES_MAX);
        if (file->data == NULL)
            abort();
        file->size = fread(file->data, 1, INPUT_BYTES_MAX, stream);
        (void)fclose(stream);
    }
    if (listing != NULL)
        (void)closedir(listing);
    if (file_count == 0) {
        (void)fprintf(stderr, "no corpus in %s\n", folder);
        exit(2);
    }
}

static size_t mutate(uint8_t *out, uint64_t *random)
{
    const file_t *base = &files[test_random(random) % file_count];
    size_t size = base->size;
    memcpy(out, base->data, size);
    for (uint64_t n = test_random(random) % 8 + 1; n != 0; n--) {
        uint64_t dice = test_random(random);
        size_t at = size == 0 ? 0 : (size_t)(dice >> 16) % size;
        const file_t *other = &files[(dice >> 8) % file_count];
        switch (dice % 5) {
        case 0: /* a bit */
            if (size != 0)
                out[at] ^= (uint8_t)(1u << (dice >> 40) % 8);
            break;
        case 1: /* a byte */
            if (size != 0)
                out[at] = (uint8_t)(dice >> 40);
            break;
        case 2: /* shorter */
            size = at;
            break;
        case 3: /* the tail of another one */
            if (other->size != 0) {
                size_t from = (size_t)(dice >> 40) % other->size;
                size_t bytes = other->size - from < INPUT_BYTES_MAX - at ? other->size - from : INPUT_BYTES_MAX - at;
                memcpy(out + at, other->data + from, bytes);
                size = at + bytes;
            }
            break;
        default: /* a byte more */
            if (size != 0 && size < INPUT_BYTES_MAX) {
                memmove(out + at + 1, out + at, size - at);
                out[at] = (uint8_t)(dice >> 40);
                size++;
            }
        }
    }
    return size;
}

int main(int argc, char **argv)
{
    uint8_t input[INPUT_BYTES_MAX];
    char crash[4096];
    if (argc < 3)
        return 2;
    uint64_t seed = argc > 3 ? strtoull(argv[3], NULL, 10) : shmd_now_ns() | 1;
    uint64_t random = seed;
    uint64_t end_ns = shmd_now_ns() + strtoull(argv[2], NULL, 10) * 1000000000u;
    uint64_t runs = 0;
    read_corpus(argv[1]);
    for (size_t i = 0; i < file_count; i++, runs++)
        (void)LLVMFuzzerTestOneInput(files[i].data, files[i].size);
    (void)snprintf(crash, sizeof crash, "%s.crash", argv[0]);
    int fd = open(crash, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    uint8_t *kept = fd < 0 || ftruncate(fd, INPUT_BYTES_MAX) != 0 ? MAP_FAILED : mmap(NULL, INPUT_BYTES_MAX, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (kept == MAP_FAILED) {
        perror(crash);
        return 2;
    }
    while (shmd_now_ns() < end_ns) {
        for (int i = 0; i < 64; i++, runs++) {
            size_t size = mutate(input, &random);
            memcpy(kept, input, size);
            (void)LLVMFuzzerTestOneInput(input, size);
        }
    }
    (void)close(fd);
    (void)unlink(crash);
    (void)printf("%llu runs of %zu files and their mutations, seed %llu\n", (unsigned long long)runs, file_count, (unsigned long long)seed);
    return 0;
}
