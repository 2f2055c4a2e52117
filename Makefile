# How keysidecar is built, tested and checked: `make help`.
# run, build and test need Go and make, and nothing else.

MAKEFLAGS += --no-builtin-rules
.SHELLFLAGS := -eu -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

BIN := .tmp/bin
# Modules of their own, so that what they need reaches no user.
TEST_MODULES := $(patsubst %/go.mod,%,$(wildcard test/*/go.mod)) bench
# What `make generate` writes. checkgenerate compares all of it.
GENERATED = find proto docs config test/vectors -type f

# Measure each benchmark, and fuzz each target, this long.
BENCHTIME ?= 1s
FUZZTIME ?= 10s
# The vulnerability database; a file:// URL works without a network.
VULNDB ?= https://vuln.go.dev
# `make commits` checks the subjects of $(BASE)..HEAD.
BASE ?= @{upstream}

.PHONY: help
help: ## Print this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sort | awk -F ':.*## ' '{ printf "  %-17s %s\n", $$1, $$2 }'

.PHONY: build
build: ## Build bin/keysidecar
	go build -trimpath -o bin/keysidecar ./cmd/keysidecar

.PHONY: run
run: build ## Show the main job, end to end, with an embedded Key Vault
	@sh docs/demo.sh bin/keysidecar

.PHONY: test
test: $(BIN)/noskip ## Run all tests that need only Go; fail if one was skipped
	$(BIN)/noskip ./...
	for m in $(TEST_MODULES); do (cd "$$m" && $(CURDIR)/$(BIN)/noskip ./...); done

.PHONY: test-race
test-race: $(BIN)/noskip ## The same with the race detector, but for bench; needs a C compiler
	@command -v "$$(go env CC)" >/dev/null || { echo "make test-race: no C compiler: install gcc, or set CC" >&2; exit 1; }
	CGO_ENABLED=1 $(BIN)/noskip -race ./...
	for m in $(filter-out bench,$(TEST_MODULES)); do (cd "$$m" && CGO_ENABLED=1 $(CURDIR)/$(BIN)/noskip -race ./...); done

.PHONY: test-secret
test-secret: $(BIN)/noskip ## The tests of what handles keys, with runtime/secret as in official builds
	GOEXPERIMENT=runtimesecret $(BIN)/noskip ./internal/secret ./internal/cobblestone ./envelope ./dek

.PHONY: test-integration
test-integration: ## Tests that need more than Go; installs it as root on Debian
	sh test/integration.sh

.PHONY: bench
bench: ## Measure the hot paths, and compare them with their bars (BENCHFLAGS=-quick)
	go test -run '^$$' -bench . -benchmem -benchtime $(BENCHTIME) ./...
	cd bench && go run ./cmd/bench $(BENCHFLAGS)

.PHONY: fuzz
fuzz: ## Fuzz every target for FUZZTIME (10s)
	FUZZTIME=$(FUZZTIME) sh test/fuzz.sh

.PHONY: lint
lint: $(BIN)/golangci-lint $(BIN)/buf ## Check style, the wire API, and that go.mod is tidy
	$(BIN)/buf lint
	$(BIN)/buf breaking --against proto/baseline.binpb
	for m in . $(TEST_MODULES); do (cd "$$m" && go mod tidy -diff && $(CURDIR)/$(BIN)/golangci-lint run ./...); done

.PHONY: vuln
vuln: $(BIN)/govulncheck ## Look for known vulnerabilities that this program can reach
	$(BIN)/govulncheck -db $(VULNDB) ./...

.PHONY: commits
commits: ## Check the commit subjects of BASE..HEAD
	sh test/commits.sh "$(BASE)..HEAD"

.PHONY: generate
generate: $(BIN)/buf $(BIN)/protoc-gen-go $(BIN)/protoc-gen-go-grpc ## Write all generated files again
	$(BIN)/buf generate
	go generate ./...
	go test ./envelope -run TestVectorsCurrent -update

.PHONY: checkgenerate
checkgenerate: ## Fail if `make generate` changes anything
	@mkdir -p .tmp
	$(GENERATED) | sort | xargs cksum > .tmp/before
	$(MAKE) generate
	$(GENERATED) | sort | xargs cksum > .tmp/after
	diff .tmp/before .tmp/after || { echo "make generate changed these files: commit them" >&2; exit 1; }

.PHONY: baseline
baseline: $(BIN)/buf ## Accept the wire API of now: `make lint` compares with it
	$(BIN)/buf build --exclude-source-info -o proto/baseline.binpb

# Tools are built from pinned versions into .tmp/bin. Some take minutes, once.
TOOLS := $(BIN)/buf $(BIN)/protoc-gen-go-grpc $(BIN)/golangci-lint $(BIN)/govulncheck
.PHONY: tools
tools: $(TOOLS) $(BIN)/protoc-gen-go ## Build the tools that the other targets use

$(BIN)/buf: PACKAGE := github.com/bufbuild/buf/cmd/buf
$(BIN)/protoc-gen-go-grpc: PACKAGE := google.golang.org/grpc/cmd/protoc-gen-go-grpc
$(BIN)/golangci-lint: PACKAGE := github.com/golangci/golangci-lint/v2/cmd/golangci-lint
$(BIN)/govulncheck: PACKAGE := golang.org/x/vuln/cmd/govulncheck
$(TOOLS): tools/go.mod tools/go.sum
	cd tools && CGO_ENABLED=0 go build -o ../$@ $(PACKAGE)
	touch $@

# Of the root module: generated code and the runtime it needs are of one version.
$(BIN)/protoc-gen-go: go.mod
	go build -o $@ google.golang.org/protobuf/cmd/protoc-gen-go
	touch $@

$(BIN)/noskip: $(wildcard test/noskip/*)
	cd test/noskip && go build -o ../../$@ .
	touch $@
