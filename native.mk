# Builds the native core in one of six profiles, each in a folder of its own.
# Used by the Makefile, by setup.py and by tests/c/Makefile, so that flags stand in one place.
#
#   make -f native.mk PROFILE=release|asan|tsan|failpoints|fuzz|arm64 [lib]      (fuzz: clang; arm64: a cross compiler)

PROFILE ?= release
ROOT := $(dir $(abspath $(lastword $(MAKEFILE_LIST))))
CSRC := $(ROOT)csrc
OUT := $(ROOT)build/$(PROFILE)
CC ?= cc
ifeq ($(PROFILE),arm64)
override CC := aarch64-linux-gnu-gcc
endif

STRICT := -std=c11 -D_GNU_SOURCE= -Wall -Wextra -Wpedantic -Wconversion -Werror
FLAGS_release := -O3 -g1
FLAGS_asan := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all -DSHMD_TEST=1
FLAGS_tsan := -O1 -g -fno-omit-frame-pointer -fsanitize=thread -DSHMD_TEST=1
FLAGS_failpoints := -O2 -g1 -DSHMD_FAILPOINTS=1
FLAGS_fuzz := -O1 -g -fno-omit-frame-pointer -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all -DSHMD_TEST=1
FLAGS_arm64 := -O2 -g1
PROFILE_FLAGS := $(FLAGS_$(PROFILE))
ifeq ($(PROFILE_FLAGS),)
$(error PROFILE is release, asan, tsan, failpoints, fuzz or arm64, not '$(PROFILE)')
endif

SHMD_CFLAGS := $(STRICT) $(PROFILE_FLAGS) -fPIC -pthread -I$(CSRC)
SHMD_LDFLAGS := $(PROFILE_FLAGS) -pthread
SHMD_LIBS := -lrt

SOURCES := $(sort $(wildcard $(CSRC)/*.c $(CSRC)/core/*.c $(CSRC)/driver/*.c))
OBJECTS := $(patsubst $(CSRC)/%.c,$(OUT)/obj/%.o,$(SOURCES))
ARCHIVE := $(OUT)/libshmdriver.a
SHARED := $(OUT)/libshmdriver.so

# The objects of shmdriver._hotpath, when PYTHON_INCLUDE says where Python.h is; they go into cffi's module. Python keeps
# functions as `void *` in its tables of slots, which ISO C (-Wpedantic) does not have.
PYTHON_OBJECTS := $(if $(PYTHON_INCLUDE),$(patsubst $(CSRC)/python/%.c,$(OUT)/python/%.o,$(sort $(wildcard $(CSRC)/python/*.c))))

.DELETE_ON_ERROR:
.PHONY: lib
lib: $(ARCHIVE) $(if $(filter release,$(PROFILE)),$(SHARED)) $(PYTHON_OBJECTS)

$(OUT)/obj/%.o: $(CSRC)/%.c $(ROOT)native.mk
	@mkdir -p $(@D)
	$(CC) $(SHMD_CFLAGS) -MMD -MP -c $< -o $@

$(OUT)/python/%.o: $(CSRC)/python/%.c $(ROOT)native.mk
	@mkdir -p $(@D)
	$(CC) $(SHMD_CFLAGS) -Wno-pedantic -fvisibility=hidden -isystem $(PYTHON_INCLUDE) -MMD -MP -c $< -o $@

# The list of objects, so that a removed source leaves the archive too.
$(OUT)/objects.txt: FORCE
	@mkdir -p $(@D)
	@echo '$(OBJECTS)' | cmp -s - $@ || echo '$(OBJECTS)' > $@
.PHONY: FORCE
FORCE:

$(ARCHIVE): $(OBJECTS) $(OUT)/objects.txt
	@rm -f $@
	$(AR) rcs $@ $(OBJECTS)

$(SHARED): $(OBJECTS) $(OUT)/objects.txt $(ROOT)csrc/shmdriver.map
	$(CC) -shared -Wl,-soname,libshmdriver.so -Wl,--version-script=$(ROOT)csrc/shmdriver.map \
		$(SHMD_LDFLAGS) -o $@.new $(OBJECTS) $(SHMD_LIBS)
	@mv -f $@.new $@

-include $(OBJECTS:.o=.d) $(PYTHON_OBJECTS:.o=.d)
