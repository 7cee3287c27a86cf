# Each target installs what it needs: system packages with apt-get, everything else in .venv.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

BUILD_PACKAGES := g++ zlib1g-dev liblzma-dev libdeflate-dev libzstd-dev
TEST_PACKAGES := tar gzip pigz bzip2 lbzip2 pbzip2 xz-utils busybox p7zip-full zstd libarchive-tools isal
CHECK_PACKAGES := clang-format clang-tidy

SOURCES := $(sort $(shell find csrc -name '*.cc'))
HEADERS := $(sort $(shell find csrc -name '*.h'))

.PHONY: help demo test test-frameworks test-versions test-nvme test-faults test-asan test-tsan fuzz check bench bench-stores bench-frameworks bundle clean

help:
	@echo "make demo | test | test-frameworks | test-versions | test-nvme | test-faults"
	@echo "make test-asan | test-tsan | fuzz | check"
	@echo "make bench | bench-stores | bench-frameworks | bundle | clean"

demo: .venv/installed
	$(BIN)/python -m benchmarks.demo

test: .venv/installed-test
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -n 2 --dist loadgroup

# The real frameworks, each in an environment of its own: their requirements exclude each other.
FRAMEWORKS ?= $(sort $(patsubst tests/integrations/%/requirements.txt,%,\
    $(wildcard tests/integrations/*/requirements.txt)))

test-frameworks: $(FRAMEWORKS:%=.venv-%/installed)
	set -e; for name in $(FRAMEWORKS); do \
	    PYCKPT_FRAMEWORK=$$name PATH="$(CURDIR)/.venv-$$name/bin:$(CURDIR)/$(BIN):$$PATH" \
	        .venv-$$name/bin/python -m pytest -n 2 --dist loadgroup tests/integrations/$$name; \
	done

# The oldest and the newest Python, torch and NumPy that pyproject.toml allows, as far as they are
# here. Not part of `make test`: PyPI's torch for Linux brings CUDA, some 5 GB for each version.
test-versions:
	sh scripts/system-packages $(BUILD_PACKAGES) $(TEST_PACKAGES)
	scripts/test-versions oldest 3.10 torch==2.4.0 numpy==1.26.0
	scripts/test-versions newest 3.13 torch numpy

# Not part of `make test`: DeepSpeed compiles for minutes before it can write to NVMe.
test-nvme: .venv/installed-test
	sh scripts/system-packages libaio-dev
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -m nvme

# What docs/reliability.md tells: an hour and more. `make test` has a sample of it. The last two mount
# file systems, for which they need root. faults.mutations is not among them: it changes the sources,
# and puts them back.
FAULTS := system_calls allocations kills ranks endurance damage power_cuts file_systems
FAULT_PACKAGES := e2fsprogs xfsprogs btrfs-progs exfat-fuse exfatprogs ntfs-3g fuse2fs bindfs

test-faults: .venv/installed-test
	sh scripts/system-packages $(FAULT_PACKAGES)
	set -e; for name in $(FAULTS); do \
	    TORCH_EXTENSIONS_DIR="$(CURDIR)/build/torch-extensions" PATH="$(CURDIR)/$(BIN):$$PATH" \
	        $(BIN)/python -m faults.$$name; \
	done

check: .venv/installed-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	scripts/check-wings
	clang-format --dry-run -Werror $(HEADERS) $(SOURCES) fuzz/*.h fuzz/*.cc
	printf '%s\n' $(SOURCES) | xargs -P $$(nproc) -n 1 clang-tidy --quiet \
	    -p $$(dirname build/*/compile_commands.json | tail -n 1) \
	    --extra-arg=-Wno-ignored-optimization-argument

# Builds the core with sanitizers and runs the tests that exercise it most. The next target
# builds the ordinary core again.
THREADED_TESTS := tests/codec/test_chunk_inflater.py tests/codec/test_decoders.py \
    tests/read/test_sequential_image.py tests/write/test_live_memory.py \
    tests/write/test_pipeline.py tests/archive/test_convert.py \
    tests/archive/test_deflated_files.py tests/archive/test_load.py tests/archive/test_save.py \
    tests/archive/test_verify.py tests/torch_format/test_serialize.py
# The tests above exercise the code that runs in several threads. These add the rest of the codecs
# and the containers. Tests of memory are not among them: sanitizers need more of it.
SANITIZED_TESTS := $(THREADED_TESTS) tests/base/test_crc32.py tests/codec/test_bzip2.py \
    tests/codec/test_chunk_index.py tests/codec/test_gzip.py tests/codec/test_xz.py \
    tests/codec/test_zstd.py tests/container/test_tar_and_zip.py tests/archive/test_compressed_files.py
# Sanitized code is too slow for the tests' own time limits. A sanitizer's report ends the
# process: --capture=sys prints it, where pytest's default capture would lose it.
SANITIZED_PYTEST := $(BIN)/python -m pytest -n 2 --timeout=1800 --capture=sys
sanitizer = $$(for name in $(1); do $(CXX) -print-file-name=lib$$name.so; done | paste -s -d :)

test-asan:
	rm -f .venv/installed
	$(MAKE) .venv/installed-test SANITIZE=address,undefined
	rm .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" LD_PRELOAD="$(call sanitizer,asan ubsan stdc++)" \
	    ASAN_OPTIONS=detect_leaks=0 $(SANITIZED_PYTEST) $(SANITIZED_TESTS)

test-tsan:
	rm -f .venv/installed
	$(MAKE) .venv/installed-test SANITIZE=thread
	rm .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 \
	    TSAN_OPTIONS="suppressions=$(CURDIR)/tests/thread-sanitizer.supp halt_on_error=1" \
	    setarch -R env LD_PRELOAD="$(call sanitizer,tsan stdc++)" \
	    $(SANITIZED_PYTEST) $(THREADED_TESTS)

# Fuzzes the reader and the codecs, which need no Python, for half of the time each. Inputs
# that crash them are left in build/fuzz.
FUZZ_SECONDS ?= 120
FUZZERS := build/fuzz/fuzz_reader build/fuzz/fuzz_codecs
FUZZ = mkdir -p build/fuzz/corpus/$(1) && build/fuzz/fuzz_$(1) -timeout=60 -rss_limit_mb=2048 \
    -max_total_time=$$(($(FUZZ_SECONDS) / 2)) -artifact_prefix=build/fuzz/ build/fuzz/corpus/$(1)

fuzz:
	sh scripts/system-packages $(BUILD_PACKAGES) clang libclang-rt-dev
	mkdir -p build/fuzz
	$(MAKE) -j $$(nproc) $(FUZZERS)
	$(call FUZZ,reader) -max_len=65536 fuzz/corpus
	$(call FUZZ,codecs) -max_len=64 -len_control=0

FUZZ_FLAGS := -std=c++17 -O1 -g -fsanitize=fuzzer-no-link,address,undefined \
    -fno-sanitize-recover=all -Icsrc -D_FILE_OFFSET_BITS=64
FUZZED := $(shell grep -L pybind11 $(SOURCES))
FUZZ_OBJECTS := $(FUZZED:%.cc=build/fuzz/%.o)
# Encoders compare with no magic numbers that a fuzzer would have to guess. Tracing their
# comparisons takes most of the time and finds nothing.
FUZZ_ENCODERS := huffman literal_writer plan probe repeats runs gzip/encoder gzip/deflater gzip/block \
    gzip/block_code gzip/stored_blocks gzip/matches \
    bzip2/encoder bzip2/block bzip2/few_keys bzip2/huffman bzip2/mtf bzip2/rle bzip2/sort \
    bzip2/suffix_array \
    store/encoder xz/encoder xz/lzma_encoder xz/lanes xz/literals xz/matches \
    zstd/encoder zstd/fse zstd/literal_code zstd/literal_frame zstd/matches zstd/sequences \
    zstd/xxh64
$(FUZZ_ENCODERS:%=build/fuzz/csrc/codec/%.o) build/fuzz/fuzz/byte_program.o: \
    FUZZ_FLAGS += -fno-sanitize-coverage=trace-cmp

build/fuzz/fuzz_codecs: build/fuzz/fuzz/byte_program.o build/fuzz/fuzz/portable_twin.o
$(FUZZERS): build/fuzz/fuzz/chunks_in_turn.o
$(FUZZERS): build/fuzz/fuzz_%: build/fuzz/fuzz/fuzz_%.o $(FUZZ_OBJECTS)
	clang++ -fsanitize=fuzzer,address,undefined $^ -lz -llzma -ldeflate -lzstd -lpthread -o $@

build/fuzz/%.o: %.cc $(HEADERS) $(wildcard fuzz/*.h)
	mkdir -p $(@D)
	clang++ $(FUZZ_FLAGS) -c $< -o $@

bench: .venv/installed
	$(BIN)/python -m benchmarks.save

# Against an S3 server on this machine.
bench-stores: .venv-stores/installed
	.venv-stores/bin/python -m benchmarks.stores

.venv-stores/installed: benchmarks/requirements-stores.txt | .venv/installed-test
	scripts/framework-environment .venv-stores $<
	touch $@

bench-frameworks: .venv/installed $(patsubst %,.venv-%/installed,composer deepspeed huggingface lightning)
	$(BIN)/python -m benchmarks.frameworks

# What a machine without package registries needs beside Python, a compiler and torch.
bundle: .venv/bin/python
	sh scripts/system-packages $(BUILD_PACKAGES)
	PYTHON=$(CURDIR)/$(BIN)/python scripts/bundle

clean:
	rm -rf .venv .venv-* build dist

# Debian may lack python3-venv: then apt-get installs it.
.venv/bin/python:
	$(PYTHON) -c "import ensurepip, venv" 2>/dev/null || sh scripts/system-packages python3-venv
	$(PYTHON) -m venv .venv

# torch is installed first and pinned, so that no other package chooses a different build.
.venv/requirements: .venv/bin/python constraints.txt
	sh scripts/system-packages $(BUILD_PACKAGES)
	$(PIP) torch==2.13.0
	$(PIP) numpy tqdm cmake ninja pybind11 scikit-build-core
	touch $@

# RelWithDebInfo makes the sanitizers' reports name source lines.
.venv/installed: .venv/requirements pyproject.toml CMakeLists.txt $(SOURCES) $(HEADERS)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) --no-build-isolation --no-deps -e . \
	    --config-settings=cmake.build-type=$(if $(SANITIZE),RelWithDebInfo,Release) \
	    --config-settings=cmake.define.PYCKPT_WERROR=ON \
	    --config-settings=cmake.define.PYCKPT_SANITIZE=$(SANITIZE)
	touch $@

.venv/installed-test: .venv/installed tests/requirements-composer.txt
	sh scripts/system-packages $(TEST_PACKAGES)
	$(PIP) "deepspeed>=0.14" backports.zstd hypothesis pytest pytest-timeout pytest-xdist coolname "importlib-metadata<9" \
	    packaging pillow "psutil<8" py-cpuinfo "pyyaml<7" "requests<3" "tqdm<5" boto3 fsspec "moto[server]"
	$(PIP) --no-deps -r tests/requirements-composer.txt
	touch $@

.venv-%/installed: tests/integrations/%/requirements.txt | .venv/installed-test
	scripts/framework-environment .venv-$* $<
	touch $@

.venv/installed-check: .venv/installed
	sh scripts/system-packages $(CHECK_PACKAGES)
	$(PIP) ruff mypy
	touch $@
