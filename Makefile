# GNU make. `make` alone lists the targets.

RUN_PACKAGES := libbpf1 python3-venv
BUILD_PACKAGES := python3-bpfcc
PACKAGES := $(RUN_PACKAGES) $(BUILD_PACKAGES) gcc libc6-dev clang-format openssl util-linux logrotate systemd systemd-container
KERNEL_PACKAGES := qemu-system-x86 qemu-system-arm iproute2 debian-archive-keyring mmdebstrap \
    gcc-aarch64-linux-gnu libc6-dev-arm64-cross \
    gcc-arm-linux-gnueabihf libc6-dev-armhf-cross
RUNTIME_PACKAGES := nodejs default-jdk-headless
TEST_PACKAGES := chromium-headless-shell gdb musl-tools
CENTRE_PACKAGES := postgresql iproute2
MONITORING_PACKAGES := prometheus prometheus-alertmanager
REPORT_PACKAGES := $(TEST_PACKAGES) pngquant
PICTURE_PACKAGES := $(REPORT_PACKAGES) fonts-inter-variable
BENCH_PACKAGES := bpftrace linux-perf strace
DEB_PACKAGES := debhelper dh-python dpkg-dev
DEB_TEST_PACKAGES := $(DEB_PACKAGES) default-jdk-headless mmdebstrap lintian systemd-container debian-archive-keyring
RELAY_PROGRAMS := systemd-journal-remote rsyslog rsyslog-relp
RELAY_PACKAGES = $(RELAY_PROGRAMS) $(sort $(shell apt-cache depends $(RELAY_PROGRAMS) | \
    awk '$$2 ~ /^lib(microhttpd|estr|fastjson|lognorm|relp)/ { print $$2 }'))
PYTHON := .venv/bin/python
MINUTES := 60
C_SOURCES := $(sort $(shell find bpf tests/assets -name '*.[ch]'))
READY := .venv/.ready
CENTRE := .venv/.centre
ECS_VERSION := 9.4.0
ECS := .venv/share/ecs-$(ECS_VERSION).json
OBJECT := bpf/seal_monitor.object
NATIVE := $(shell dpkg --print-architecture 2>/dev/null)
ARCH := $(NATIVE)
PROMETHEUS := $(addprefix .venv/,$(addprefix bin/,prometheus prometheus-alertmanager promtool amtool) \
    $(addprefix share/prometheus/etc/,prometheus/prometheus.yml default/prometheus-alertmanager))

