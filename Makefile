# `make` alone lists the targets. The system's Node only runs npm: everything else runs on Node 24, which comes
# with the npm package `node`.

SYSTEM_PATH := $(PATH)
export PATH := $(CURDIR)/node_modules/node/bin:$(CURDIR)/node_modules/.bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help install build packages demo test test-unit test-peers test-kubernetes test-node test-faults soak check format bench bench-start bench-deploy dashboard-picture image clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: node_modules/.installed packages build/program/ipdr-agent.js ## install what is missing: npm packages, Debian packages, Node 24

build: node_modules/.installed build/program/ipdr-agent.js ## make the programs of the sources, in build/program; they start faster, in less memory

demo: install ## publish an image of Debian, python3 and numpy to IPFS and run it lazily
	@node test/support/remove-leftovers.ts
	@node test/demo/demo.ts $(DEMO_FLAGS)

test: install ## run the tests, but for those of test-peers, test-kubernetes and test-node; as root, against a real containerd
	@node test/support/remove-leftovers.ts
	@vitest run --dir test --testTimeout=60000 --hookTimeout=180000 --expect.poll.timeout=20000 --exclude 'peers/**' --exclude 'kubernetes/**' --exclude 'node/**' $(TEST_FLAGS)

test-unit: build ## run the tests that need no containerd
	@vitest run --dir test --testTimeout=60000 --hookTimeout=180000 --expect.poll.timeout=20000 --exclude '**/system/**' --exclude '**/faults/**' --exclude 'peers/**' --exclude 'kubernetes/**' --exclude 'node/**' $(TEST_FLAGS)

test-peers: install ## run the tests with peers that Go builds first: containerd 2.4, kube-apiserver, stargz-snapshotter
	@node test/support/remove-leftovers.ts
	@node test/support/build-go-programs.ts stargz-snapshotter kube-apiserver kube-controller-manager connect-go containerd containerd-shim-runc-v2 ctr
	@vitest run --dir test/peers --testTimeout=60000 --hookTimeout=180000 --expect.poll.timeout=20000 $(TEST_FLAGS)

test-kubernetes: install ## run the tests with a whole Kubernetes on this machine, which Go builds first
	@node test/support/remove-leftovers.ts
	@node test/support/build-go-programs.ts kube-apiserver kube-controller-manager kube-scheduler kubelet critest nonewprivs
	@vitest run --dir test/kubernetes --testTimeout=60000 --hookTimeout=180000 --expect.poll.timeout=20000 $(TEST_FLAGS)

test-node: install ## boot a whole node, Debian 13 with its systemd, in QEMU without KVM; needs qemu-system-x86 and an idle machine
	@test/support/install/qemu.sh
	@node test/support/remove-leftovers.ts
	@vitest run --dir test/node --testTimeout=600000 --hookTimeout=1200000 --expect.poll.timeout=20000 $(TEST_FLAGS)

test-faults: install ## 500 kills and other faults at random points; prints its seed, FAULT_SEED=n repeats it, about an hour
	@node test/support/remove-leftovers.ts
	@FAULTS=$${FAULTS:-500} FAULT_SEED=$${FAULT_SEED:-$$(date +%s)} vitest run --dir test/faults --testTimeout=60000 --hookTimeout=180000 --expect.poll.timeout=20000 kills $(TEST_FLAGS)

soak: install ## an hour of images that start and stop while faults strike now and then; SOAK_MINUTES=n, FAULT_SEED=n
	@node test/support/remove-leftovers.ts
	@SOAK_MINUTES=$${SOAK_MINUTES:-60} FAULT_SEED=$${FAULT_SEED:-$$(date +%s)} vitest run --dir test/faults --testTimeout=60000 --hookTimeout=180000 --expect.poll.timeout=20000 soak $(TEST_FLAGS)

check: node_modules/.installed ## check types, lint and format
	@npm run --silent check

format: node_modules/.installed ## mend format and order of imports
	@npm run --silent format

bench: install ## measure, and print each figure beside its limit
	@node test/support/remove-leftovers.ts
	@node test/bench/bench.ts

bench-start: install ## measure how long until containers are ready, beside other snapshotters, behind slow links; hours
	@node test/support/remove-leftovers.ts
	@node test/bench/start/bench-start.ts $(BENCH_FLAGS)

bench-deploy: install ## measure the deploy endpoint: deployments in a Kubernetes API that Go builds first, connections, calls; ten minutes
	@node test/support/remove-leftovers.ts
	@node test/support/build-go-programs.ts kube-apiserver kube-controller-manager
	@node test/bench/deploy/bench-deploy.ts $(BENCH_FLAGS)

dashboard-picture: install ## draw docs/dashboard.png: the Grafana dashboard over two nodes at work; needs chromium and prometheus
	@test/dashboard-picture/install.sh
	@node test/support/remove-leftovers.ts
	@node test/dashboard-picture/draw.ts

image: install ## build an image of the agent, an OCI layout in build/image; the same input gives the same digest
	@node node-image/build-image.ts

clean: ## remove what was built and what an interrupted run left behind; keeps node_modules
	@if [ -d node_modules ]; then node test/support/remove-leftovers.ts; fi
	@rm -rf build

SOURCES := $(shell find agent snapshotter proto -name '*.ts') node-image/build-program.ts package-lock.json
build/program/ipdr-agent.js: node_modules/.installed $(SOURCES)
	@node node-image/build-program.ts

# npm removes node_modules, and with it Node 24 and this mark, whenever it installs anew.
node_modules/.installed: export PATH := $(SYSTEM_PATH)
node_modules/.installed: package.json package-lock.json test/support/install/npm.sh
	@test/support/install/npm.sh
	@touch $@

# Asks dpkg every time, in a tenth of a second: the machine may have changed since.
packages:
	@test/support/install/packages.sh
	@test/support/install/unpack.sh build/debian
