# `make` lists what there is. `make demo` and `make test` set up all they need by themselves (tools/bootstrap).

VENV := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo test test-plugins test-kernels test-kernels-all test-kubernetes test-kubelets test-flanneld test-change test-change-all simulate planted chaos lint docs wheel release deb bench bench-peers clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## an overlay of three nodes on this machine, from the first packet to the clean-up
	@tools/bootstrap demo
	@$(VENV)/pyflannel lab --nodes 3 --backend vxlan --store file

test: ## lint, types, documentation, unit and integration tests, the package: what tox.ini runs by default
	@tools/bootstrap test
	@rm -rf .tox/junit; mkdir -p .tox; chmod 755 .tox  # tests run it as another user too
	@status=0; \
	$(VENV)/tox run-parallel --parallel 2 --parallel-no-spinner --skip-env integration || status=$$?; \
	$(VENV)/tox run -e integration || status=$$?; \
	$(VENV)/python tools/summary.py .tox/junit || status=1; exit $$status

test-plugins: ## the plugin kit itself and what third parties make with it: examples, scaffold, tutorial (minutes)
	@tools/bootstrap test
	@$(VENV)/tox run -e plugins

test-kernels: ## the backends on other kernels, in machines inside this one (minutes; Debian 12, x86_64)
	@tools/bootstrap kernels
	@$(VENV)/tox run -e kernels

test-kernels-all: ## the same, with the long tests
	@tools/bootstrap kernels
	@$(VENV)/tox run -e kernels -- -m "long or not long"

simulate: ## whole clusters in one process, one history for each of SEEDS (default 0-499; --store etcd and others: OPTIONS)
	@tools/bootstrap demo
	@$(VENV)/python -m pyflannel.testing.simulation $(or $(SEEDS),0-499) --progress 50 $(OPTIONS)

planted: ## the bugs planted into daemons, and in how many simulated histories each is found
	@tools/bootstrap test
	@$(VENV)/python -m tests.unit.testing.simulation.table

chaos: ## 12 real nodes on real etcd, Consul and files, random faults, a page about it (minutes; --minutes and others: OPTIONS)
	@tools/bootstrap chaos
	@$(VENV)/python -m tests.chaos --report .tox/chaos $(OPTIONS)

test-change: ## a running network from every backend to every other one, on every store, daemons killed (minutes)
	@tools/bootstrap test
	@$(VENV)/tox run -e change

test-change-all: ## the same with the long tests: two families on every store, 50 nodes
	@tools/bootstrap test
	@$(VENV)/tox run -e change -- -m "long or not long"

test-kubernetes: ## the store for Kubernetes on a real API server, which is built first (Go 1.24; minutes, once)
	@tools/bootstrap kubernetes
	@$(VENV)/tox run -e kubernetes

test-kubelets: ## whole clusters: kubelets, containerd, the pods of the manifests, beside kube-flannel's (built first, too)
	@tools/bootstrap kubelets
	@$(VENV)/tox run -e kubelets

test-flanneld: ## a real flanneld 0.28.10 in one cluster with ours; it is built first (Go 1.26; minutes, once)
	@tools/bootstrap flanneld
	@$(VENV)/tox run -e flanneld

lint: ## style and types only
	@tools/bootstrap demo
	@$(VENV)/tox run -e lint,types

docs: ## the documentation site, in .tox/site/index.html
	@tools/bootstrap demo
	@$(VENV)/tox run -e docs

wheel: ## a wheel of this checkout, in dist/
	@tools/bootstrap demo
	@$(VENV)/python -m pip wheel --quiet --no-deps --wheel-dir dist . && ls dist/*.whl

release: ## all that a release publishes, built and checked, in dist/release/
	@tools/bootstrap test
	@$(VENV)/tox run -e release

deb: ## a Debian package of this checkout, in dist/: built, judged by lintian, installed on a throw-away layer
	@tools/bootstrap deb
	@rm -f dist/*.deb; PYFLANNEL_PIP="$(abspath $(VENV)/python) -m pip" tools/build-deb dist
	@tools/check-deb dist/*.deb

bench: ## measure: overlays next to each other, start-up and programming next to iproute2's batch mode
	@tools/bootstrap bench
	@for file in benchmarks/*.py; do echo "== $$file"; $(VENV)/python $$file || exit; done

bench-peers: ## install other overlay programs, for `make bench` to compare with (wireguard-go is built where Go is)
	@tools/bootstrap peers

clean: ## remove what the other targets made here, .venv too (system packages stay)
	@rm -rf .venv .tox .cache build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find backends -name '*.so' -delete
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