RELAY := $(addprefix .venv/lib/relay/,lib/systemd/systemd-journal-remote usr/sbin/rsyslogd)

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PREFIX := /usr/local
DESTDIR :=
DEB_VERSION :=
PROGRAM := $(PREFIX)/lib/seal-monitor
DASHBOARDS := $(sort $(wildcard dashboards/*.json dashboards/*.yml dashboards/rules/*.yml dashboards/provisioning/*/*.yml \
    dashboards/fleet/*.sql dashboards/fleet/*.yaml dashboards/fleet/questions/*.sql))
# File below systemd/, docs/ or dashboards/ and where it goes. systemd and man look below /usr and /usr/local.
INSTALLED := \
    systemd/seal-monitor.service:$(PREFIX)/lib/systemd/system/seal-monitor.service \
    systemd/seal-monitor.sysusers:$(PREFIX)/lib/sysusers.d/seal-monitor.conf \
    systemd/seal-monitor.tmpfiles:$(PREFIX)/lib/tmpfiles.d/seal-monitor.conf \
    systemd/seal-monitor.catalog:$(PREFIX)/lib/systemd/catalog/seal-monitor.catalog \
    systemd/example.conf:$(PREFIX)/share/doc/seal-monitor/example.conf \
    docs/config.example.toml:$(PREFIX)/share/doc/seal-monitor/config.example.toml \
    docs/seal-monitor.8:$(PREFIX)/share/man/man8/seal-monitor.8 \
    docs/completions/seal-monitor.bash:$(PREFIX)/share/bash-completion/completions/seal-monitor \
    $(foreach page,$(sort $(wildcard docs/*.md)),$(page):$(PREFIX)/share/doc/seal-monitor/$(notdir $(page))) \
    $(foreach file,$(wildcard dashboards/fleet/*.json),$(file):$(PREFIX)/share/doc/seal-monitor/fleet/$(notdir $(file))) \
    $(foreach file,$(DASHBOARDS),$(file):$(PREFIX)/share/seal-monitor/$(file:dashboards/%=%))
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: help setup object demo run doctor test test-kernels lint check bench bench-centre bench-fleet instructions soak docs pictures report-picture install uninstall deb test-deb release-check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' Makefile

setup: $(READY) ## install what is missing (Debian packages as root, .venv, compiled programs); does nothing twice
	@$(compile)
	@$(PYTHON) -m compileall -q monitor

object: setup ## compile the programs for another processor: ARCH=arm64 or amd64; writes build/ARCH/
	@/usr/bin/python3 -m monitor.kernel.compiler object build/$(ARCH)/$(notdir $(OBJECT)) $(ARCH)
	@ls build/$(ARCH)/$(notdir $(OBJECT))

demo: setup ## show every violation that this host can make, and what the monitor says of it
	@.venv/bin/seal-monitor demo $(ARGS)

run: setup ## watch in the foreground until Ctrl-C; flags by ARGS="--output json"
	@.venv/bin/seal-monitor run $(ARGS)

doctor: setup ## show what this host can and can't do
	@.venv/bin/seal-monitor doctor $(ARGS)

test: setup $(PROMETHEUS) $(CENTRE) $(ECS) $(RELAY) ## run the tests; those that need root and BPF are skipped without
	@$(call install,$(TEST_PACKAGES) $(RUNTIME_PACKAGES))
	$(PYTHON) tests/suite.py $(ARGS)

test-kernels: setup ## run the kernel tests on other kernels, in emulated machines
	@$(call install,$(KERNEL_PACKAGES) $(DEB_PACKAGES))
	@$(PYTHON) tests/vm/matrix.py $(ARGS)

lint: setup ## check style, types and words
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy
	clang-format --dry-run -Werror $(C_SOURCES)
	$(PYTHON) tests/words.py

check: lint test ## setup, lint, test

bench: setup ## measure what watching costs, next to other observers; writes docs/cost.md
	@$(call install,$(BENCH_PACKAGES))
	$(PYTHON) tests/bench.py --write docs/cost.md $(ARGS)

bench-centre: setup $(CENTRE) ## load a million events into the databases of dashboards/fleet; writes the figures in docs/fleet.md
	$(PYTHON) tests/bench_centre.py --write docs/fleet.md $(ARGS)

bench-fleet: setup $(PROMETHEUS) ## measure what 1,000 hosts cost Prometheus, in 16 minutes; writes docs/fleet-cost.md
	$(PYTHON) tests/bench_fleet.py --write docs/fleet-cost.md $(ARGS)

soak: setup ## watch a steady load for MINUTES=60, then an attacker; counts must be exact, nothing may grow
	$(PYTHON) tests/soak.py --minutes $(MINUTES)

instructions: setup ## count the instructions of each call again, in an emulated machine; ARCH=arm64, too
	@$(call install,$(KERNEL_PACKAGES) $(DEB_PACKAGES))
	$(PYTHON) tests/vm/instructions.py --write $(ARCH)

docs: setup ## regenerate the pages that are made from the code
	$(PYTHON) -m monitor.metrics >docs/metrics.md.new
	mv docs/metrics.md.new docs/metrics.md
	$(PYTHON) -m monitor.formats >docs/formats.md.new
	mv docs/formats.md.new docs/formats.md
	$(PYTHON) dashboards/generate.py

pictures: setup $(PROMETHEUS) $(CENTRE) ## draw the dashboards with Grafana's front end; needs npm, 560 MB; ARGS='--keep --all'
	@command -v npm >/dev/null || { echo "npm is missing; it comes with Node.js, 20.19 or later" >&2; exit 1; }
	@$(call install,$(PICTURE_PACKAGES))
	$(PYTHON) tests/pictures.py $(ARGS)

report-picture: setup ## draw docs/report.png, the page of an incident
	@$(call install,$(REPORT_PACKAGES))
	$(PYTHON) tests/report_picture.py

install: ## install the service below PREFIX (/usr/local); DESTDIR for a staged root
	@$(if $(DESTDIR),,$(call install,$(RUN_PACKAGES) $(BUILD_PACKAGES)))
	@umask 022; new='$(DESTDIR)$(PROGRAM).new'; made='build/lib build/bdist.*'; rm -rf "$$new" $$made; mkdir -p "$${new%/*}"; \
	trap 'rm -rf "$$new" $$made *.egg-info' EXIT; \
	/usr/bin/python3 -m venv --system-site-packages "$$new"; \
	"$$new/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --compile .; \
	sed -i "1s|^#!.*|#!$(PROGRAM)/bin/python|" "$$new/bin/seal-monitor"; \
	rm -rf '$(DESTDIR)$(PROGRAM)'; mv "$$new" '$(DESTDIR)$(PROGRAM)'
	@umask 022; install -d '$(DESTDIR)$(PREFIX)/bin'; \
	ln -sfn ../lib/seal-monitor/bin/seal-monitor '$(DESTDIR)$(PREFIX)/bin/seal-monitor'; \
	for pair in $(INSTALLED); do \
	    [[ ! -e $${pair%%:*} ]] || install -D -m 0644 "$${pair%%:*}" "$(DESTDIR)$${pair#*:}"; \
	done; \
	sed -i 's|/usr/local/|$(PREFIX)/|g' $(foreach file,lib/systemd/system/seal-monitor.service \
	    share/doc/seal-monitor/example.conf share/man/man8/seal-monitor.8 \
	    $(patsubst dashboards/%,share/seal-monitor/%,$(filter %.yml,$(DASHBOARDS))),'$(DESTDIR)$(PREFIX)/$(file)'); \
	[[ -e '$(DESTDIR)/etc/logrotate.d/seal-monitor' ]] || \
	    install -D -m 0644 systemd/seal-monitor.logrotate '$(DESTDIR)/etc/logrotate.d/seal-monitor'; \
	install -d '$(DESTDIR)/etc/seal-monitor/config.d'; \
	[[ -e '$(DESTDIR)/etc/seal-monitor/config.toml' ]] || \
	    install -D -m 0644 docs/config.example.toml '$(DESTDIR)/etc/seal-monitor/config.toml'
	@$(if $(DESTDIR),,$(call refresh_systemd,installed))

uninstall: ## stop the service and remove what install put there, but not settings and logs
	@if [[ -z '$(DESTDIR)' && -d /run/systemd/system ]]; then \
	    systemctl disable --now --quiet seal-monitor.service || true; \
	fi
	@for pair in $(INSTALLED); do rm -f "$(DESTDIR)$${pair#*:}"; done
	@rm -rf '$(DESTDIR)$(PROGRAM)' '$(DESTDIR)$(PREFIX)/share/doc/seal-monitor' \
	    '$(DESTDIR)$(PREFIX)/share/seal-monitor'
	@rm -f '$(DESTDIR)$(PREFIX)/bin/seal-monitor'
	@$(if $(DESTDIR),,$(call refresh_systemd))

deb: ## build the Debian package: build/seal-monitor_*.deb; ARCH=arm64 for another processor
	@$(call install,$(DEB_PACKAGES) $(BUILD_PACKAGES))
	@systemd/debian/build-package build "$(DEB_VERSION)" $(ARCH)
	@ls build/seal-monitor_*_$(ARCH).deb

ifeq ($(ARCH),$(NATIVE))
test-deb: setup ## install, start, upgrade and remove the package in real trees of Debian; ARCH=arm64, too
	@$(call install,$(DEB_TEST_PACKAGES))
	$(PYTHON) -m pytest tests/package $(ARGS)
else
test-deb: setup
	@$(call install,$(KERNEL_PACKAGES) $(DEB_PACKAGES))
	$(PYTHON) tests/vm/matrix.py --only "$(ARCH) package"
endif

release-check: setup ## check what must hold before a version is tagged
	@$(call install,$(DEB_PACKAGES) $(BUILD_PACKAGES) lintian)
	@$(PYTHON) tests/release.py

clean: ## remove everything that make has made
	rm -rf .venv build $(OBJECT) *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# Where systemd runs: make the user and directories when installing, and have the units read again.
define refresh_systemd
if [[ -d /run/systemd/system ]]; then \
    $(if $(1),systemd-sysusers seal-monitor.conf; systemd-tmpfiles --create seal-monitor.conf;) \
    journalctl --update-catalog; \
    systemctl daemon-reload; \
fi
endef

# The BPF programs for every kernel, and the generated C for readers. By Debian's Python, which has bcc.
define compile
/usr/bin/python3 -m monitor.kernel.compiler object $(OBJECT) || (( EUID )) || exit 1; \
mkdir -p build; /usr/bin/python3 -m monitor.kernel.compiler definitions >build/definitions.h
endef

# Debian packages, where they are missing.
define install
command -v dpkg-query >/dev/null || { \
    echo "make can only install packages on Debian and its kin; it needs: $(1)" >&2; exit 1; }; \
missing=(); for package in $(1); do \
    state=$$(dpkg-query -W -f '$${db:Status-Abbrev}' "$$package" 2>/dev/null || true); \
    [[ $$state == ii* ]] || missing+=("$$package"); \
done; \
if (( $${#missing[@]} )); then \
    if (( EUID )); then \
        echo "missing packages: run make as root, or: apt-get install $${missing[*]}" >&2; \
        exit 1; \
    fi; \
    echo "installing $${missing[*]}"; \
    apt-get update -qq; \
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        "$${missing[@]}" </dev/null >/dev/null; \
fi
endef

$(READY): pyproject.toml
	@$(call install,$(PACKAGES))
	@echo "making .venv"
	@{ $(compile); } & \
	/usr/bin/python3 -m venv --system-site-packages .venv; \
	$(PYTHON) -m pip install --quiet --quiet --disable-pip-version-check --no-input --editable '.[dev]'; \
	wait $$!; touch $@

# The published schema, field by field, for the test of events in that format.
$(ECS): | $(READY)
	@echo "fetching the Elastic Common Schema"
	@directory=$$(mktemp -d); trap 'rm -rf "$$directory"' EXIT; cd "$$directory"; \
	{ npm pack --silent @elastic/ecs@$(ECS_VERSION) >/dev/null && tar -xf elastic-ecs-$(ECS_VERSION).tgz && \
	node -p 'JSON.stringify(require("./package/generated/ecs_flat.js").EcsFlat)' >ecs.json && \
	install -D -m 0644 ecs.json $(CURDIR)/$@; } || \
	    echo "cannot fetch @elastic/ecs with npm; the test that needs it is skipped" >&2

# From the packages, without installing them: installed, they would start servers.
$(PROMETHEUS) &: | $(READY)
	@echo "fetching prometheus, alertmanager and their tools"
	@directory=$$(mktemp -d); trap 'rm -rf "$$directory"' EXIT; cd "$$directory"; \
	fetch() { apt-get download -qq -o APT::Sandbox::User=root $(MONITORING_PACKAGES) 2>/dev/null; }; \
	fetch || { if (( ! EUID )); then apt-get update -qq && fetch; fi; } || { \
	    echo "cannot fetch $(MONITORING_PACKAGES); tests that need them are skipped" >&2; \
	    exit 0; }; \
	for package in *.deb; do dpkg --fsys-tarfile "$$package" | tar -x ./usr ./etc; done; \
	install -D -m 0644 -t $(CURDIR)/.venv/share/prometheus/alertmanager usr/share/prometheus/alertmanager/*.tmpl; \
	for file in etc/prometheus/prometheus.yml etc/default/prometheus-alertmanager; do \
	    install -D -m 0644 "$$file" "$(CURDIR)/.venv/share/prometheus/$$file"; \
	done; \
	mv $(patsubst .venv/%,usr/%,$(filter .venv/bin/%,$(PROMETHEUS))) $(CURDIR)/.venv/bin

# The engines of the tests of dashboards/fleet. Debian's package would make and start a server of its own.
$(CENTRE): pyproject.toml | $(READY)
	@(( EUID )) || [[ -e /etc/postgresql-common/createcluster.conf ]] || install -D -m 0644 <(echo create_main_cluster = false) \
	    /etc/postgresql-common/createcluster.conf
	@$(call install,$(CENTRE_PACKAGES))
	@echo "installing the engines of the centre's tests"
	@$(PYTHON) -m pip install --quiet --quiet --disable-pip-version-check --no-input --editable '.[centre]'; touch $@

# Not installed either: they would listen on all addresses, or read the host's journal.
$(RELAY) &: | $(READY)
	@echo "fetching $(RELAY_PROGRAMS)"
	@directory=$$(mktemp -d); trap 'rm -rf "$$directory"' EXIT; cd "$$directory"; \
	apt-get download -qq -o APT::Sandbox::User=root $(RELAY_PACKAGES) 2>/dev/null || { \
	    echo "cannot fetch $(RELAY_PROGRAMS); their tests are skipped" >&2; exit 0; }; \
	for package in *.deb; do dpkg --fsys-tarfile "$$package" | tar -x --transform 's|^\./usr/lib/systemd|./lib/systemd|'; done; \
	rm *.deb; mkdir -p $(CURDIR)/.venv/lib/relay; cp -r . $(CURDIR)/.venv/lib/relay; touch $(addprefix $(CURDIR)/,$(RELAY))
